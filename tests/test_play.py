"""The playground: its numbers against the library's, its pictures, uploads, and whom it answers."""

import base64
import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from casemate import data, models
from casemate.attacks import BIM, FGSM, PGD
from casemate.cli.play.request import PlayRequest
from casemate.cli.play.run import prepare
from casemate.data import fashion_mnist
from casemate.data.fashion_mnist import CLASSES, first_test_images
from casemate.defenses import at_temperature
from casemate.errors import DataError, ModelError, RecordError, SettingError
from casemate.norms import Norm
from casemate.play.answers import Answers
from casemate.play.explore import ATTACKS, MOST_STEPS, AttackChoice, explore, masking, smallest_eps
from casemate.play.pictures import MOST_BYTES, image_uri, perturbation_uri, read_upload
from casemate.play.study import latest_study, read_study
from casemate.play.subjects import Subject, Subjects, on_one_page, own_subject, packaged_subjects
from casemate.play.views import exploration_view, loss_plot, masking_view, smallest_view
from conftest import TINY_CLASSES, TINY_SHAPE, Listener, tiny_images, tiny_model
from test_study import Run, runner

BOUNDS = (0.0, 1.0)


@pytest.fixture(scope="module")
def subjects() -> Subjects:
    """The models and the images that come with the package."""
    return on_one_page(packaged_subjects(), first_test_images(), CLASSES)


@pytest.fixture(scope="module")
def answers(subjects: Subjects) -> Answers:
    """What the page asks."""
    return Answers(subjects)


def chosen(subjects: Subjects, position: int) -> tuple[torch.Tensor, int]:
    """An image and its class."""
    return subjects.image(position), int(subjects.images.labels[position])


# ---------------------------------------------------------------------------------------------------- explore
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", list(ATTACKS))
def test_the_numbers_are_those_of_the_attack(subjects: Subjects, name: str, norm: Norm) -> None:
    model, (image, label) = subjects.models["undefended"].model, chosen(subjects, 1)
    choice = AttackChoice(attack=name, norm=norm, eps=0.06 if norm == "linf" else 1.0, steps=7)
    found = explore(model, image, label, choice, seed=3)
    result = choice.made(model, image, torch.tensor([label]), seed=3)
    assert torch.equal(found.adversarial, result.adversarial)
    assert found.size == result.norm.item()
    assert found.fooled == bool(result.success.item())
    assert len(found.losses) == len(found.predictions) == (2 if name == "FGSM" else 8)
    with torch.no_grad():
        logits = model(torch.cat([found.clean, found.adversarial])).double()
    torch.testing.assert_close(torch.stack([found.before, found.after]), logits.softmax(1))
    assert [found.predictions[0], found.predictions[-1]] == logits.argmax(1).tolist()
    ends = functional.cross_entropy(logits, torch.tensor([label, label]), reduction="none")
    assert [found.losses[0], found.losses[-1]] == pytest.approx(ends.tolist(), rel=1e-3, abs=1e-5)


def test_an_attack_makes_the_steps_of_its_class(subjects: Subjects) -> None:
    image, label = chosen(subjects, 0)
    model, labels = subjects.models["undefended"].model, torch.tensor([label])
    same = {
        "FGSM": FGSM(eps=0.05, keep="last"),
        "BIM": BIM(eps=0.05, steps=5, keep="last"),
        "PGD": PGD(eps=0.05, steps=5, keep="last"),
    }
    for name, attack in same.items():
        found = explore(model, image, label, AttackChoice(attack=name, eps=0.05, steps=5))
        assert torch.equal(found.adversarial, attack(model, image, labels).adversarial)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"attack": "BIMM"}, "attack = 'BIMM'; expected FGSM, BIM, PGD or MI-FGSM"),
        ({"steps": 0}, "steps = 0"),
        ({"steps": MOST_STEPS + 1}, f"steps = {MOST_STEPS + 1}"),
        ({"eps": -0.1}, "eps = -0.1"),
        ({"norm": "l7"}, "norm = 'l7'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_settings_outside_their_range_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(SettingError, match=re.escape(words)):
        AttackChoice(**settings)  # type: ignore[arg-type]


def test_the_smallest_eps_of_a_linear_model_is_near_the_exact_one() -> None:
    model = tiny_model(name="linear")
    images = tiny_images(6)
    x = data.to_float(images.pixels)
    weight = dict(model.network.named_parameters())["1.weight"].double()
    with torch.no_grad():
        logits = model(x).double()
    for number in range(len(x)):
        label = int(logits[number].argmax())
        others = [each for each in range(3) if each != label]
        pairs: tuple[tuple[Norm, int], ...] = (("linf", 1), ("l2", 2))  # the norm, and the order of its dual
        for norm, size in pairs:
            exact = min(
                ((logits[number, label] - logits[number, each]) / (weight[label] - weight[each]).norm(size)).item()
                for each in others
            )
            found = smallest_eps(model, x[number : number + 1], label, norm)
            assert found is not None
            assert exact <= found * (1 + 1e-4)
            assert found <= 1.1 * exact or x[number].min() == 0 or x[number].max() == 1
        assert smallest_eps(model, x[number : number + 1], others[0], "linf") == 0


def test_bisection_finds_nearer_images_of_a_robust_model_than_one_run(subjects: Subjects) -> None:
    image, label = chosen(subjects, 1)
    found = smallest_eps(subjects.models["certified"].model, image, label, "linf")
    assert found is not None
    assert 0.1 < found < 0.2  # proven robust at 0.1; FMN alone ends at 0.87


def test_a_model_that_is_sure_of_itself_masks_the_gradient_of_its_probabilities(subjects: Subjects) -> None:
    model, (image, label) = subjects.models["undefended"].model, chosen(subjects, 1)
    choice = AttackChoice(attack="BIM", eps=0.05, steps=10)
    found = masking(model, image, label, choice, 100)
    assert found.zero == 1
    assert found.logits.fooled
    assert not found.probabilities.fooled
    assert torch.equal(found.probabilities.adversarial, found.probabilities.clean)
    plain = explore(model, image, label, choice)
    assert found.logits.predictions[0] == plain.predictions[0]
    assert masking(model, image, label, choice, 1).zero < 1


# ---------------------------------------------------------------------------------------------------- pictures
def decoded(uri: str) -> torch.Tensor:
    """The bytes of a picture in a data URI, `(height, width)` or `(height, width, 3)`."""
    raw = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    return torch.from_numpy(np.array(Image.open(io.BytesIO(raw))))


def test_pictures_have_the_pixels_of_the_image() -> None:
    grey = torch.arange(256).view(1, 1, 16, 16) / 255
    assert torch.equal(decoded(image_uri(grey, BOUNDS)), torch.arange(256, dtype=torch.uint8).view(16, 16))
    colour = torch.rand(1, 3, 5, 7)
    assert torch.equal(decoded(image_uri(255 * colour, (0, 255))).permute(2, 0, 1), (255 * colour[0]).round().byte())


def test_perturbations_are_blue_where_darker_and_red_where_brighter() -> None:
    change = torch.tensor([[[[-0.1, 0.0, 0.1, 0.05]]]])
    darker, same, brighter, half = decoded(perturbation_uri(change))[0].tolist()
    assert darker[2] > darker[0]
    assert same == [255, 255, 255]
    assert brighter[0] > brighter[2]
    assert brighter[1] < half[1] < 255
    assert decoded(perturbation_uri(torch.zeros(1, 1, 2, 2))).eq(255).all()
    assert decoded(perturbation_uri(torch.zeros(1, 3, 2, 2))).eq(128).all()


def png(size: tuple[int, int], mode: str = "L", colour: int | tuple[int, ...] = 7) -> bytes:
    """A picture file of one colour."""
    out = io.BytesIO()
    Image.new(mode, size, colour).save(out, "PNG")
    return out.getvalue()


def test_an_uploaded_picture_becomes_an_image_for_the_model() -> None:
    image, done = read_upload(png((28, 28), "L", 51), (1, 28, 28), BOUNDS)
    assert image.shape == (1, 1, 28, 28)
    assert image.eq(0.2).all()
    assert done == []
    image, done = read_upload(png((300, 200), "RGB", (255, 255, 255)), (1, 28, 28), (0, 255))
    assert image.eq(255).all()
    assert done == ["converted from colour to grey"]
    assert read_upload(png((3, 3)), (3, 32, 16), BOUNDS)[0].shape == (1, 3, 32, 16)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "cannot read the picture"),
        (b"not a picture", "cannot read the picture"),
        (png((28, 28))[:40], "cannot read the picture"),
        (b"\0" * (MOST_BYTES + 1), "scale the picture down"),
        (png((9000, 9000)), "million pixels"),  # a bomb: 81 million pixels in 80 kB
        (png((4, 4), "RGBA", (1, 2, 3, 4)), "transparent"),
    ],
)
def test_uploads_that_are_no_sound_picture_are_refused(raw: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_upload(raw, (1, 28, 28), BOUNDS)


def test_a_model_of_other_channels_takes_no_picture() -> None:
    with pytest.raises(DataError, match="5 channels"):
        read_upload(png((4, 4)), (5, 28, 28), BOUNDS)


# ---------------------------------------------------------------------------------------------------- views and answers
def test_a_view_shows_the_numbers(subjects: Subjects) -> None:
    image, label = chosen(subjects, 1)
    found = explore(subjects.models["undefended"].model, image, label, AttackChoice(attack="BIM", eps=0.05, steps=4))
    page = exploration_view(found, CLASSES, BOUNDS)
    for name, before, after in zip(CLASSES, found.before.tolist(), found.after.tolist(), strict=True):
        row = page[page.index(f'<th scope="row">{name}</th>') :].partition("</tr>")[0]
        assert re.findall(r'"number">([\d.]+)<', row) == [f"{100 * before:.1f}", f"{100 * after:.1f}"]
    assert f"{CLASSES[label]} is taken for {CLASSES[found.predictions[-1]]}" in page
    assert page.count("<circle") == 5
    assert page.count('class="wrong"') == sum(each != label for each in found.predictions)


def test_an_attack_without_a_direction_is_not_called_robustness(subjects: Subjects) -> None:
    image, label = chosen(subjects, 1)
    sure = at_temperature(subjects.models["undefended"].model, 0.01)
    found = explore(sure, image, label, AttackChoice(loss="prob-ce"))
    assert not found.fooled
    assert "which says nothing" in exploration_view(found, CLASSES, BOUNDS)


def test_names_of_classes_are_escaped(subjects: Subjects) -> None:
    image, label = chosen(subjects, 1)
    evil = tuple(f"<script>{number}</script>" for number in range(10))
    found = explore(subjects.models["fast"].model, image, label, AttackChoice())
    pages = [exploration_view(found, evil, BOUNDS), smallest_view({"<script>": 0.1}, "linf", 1.0)]
    compared = masking(subjects.models["undefended"].model, image, label, AttackChoice(), 10)
    pages.append(masking_view(compared, evil, BOUNDS))
    assert not any("<script" in page for page in pages)


def test_the_plot_of_a_loss_spans_its_axes() -> None:
    plot = loss_plot([0.0, 1.0, 4.0], [False, False, True])
    assert [point["y"] for point in plot["points"]] == [150.0, 112.5, 0.0]
    assert (plot["first"], plot["last"], plot["top"]) == (2, 2, 4.0)
    assert {point["y"] for point in loss_plot([1e-9, 0.0], [False, False])["points"]} == {150.0}


def test_answers_come_from_the_chosen_model_and_image(answers: Answers) -> None:
    boot = answers.sample("Ankle boot", 1)
    assert boot[1] == CLASSES.index("Ankle boot")
    assert torch.equal(boot[0], answers.subjects.image(0))
    assert torch.equal(answers.sample("Ankle boot", 999)[0], answers.sample("Ankle boot", 100)[0])
    trousers = answers.sample("Trouser", 1)
    pages = {name: answers.attacked(name, trousers, "PGD", "Linf", 0.1, 10) for name in ("undefended", "certified")}
    assert {name: "Fooled" in each for name, each in pages.items()} == {"undefended": True, "certified": False}
    page = answers.smallest(trousers, "Linf")
    sizes = re.findall(r"(?:\d\.\d+)(?=<span)", page)
    exact = [smallest_eps(each.model, *trousers, "linf") for each in answers.subjects.models.values()]
    assert sizes == [f"{eps:.3f}" for eps in exact]
    assert "A masked gradient" in answers.masked("undefended", trousers, 50, 0.1)


def test_a_picture_unlike_the_test_images_can_be_exchanged(answers: Answers) -> None:
    out = io.BytesIO()
    Image.fromarray(255 - first_test_images().pixels[18, 0].numpy()).resize((56, 56)).convert("RGB").save(out, "PNG")
    chosen, said = answers.upload(out.getvalue(), "Bag")
    assert "converted from colour to grey" in said
    assert "scaled to 28 x 28 pixels" in said
    assert "It is much lighter than the test images: exchange black and white" in said
    image, label = answers.shown(chosen, negative=True)
    torch.testing.assert_close(image, 1 - chosen[0])
    assert label == chosen[1]
    assert answers.shown(chosen, negative=False) is chosen
    out = io.BytesIO()
    Image.fromarray(first_test_images().pixels[18, 0].numpy()).save(out, "PNG")
    assert "exchange" not in answers.upload(out.getvalue(), "Bag")[1]


def test_an_error_takes_the_place_of_a_result(answers: Answers) -> None:
    page = answers.attacked("fast", answers.sample("Bag", 1), "PGD", "Linf", 0.1, 10_000)
    assert 'role="alert"' in page
    assert "steps = 10000" in page


def test_the_models_of_the_package_come_with_the_least_robust_first(subjects: Subjects) -> None:
    assert list(subjects.models) == ["undefended", *[name for name in subjects.models if name != "undefended"]]
    assert {*subjects.models} == {*models.pretrained_names()}
    assert "Trained by ibp. 86.3 % of the test images" in subjects.models["certified"].about


def test_models_that_take_other_images_do_not_share_a_page(subjects: Subjects) -> None:
    tiny = Subject(name="tiny", model=tiny_model(), about="")
    with pytest.raises(ModelError, match="10 classes"):
        on_one_page([tiny, subjects.models["fast"]], tiny_images(9), TINY_CLASSES)
    assert on_one_page([tiny], tiny_images(9), TINY_CLASSES).shape == TINY_SHAPE


def test_a_model_of_ones_own_is_shown(tmp_path) -> None:
    path = tmp_path / "tiny.safetensors"
    models.save(tiny_model(), path, models.ModelMetadata(architecture="tiny", dataset="x", recipe={}, seed=0))
    own = own_subject(models.open_model(path))
    found = Answers(on_one_page([own], tiny_images(9), TINY_CLASSES))
    assert own.name in found.smallest(found.sample("middle", 2), "L2")
    assert replace(own, about="x").about == "x"


# ---------------------------------------------------------------------------------------------------- command
@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command, and returns exit code, output and messages."""
    return runner(capsys)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("play --port 0", "--port 0; expected 1 to 65535"),
        ("play --dataset digits", "name your model too"),
        ("play nothing.safetensors", "nothing.safetensors does not exist"),
    ],
)
def test_a_wrong_command_is_an_error(command: str, words: str, run: Run) -> None:
    code, out, err = run(*command.split())
    assert (code, out) == (2, "")
    assert words in err


def test_the_command_shows_ones_own_model_beside_those_that_take_its_images(tmp_path: Path) -> None:
    images = first_test_images()
    np.savez(tmp_path / "own.npz", images=images.pixels.numpy(), labels=images.labels.numpy())
    own = models.create("strided-cnn", input_shape=(1, 28, 28), classes=CLASSES)
    models.save(own, tmp_path / "own.safetensors", models.ModelMetadata(architecture="strided-cnn", dataset="mine"))
    found = prepare(PlayRequest(model=str(tmp_path / "own.safetensors"), data=tmp_path / "own.npz"), Listener())
    assert len(found.subjects.models) == 1 + len(models.pretrained_names())
    assert next(iter(found.subjects.models.values())).about == "Your model."
    assert len(found.subjects.images) == 100
    small = models.create("linear", input_shape=TINY_SHAPE, classes=TINY_CLASSES)
    tiny = tiny_images(9)
    np.savez(tmp_path / "tiny.npz", images=tiny.pixels.numpy(), labels=tiny.labels.numpy())
    models.save(small, tmp_path / "tiny.safetensors", models.ModelMetadata(architecture="linear", dataset="tiny"))
    found = prepare(PlayRequest(model=str(tmp_path / "tiny.safetensors"), data=tmp_path / "tiny.npz"), Listener())
    assert len(found.subjects.models) == 1


def test_without_a_data_set_the_images_of_the_package_are_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path)
    found = prepare(PlayRequest(), Listener())
    assert len(found.subjects.images) == 100
    with pytest.raises(DataError, match="all four files"):
        prepare(PlayRequest(data_dir=tmp_path), Listener())


# ---------------------------------------------------------------------------------------------------- the study
def _report(folder: Path, names: list[str]) -> Path:
    (folder / "figures").mkdir(parents=True)
    figures = [{"name": name, "title": f"Title of {name}", "caption": "Its <b>caption</b>."} for name in names]
    (folder / "summary.json").write_text(json.dumps({"scale": "quick", "figures": figures}))
    for name in names:
        (folder / "figures" / f"{Path(name).name}.svg").write_text(
            f"<svg xmlns='http://www.w3.org/2000/svg'>{name}</svg>"
        )
    return folder


def test_the_figures_of_the_last_study_are_shown(subjects: Subjects, tmp_path: Path) -> None:
    assert latest_study(tmp_path) is None
    old, new = (_report(tmp_path / f"study-{name}", [f"figure-{name}"]) for name in ("old", "new"))
    os.utime(old / "summary.json", (1, 1))
    study = latest_study(tmp_path)
    assert study is not None
    assert study.folder == new
    shown = Answers(subjects, study).figure("Title of figure-new")
    assert "Its &lt;b&gt;caption&lt;/b&gt;." in shown
    (uri,) = re.findall(r"data:image/svg[^\"]+", shown)
    assert b"figure-new" in base64.b64decode(uri.partition(",")[2])
    assert "No study is finished" in Answers(subjects).figure("Title of figure-new")
    (new / "figures" / "figure-new.svg").unlink()
    assert latest_study(tmp_path) == read_study(old)
    with pytest.raises(RecordError, match="write it again by `casemate report`"):
        read_study(new)
    with pytest.raises(RecordError, match=r"summary\.json"):
        read_study(tmp_path)


def test_a_figure_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret.svg").write_text("secret")
    folder = _report(tmp_path / "study-one", ["../../secret"])
    (folder / "figures" / "secret.svg").unlink()
    with pytest.raises(RecordError):
        read_study(folder)
