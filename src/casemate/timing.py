"""Costs of training and attack steps, for time estimates before a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

GRADIENT_COST = 0.65
FORWARD_COST = 0.25
"""Measured costs of an input gradient and of a forward pass, relative to a training step on as many images."""


def relative_step_cost(objective: Mapping[str, Any]) -> float:
    """Measured cost of a training step with an objective, relative to one with cross-entropy.

    `objective` has a name and settings. Measured with `paper-cnn`, also as the teacher of a distillation.
    """
    if objective["name"] == "adversarial-regularization":
        return 2.6 + GRADIENT_COST * (objective["settings"].get("iterations", 1) - 1)
    if objective["name"] == "adversarial-training":
        return 1 + FORWARD_COST + GRADIENT_COST * objective["settings"].get("steps", 7)
    return 1.25 if objective["name"] == "distillation" else 1.0


@final
@dataclass(frozen=True)
class StepCost:
    """Seconds per image of forward and backward passes through `paper-cnn`."""

    training: float
    """A training step, with weight gradients and the update."""
    gradient: float
    """An attack step, with the input gradient."""
