"""What `casemate train` prints: beforehand the settings, afterwards the history and the test accuracy."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from casemate.cli.shared import console
from casemate.cli.shared.augmentations import write_augmentation
from casemate.cli.train.run import TrainOutcome, TrainPlan
from casemate.evaluation.intervals import percent
from casemate.training import TrainConfig, undone_epochs


def show_train_plan(plan: TrainPlan, seconds: float, *, as_json: bool) -> None:
    """Print the settings of a planned training, and about how many seconds it would take."""
    if as_json:
        console.show_json(plan.about | {"seconds_left": seconds}, "casemate/training-plan/1")
        return
    made = console.settings_table(plan.about, "Would be trained", _words)
    made.add_row("time", f"about {console.duration(seconds)}")
    console.show(made, *console.note_lines(plan.about["notes"]))


def _words(name: str, value: Any) -> str:
    match name, value:
        case "objective", _:
            return f"{value['name']}: {console.words(value['settings']).replace('_', '-')}"
        case (("augment" | "extra"), _):
            return "  ".join(map(write_augmentation, value))
        case (("start" | "teacher"), _):
            return value.get("file", value.get("function"))
        case _, int():
            return f"{value:,}"
        case _:
            return console.words(value)


def show(plan: TrainPlan, outcome: TrainOutcome, *, as_json: bool) -> None:
    """Print a finished training: a row per epoch, an explanation of the losses, the test accuracy, the files."""
    trained, accuracy, loss = outcome.trained, outcome.found.accuracy, outcome.found.mean_loss
    if as_json:
        ends = {"best_epoch": trained.best_epoch, "stopped_at": trained.stopped_at, "epoch": trained.epoch}
        numbers = {"accuracy": accuracy.as_json(), "loss": loss.as_json()}
        console.show_json(plan.about | numbers | ends | {"history": trained.history}, "casemate/training/1")
        return
    watched, column, losses = _losses(plan.about["objective"])
    stopped = f", stopped after epoch {trained.stopped_at}" if trained.stopped_at is not None else ""
    console.show(
        _history_table(trained.history, column),
        *([losses] if losses else []),
        f"{_best(watched, plan.settings)} after epoch {trained.best_epoch}{stopped}; saved: the weights after epoch "
        f"{trained.epoch}.",
        *_rolled_back(trained.history),
        f"Test accuracy {accuracy}, loss {loss:.4f}; 95 % intervals, n = {accuracy.n:,}.",
        *console.note_lines(plan.about["notes"]),
        f"Model: {escape(str(plan.out))}   History: {escape(str(outcome.history))}",
        *_how_to_open(plan),
    )


def _how_to_open(plan: TrainPlan) -> list[str]:
    """What other commands take as MODEL after a training from a model that casemate did not save; else nothing."""
    if plan.start is None or plan.start.description is not None:
        return []
    source = shlex.join([plan.start.name, "--weights", str(plan.out)])
    return [f"Other commands open it as {escape(source)}, with the same options that describe the model."]


def _best(watched: str, settings: TrainConfig) -> str:
    """What the best epoch is the best one by; `watched` is the name of the validation loss."""
    return f"Lowest {watched}" if settings.monitor == "loss" else "Highest validation accuracy under PGD"


def _rolled_back(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line that says which epochs the guard undid; none if it did not."""
    undone = [str(epoch) for epoch in undone_epochs(history)]
    if not undone:
        return []
    epochs = f"Epoch {undone[0]} was" if len(undone) == 1 else f"Epochs {', '.join(undone)} were"
    return [f"{epochs} undone, since PGD fooled far more images than before; the learning rate was halved each time."]


def _history_table(history: Sequence[Mapping[str, Any]], validation_loss: str) -> Table:
    """A table with one row per epoch; `validation_loss` is the heading of the column with that loss."""
    under_pgd = "val_robust_accuracy" in history[0]
    robust = ["Under PGD"] if under_pgd else []
    made = console.new_table(
        *console.right_aligned("Epoch", "Rate", "Loss", "Accuracy", validation_loss, "Val. acc.", *robust, "Seconds")
    )
    for row in history:
        made.add_row(
            str(row["epoch"]),
            f"{row['learning_rate']:.2e}",
            f"{row['loss']:.4f}",
            percent(row["accuracy"]),
            f"{row['val_loss']:.4f}",
            percent(row["val_accuracy"]),
            *([percent(row["val_robust_accuracy"])] if under_pgd else []),
            f"{row['seconds']:.1f}",
        )
    return made


def _losses(spec: Mapping[str, Any]) -> tuple[str, str, str]:
    """Three texts: the validation loss of an objective in prose and as a column's heading, and what its losses are.

    The last is "" for the plain cross-entropy. `spec` is the objective's name and settings.
    """
    settings = spec["settings"]
    adversarial = ("adversarial validation loss", "Val. adv. loss")
    match spec["name"]:
        case "adversarial-regularization":
            what = f"Loss: of the images plus {settings['multiplier']:g} times that of their adversarial neighbours."
            return *adversarial, f"{what} Val. adv. loss: of the neighbours alone."
        case "adversarial-training":
            what = f"the images that {settings['steps']} steps of PGD find within {settings['eps']:g} of the clean ones"
            return *adversarial, f"Loss and val. adv. loss: of {what}."
        case "trades" | "mart":
            what = f"Loss and val. adv. loss: with {settings['beta']:g} times the divergence of adversarial images."
            return *adversarial, what
        case "fgsm-rs" | "n-fgsm":
            what = "Loss and val. adv. loss: of the images that one step along the gradient finds from random starts."
            return *adversarial, what
        case "several-norms":
            how = {"worst": "in each image's worst ball", "mean": "over the balls", "random": "in a random ball"}
            return *adversarial, f"Loss: {how[settings['combine']]}. Val. adv. loss: in each image's worst."
        case "at-temperature":
            what = f"Loss and val. loss: cross-entropy at temperature {settings['temperature']:g}."
            return "validation loss", "Val. loss", what
        case "distillation":
            what = f"cross-entropy to the teacher's probabilities at temperature {settings['temperature']:g}"
            return "validation loss", "Val. loss", f"Loss and val. loss: {what}."
        case "robust-distillation":
            what = "Loss and val. adv. loss: divergence from the teacher's predictions, mostly on adversarial images."
            return *adversarial, what
        case "ibp" | "crown-ibp" | "sabr" | "mtl-ibp":
            what = f"Val. cert. loss: of the worst logits that the bounds allow within {settings['eps']:g}."
            return "certified validation loss", "Val. cert. loss", what
        case "gaussian-noise" | "smooth-adv" | "consistency":
            what = f"Val. loss: of noisy images, standard deviation {settings['sigma']:g}."
            return "validation loss under noise", "Val. loss", what
        case _:
            return "validation loss", "Val. loss", ""
