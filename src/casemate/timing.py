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

_STEPS: Mapping[str, int] = {"adversarial-training": 7, "fgsm-rs": 1, "n-fgsm": 1, "virtual-adversarial": 1}
"""Gradients with respect to the images in a step of the recipes whose descriptions may lack `steps`."""
_PASSES: Mapping[str, int] = {
    "trades": 2,
    "mart": 2,
    "robust-distillation": 2,
    "ibp": 3,
    "crown-ibp": 6,
    "sabr": 3,
    "mtl-ibp": 4,
    "virtual-adversarial": 2,
    "graph-regularization": 4,
}
"""Passes that are differentiated with respect to the weights in a step of each recipe without a setting `draws`, where
it is more than one; bounds count as two."""


def relative_step_cost(objective: Mapping[str, Any]) -> float:
    """Approximate time of a training step with an objective, divided by that of one with cross-entropy.

    `objective` is its description, with `name` and `settings`, where `steps` and `iterations` may be missing if they
    are the usual ones.
    Measured with `paper-cnn` for adversarial regularisation, adversarial training and distillation, also as the teacher
    of the latter; for the others the passes are counted.
    """
    name, settings = objective["name"], objective["settings"]
    if name == "adversarial-regularization":
        return 2.6 + GRADIENT_COST * (settings.get("iterations", 1) - 1)
    if name == "distillation":
        return 1.25
    steps = settings.get("steps", _STEPS.get(name, 0))
    passes = settings.get("draws", _PASSES.get(name, 1))
    if name == "several-norms" and settings["combine"] != "random":
        steps, passes = 3 * steps, 1 if settings["combine"] == "worst" else 3
    if name == "smooth-adv":
        steps *= passes
    if settings.get("weight_perturbation", 0) > 0:
        passes *= 2
    attacks = FORWARD_COST + GRADIENT_COST * steps if steps else 0.0
    return passes + attacks


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
