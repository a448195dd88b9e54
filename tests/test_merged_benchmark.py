"""The tools that put results of several runs into one table: parts of an evaluation, and other benchmarks."""

import json
from copy import deepcopy
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from casemate.data import Dataset, LabelledImages
from casemate.models import pretrained_file
from scripts import imported

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "benchmark" / "benchmark.json"
PARTS = 20
"""Of 500 of the 10,000 test images."""


@pytest.fixture(scope="module")
def whole() -> ModuleType:
    """`benchmarks/pretrained/whole.py`, as a module."""
    return imported("benchmarks/pretrained/whole.py")


def blank(count: int) -> LabelledImages:
    """As many images as a part of Fashion-MNIST has, of one pixel: the table depends on their number alone."""
    return LabelledImages(pixels=torch.zeros(count, 1, 1, 1, dtype=torch.uint8), labels=torch.arange(count) % 10)


@pytest.fixture
def merge(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`tools/merge_benchmark.py`, as a module that needs no images."""
    images = Dataset(
        name="fashion-mnist",
        title="Fashion-MNIST",
        classes=tuple("0123456789"),
        train=blank(60_000),
        test=blank(10_000),
        origin="the test",
    )
    module = imported("tools/merge_benchmark.py")
    monkeypatch.setattr(module, "data", SimpleNamespace(load={"fashion-mnist": images}.__getitem__))
    return module


@pytest.fixture
def table() -> dict[str, Any]:
    """The committed table."""
    return json.loads(TABLE.read_text())


def test_the_page_and_the_sums_are_of_the_stored_parts(whole: ModuleType) -> None:
    known = whole.results(PARTS)
    assert whole.PAGE.read_text(encoding="utf-8") == whole.page(known)
    assert json.loads(whole.SUMS.read_text()) == json.loads(json.dumps(whole.sums(known, PARTS)))
    stored = list(whole.RESULTS.glob("*.json"))
    assert len(stored) == sum(map(len, known.values())), "a part of other weights"


def test_a_single_part_is_its_own_sum(whole: ModuleType) -> None:
    """What is computed from the digits of each image is what `casemate.evaluate` said of them, verdict included."""
    for path in whole.RESULTS.glob("*.json"):
        part = json.loads(path.read_text())
        found = whole.together([part])
        assert found == {key: part[key] for key in found if key != "parts"} | {"parts": 1}, path.name


def test_parts_add_up(whole: ModuleType) -> None:
    first, second = (json.loads(whole.path_of("robust", part).read_text()) for part in (0, 1))
    found = whole.together([first, second])
    right = sum(digit != "0" for digit in first["correct"] + second["correct"])
    assert found["correct"] == first["correct"] + second["correct"]
    assert (found["clean"]["value"], found["clean"]["n"]) == (right / 1000, 1000)
    assert found["first_to_fool"]["fmn"] == first["first_to_fool"]["fmn"] + second["first_to_fool"]["fmn"]
    assert found["seconds"] == first["seconds"] + second["seconds"]
    void = {**second, "findings": [{"check": "mask", "severity": "voids", "sentence": "masked"}]}
    assert whole.together([first, void])["verdicts"] == ["not to be trusted"]
    assert whole.together([first, void])["findings"][-1]["check"] == "mask"


def test_a_table_merged_with_itself_is_the_same(merge: ModuleType, table: dict[str, Any]) -> None:
    rows = {row["model"]: row for row in table["rows"]}
    assert merge.merged(rows, table) == rows
    plan = merge.plan_of(table, rows)
    read = [merge.as_row(rows[name], plan).as_json() for name in plan.entries]
    assert json.loads(json.dumps(read)) == table["rows"]
    assert list(plan.headline) == table["headline"]


def test_results_are_added_to_the_model_with_the_same_weights_only(merge: ModuleType, table: dict[str, Any]) -> None:
    rows = {row["model"]: row for row in table["rows"]}
    robust = deepcopy(rows["robust"])
    robust["measures"] = [{**robust["measures"][0], "seconds": 1.0}, {"measure": "another"}]
    begun = {"model": "sabr", "training": None, "measures": []}
    found = merge.merged({"robust": rows["robust"]}, {"rows": [robust, rows["fast"], begun]})
    assert list(found) == ["robust", "fast"]
    held = {each["measure"]: each for each in found["robust"]["measures"]}
    assert held["another"] == {"measure": "another"}
    assert held[robust["measures"][0]["measure"]]["seconds"] == 1.0
    robust["training"]["fingerprint"] = "of other weights"
    with pytest.raises(SystemExit, match="robust has the weights of other weights there"):
        merge.merged(rows, {"rows": [robust]})


def test_a_row_of_another_entry_is_refused(merge: ModuleType, table: dict[str, Any]) -> None:
    rows = {row["model"]: row for row in table["rows"]}
    rows["fast"]["entry"]["training"]["epochs"] = 999
    plan = merge.plan_of(table, rows)
    with pytest.raises(SystemExit, match="fast was trained by another entry"):
        merge.as_row(rows["fast"], plan)


def test_a_folder_without_weights_publishes_those_of_the_package(tmp_path: Path) -> None:
    publish = imported("tools/publish_models.py")
    assert publish.weights_of(tmp_path, "robust") == pretrained_file("robust")
    (tmp_path / "robust").mkdir()
    (tmp_path / "robust" / "model.safetensors").touch()
    assert publish.weights_of(tmp_path, "robust") == tmp_path / "robust" / "model.safetensors"
    assert publish.weights_of(tmp_path, "unknown") == tmp_path / "unknown" / "model.safetensors"
