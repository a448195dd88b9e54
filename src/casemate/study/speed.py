"""How fast this machine is, measured in about a second, so that the time a study takes can be told beforehand."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from casemate.attacks import Criterion, frozen, input_gradient
from casemate.engine import Task
from casemate.models import create
from casemate.train import CrossEntropy, Training

_SECONDS = 0.5
_BATCH = 128
_CLASSES = tuple("0123456789")


@dataclass(frozen=True)
class Speed:
    """Seconds that one image takes, forward and backward through `paper-cnn`."""

    training: float
    """In a step of training."""
    gradient: float
    """In a step of an attack."""

    def seconds(self, task: Task) -> float:
        """What a task will take, roughly."""
        return task.work * (self.training if task.kind in ("train", "defend") else self.gradient)


def measure_speed(input_shape: tuple[int, int, int], device: str) -> Speed:
    """Run a few steps of each kind; the state of PyTorch's random numbers is left as it was."""
    where = torch.device(device)
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        model = create("paper-cnn", input_shape=input_shape, classes=_CLASSES)
        model.to(where)
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # its stubs want more
        images = torch.rand(_BATCH, *input_shape).to(where).contiguous(memory_format=torch.channels_last)
        labels = torch.arange(_BATCH).to(where) % len(_CLASSES)
        objective, optimizer = CrossEntropy(), Training().make_optimizer(model)

        def step() -> None:
            model.train()
            optimizer.zero_grad(set_to_none=True)
            objective(model, images, labels)[0].backward()
            optimizer.step()

        def gradient() -> None:
            with frozen(model):
                input_gradient(model, images, Criterion(labels), "ce")

        return Speed(training=_seconds(step, where), gradient=_seconds(gradient, where))


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    """Seconds per image of a run, without the first, which allocates."""

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    run()
    finish()
    start, runs = time.perf_counter(), 0
    while runs == 0 or time.perf_counter() - start < _SECONDS:
        run()
        finish()
        runs += 1
    return (time.perf_counter() - start) / (runs * _BATCH)
