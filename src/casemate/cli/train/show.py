"""How `casemate train` shows a training: beforehand what would be done, afterwards the history and the accuracy."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from casemate.cli.shared import console
from casemate.cli.shared.augmentations import write_change
from casemate.cli.train.run import Done, Ready


def show_estimate(ready: Ready, seconds: float | None, *, as_json: bool) -> None:
    """Print what would be trained."""
    if as_json:
        console.show_json(ready.about | {"seconds_left": seconds})
        return
    made = console.table("Setting", "Value", title="Would be trained")
    for name, value in ready.about.items():
        if value not in (None, []) and name != "notes":
            made.add_row(name.replace("_", " "), escape(_words(name, value)))
    made.add_row("time", "not known for this network" if seconds is None else f"about {console.duration(seconds)}")
    console.show(made, *console.notes(ready.about["notes"]))


def _words(name: str, value: Any) -> str:
    match name, value:
        case "objective", _:
            return f"{value['name']}: {console.words(value['settings']).replace('_', '-')}"
        case (("augment" | "extra"), _):
            return "  ".join(map(write_change, value))
        case (("start" | "teacher"), _):
            return value.get("file", value.get("function"))
        case _, int():
            return f"{value:,}"
        case _:
            return console.words(value)


def show(ready: Ready, done: Done, *, as_json: bool) -> None:
    """Print the history, what its losses are, and the accuracy on the test images."""
    trained, accuracy, loss = done.trained, done.found.accuracy.as_json(), done.found.mean_loss.as_json()
    if as_json:
        ends = {"best_epoch": trained.best_epoch, "stopped_at": trained.stopped_at, "epoch": trained.epoch}
        console.show_json(ready.about | {"accuracy": accuracy, "loss": loss} | ends | {"history": trained.history})
        return
    watched, column, losses = _losses(ready.about["objective"])
    stopped = f", stopped after epoch {trained.stopped_at}" if trained.stopped_at is not None else ""
    console.show(
        _history_table(trained.history, column),
        *([losses] if losses else []),
        f"Lowest {watched} after epoch {trained.best_epoch}{stopped}; saved: the weights after epoch {trained.epoch}.",
        f"Test accuracy {console.interval(accuracy)} %, loss {console.interval(loss, scale=1.0, digits=4)}; "
        f"95 % intervals, n = {accuracy['n']:,}.",
        *console.notes(ready.about["notes"]),
        f"Model: {escape(str(ready.out))}   History: {escape(str(done.history))}",
    )


def _history_table(history: Sequence[Mapping[str, Any]], validation_loss: str) -> Table:
    """One row per epoch."""
    made = console.table(*console.right("Epoch", "Rate", "Loss", "Acc. %", validation_loss, "Val. acc. %", "Seconds"))
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


def _losses(spec: Mapping[str, Any]) -> tuple[str, str, str]:
    """What is watched on the validation images (for prose, and for a column), and what the losses are, if not plain."""
    settings = spec["settings"]
    match spec["name"]:
        case "adversarial-regularization":
            what = f"Loss: of the images plus {settings['multiplier']:g} times that of their adversarial neighbours."
            return "adversarial validation loss", "Val. adv. loss", f"{what} Val. adv. loss: of the neighbours alone."
        case "adversarial-training":
            what = f"the images that {settings['steps']} steps of PGD find within {settings['eps']:g} of the clean ones"
            return "adversarial validation loss", "Val. adv. loss", f"Loss and val. adv. loss: of {what}."
        case "at-temperature":
            what = f"Loss and val. loss: cross-entropy at temperature {settings['temperature']:g}."
            return "validation loss", "Val. loss", what
        case "distillation":
            what = f"cross-entropy to the teacher's answers at temperature {settings['temperature']:g}"
            return "validation loss", "Val. loss", f"Loss and val. loss: {what}."
        case _:
            return "validation loss", "Val. loss", ""
