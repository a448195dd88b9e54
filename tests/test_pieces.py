"""Pieces: finished artifacts without weights, in a folder that outlives the code that computed them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from casemate.engine import Context, Pieces, Producer, Store, Task, make_plan, run_plan
from casemate.errors import SettingError, StoreError
from casemate.progress import NULL_OBSERVER
from casemate_study.run import is_kept

PRODUCERS = {kind: Producer("casemate.losses", "engine_tasks:produce") for kind in ("train", "curve")}
TRAIN = Task(name="E1/train", kind="train", config={"value": 1})
CURVE = Task(name="E2/fgsm/ce", kind="curve", config={"value": 10}, needs={"model": "E1/train"})
OTHER = Task(name="E2/fgsm/margin", kind="curve", config={"value": 100}, needs={"model": "E1/train"})


STUDY = {"scale": "paper", "seed": 0}


def _pieces(tmp_path: Path) -> Pieces:
    return Pieces(tmp_path / "pieces", STUDY, lambda kind, file: kind == "curve" and file == "out.txt")


def _computed(tmp_path: Path) -> Pieces:
    """Pieces of a training and a curve, whose store is gone."""
    store, pieces = Store(tmp_path / "old"), _pieces(tmp_path)
    plan = make_plan([TRAIN, CURVE], ["E2/fgsm/ce"], PRODUCERS, store, "cpu")
    for name, artifact in run_plan(plan, PRODUCERS, store, Context("cpu", NULL_OBSERVER)).items():
        pieces.add(name, artifact)
    return pieces


def test_a_piece_has_the_result_and_the_small_files(tmp_path: Path) -> None:
    pieces = _computed(tmp_path)
    files = {path.relative_to(pieces.root).as_posix() for path in pieces.root.rglob("*") if path.is_file()}
    assert files == {"study.json", "E1_train/artifact.json", "E2_fgsm_ce/artifact.json", "E2_fgsm_ce/out.txt"}
    found = pieces.find("E2/fgsm/ce")
    assert found is not None
    assert found.result == {"value": 11}
    assert found.path("out.txt").read_text() == "10"
    assert pieces.find("E2/fgsm/margin") is None


def test_pieces_count_as_finished_whatever_the_code_and_the_settings_are(tmp_path: Path) -> None:
    pieces = _computed(tmp_path)
    changed = [replace(TRAIN, config={"value": 2}), CURVE]
    plan = make_plan(changed, ["E2/fgsm/ce"], PRODUCERS, Store(tmp_path / "new"), "cpu", pieces)
    assert plan.missing == []
    assert plan.artifacts["E1/train"].result == {"value": 1}
    assert make_plan(changed, ["E2/fgsm/ce"], PRODUCERS, Store(tmp_path / "new"), "cpu").missing == changed


def test_a_training_is_missing_where_its_weights_are_needed(tmp_path: Path) -> None:
    pieces, store = _computed(tmp_path), Store(tmp_path / "new")
    tasks = [TRAIN, CURVE, OTHER]
    plan = make_plan(tasks, [task.name for task in tasks], PRODUCERS, store, "cpu", pieces)
    assert [task.name for task in plan.missing] == ["E1/train", "E2/fgsm/margin"]
    found = run_plan(plan, PRODUCERS, store, Context("cpu", NULL_OBSERVER))
    assert found["E2/fgsm/margin"].result == {"value": 101}
    assert found["E2/fgsm/ce"].folder.parent == pieces.root


def test_a_report_takes_all_pieces_also_where_something_is_missing(tmp_path: Path) -> None:
    pieces, tasks = _computed(tmp_path), [TRAIN, CURVE, OTHER]
    store = Store(tmp_path / "new")
    plan = make_plan(tasks, [task.name for task in tasks], PRODUCERS, store, "cpu", pieces, to_run=False)
    assert set(plan.artifacts) == {"E1/train", "E2/fgsm/ce"}


def test_pieces_of_another_study_are_refused(tmp_path: Path) -> None:
    pieces = _computed(tmp_path)
    assert pieces.exists
    with pytest.raises(SettingError, match=r"the study with scale paper, seed 0, not of .* scale paper, seed 1"):
        Pieces(pieces.root, STUDY | {"seed": 1}, is_kept)
    (tmp_path / "other").mkdir()
    assert not Pieces(tmp_path / "other", STUDY, is_kept).exists
    (tmp_path / "other" / "photo.png").touch()
    with pytest.raises(SettingError, match=r"has no study.json, so it is no folder of pieces"):
        Pieces(tmp_path / "other", STUDY, is_kept)


@pytest.mark.parametrize("content", ["[]", "{"])
def test_a_damaged_description_of_the_study_is_named(tmp_path: Path, content: str) -> None:
    pieces = _computed(tmp_path)
    (pieces.root / "study.json").write_text(content)
    with pytest.raises(StoreError, match=r"study\.json"):
        Pieces(pieces.root, STUDY, is_kept)


def test_the_store_comes_before_the_pieces(tmp_path: Path) -> None:
    pieces, store = _computed(tmp_path), Store(tmp_path / "old")
    plan = make_plan([TRAIN, CURVE], ["E2/fgsm/ce"], PRODUCERS, store, "cpu", pieces)
    assert {artifact.folder.parent for artifact in plan.artifacts.values()} == {store.root / "artifacts"}


def test_a_piece_is_replaced_by_a_newer_artifact(tmp_path: Path) -> None:
    pieces, store = _computed(tmp_path), Store(tmp_path / "new")
    plan = make_plan([replace(TRAIN, config={"value": 5})], ["E1/train"], PRODUCERS, store, "cpu")
    pieces.add("E1/train", run_plan(plan, PRODUCERS, store, Context("cpu", NULL_OBSERVER))["E1/train"])
    found = pieces.find("E1/train")
    assert found is not None
    assert found.result == {"value": 5}


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"kind": "curve"})])
def test_a_damaged_piece_is_named(tmp_path: Path, content: str) -> None:
    pieces = _computed(tmp_path)
    (pieces.root / "E1_train" / "artifact.json").write_text(content)
    with pytest.raises(StoreError, match=r"E1_train/artifact.json is damaged; restore or delete it"):
        pieces.find("E1/train")


@pytest.mark.parametrize(
    ("kind", "file", "kept"),
    [
        ("train", "final.safetensors", False),
        ("defend", "best.json", False),
        ("curve", "examples.parquet", True),
        ("clean", "examples.csv", True),
        ("pictures", "images.safetensors", True),
        ("samples", "images.safetensors", False),
    ],
)
def test_the_study_s_pieces_have_no_weights_and_no_training_images(kind: str, file: str, kept: bool) -> None:
    assert is_kept(kind, file) == kept
