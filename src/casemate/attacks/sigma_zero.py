"""sigma-zero: the fewest values that have to change (Cina et al. 2024, arXiv 2402.01879, algorithm 1).

Adam minimises the hinge loss of the logits plus a smooth count of the values that differ, sum of d^2 / (d^2 + sigma),
as a share of all values. After each step, values below a threshold are set to zero; the threshold rises while iterates
fool and falls while they do not.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch

from casemate.attacks._iterates import AbstractRule, Iterate, Room, falling
from casemate.attacks._minimum_norm import AdamMoments, column
from casemate.attacks._trajectory import AbstractTrajectoryAttack
from casemate.norms import Norm, norm_of
from casemate.settings import at_least, between, one_of, positive
from casemate.types import Images, PerExample

_LAST_STEP = 0.1
"""The last step as a share of the first."""


@final
@dataclass
class _Rule(AbstractRule):
    """Moments of Adam, and threshold, of each example."""

    room: Room
    moments: AdamMoments
    threshold: PerExample
    sigma: float
    step_size: float
    threshold_rate: float

    def step(self, here: Iterate, number: int, share: float) -> Images:
        """One step of Adam within the bounds; small values are then set to zero."""
        del number
        rate = falling(self.step_size, _LAST_STEP * self.step_size, share)
        if share:
            change = torch.where(here.fooled, rate, -rate).to(self.threshold) * self.threshold_rate
            self.threshold = (self.threshold + change).clamp(0, 1)
        kept = self._without_small(here.delta)
        squares = kept.square() + self.sigma
        count = 2 * self.sigma * kept / squares.square() / kept[0].numel()
        gradient = count - here.gradient * column((here.value < 0).to(kept.dtype))
        largest = norm_of(gradient, "linf").clamp(min=torch.finfo(kept.dtype).tiny)
        mean, size = self.moments.add(gradient / column(largest))
        return self._without_small(self.room.clip(kept - rate * mean / size))

    def _without_small(self, delta: Images) -> Images:
        return delta.where(delta.abs() >= column(self.threshold), 0.0)


@final
@dataclass(frozen=True, kw_only=True)
class SigmaZero(AbstractTrajectoryAttack):
    """sigma-zero: gradient descent on a smooth count of the values that change, with a threshold."""

    stream: ClassVar[str] = "SigmaZero"

    norm: Annotated[Norm, one_of("l0", why="for other norms take FMN")] = "l0"
    """What is minimised: L0, the number of values that change."""
    steps: Annotated[int, at_least(1)] = 1000
    """Number of gradient steps."""
    step_size: Annotated[float, positive()] = 1.0
    """Learning rate of Adam at the start, in shares of the range of the pixels; the last is a tenth of it."""
    sigma: Annotated[float, positive()] = 1e-3
    """How smooth the count is: a change whose square is `sigma` counts as half a value."""
    threshold: Annotated[float, between(0, 1)] = 0.3
    """The first threshold, below which changes are set to zero, in shares of the range of the pixels."""
    threshold_rate: Annotated[float, positive()] = 0.01
    """By how much the threshold changes after a step, as a multiple of the learning rate."""

    def rule(self, room: Room, value: PerExample) -> AbstractRule:
        """The rule, with the first threshold for every example."""
        return _Rule(
            room=room,
            moments=AdamMoments(room.low),
            threshold=torch.full_like(value, self.threshold),
            sigma=self.sigma,
            step_size=self.step_size,
            threshold_rate=self.threshold_rate,
        )
