"""The commands on a user's own images: evaluate, verify, attack, train and `data show`, from a folder of pictures."""

import json
import math
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from casemate.arrays import read_safetensors
from casemate.cli.harden.run import HardenImages, _test_words
from casemate.cli.shared.options import Reading
from casemate.cli.shared.teachers import report_untrained
from casemate.models import ModelMetadata, load, save
from casemate.training import TrainConfig, fit
from conftest import TINY_CLASSES, TINY_SHAPE, Listener, tiny_images, tiny_model
from test_cli import Run, run
from test_record import thirds
from test_sources import png

__all__ = ["run"]

IMAGES = tiny_images(60, noise=90.0)
QUICK = ("--budget", "quick", "--eps", "8/255", "--threads", "1")

pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture(autouse=True)
def _own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A saved model, and the same images as a folder and, with its two parts, as another; commands run beside them."""
    monkeypatch.chdir(tmp_path)
    save(thirds(), Path("model.safetensors"), ModelMetadata(architecture="linear", dataset="tiny"))
    for number, (pixels, label) in enumerate(zip(IMAGES.pixels.numpy(), IMAGES.labels.tolist(), strict=True)):
        for place in (Path("photos"), Path("parts") / ("test" if number % 4 == 0 else "train")):
            (place / TINY_CLASSES[label]).mkdir(parents=True, exist_ok=True)
            (place / TINY_CLASSES[label] / f"{number:02}.png").write_bytes(png(pixels))


def _said(run: Run, *arguments: object, code: int = 0) -> str:
    """All that a command prints, on one line."""
    found, out, err = run(*arguments)
    assert found == code, out + err
    return " ".join((out + err).split())


def test_an_evaluation_on_a_folder_is_sampled_recorded_and_verified(run: Run) -> None:
    printed = _said(run, "evaluate", "model.safetensors", "--data", "photos", "--images", 12, *QUICK)
    assert "photos is sorted by class, so that its first 12 images would be of few classes" in printed
    assert "12 (stratified, seed 0) images" in printed
    result = json.loads(Path("runs/evaluate-model/result.json").read_text())
    assert result["chosen"] == "stratified, seed 0"
    assert {each["class"] for each in result["per_class"]} == set(TINY_CLASSES)
    assert [each["clean_accuracy"]["n"] for each in result["per_class"]] == [4, 4, 4]
    command = printed[printed.index("casemate verify") :].split(" (")[0]
    assert command.endswith("--data photos --subset stratified:0")
    assert "The model is the record's" in _said(run, *shlex.split(command)[1:])
    other = _said(run, *shlex.split(command)[1:-1], "stratified:1", code=3)
    assert "do not hold" in other


def test_first_and_seeds_of_samples(run: Run) -> None:
    attack = ("attack", "fgsm", "model.safetensors", "--data", "photos/", "--eps", "0.1", "--json", "--images")
    found = json.loads(run(*attack, 21, "--subset", "first")[1])
    assert found["dataset"] == "photos"
    assert "chosen" not in found
    found = json.loads(run(*attack, 21, "--subset", "stratified:5")[1])
    assert found["chosen"] == "stratified, seed 5"
    assert found["data_options"] == ["--subset", "stratified:5"]
    assert "chosen" not in json.loads(run(*attack, 60)[1])
    assert "expected first, stratified, or stratified:SEED" in _said(run, *attack, 9, "--subset", "best", code=2)


def test_images_of_another_shape_name_the_options(run: Run) -> None:
    for path in Path("photos").rglob("*.png"):
        with Image.open(path) as image:
            image.convert("RGB").resize((20, 16), Image.Resampling.NEAREST).save(path)
    attack = ("attack", "fgsm", "model.safetensors", "--data", "photos", "--eps", "0.01")
    message = _said(run, *attack, code=2)
    assert "has images of 1 x 16 x 20, but the model takes 1 x 8 x 8; give --resize 8 8, or --resize SIDE" in message
    printed = _said(run, *attack, "--resize", 8, "--crop", 8)
    assert "converted from colour to grey (60 of the images read)" in printed
    assert "expected one side, or height and width" in _said(run, *attack, "--resize", 8, 8, 8, code=2)
    assert "channels 3" not in printed


def test_classes_by_other_names(run: Run) -> None:
    attack = ("attack", "fgsm", "model.safetensors", "--data", "photos", "--eps", "0.01")
    Path("photos/left").rename("photos/lift")
    assert "not among the model's: lift" in _said(run, *attack, code=2)
    Path("photos/middle").rename("photos/m")
    Path("photos/right").rename("photos/n")
    assert "its classes lift, m, n are taken in this order for the model's left, middle, right" in _said(run, *attack)


def test_options_of_own_images_need_them(run: Run) -> None:
    message = _said(run, "attack", "fgsm", "model.safetensors", "--dataset", "digits", "--resize", 8, code=2)
    assert "--resize is about images of your own; give them with --data PATH" in message
    message = _said(run, "train", "--dataset", "digits", "--split", "train", "--out", "made.safetensors", code=2)
    assert "--split is about images of your own; give them with --data PATH" in message


def test_a_contact_sheet_of_own_images(run: Run) -> None:
    assert _said(run, "data", "show", "--data", "photos", "--per-class", 3, "--channels", 3, "--out", "a.png")
    with Image.open("a.png") as sheet:
        assert sheet.width > 100
    np.savez("own.npz", images=IMAGES.pixels.numpy() / 255, labels=IMAGES.labels.numpy())
    assert _said(run, "data", "show", "--data", "own.npz", "--out", "b.png")
    assert "give one of them" in _said(run, "data", "show", "--data", "own.npz", "--dataset", "digits", code=2)


TRAIN = ("train", "--architecture", "tiny", "--epochs", 2, "--batch-size", 8, "--out", "made.safetensors")


def test_training_on_a_folder_with_parts(run: Run) -> None:
    found = json.loads(run(*TRAIN, "--data", "parts", "--json")[1])
    assert (found["train_images"], found["validation_images"], found["test_images"]) == (36, 9, 15)
    model, about = load(Path("made.safetensors"))
    assert model.classes == TINY_CLASSES
    assert about.dataset == "parts"
    message = _said(run, "evaluate", "made.safetensors", *QUICK, code=2)
    assert "the model was trained on 'parts'; give its images with --data PATH" in message
    printed = _said(run, "attack", "fgsm", "made.safetensors", "--data", "parts", "--split", "test", "--eps", "0.1")
    assert "n = 15" in printed


def test_training_sets_a_part_aside_where_there_is_none(run: Run) -> None:
    np.savez("own.npz", images=IMAGES.pixels.numpy(), labels=IMAGES.labels.numpy())
    printed = _said(run, *TRAIN, "--data", "own.npz", "--recipe", "adversarial-training", "--dry-run")
    assert "own.npz has no test images of its own: 12 of 60 were set aside" in printed
    printed = _said(run, *TRAIN, "--data", "photos", "--start", "model.safetensors", code=2)
    assert "tiny is expected" in printed
    found = json.loads(run(*TRAIN[:1], *TRAIN[3:], "--data", "photos", "--start", "model.safetensors", "--json")[1])
    assert found["dataset"] == "photos"
    assert found["data"] == "photos"


def test_a_network_that_could_not_be_saved_is_not_trained(run: Run) -> None:
    Path("kept.py").write_text(
        "from torch import nn\n\n\nclass Kept(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        f"        self.inner = nn.Sequential(nn.Flatten(), nn.Linear({math.prod(TINY_SHAPE)}, 3))\n\n"
        "    def forward(self, images):\n        return self.inner(images)\n\n"
        "    def get_extra_state(self):\n        return {'version': 3}\n\n"
        "    def set_extra_state(self, state):\n        pass\n"
    )
    command = ("train", "--start", "kept.py:Kept", "--data", "parts", "--epochs", 1, "--out", "kept.safetensors")
    message = _said(run, *command, code=2)
    assert "the extra state _extra_state is no tensor, and cannot be saved" in message
    assert "Epoch" not in message


def test_a_network_of_ones_own_begins_with_the_same_weights_each_time(run: Run) -> None:
    """Fresh weights of the user's code depend on --seed, as those of a registered network do."""
    Path("fresh.py").write_text(
        "from torch import nn\n\n\ndef build():\n"
        f"    return nn.Sequential(nn.Flatten(), nn.Linear({math.prod(TINY_SHAPE)}, 3))\n"
    )
    command = ("train", "--start", "fresh.py:build", "--classes", *TINY_CLASSES, "--data", "parts", "--epochs", 1)
    made = []
    for number, seed in enumerate((0, 0, 1)):
        assert run(*command, "--seed", seed, "--out", f"fresh{number}.safetensors", "--json")[0] == 0
        made.append(read_safetensors(Path(f"fresh{number}.safetensors"))[0])
    same = [all(torch.equal(tensor, other[name]) for name, tensor in made[0].items()) for other in made[1:]]
    assert same == [True, False]


def test_the_command_for_a_hardened_model_names_the_part_to_test_on() -> None:
    found = [_test_words(HardenImages(data=Path(name)), Reading()) for name in ("parts", "photos")]
    assert found == [["--data", "parts", "--split", "test"], ["--data", "TEST-IMAGES"]]
    assert _test_words(HardenImages(data=Path("parts"), test=Path("photos")), Reading()) == ["--data", "photos"]


def test_more_labels_than_images_are_refused(run: Run) -> None:
    command = ("train", "--recipe", "virtual-adversarial", "--labelled-images", 5000, "--dataset", "digits")
    message = _said(run, *command, "--out", "made.safetensors", "--dry-run", code=2)
    assert "--labelled-images 5,000, but there are" in message


WITHOUT = (
    "train",
    "--architecture",
    "tiny",
    "--recipe",
    "virtual-adversarial",
    "--epochs",
    1,
    "--out",
    "made.safetensors",
)


def test_images_without_labels_are_trained_on_too(run: Run) -> None:
    """Pictures at any depth of a folder, an array alone, and one beside labels, which do not count."""
    for number, pixels in enumerate(tiny_images(300, 5).pixels.numpy()):
        place = Path("more") / ("" if number % 2 else "somewhere/deeper")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.png").write_bytes(png(pixels))
    others = tiny_images(300, 5)
    np.savez("alone.npz", images=others.pixels.numpy())
    np.savez("floats.npz", x_train=others.pixels.numpy() / 255, y_train=np.full(300, 77))
    for file in ("more", "alone.npz", "floats.npz"):
        found = json.loads(run(*WITHOUT, "--data", "parts", "--unlabelled", file, "--dry-run", "--json")[1])
        assert found["labelled_images"] == 36
        assert found["unlabelled"] == file
        assert found["train_images"] == 2 * 36 + 300  # the labelled ones twice, nearly a fifth of all
    assert "used `x_train` as the images" in _said(run, *WITHOUT, "--data", "parts", "--unlabelled", "floats.npz")
    _, about = load(Path("made.safetensors"))
    assert (about.recipe["labelled_images"], about.recipe["unlabelled"]) == (36, "floats.npz")
    few = ("--labelled-images", 9, "--overwrite", "--json")
    found = json.loads(run(*WITHOUT, "--data", "parts", "--unlabelled", "photos", *few)[1])
    assert found["labelled_images"] == 9
    assert found["train_images"] == 27 + 60 + 2 * 9


def test_images_without_labels_that_do_not_fit_are_refused(run: Run) -> None:
    given = (*WITHOUT, "--dataset", "digits", "--dry-run")
    assert "does not exist" in _said(run, *given, "--unlabelled", "nowhere", code=2)
    Path("empty").mkdir()
    assert "empty has no pictures; expected files ending in" in _said(run, *given, "--unlabelled", "empty", code=2)
    np.savez("labels.npz", labels=np.zeros(3))
    message = _said(run, *given, "--unlabelled", "labels.npz", code=2)
    assert (
        "labels.npz has no images; it holds labels; expected a .npz or .safetensors file that holds `images`" in message
    )
    np.savez("wide.npz", images=np.zeros((40, 1, 8, 16), dtype=np.uint8))
    message = _said(run, *given, "--unlabelled", "wide.npz", code=2)
    assert (
        "has images of shape (1, 8, 16), but the labelled ones have (1, 28, 28); bring them to it with --resize 28 28"
        in message
    )
    assert (
        json.loads(run(*given, "--unlabelled", "wide.npz", "--resize", 28, 28, "--json")[1])["unlabelled"] == "wide.npz"
    )
    message = _said(run, *given, "--unlabelled", "wide.npz", "--split", "train", code=2)
    assert "--split is about images of your own; give them with --data PATH" in message
    message = _said(run, *given, "--recipe", "trades", "--unlabelled", "photos", code=2)
    assert "--unlabelled with the recipe trades, which learns from labels only" in message


def test_a_dry_run_warns_of_an_eps_in_another_unit_as_the_training_does(run: Run) -> None:
    command = ("train", "--recipe", "trades", "--eps", 8, "--dataset", "digits", "--out", "made.safetensors")
    assert "write 8/255" in _said(run, *command, "--dry-run")


def test_a_teacher_that_knows_no_more_than_guessing_is_reported() -> None:
    listener, images = Listener(), tiny_images(90, noise=10.0)
    report_untrained(tiny_model(), images, listener)
    assert "the teacher is right on" in listener.said[0]
    assert "Has it trained weights, and does it normalise its images?" in listener.said[0]

    trained = fit(tiny_model(), images, images, TrainConfig(epochs=8, batch_size=30, learning_rate=0.02)).model
    report_untrained(trained, images, listener)
    report_untrained(trained, tiny_images(90)[:0], listener)  # what fits no model is left to the training
    assert len(listener.said) == 1


def test_torch_is_given_the_images_of_the_folder() -> None:
    """The pictures are those of `IMAGES`, by class."""
    from casemate.data import read_images

    order = torch.argsort(IMAGES.labels, stable=True)
    assert torch.equal(read_images(Path("photos")).pixels, IMAGES.pixels[order])
