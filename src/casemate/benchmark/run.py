"""A benchmark, run or continued: every training and every measurement is a step whose result is kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from casemate.benchmark.entry import Entry
from casemate.benchmark.folder import BenchmarkFolder
from casemate.benchmark.plan import BenchmarkPlan
from casemate.benchmark.table import BenchmarkRow, benchmark_rows
from casemate.devices import as_device
from casemate.evaluation import evaluate_clean
from casemate.evaluation.fingerprints import fingerprint
from casemate.files import as_path
from casemate.models import Classifier
from casemate.progress import NULL_OBSERVER, Observer
from casemate.provenance import surroundings


def run_benchmark(
    plan: BenchmarkPlan,
    out: Path | str,
    *,
    device: torch.device | str = "cpu",
    observer: Observer = NULL_OBSERVER,
    finished: Callable[[list[BenchmarkRow]], None] = lambda rows: None,
) -> list[BenchmarkRow]:
    """Train and measure all models of a plan, or what is left of them; return the rows of the table.

    Args:
        plan: from `plan_benchmark`.
        out: the folder for all results; the same call continues in it.
        device: where to train and attack.
        observer: receives the progress.
        finished: called with all rows after every step.

    Raises:
        SettingError: the folder holds models of other definitions, or trained on other images.
        StoreError: a file cannot be read or written.
        TrainingError: a loss that is not finite.
        ModelError: a network without bounds, for an entry with a certificate.
    """
    device, folder = as_device(device), BenchmarkFolder(as_path(out, "out"), plan.data())
    finished(benchmark_rows(plan, folder))
    models: dict[str, Classifier] = {}
    for name, entry in plan.entries.items():
        if folder.training(name, entry) is None:
            observer.message(f"Training {name}: {entry.recipe}, {entry.network}.")
            _train(plan, folder, name, entry, models, device, observer)
            finished(benchmark_rows(plan, folder))
        models[name] = folder.model(name).to(device)
        sha256 = fingerprint(models[name])
        for measure in plan.measures(name):
            if folder.result(name, measure, sha256) is None:
                observer.message(f"Measuring {name}: {measure.name}.")
                found = measure.compute(models[name], plan.dataset.test, folder.store, observer)
                folder.keep_result(name, measure, sha256, {**found, "provenance": _where(device)})
                finished(benchmark_rows(plan, folder))
    return benchmark_rows(plan, folder)


def _train(
    plan: BenchmarkPlan,
    folder: BenchmarkFolder,
    name: str,
    entry: Entry,
    models: dict[str, Classifier],
    device: torch.device | str,
    observer: Observer,
) -> None:
    """Train a model, and keep it with how it was trained and its accuracy on all test images."""
    teacher = None if entry.teacher is None else models[entry.teacher]
    model = entry.make_model(plan.dataset.image_shape, plan.dataset.classes)
    done = entry.make_recipe(teacher).fit(
        model,
        plan.train,
        plan.validation,
        entry.config(),
        checkpoint=folder.checkpoint(name),
        device=device,
        observer=observer,
    )
    columns = done.history[0]
    training: dict[str, Any] = {
        "parameters": sum(each.numel() for each in done.model.parameters()),
        "epoch": done.epoch,
        "seconds": sum(row["seconds"] for row in done.history),
        "processor_seconds": sum(row["processor_seconds"] for row in done.history),
        "threads": torch.get_num_threads(),
        "history": {column: [row[column] for row in done.history] for column in columns},
        "provenance": _where(device),
    }
    stored = _rounded(done.model.cpu())
    accuracy = evaluate_clean(stored, plan.dataset.test, observer=observer).accuracy
    training |= {"test_accuracy": accuracy.as_json(), "fingerprint": fingerprint(stored)}
    folder.keep_training(name, entry, stored, training)


@torch.no_grad()
def _rounded(model: Classifier) -> Classifier:
    """The model with its weights rounded to float16, in place: what is stored is what is measured."""
    for each in model.state_dict().values():
        if each.is_floating_point():
            each.copy_(each.half())
    return model.eval()


def _where(device: torch.device | str) -> dict[str, Any]:
    return surroundings(str(device), torch.get_num_threads())
