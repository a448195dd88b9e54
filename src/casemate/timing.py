"""What training and attack steps cost, for estimates of time made before anything is computed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

GRADIENT_COST = 0.65
FORWARD_COST = 0.25
"""Costs of one image relative to a training step, as measured: an input gradient, a classification."""


def relative_step_cost(objective: Mapping[str, Any]) -> float:
    """Cost of a training step with this objective in plain steps, as measured with `paper-cnn` (teacher: the same)."""
    if objective["name"] == "adversarial-regularization":
        return 2.6 + GRADIENT_COST * (objective["settings"].get("iterations", 1) - 1)
    if objective["name"] == "adversarial-training":
        return 1 + FORWARD_COST + GRADIENT_COST * objective["settings"].get("steps", 7)
    return 1.25 if objective["name"] == "distillation" else 1.0


@final
@dataclass(frozen=True)
class StepCost:
    """Seconds that one image takes, forward and backward through `paper-cnn`."""

    training: float
    """In a step of training."""
    gradient: float
    """In a step of an attack."""
