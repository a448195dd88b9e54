"""Records of adversarial examples: what they claim, that they can be checked again, and that tampering shows."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from casemate.attacks import PGD, Square, TargetedFAB
from casemate.data import LabelledImages
from casemate.errors import RecordError
from casemate.evaluation import Evaluation, Record, evaluate, make_record, read_record, verify_record, write_record
from casemate.evaluation.fingerprints import fingerprint
from casemate.models import Classifier, ModelMetadata, create, load, save
from conftest import TINY_CLASSES, TINY_SHAPE, tiny_images
from test_study import Run, runner

EPS = 0.2


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""
    return runner(capsys)


def thirds(slope: float = 20.0) -> Classifier:
    """Says which third of a tiny image is brightest, without any training."""
    model = create("linear", input_shape=TINY_SHAPE, classes=TINY_CLASSES)
    layer = model.network[1]  # type: ignore[index]
    columns = torch.arange(64) % 8
    with torch.no_grad():
        layer.bias.zero_()
        for place in range(3):
            layer.weight[place] = slope / 16 * ((columns // 2) == place)
    return model.eval()


IMAGES = tiny_images(40, noise=90.0)
ATTACKS = {"pgd": PGD(eps=EPS, steps=5), "square": Square(eps=EPS, n_queries=20)}


@pytest.fixture(scope="module")
def found() -> Evaluation:
    """A model judged."""
    return evaluate(thirds(), IMAGES, eps=[EPS / 2, EPS], attacks=ATTACKS)


@pytest.fixture(scope="module")
def folder(found: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record of it on disk, beside the model."""
    out = tmp_path_factory.mktemp("record")
    record, _ = make_record(found, thirds(), name="thirds", data="tiny")
    write_record(record, out)
    save(thirds(), out / "model.safetensors", ModelMetadata(architecture="linear", dataset="tiny"))
    return out


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A copy of the record, to be tampered with."""
    return shutil.copytree(folder, tmp_path / "copy")


def _failed(record: Record, model: Classifier | None = None, **options: Any) -> list[str]:
    """The titles of the claims that do not hold."""
    checked = verify_record(record, model or thirds(), **options)
    failed = [claim.title for claim in checked.claims if claim.holds is False]
    assert checked.holds == (not failed)
    return failed


# What is claimed ------------------------------------------------------------------------------------------------------
@pytest.mark.integration
def test_a_record_claims_what_the_evaluation_found(found: Evaluation, folder: Path) -> None:
    record = read_record(folder / "record.json")
    assert 0 < record.robust_accuracy[1] < record.robust_accuracy[0] < record.clean_accuracy < 1
    assert record.clean_accuracy == pytest.approx(found.clean.accuracy.value)
    assert record.robust_accuracy == pytest.approx([each.value for each in found.robust])
    assert record.first_success.tolist() == found.cascade.first_success.tolist()
    assert list(record.attacks) == ["pgd", "square"]
    assert record.attacks["pgd"]["steps"] == 5
    assert (record.eps, record.norm, record.seed, record.draws) == ((EPS / 2, EPS), "linf", 0, 1)
    assert record.fingerprint == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    pixels, labels = IMAGES.tensors()
    assert torch.equal(record.clean, pixels)
    assert torch.equal(record.labels, labels)
    moved = record.first_success >= 0
    assert torch.equal(record.adversarial[~moved], record.clean[~moved])
    assert (record.distance[moved] > 0).all()


def test_a_loaded_model_has_the_fingerprint_of_its_file(folder: Path) -> None:
    model, _ = load(folder / "model.safetensors")
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert fingerprint(model) == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert fingerprint(thirds(19.0)) != fingerprint(model)


def test_weights_that_are_tied_have_a_fingerprint_too() -> None:
    layers = [nn.Linear(64, 64, bias=False) for _ in range(2)]
    layers[1].weight = layers[0].weight
    network = nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, 3))
    model = Classifier(network, input_shape=TINY_SHAPE, classes=TINY_CLASSES)
    before = fingerprint(model)
    with torch.no_grad():
        layers[0].weight += 1
    assert fingerprint(model) != before


def test_a_record_holds_no_code(folder: Path) -> None:
    """JSON and safetensors, and nothing else."""
    content = json.loads((folder / "record.json").read_text())
    raw = (folder / content["file"]).read_bytes()
    assert hashlib.sha256(raw).hexdigest() == content["sha256"]
    assert set(safetensors.torch.load(raw)) == {"clean", "adversarial", "labels", "index", "first_success"}


class Crowd(nn.Module):
    """In company it is fooled by everything, alone by nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = thirds()

    def forward(self, images: Tensor) -> Tensor:
        """Ask a model that looks at brightness; turn its answer round for several at once, if they are not clean."""
        logits = self.inner(images)
        levels = images * 255
        changed = ((levels - levels.round()).abs().flatten(1).amax(1) > 1e-3) & torch.tensor(len(images) > 1)
        return torch.where(changed.unsqueeze(1), logits.roll(1, 1), logits)


def test_what_fools_only_in_a_batch_is_not_claimed() -> None:
    model = Classifier(Crowd(), input_shape=TINY_SHAPE, classes=TINY_CLASSES).eval()
    judged = evaluate(model, IMAGES, eps=1e-3, attacks={"pgd": PGD(eps=1e-3, steps=2)})
    assert judged.robust[0].value == 0
    assert judged.verdict.word == "not to be trusted"
    assert any(each.check == "re-checked" for each in judged.findings)
    record, adversarial_prediction = make_record(judged, model, name="crowd", data="tiny")
    assert (record.first_success < 0).all()
    assert record.robust_accuracy[0] == record.clean_accuracy
    assert torch.equal(record.adversarial, record.clean)
    assert (adversarial_prediction == record.labels).double().mean() == record.clean_accuracy
    assert _failed(record, model) == []


# That it holds --------------------------------------------------------------------------------------------------------
def test_a_record_holds(folder: Path) -> None:
    record = read_record(folder / "record.json")
    checked = verify_record(record, thirds(), images=IMAGES)
    assert [claim.title for claim in checked.claims if claim.holds is False] == []
    assert checked.robust_accuracy == pytest.approx(record.robust_accuracy)
    assert checked.rounded is not None
    assert 0 < checked.rounded <= 1
    assert [claim.title for claim in checked.claims if claim.holds is None] == ["They fool after rounding to 8 bits"]


def test_without_the_data_set_the_images_are_not_checked(folder: Path) -> None:
    checked = verify_record(read_record(folder / "record.json"), thirds())
    assert checked.holds
    (claim,) = [claim for claim in checked.claims if "tiny" in claim.title]
    assert claim.holds is None


@pytest.mark.integration
@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_records_in_other_norms_hold(norm: str, tmp_path: Path) -> None:
    radius = {"l2": 1.0, "l1": 8.0}[norm]
    attacks = {"pgd": PGD(eps=radius, steps=5, norm=norm)}  # type: ignore[arg-type]
    judged = evaluate(thirds(), IMAGES, eps=radius, norm=norm, attacks=attacks)  # type: ignore[arg-type]
    record, _ = make_record(judged, thirds(), name="thirds", data="tiny")
    assert (record.first_success == 0).sum() > 5
    assert _failed(read_record(write_record(record, tmp_path)), images=IMAGES) == []
    far = record.clean + 1.1 * (record.adversarial - record.clean)
    assert any("lie within eps" in title for title in _failed(replace(record, adversarial=far.clamp(0, 1))))


@pytest.mark.integration
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_what_a_minimum_norm_attack_finds_too_far_away_proves_nothing(norm: str) -> None:
    radius = {"linf": 0.05, "l2": 0.4, "l1": 2.0}[norm]
    attacks = {"fab": TargetedFAB(norm=norm, steps=5)}  # type: ignore[arg-type]
    judged = evaluate(thirds(), IMAGES, eps=[radius / 2, radius], norm=norm, attacks=attacks)  # type: ignore[arg-type]
    record, _ = make_record(judged, thirds(), name="thirds", data="tiny")
    assert 0 < (record.first_success == 0).sum() < 30
    assert _failed(record) == []


class Shaky(nn.Module):
    """Adds noise to every answer."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = thirds()

    def forward(self, images: Tensor) -> Tensor:
        """Ask, and shake."""
        logits = self.inner(images)
        return logits + 0.3 * torch.randn_like(logits)


@pytest.mark.integration
def test_a_model_that_answers_at_random_is_asked_for_its_mean() -> None:
    model = Classifier(Shaky(), input_shape=TINY_SHAPE, classes=TINY_CLASSES).eval()
    judged = evaluate(model, IMAGES, eps=EPS, budget="quick", attacks={"pgd": PGD(eps=EPS, steps=5)})
    record, _ = make_record(judged, model, name="shaky", data="tiny")
    assert record.draws == 5
    state = torch.random.get_rng_state()
    assert verify_record(record, model).holds
    assert torch.equal(state, torch.random.get_rng_state())
    checked = verify_record(record, model, seed=1)  # other draws
    wrong = {claim.title for claim in checked.claims if claim.holds is False}
    assert wrong <= {"Adversarial images fool at batch size 1"}  # those at the boundary


# That tampering shows -------------------------------------------------------------------------------------------------
def _tampered(folder: Path, change: Callable[[dict[str, Tensor]], object], *, openly: bool) -> Record:
    """The record with other tensors; unless `openly`, the checksum is made to fit."""
    path = folder / "adversarial.safetensors"
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    raw = safetensors.torch.save(tensors)
    path.write_bytes(raw)
    if not openly:
        content = json.loads((folder / "record.json").read_text())
        content["sha256"] = hashlib.sha256(raw).hexdigest()
        (folder / "record.json").write_text(json.dumps(content))
    return read_record(folder / "record.json")


def _first(tensors: dict[str, Tensor]) -> int:
    """An image that was fooled."""
    return int((tensors["first_success"] >= 0).nonzero()[0])


def _outside_the_ball(tensors: dict[str, Tensor]) -> None:
    image = tensors["adversarial"][_first(tensors)]
    clean = tensors["clean"][_first(tensors)]
    image[0, 0, 0] = clean[0, 0, 0] + 1.01 * EPS if clean[0, 0, 0] < 0.5 else clean[0, 0, 0] - 1.01 * EPS


def _outside_the_bounds(tensors: dict[str, Tensor]) -> None:
    tensors["adversarial"][_first(tensors), 0, 0, 0] = -0.01


def _not_a_number(tensors: dict[str, Tensor]) -> None:
    tensors["adversarial"][_first(tensors), 0, 0, 0] = torch.nan


def _another_label(tensors: dict[str, Tensor]) -> None:
    place = int((tensors["first_success"] == -1).nonzero()[0])
    tensors["labels"][place] = (tensors["labels"][place] + 1) % 3


def _does_not_fool(tensors: dict[str, Tensor]) -> None:
    tensors["adversarial"][_first(tensors)] = tensors["clean"][_first(tensors)]


TAMPERED = [
    (_outside_the_ball, "lie within eps"),
    (_outside_the_bounds, "within the bounds"),
    (_not_a_number, "within the bounds"),
    (_another_label, "Clean images are classified as claimed"),
    (_does_not_fool, "fool at batch size 1"),
]


@pytest.mark.parametrize(("change", "words"), TAMPERED)
@pytest.mark.parametrize("openly", [True, False])
def test_changed_images_and_labels_show(
    copied: Path, change: Callable[[dict[str, Tensor]], object], words: str, openly: bool
) -> None:
    failed = _failed(_tampered(copied, change, openly=openly))
    assert any(words in title for title in failed)
    assert ("The file with the images is the record's" in failed) == openly


def test_an_image_outside_the_ball_proves_nothing(copied: Path) -> None:
    before = read_record(copied / "record.json").robust_accuracy[-1]
    checked = verify_record(_tampered(copied, _outside_the_ball, openly=False), thirds())
    assert checked.robust_accuracy[-1] == pytest.approx(before + 1 / len(IMAGES))


def test_another_label_is_found_in_the_data_set(copied: Path) -> None:
    record = _tampered(copied, _another_label, openly=False)
    assert "The clean images are those of tiny" in _failed(record, images=IMAGES)


def test_another_clean_image_is_found_in_the_data_set(copied: Path) -> None:
    record = _tampered(copied, lambda tensors: tensors["index"].__iadd__(1), openly=False)
    failed = _failed(record, images=LabelledImages(pixels=IMAGES.pixels[:30], labels=IMAGES.labels[:30]))
    assert failed == ["The clean images are those of tiny"]


@pytest.mark.parametrize(("claim", "value"), [("robust_accuracy", [0.9, 0.9]), ("robust_accuracy", [0.0, 0.0])])
def test_other_claims_show(copied: Path, claim: str, value: object) -> None:
    content = json.loads((copied / "record.json").read_text())
    content[claim] = value
    (copied / "record.json").write_text(json.dumps(content))
    failed = _failed(read_record(copied / "record.json"))
    assert failed == [f"Robust accuracy at eps {eps:g} as claimed" for eps in (EPS / 2, EPS)]


def test_a_smaller_eps_is_not_believed(copied: Path) -> None:
    content = json.loads((copied / "record.json").read_text())
    content["eps"] = [EPS / 4, EPS / 2]
    (copied / "record.json").write_text(json.dumps(content))
    assert any("lie within eps 0.1" in title for title in _failed(read_record(copied / "record.json")))


def test_another_model_shows(folder: Path) -> None:
    failed = _failed(read_record(folder / "record.json"), thirds(-5.0))
    assert {"The model is the record's", "Clean images are classified as claimed"} <= set(failed)
    assert "The model is the record's" in _failed(read_record(folder / "record.json"), thirds(20.5))


# Records that cannot be read ------------------------------------------------------------------------------------------
def test_a_model_of_another_kind_is_refused(folder: Path) -> None:
    record = read_record(folder / "record.json")
    with pytest.raises(RecordError, match=r"images are of shape \(1, 8, 8\), the model takes \(1, 6, 6\)"):
        verify_record(record, create("linear", input_shape=(1, 6, 6), classes=TINY_CLASSES))
    with pytest.raises(RecordError, match="the record is about the classes left, middle, right"):
        verify_record(record, create("linear", input_shape=TINY_SHAPE, classes=("a", "b", "c", "d")))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content.update(format="other 7"), "format 'other 7'; expected 'casemate record 1'"),
        (lambda content: content.pop("sha256"), "not a whole record"),
        (lambda content: content.update(file="elsewhere.safetensors"), "not a whole record"),
        (lambda content: content.update(eps=[]), "contradict each other: eps"),
        (lambda content: content.update(eps=["x"]), "not a whole record"),
        (lambda content: content.update(norm="l7"), "contradict each other"),
        (lambda content: content.update(classes=["a", "b"]), "contradict each other: labels"),
        (lambda content: content.update(attacks=[]), "contradict each other: first_success"),
        (lambda content: content.update(robust_accuracy=[2.0, 0.0]), "contradict each other: accuracies"),
        (lambda content: content.update(draws=0), "contradict each other: draws"),
        (lambda content: content.update(draws=10**18), "contradict each other: draws"),
        (lambda content: content.update(draws=True), "contradict each other: types"),
        (lambda content: content.update(seed="0"), "contradict each other: types"),
        (lambda content: content.update(eps=[10**4000]), "contradict each other: types"),
        (lambda content: content.update(eps=[True]), "contradict each other: types"),
        (lambda content: content.update(model=["m"]), "contradict each other: texts"),
        (lambda content: content.update(classes=[1, 2, 3]), "contradict each other: texts"),
        (lambda content: content.update(attacks=[{"attack": [], "settings": {}}]), "not a whole record"),
        (lambda content: content.update(attacks="pgd"), "not a whole record"),
        (lambda content: content.update(file=""), "not a whole record"),
        (lambda content: content.update(file="a\0b"), "not a whole record"),
        (lambda content: content.update(file="a" * 300), "not a whole record"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_record_that_is_not_one(copied: Path, change: Callable[[dict[str, Any]], object], words: str) -> None:
    content = json.loads((copied / "record.json").read_text())
    change(content)
    (copied / "record.json").write_text(json.dumps(content))
    with pytest.raises(RecordError, match=words):
        read_record(copied / "record.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop("first_success"), "not a whole record"),
        (lambda tensors: tensors.update(clean=tensors["clean"][:3].clone()), "contradict each other: images, count"),
        (lambda tensors: tensors.update(labels=tensors["labels"].float()), "contradict each other: numbers"),
        (
            lambda tensors: tensors.update(labels=tensors["labels"].to(torch.uint64)),
            "contradict each other: numbers, labels",
        ),
        (lambda tensors: tensors["index"].zero_(), "contradict each other: count"),
        (
            lambda tensors: tensors.update(clean=torch.zeros(40, 1, 0, 8), adversarial=torch.zeros(40, 1, 0, 8)),
            "contradict each other: images",
        ),
        (lambda tensors: tensors.update(clean=tensors["clean"].to(torch.float8_e4m3fn)), "is of type F8_E4M3"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_images_that_are_not_those_of_a_record(
    copied: Path, change: Callable[[dict[str, Tensor]], object], words: str
) -> None:
    with pytest.raises(RecordError, match=words):
        _tampered(copied, change, openly=True)


def test_a_record_names_no_file_of_another_folder(copied: Path) -> None:
    content = json.loads((copied / "record.json").read_text())
    content["file"] = "../../adversarial.safetensors"
    (copied / "record.json").write_text(json.dumps(content))
    assert read_record(copied / "record.json").images_match  # the one beside it


# The command ----------------------------------------------------------------------------------------------------------
def test_the_command_tells_that_a_record_holds(run: Run, folder: Path) -> None:
    code, out, err = run("verify", folder / "record.json", folder / "model.safetensors")
    assert code == 0, err
    assert "Everything that was checked holds." in out
    assert "does not hold" not in out
    code, out, _ = run("verify", folder / "record.json", folder / "model.safetensors", "--json")
    assert code == 0
    content = json.loads(out)
    assert content["holds"] is True
    assert len(content["robust_accuracy"]) == 2
    assert {"title", "holds", "sentence"} == set(content["claims"][0])


def test_the_command_ends_with_3_if_a_claim_does_not_hold(run: Run, copied: Path) -> None:
    _tampered(copied, _outside_the_ball, openly=False)
    code, out, err = run("verify", copied / "record.json", copied / "model.safetensors")
    assert code == 3
    assert "Not everything holds." in out
    assert "falls short: " in err
    assert "Adversarial images lie within eps 0.2 in linf" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("missing", ["record.json", "adversarial.safetensors", "model.safetensors"])
def test_the_command_ends_with_2_if_a_file_is_missing(run: Run, copied: Path, missing: str) -> None:
    (copied / missing).unlink()
    code, out, err = run("verify", copied / "record.json", copied / "model.safetensors")
    assert code == 2
    assert out == ""
    assert missing in err


def test_the_command_finds_the_record_s_own_images(run: Run, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.safetensors"
    safetensors.torch.save_file({"images": IMAGES.pixels, "labels": IMAGES.labels}, file)
    code, out, _ = run("verify", folder / "record.json", folder / "model.safetensors", "--data", file, "--json")
    assert code == 0
    (claim,) = [claim for claim in json.loads(out)["claims"] if "tiny" in claim["title"]]
    assert claim["holds"] is True
