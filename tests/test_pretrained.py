"""The models that come with the package: what they were made by, what their cards say, and how they are named."""

import hashlib
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from casemate import models
from casemate.attacks import PGD
from casemate.benchmark import ENTRIES
from casemate.cli.shared.options import ModelOptions
from casemate.cli.train.base_models import start_model, teacher_model
from casemate.data import first_test_images
from casemate.errors import ModelError
from casemate.evaluation import evaluate_clean
from casemate.evaluation.fingerprints import fingerprint
from casemate.models import ModelMetadata, create, load, pretrained_file, pretrained_models, pretrained_names, save
from scripts import imported

NAMES = pretrained_names()
DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """`tools/publish_models.py`, as a module."""
    return imported("tools/publish_models.py")


def file_of(name: str) -> Path:
    """The file of a pretrained model."""
    path = pretrained_file(name)
    assert path is not None
    return path


def test_at_most_ten_models_in_twenty_megabytes(tool: ModuleType) -> None:
    assert 1 <= len(NAMES) <= tool.MOST_MODELS == 10
    assert sum(file_of(name).stat().st_size for name in NAMES) <= tool.MOST_BYTES == 20_000_000
    assert pretrained_file("no such model") is None


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_the_one_that_the_benchmark_defines_and_measured(name: str) -> None:
    model, description = load(file_of(name))
    assert not model.training
    assert description.recipe == json.loads(json.dumps(ENTRIES[name].as_json()))
    assert fingerprint(model) == description.metrics["fingerprint"]
    assert description.metrics["measures"]
    assert not description.metrics["commit"].endswith("-dirty")
    assert all(torch.equal(each, each.half().float()) for each in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_its_numbers_can_be_trusted(name: str) -> None:
    """No check weakens or voids them, Square fools hardly more than the gradients do, and no certificate is void."""
    for each in load(file_of(name))[1].metrics["measures"]:
        if "findings" in each:
            assert each["findings"] == []
        else:
            assert not each["void"]
            assert sum(each["sampled"]) == 200  # of far more certified ones
        if "findings" in each or "only_without_gradients" in each:
            assert max(each["only_without_gradients"]) <= 0.002 * len(each["correct"])


@pytest.mark.parametrize("name", NAMES)
def test_the_packaged_weights_give_the_published_results(name: str) -> None:
    """On the 100 test images in the package, image by image: right without an attack, and what PGD can fool."""
    model, description = load(file_of(name))
    measure = next(each for each in description.metrics["measures"] if "verdicts" in each)
    withstood = torch.tensor([int(digit) for digit in measure["correct"][:100]])
    images, labels = first_test_images().tensors()
    assert evaluate_clean(model, first_test_images()).correct.tolist() == (withstood > 0).tolist()
    found = PGD(eps=0.1, steps=20)(model, images, labels)
    robust = withstood > 1 + measure["eps"].index(0.1)
    assert not (found.success & robust).any()
    assert found.success.sum() >= 0.9 * (~robust).sum()


def test_the_table_in_the_docs_is_of_these_entries_and_weights() -> None:
    """A row that was measured before an entry changed, or of other weights than the package has, would not belong."""
    rows = {row["model"]: row for row in json.loads((DOCS / "benchmark" / "benchmark.json").read_text())["rows"]}
    assert set(NAMES) <= rows.keys() <= ENTRIES.keys()
    for name, row in rows.items():
        assert row["entry"] == json.loads(json.dumps(ENTRIES[name].as_json())), name
    for name in NAMES:
        published = load(file_of(name))[1].metrics
        assert published["fingerprint"] == rows[name]["training"]["fingerprint"]
        assert published["test_accuracy"] == rows[name]["training"]["test_accuracy"]
        robust = [each["robust"] for each in published["measures"]]
        assert robust == [each["robust"] for each in rows[name]["measures"]][: len(robust)], name


@pytest.mark.parametrize("name", NAMES)
def test_its_name_stands_for_its_file(name: str) -> None:
    opened = models.open_model(name)
    assert (opened.name, opened.short, opened.dataset) == (name, name, "fashion-mnist")
    assert set(opened.sha256) == {f"{name}.safetensors", f"{name}.json"}
    images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    assert torch.equal(opened.model(images), load(file_of(name))[0](images))


def test_the_images_in_the_package_are_the_first_of_the_test_set() -> None:
    found = first_test_images()
    assert found.labels[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    pixels = hashlib.sha256(found.pixels.numpy().tobytes()).hexdigest()
    assert pixels == "d8c9b85550f6c8fa33478e27cb3fe70fd34b4cc96e6ab91b911853b51fb3d527"


def test_a_file_comes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = create("paper-cnn", input_shape=(1, 28, 28), classes=tuple("0123456789"), seed=7)
    about = ModelMetadata(architecture="paper-cnn", dataset="fashion-mnist", recipe={}, seed=7)
    path = save(other, tmp_path / f"{NAMES[0]}.safetensors", about)
    path.rename(tmp_path / NAMES[0])
    monkeypatch.chdir(tmp_path)
    assert fingerprint(models.open_model(NAMES[0]).model) == fingerprint(other)


def test_a_folder_of_results_hides_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / NAMES[0]).mkdir()
    monkeypatch.chdir(tmp_path)
    assert fingerprint(models.open_model(NAMES[0]).model) == fingerprint(load(file_of(NAMES[0]))[0])


def test_training_starts_from_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = start_model("fast", "pixelwise-cnn", ModelOptions())
    assert found is not None
    assert found.hash == hashlib.sha256(file_of("fast").read_bytes()).hexdigest()
    assert fingerprint(found.model) == fingerprint(load(file_of("fast"))[0])
    with pytest.raises(ModelError, match="fast contains a pixelwise-cnn, but a paper-cnn is expected"):
        start_model("fast", "paper-cnn", ModelOptions())
    teacher = teacher_model("fast", ModelOptions())
    assert teacher is not None
    assert teacher.hash == found.hash


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(ModelError, match=f"or a model that comes with casemate: {', '.join(NAMES)}"):
        models.open_model("robst")


def test_other_weights_beside_a_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has weights of its own"):
        models.open_model(NAMES[0], weights=tmp_path / "weights.safetensors")


def test_the_cards_are_of_the_files(tool: ModuleType) -> None:
    assert tool.PAGE.read_text(encoding="utf-8") == tool.page()
    assert list(pretrained_models()) == list(NAMES)
    assert set(re.findall(r'casemate evaluate (\S+)|open_model\("(\S+)"\)', tool.page())) == {
        ("fast", ""),
        ("", "fast"),
    }
    assert "fast" in NAMES


@pytest.fixture
def table(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The table of a benchmark in `tmp_path` whose one model is a pretrained one; nothing is written elsewhere."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "weights").mkdir()
    monkeypatch.setattr(tool, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setattr(tool, "pretrained_names", lambda: ())
    model, description = load(file_of(NAMES[0]))
    save(model, tmp_path / "mine" / "model.safetensors", description, half=True)
    metrics = description.metrics
    training = {key: metrics[key] for key in ("epoch", "seconds", "threads", "fingerprint", "test_accuracy")}
    training["provenance"] = {"commit": "abc"}
    row = {"model": "mine", "training": training, "measures": metrics["measures"]}
    return {"train_images": 7, "validation_images": 3, "rows": [row, {"model": "other", "measures": []}]}


def test_a_measured_model_is_published_with_its_numbers(
    tool: ModuleType, tmp_path: Path, table: dict[str, Any]
) -> None:
    (tmp_path / "benchmark.json").write_text(json.dumps(table))
    tool.publish(tmp_path, ["mine"])
    model, description = load(tmp_path / "weights" / "mine.safetensors")
    assert fingerprint(model) == table["rows"][0]["training"]["fingerprint"]
    assert (description.metrics["train_images"], description.metrics["commit"]) == (7, "abc")


def test_nothing_is_published_that_was_not_measured_or_is_too_much(
    tool: ModuleType, tmp_path: Path, table: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "benchmark.json").write_text(json.dumps(table))
    with pytest.raises(SystemExit, match=r"other is not measured in .*; measured: mine"):
        tool.publish(tmp_path, ["mine", "other"])
    with monkeypatch.context() as patch:
        patch.setattr(tool, "MOST_BYTES", 1000)
        with pytest.raises(SystemExit, match=r"1 models in 1,6\d\d,\d\d\d bytes"):
            tool.publish(tmp_path, ["mine"])
    with monkeypatch.context() as patch:
        patch.setattr(tool, "pretrained_names", lambda: tuple("abcdefghij"))
        with pytest.raises(SystemExit, match="11 models"):
            tool.publish(tmp_path, ["mine"])
    table["rows"][0]["training"]["fingerprint"] = "another"
    (tmp_path / "benchmark.json").write_text(json.dumps(table))
    with pytest.raises(SystemExit, match="not those that were measured"):
        tool.publish(tmp_path, ["mine"])
    assert not list((tmp_path / "weights").iterdir())
