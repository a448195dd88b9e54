"""Costs of training and attack steps, for time estimates before a run, and how a time is written."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

TrainPrecision = Literal["float32", "bfloat16"]
"""Precision of convolutions and matrix products in training steps."""
GRADIENT_COST = 0.65
FORWARD_COST = 0.25
"""Measured time of a forward pass (`GRADIENT_COST`: of an input gradient), divided by that of a training step on as
many images."""


def relative_step_cost(objective: Mapping[str, Any]) -> float:
    """Measured time of a training step with an objective, divided by that of one with cross-entropy.

    `objective` is its description, with `name` and `settings`. Measured with `paper-cnn`, also as the teacher of a
    distillation.
    """
    if objective["name"] == "adversarial-regularization":
        return 2.6 + GRADIENT_COST * (objective["settings"].get("iterations", 1) - 1)
    if objective["name"] == "adversarial-training":
        return 1 + FORWARD_COST + GRADIENT_COST * objective["settings"].get("steps", 7)
    return 1.25 if objective["name"] == "distillation" else 1.0


@final
@dataclass(frozen=True)
class StepCost:
    """Seconds per image of a training step and of an attack step with the network `paper-cnn`."""

    training: float
    """Seconds per image of a training step: forward and backward pass, and the update of the weights."""
    gradient: float
    """Seconds per image of an attack step: forward and backward pass to the input gradient."""


def duration(seconds: float | int) -> str:
    """A time with its unit, such as "4.2 s", "5 min 03 s" or "2 h 10 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
