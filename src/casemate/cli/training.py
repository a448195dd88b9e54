"""What `casemate train` does once PyTorch is loaded, and how it shows it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars
from rich.markup import escape
from rich.table import Table

from casemate import data
from casemate.cli import console
from casemate.cli.options import at_least_one
from casemate.data import Dataset, LabelledImages
from casemate.data.named import AUGMENTATIONS
from casemate.engine.provenance import surroundings
from casemate.errors import SettingError
from casemate.evaluate import CleanResult, evaluate_clean
from casemate.files import writing
from casemate.models import Classifier, Description, create, save
from casemate.progress import Observer
from casemate.study.speed import measure_speed
from casemate.train import CrossEntropy, Trained, Training, fit

_VALIDATION = 6000
_SETTINGS = ("epochs", "batch_size", "optimizer", "learning_rate", "schedule", "weight_decay", "patience", "ema")
_COLUMNS = ("epoch", "learning_rate", "loss", "accuracy", "val_loss", "val_accuracy", "seconds")


@dataclass(frozen=True)
class Ready:
    """A training about to begin."""

    about: dict[str, Any]
    """What it is, as JSON."""
    recipe: Mapping[str, Any]
    settings: Training
    objective: CrossEntropy
    dataset: Dataset
    train: LabelledImages
    validation: LabelledImages
    model: Classifier
    out: Path
    device: str
    threads: int


@dataclass(frozen=True)
class Done:
    """A finished training."""

    trained: Trained
    found: CleanResult
    history: Path


def prepare(
    architecture: str, dataset: Dataset, recipe: Mapping[str, Any], seed: int, out: Path, device: str, threads: int
) -> Ready:
    """Check the settings, set the validation images aside, make the network. Raises `CasemateError`."""
    settings = Training(seed=seed, **{name: recipe[name] for name in _SETTINGS})
    objective = CrossEntropy(label_smoothing=recipe["label_smoothing"])
    train, validation = _parts(dataset, recipe["train_images"], recipe["validation_images"], seed)
    model = create(architecture, input_shape=dataset.image_shape, classes=dataset.classes, seed=seed)
    about: dict[str, Any] = {
        "architecture": architecture,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dataset": dataset.name,
        "train_images": len(train),
        "validation_images": len(validation),
        "test_images": len(dataset.test),
        "epochs": settings.epochs,
        "seed": seed,
        "device": device,
        "threads": threads,
        "out": str(out),
    }
    return Ready(about, recipe, settings, objective, dataset, train, validation, model, out, device, threads)


def _parts(dataset: Dataset, wanted: int | None, aside: int | None, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """Training and validation images, drawn as the study draws them. Raises `SettingError`."""
    at_least_one("train-images", wanted)
    at_least_one("validation-images", aside)
    there = len(dataset.train)
    if aside is None:
        aside = min(_VALIDATION, there // 5 if wanted is None else max(1, wanted // 4))
    if wanted is not None and wanted + aside > there:
        raise SettingError(f"{wanted} training and {aside} validation images, but {dataset.title} has {there}")
    pool = dataset.train if wanted is None else data.subset(dataset.train, wanted + aside, seed)
    return data.split(pool, aside, seed)


def estimate(ready: Ready, observer: Observer) -> float | None:
    """The seconds it would take; None for a network that no speed was measured for."""
    if ready.about["architecture"] != "paper-cnn":
        return None
    with observer.work("Measuring how fast this machine is", 0):
        speed = measure_speed(ready.dataset.image_shape, ready.device)
    return speed.training * (len(ready.train) + len(ready.validation)) * ready.settings.epochs


def train(ready: Ready, checkpoint: Path, history: str, observer: Observer) -> Done:
    """Train, or go on from the checkpoint; judge on the test images; write everything."""
    trained = fit(
        ready.model,
        ready.train,
        ready.validation,
        ready.settings,
        objective=ready.objective,
        augment=[AUGMENTATIONS[name]() for name in ready.recipe["augment"]],
        checkpoint=checkpoint,
        device=ready.device,
        observer=observer,
    )
    found = evaluate_clean(trained.model, ready.dataset.test, observer=observer)
    path = ready.out.with_suffix(f".history.{history}")
    rows = polars.DataFrame(trained.history).select(_COLUMNS)
    with writing(path) as temporary:
        rows.write_csv(temporary) if history == "csv" else rows.write_parquet(temporary)
    description = Description(
        architecture=ready.about["architecture"],
        dataset=ready.dataset.name,
        recipe={**ready.recipe, "augment": list(ready.recipe["augment"])},
        seed=ready.about["seed"],
        metrics={
            "test_accuracy": found.accuracy.as_json(),
            "test_loss": found.mean_loss.as_json(),
            "best_epoch": trained.best_epoch,
            "stopped_at": trained.stopped_at,
            "provenance": surroundings(ready.device, ready.threads),
        },
    )
    save(trained.model.cpu(), ready.out, description)
    checkpoint.unlink(missing_ok=True)
    return Done(trained, found, path)


def show_estimate(ready: Ready, seconds: float | None, *, as_json: bool) -> None:
    """Print what would be trained."""
    if as_json:
        console.show_json(ready.about | {"seconds_left": seconds})
        return
    made = console.table("Setting", "Value", title="Would be trained")
    for name, value in ready.about.items():
        made.add_row(name.replace("_", " "), escape(f"{value:,}" if isinstance(value, int) else str(value)))
    made.add_row("time", "not known for this network" if seconds is None else f"about {console.duration(seconds)}")
    console.show(made)


def show(ready: Ready, done: Done, *, as_json: bool) -> None:
    """Print the history and the accuracy on the test images."""
    trained, accuracy, loss = done.trained, done.found.accuracy.as_json(), done.found.mean_loss.as_json()
    if as_json:
        ends = {"best_epoch": trained.best_epoch, "stopped_at": trained.stopped_at, "history": trained.history}
        console.show_json(ready.about | {"accuracy": accuracy, "loss": loss} | ends)
        return
    stopped = f", stopped after epoch {trained.stopped_at}" if trained.stopped_at is not None else ""
    console.show(
        _history_table(trained.history),
        f"Lowest validation loss after epoch {trained.best_epoch}{stopped}.",
        f"Test accuracy {console.interval(accuracy)} %, loss {console.interval(loss, scale=1.0, digits=4)}; "
        f"95 % intervals, n = {accuracy['n']:,}.",
        f"Model: {escape(str(ready.out))}   History: {escape(str(done.history))}",
    )


def _history_table(history: list[dict[str, Any]]) -> Table:
    """One row per epoch."""
    made = console.table(*console.right("Epoch", "Rate", "Loss", "Acc. %", "Val. loss", "Val. acc. %", "Seconds"))
    for row in history:
        made.add_row(
            str(row["epoch"]),
            f"{row['learning_rate']:.2e}",
            f"{row['loss']:.4f}",
            console.percent(row["accuracy"]),
            f"{row['val_loss']:.4f}",
            console.percent(row["val_accuracy"]),
            f"{row['seconds']:.1f}",
        )
    return made
