"""Perturbations on their way to the nearest adversarial image, and the rules by which one follows from the one before.

Rules see perturbations in shares of the range of the pixels, so that step sizes mean the same for all bounds.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from casemate.norms import Norm, norm_of
from casemate.rows import Rows
from casemate.types import Flags, Images, PerExample


@final
@dataclass(frozen=True)
class Room(Rows):
    """How far each value of an image can move within the bounds, in shares of their range."""

    low: Images
    """The least perturbation, zero or less."""
    high: Images
    """The largest, zero or more."""

    def clip(self, delta: Images) -> Images:
        """Perturbations limited to the room."""
        return delta.maximum(self.low).minimum(self.high)

    def farthest(self, norm: Norm) -> PerExample:
        """Norm of the largest perturbation within the bounds, `(n,)`."""
        return norm_of(self.high.maximum(-self.low), norm)


@final
@dataclass(frozen=True)
class Iterate(Rows):
    """Perturbations, one for each example that is still attacked, and what a pass through the network shows of them."""

    delta: Images
    """The perturbation, in shares of the range of the pixels."""
    fooled: Flags
    """Whether the perturbed image fools."""
    value: PerExample
    """The objective at the perturbed image, which is larger, the more wrong the model is; for the logit margin, and
    what is derived from it, it is positive where the image fools."""
    gradient: Images
    """The gradient of `value` with respect to `delta`."""


@dataclass
class AbstractRule(Rows, ABC):
    """How an attack gets from one iterate to the next. Its tensors have one row per example, and are its state."""

    def __post_init__(self) -> None:
        self.done: Flags | None = None
        """Which examples have nothing left to try after this step; None: none of them."""

    @abstractmethod
    def step(self, here: Iterate, number: int, share: float) -> Images:
        """The next perturbation of each example; the loop limits it to the bounds.

        Args:
            here: the iterate before.
            number: how many steps were made before.
            share: of the steps of the run that were made before, from 0 to below 1.
        """


def falling(start: float, end: float, share: float) -> float:
    """The value after `share` of the steps of one that falls from `start` to `end` along half a period of a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
