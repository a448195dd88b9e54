"""What attacks return: the candidates of one algorithm on one batch, and the verified outcome for all images."""

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, final

import torch
from torch import Tensor

from casemate.rows import Rows
from casemate.types import Flags, Images, Labels, PerExample


class Status(IntEnum):
    """What became of one example."""

    SUCCESS = 0
    """Misclassified (or classified as the target) after the attack, perhaps already before it."""
    FAILED = 1
    """Still classified correctly (or not as the target)."""
    NON_FINITE = 2
    """The model's logits or its gradient were not finite; the clean image is returned, and it does not fool."""
    ZERO_GRADIENT = 3
    """Failed, and the gradient was exactly zero at every step: the attack never had a direction."""


def status_of(success: Flags, finite: Flags, has_gradient: Flags) -> Tensor:
    """The `Status` code of each example, uint8: whether it is fooled, its numbers are finite, it had a gradient."""
    status = torch.full_like(success, Status.FAILED, dtype=torch.uint8)
    status[~has_gradient] = Status.ZERO_GRADIENT
    status[~finite] = Status.NON_FINITE
    status[success] = Status.SUCCESS
    return status


@final
@dataclass
class Passes:
    """Forward and backward passes through the network, counted per example: cost without a clock."""

    forward: int = 0
    backward: int = 0

    @property
    def total(self) -> int:
        """Forward and backward together."""
        return self.forward + self.backward

    def add(self, other: "Passes") -> None:
        """Add the count of another piece of work."""
        self.forward += other.forward
        self.backward += other.backward


@final
@dataclass(frozen=True)
class RunResult(Rows):
    """What an attack's algorithm found on one batch, one entry per image; nothing of it is taken on trust."""

    images: Images
    """Candidates for adversarial images."""
    finite: Flags
    """The model's logits and gradients were finite; where not, the clean image will take the candidate's place."""
    has_gradient: Flags
    """There was a gradient other than zero at some step; True for an attack that follows none."""
    passes: Passes


@final
@dataclass(frozen=True, kw_only=True)
class AttackResult(Rows):
    """The outcome of an attack, one entry per image; `result[mask]` is the outcome for some of them."""

    adversarial: Images
    """Images inside the ball and the bounds."""
    prediction: Labels
    """The class the model gives each of them, classified again after the attack."""
    success: Flags
    status: Tensor
    """`Status` codes, uint8."""
    loss: PerExample
    """Cross-entropy of the adversarial image under its true label."""
    norm: PerExample
    """Norm of the perturbation, computed in float64."""
    passes: Passes
    """Of all images of the call, however few are chosen afterwards."""
    attack: dict[str, Any]
    """The attack's name and hyper-parameters."""

    @property
    def distance(self) -> PerExample:
        """Norm of the perturbation that fooled, infinite where none did: what a minimum-norm attack is run for."""
        return self.norm.where(self.success, math.inf)

    @property
    def robust_accuracy(self) -> float:
        """Share of all images on which the attack failed (of an untargeted attack: still classified correctly)."""
        return 1 - self.success.double().mean().item()
