"""Decoupled direction and norm attack (Rony et al. 2019, arXiv 1811.09600, algorithm 1).

The perturbation follows the gradient of the cross-entropy, and is then scaled to a radius that shrinks while it fools
and grows while it does not, by a fixed factor. Rounding to grey levels, a part of the published algorithm, is left to
the argument `levels` that every attack takes.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch

from casemate.attacks._iterates import AbstractRule, Iterate, Room, falling
from casemate.attacks._minimum_norm import column
from casemate.attacks._trajectory import AbstractTrajectoryAttack
from casemate.losses import LossName
from casemate.norms import Norm, norm_of, unit_length
from casemate.settings import at_least, between, one_of, positive
from casemate.types import Images, PerExample

_FIRST_STEP, _LAST_STEP = 1.0, 0.01
"""Length of the first and the last step along the gradient (section 3 of the paper)."""


@final
@dataclass
class _Rule(AbstractRule):
    """The radius of each example, which is adapted."""

    radius: PerExample
    farthest: PerExample
    gamma: float

    def step(self, here: Iterate, number: int, share: float) -> Images:
        """One step along the gradient, scaled to the new radius."""
        del number
        moved = here.delta + falling(_FIRST_STEP, _LAST_STEP, share) * unit_length(here.gradient)
        factor = torch.where(here.fooled, 1 - self.gamma, 1 + self.gamma).to(self.radius)
        self.radius = (self.radius * factor).minimum(self.farthest)
        return moved * column(self.radius / norm_of(moved, "l2").clamp(min=1e-12))


@final
@dataclass(frozen=True, kw_only=True)
class DDN(AbstractTrajectoryAttack):
    """Decoupled direction and norm: steps along the gradient, on a sphere that adapts its radius."""

    stream: ClassVar[str] = "DDN"
    objective: ClassVar[LossName] = "ce"

    norm: Annotated[Norm, one_of("l2", why="for other norms take FMN")] = "l2"
    """Norm of the perturbation that is minimised: L2."""
    steps: Annotated[int, at_least(1)] = 300
    """Number of gradient steps (published: 100, 300 and 1,000)."""
    gamma: Annotated[float, between(0, 1, without_low=True, without_high=True)] = 0.05
    """Share by which the radius shrinks after an iterate that fools, and grows after one that does not."""
    init_norm: Annotated[float, positive()] = 1.0
    """The first radius, as a multiple of the range of the pixels."""

    def rule(self, room: Room, value: PerExample) -> AbstractRule:
        """The rule, with the first radius for every example."""
        return _Rule(torch.full_like(value, self.init_norm), room.farthest("l2"), self.gamma)
