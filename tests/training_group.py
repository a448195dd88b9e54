"""A program that `torchrun` starts in several processes, or that is called in one: trainings, and what they end in.

Each process writes the weights and the history of each training into the folder that is its argument, for the tests to
compare.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import casemate
from casemate.data import digits, split
from casemate.data.augment import Shift
from casemate.defenses import RECIPES, AdversarialTraining, make_objective
from casemate.errors import CasemateError, ModelError
from casemate.models import Classifier, create
from casemate.torchrun import place
from casemate.training import TrainConfig, TrainResult, fit
from casemate.training.state import snapshot
from conftest import TINY_CLASSES, TINY_SHAPE, tiny_images, tiny_model

TRAIN, VALIDATION = split(tiny_images(150, noise=90, wrong=0.2), 47, 0)


class Smooth(nn.Module):
    """A network without batch statistics and random numbers, with a part that is not used and a buffer that is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, kernel_size=3, padding=1)
        self.dense = nn.Linear(4 * 64, len(TINY_CLASSES))
        self.unused = nn.Linear(2, 2)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        self.seen: Tensor

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.seen += images.detach().mean()
        return self.dense(F.silu(self.conv(images)).flatten(1))


def smooth(seed: int = 0) -> Classifier:
    """A classifier of tiny images, of which several processes train what one does, up to rounding."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Smooth()
    return Classifier(network, input_shape=TINY_SHAPE, classes=TINY_CLASSES, mean=0.1307, std=0.3081)


@dataclass(frozen=True, kw_only=True)
class FailsInOne:
    """An objective that fails in one process only, at its second call; the others wait for it."""

    rank: int = 1
    bug: bool = False

    def __call__(self, model: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if place().rank == self.rank and model.training:
            raise ZeroDivisionError("a bug") if self.bug else ModelError("this objective does not go on")
        logits = model(images)
        return F.cross_entropy(logits, labels), logits

    def validate(self, model: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return self(model, images, labels)


def _plain(**settings: Any) -> TrainResult:
    wanted = TrainConfig(**({"epochs": 3, "batch_size": 40, "learning_rate": 0.01} | settings))
    return fit(smooth(), TRAIN, VALIDATION, wanted)


def _with_everything() -> TrainResult:
    """Uneven batches, an augmentation, a moving average, weight decay, a schedule, early stopping, kept epochs."""
    settings = TrainConfig(
        epochs=4, batch_size=41, optimizer="adamw", learning_rate=0.01, weight_decay=0.1, ema=0.9, patience=2,
        schedule="one-cycle", save_epochs=(2,),
    )  # fmt: skip
    return fit(smooth(), TRAIN, VALIDATION, settings, augment=(Shift(pixels=1),))


def _attacked() -> TrainResult:
    objective = AdversarialTraining(eps=0.05, steps=2, random_start=False)
    return fit(smooth(), TRAIN, VALIDATION, TrainConfig(epochs=2, batch_size=40), objective=objective)


def _other_weights() -> TrainResult:
    return fit(smooth(place().rank), TRAIN, VALIDATION, TrainConfig(epochs=1, batch_size=40, learning_rate=0.01))


def recipe(name: str) -> TrainResult:
    """A short training by a recipe of a network with batch normalisation and dropout."""
    kind = RECIPES[name]
    settings = {key: value for key, value in kind.defaults.items() if key != kind.teacher}
    settings |= {"temperature": 2.0} if "temperature" in settings else {}
    teacher = None if kind.teacher is None else tiny_model(5)
    objective = make_objective({"name": name, "settings": settings}, teacher)
    return fit(tiny_model(), TRAIN, VALIDATION, TrainConfig(epochs=2, batch_size=41, ema=0.9), objective=objective)


SMOOTH: dict[str, Callable[[], TrainResult]] = {
    "plain": _plain,
    "sgd": lambda: _plain(optimizer="sgd", learning_rate=0.05),
    "few in a batch": lambda: _plain(batch_size=2, epochs=1),
    "everything": _with_everything,
    "attacked": _attacked,
    "other weights": _other_weights,
}
"""Trainings of which several processes end in the weights of one, up to rounding."""
ERRORS: dict[str, Callable[[], TrainResult]] = {
    "in one": lambda: fit(smooth(), TRAIN, VALIDATION, TrainConfig(epochs=1), objective=FailsInOne()),
    "a bug": lambda: fit(smooth(), TRAIN, VALIDATION, TrainConfig(epochs=1), objective=FailsInOne(bug=True)),
    "other images": lambda: fit(smooth(), tiny_images(60, place().rank), VALIDATION, TrainConfig(epochs=1)),
    "another network": lambda: fit(
        tiny_model(0, ["linear", "tiny"][place().rank % 2]), TRAIN, VALIDATION, TrainConfig(epochs=1)
    ),
    "not finite": lambda: _plain(learning_rate=1e30),
    "no images": lambda: fit(smooth(), tiny_images(1), VALIDATION, TrainConfig(epochs=1)),
}
"""Trainings that end in an error, in all processes."""


class FailsInOneProcess(nn.Module):
    """A network of digits that fails in the second process, once it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(28 * 28, 10)

    def forward(self, images: Tensor) -> Tensor:
        if self.training and place().rank == 1:
            raise ValueError("no memory of the second process")
        return self.dense(images.flatten(1))


def accuracies(seed: int, which: str = "tiny") -> tuple[float, float]:
    """Clean accuracy, and accuracy under PGD, of a network that was trained adversarially, in percent.

    Initial weights and everything that is drawn depend on `seed`; the images, tiny ones or the digits, do not.
    """
    if which == "tiny":
        train, validation, test = (tiny_images(n, 7 + n, noise=90) for n in (400, 100, 1000))
        model, epochs = tiny_model(seed), 12
    else:
        found = digits.load()
        (train, validation), test = split(found.train, 150, 0), found.test
        model, epochs = create("tiny", input_shape=found.image_shape, classes=found.classes, seed=seed), 20
    settings = TrainConfig(epochs=epochs, batch_size=64, learning_rate=0.01, schedule="one-cycle", seed=seed)
    done = fit(model, train, validation, settings, objective=AdversarialTraining(eps=0.1, steps=3))
    images, labels = test.tensors()
    with torch.no_grad():
        clean = (done.model(images).argmax(1) == labels).double().mean().item()
    robust = casemate.PGD(eps=0.1, steps=10)(done.model, images, labels).robust_accuracy
    return 100 * clean, 100 * robust


def write(folder: Path, name: str, result: TrainResult) -> None:
    """Write what this process has after a training."""
    path = folder / f"{name}-{place().rank}"
    tensors = {f"model/{each}": tensor for each, tensor in snapshot(result.model).items()}
    tensors |= {f"best/{each}": tensor for each, tensor in result.best.items()}
    for epoch, weights in result.kept.items():
        tensors |= {f"kept {epoch}/{each}": tensor for each, tensor in weights.items()}
    safetensors.torch.save_file({each: t.clone().contiguous() for each, t in tensors.items()}, f"{path}.safetensors")
    ends = [result.epoch, result.best_epoch, result.stopped_at, result.processes]
    Path(f"{path}.json").write_text(json.dumps({"history": result.history, "ends": ends}))


def main(folder: Path, random_state: Tensor) -> None:
    """Run every training, and write what each ends in."""
    for name, train in SMOOTH.items():
        write(folder, name, train())
    for name in RECIPES:
        write(folder, name, recipe(name))
    found: dict[str, str] = {}
    for name, train in ERRORS.items():
        try:
            train()
        except (CasemateError, ZeroDivisionError) as error:
            found[name] = f"{type(error).__name__}: {error}"
    settings = TrainConfig(epochs=2, batch_size=40)
    checkpoint = folder / "checkpoint" if place().is_first else None  # only one process has the file
    fit(tiny_model(), TRAIN, VALIDATION, settings, checkpoint=checkpoint)
    write(folder, "resumed", fit(tiny_model(3 * place().rank), TRAIN, VALIDATION, settings, checkpoint=checkpoint))
    write(folder, "not resumed", fit(tiny_model(), TRAIN, VALIDATION, settings))
    Path(folder, f"errors-{place().rank}.json").write_text(json.dumps(found))
    assert casemate.fit is fit
    assert torch.equal(torch.get_rng_state(), random_state)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) == 2:
        main(Path(sys.argv[1]), torch.get_rng_state())
    else:
        each = [accuracies(seed, *sys.argv[3:]) for seed in range(int(sys.argv[2]))]
        Path(sys.argv[1], f"accuracies-{place().rank}.json").write_text(json.dumps(each))
