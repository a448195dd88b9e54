"""Sound results of every kind that casemate writes, in a folder, and what reads them: for `inputs`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.campaign.commands import tiny_images
from benchmarks.campaign.nets import net

from casemate.attacks import FGSM, PGD, Passes
from casemate.benchmark.entries import ENTRIES
from casemate.benchmark.folder import BenchmarkFolder
from casemate.data import LabelledImages
from casemate.engine import Store
from casemate.evaluation import Evaluation, evaluate, make_record, read_record, write_record
from casemate.evaluation.pieces import Piece
from casemate.evaluation.record import read_hashed_record
from casemate.hardening.steps import Steps
from casemate.models import create
from casemate.play.study import read_study
from casemate.progress import NULL_OBSERVER
from casemate.report.finished_evaluation import read_finished
from casemate.training.state import TrainingState, read_state

Opens = Callable[[], Any]


def images(count: int) -> LabelledImages:
    """Images for the network."""
    pixels, labels = tiny_images(count)
    return LabelledImages(pixels=torch.from_numpy(pixels), labels=torch.from_numpy(labels))


def evaluation() -> Evaluation:
    """A small evaluation of the network."""
    attacks = {"fgsm": FGSM(eps=0.2), "pgd": PGD(eps=0.2, steps=3)}
    return evaluate(net(), images(12), eps=[0.1, 0.2], attacks=attacks)


def _record(folder: Path) -> Opens:
    made, _ = make_record(evaluation(), net(), name="thirds", data="tiny")
    write_record(made, folder)
    return lambda: read_record(folder / "record.json")


def _hashed_record(folder: Path) -> Opens:
    made, _ = make_record(evaluation(), net(), name="thirds", data="tiny")
    write_record(made, folder, images=False)
    return lambda: read_hashed_record(folder / "record.json")


def _evaluation(folder: Path) -> Opens:
    evaluation().report(folder)
    for each in folder.iterdir():
        if each.name not in ("result.json", "examples.parquet"):
            each.unlink()
    return lambda: read_finished(folder)


def _piece(folder: Path) -> Opens:
    few = torch.rand(3, 1, 8, 8)
    Piece(
        tried=5,
        places=torch.arange(3),
        adversarial=few,
        distance=torch.ones(3),
        status={"success": 3, "failed": 2},
        passes=Passes(5, 5),
        seconds=1.0,
        pass_size=16,
    ).write(folder / "piece.safetensors")
    return lambda: Piece.read(folder / "piece.safetensors")


def _training(folder: Path) -> Opens:
    model, path = net(), folder / "m.training"
    optimizer = torch.optim.Adam(model.parameters())
    model(images(3).tensors()[0]).sum().backward()
    optimizer.step()
    state = TrainingState(fingerprint="f", epoch=1, history=[{"epoch": 1, "loss": 0.5}], best_epoch=1, best_value=0.5)
    state.write(path, model, optimizer)

    def opens() -> TrainingState:
        fresh = net()
        return read_state(path, "f", fresh, torch.optim.Adam(fresh.parameters()))

    return opens


def _artifact(folder: Path) -> Opens:
    store, facts = (
        Store(folder),
        {"kind": "k", "name": "E1/x", "config": {}, "needs": {}, "code": "0" * 16, "key": "k1"},
    )
    with store.lock_for("k1"), store.put("k1", facts) as place:
        (place / "data.bin").write_bytes(b"data")
        facts |= {"result": {"value": 1.0}, "provenance": {"finished": "2026-01-01T00:00:00+00:00", "seconds": 1.0}}
    return lambda: [store.find("k1"), list(store.artifacts()), store.unfinished()]


def _study(folder: Path) -> Opens:
    shown = [{"name": name, "title": name.title(), "caption": "What it shows."} for name in ("first", "second")]
    (folder / "summary.json").write_text(json.dumps({"scale": "quick", "figures": shown}))
    (folder / "figures").mkdir()
    for each in shown:
        svg = "<svg xmlns='http://www.w3.org/2000/svg' width='40' height='20'></svg>"
        (folder / "figures" / f"{each['name']}.svg").write_text(svg)
    return lambda: read_study(folder)


def _benchmark(folder: Path) -> Opens:
    entry = next(iter(ENTRIES.values()))
    data = {"dataset": "digits", "images": "0" * 64}
    model = create(entry.network, input_shape=(1, 8, 8), classes=net().classes, seed=0)
    made = BenchmarkFolder(folder, data)
    made.keep_training("m", entry, model, {"seconds": 1.0, "history": [{"epoch": 1, "loss": 0.5}]})

    def opens() -> Any:
        held = BenchmarkFolder(folder, data)
        return held.training("m", entry), held.model("m")

    return opens


def _steps(folder: Path) -> Opens:
    def steps() -> Steps:
        return Steps(folder, {"eps": 0.1, "recipes": ["trades"], "settings": {"epochs": 3}}, NULL_OBSERVER)

    steps().write("trained", {"weight": torch.rand(3, 4)}, {"seconds": 1.0, "history": [1, 2]})
    return lambda: steps().read("trained")


MAKERS: dict[str, Callable[[Path], Opens]] = {
    "record": _record,
    "hashed_record": _hashed_record,
    "evaluation": _evaluation,
    "piece": _piece,
    "training": _training,
    "artifact": _artifact,
    "study": _study,
    "benchmark": _benchmark,
    "steps": _steps,
}
"""By the names that `inputs` has for them."""
