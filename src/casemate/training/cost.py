"""Seconds per image of training and attack steps on this machine, measured in about a second, for time estimates."""

import time
from collections.abc import Callable

import torch

from casemate.attacks import Criterion, frozen, input_gradient
from casemate.models import create
from casemate.timing import StepCost
from casemate.training.config import TrainConfig
from casemate.training.objective import CrossEntropy

_SECONDS = 0.5
_BATCH = 128
_CLASSES = tuple("0123456789")


def measure_step_cost(input_shape: tuple[int, int, int], device: str) -> StepCost:
    """Run a few steps of each kind; the state of PyTorch's random numbers is left as it was."""
    where = torch.device(device)
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        model = create("paper-cnn", input_shape=input_shape, classes=_CLASSES)
        model.to(where)
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # its stubs want more
        images = torch.rand(_BATCH, *input_shape).to(where).contiguous(memory_format=torch.channels_last)
        labels = torch.arange(_BATCH).to(where) % len(_CLASSES)
        objective, optimizer = CrossEntropy(), TrainConfig().make_optimizer(model)

        def step() -> None:
            model.train()
            optimizer.zero_grad(set_to_none=True)
            objective(model, images, labels)[0].backward()
            optimizer.step()

        def gradient() -> None:
            with frozen(model):
                input_gradient(model, images, Criterion(labels), "ce")

        return StepCost(training=_seconds(step, where), gradient=_seconds(gradient, where))


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
