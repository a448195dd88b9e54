"""Fast minimum-norm attack (Pintor et al. 2021, arXiv 2102.12827, algorithm 1).

The perturbation takes a step along the gradient of the logit margin, and is projected onto a ball. The radius of the
ball is at first the estimated distance of the boundary, margin over dual norm of the gradient; once an iterate has
fooled, it shrinks while iterates fool, never above the best norm so far, and grows while they do not. Step and change
of radius fall along a cosine.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch

from casemate.attacks._iterates import AbstractRule, Iterate, Room, falling
from casemate.attacks._trajectory import AbstractTrajectoryAttack
from casemate.norms import AnyNorm, Norm, dual_norm_of, norm_of, project_onto_balls, unit_length
from casemate.settings import at_least, between, positive
from casemate.types import Flags, Images, PerExample

_LAST_STEP = 0.01
"""The last step as a share of the first."""
_FIRST_STEP: dict[Norm, float] = {"linf": 10.0, "l2": 1.0, "l1": 1.0, "l0": 1.0}
"""Length of the first step in L2, by norm (the authors' settings)."""


@final
@dataclass
class _Rule(AbstractRule):
    """Radius, best norm and whether an iterate has fooled, of each example."""

    norm: Norm
    radius: PerExample
    best: PerExample
    """The smallest norm of an iterate that fooled; before one did, that of the farthest image."""
    farthest: PerExample
    found: Flags
    step_size: float
    gamma: float
    last_gamma: float

    def step(self, here: Iterate, number: int, share: float) -> Images:
        """One step along the gradient, projected onto the ball with the new radius."""
        del number
        gamma = falling(self.gamma, self.last_gamma, share)
        length = norm_of(here.delta, self.norm)
        self.best = torch.where(here.fooled, self.best.minimum(length), self.best)
        self.found = self.found | here.fooled
        if self.norm == "l0":
            smaller = (self.radius - 1).minimum((self.radius * (1 - gamma)).floor()).minimum(self.best)
            larger = (self.radius + 1).maximum((self.radius * (1 + gamma)).floor())
            radius = torch.where(here.fooled, smaller, larger).clamp(min=0)
        else:
            steepness = dual_norm_of(here.gradient, self.norm).to(length).clamp(min=torch.finfo(length.dtype).tiny)
            estimate = length + here.value.abs() / steepness
            # the published rule, without this lower limit, can approach the boundary forever from within
            grown = torch.where(self.radius.isfinite(), self.radius * (1 + gamma), 0.0)
            larger = torch.where(self.found, grown, grown.maximum(estimate))
            radius = torch.where(here.fooled, (self.radius * (1 - gamma)).minimum(self.best), larger)
        self.radius = radius.minimum(self.farthest)
        first = self.step_size
        moved = here.delta + falling(first, _LAST_STEP * first, share) * unit_length(here.gradient)
        return project_onto_balls(moved, self.radius, self.norm)


@final
@dataclass(frozen=True, kw_only=True)
class FMN(AbstractTrajectoryAttack):
    """Fast minimum-norm attack: steps along the gradient, projected onto a ball that adapts."""

    stream: ClassVar[str] = "FMN"

    norm: AnyNorm = "l2"
    """Norm of the perturbation that is minimised: Linf, L2, L1 or L0."""
    steps: Annotated[int, at_least(1)] = 300
    """Number of gradient steps."""
    step_size: Annotated[float, positive()] | None = None
    """Length in L2 of the first step, in shares of the range of the pixels; the last is a hundredth of it. If None the
    authors': 10 for Linf, else 1."""
    gamma: Annotated[float, between(0, 1, without_low=True, without_high=True)] = 0.05
    """The first share by which the radius shrinks or grows."""
    last_gamma: Annotated[float, between(0, 1, without_high=True)] = 0.001
    """The last one."""

    def rule(self, room: Room, value: PerExample) -> AbstractRule:
        """The rule, with a radius of one value (L0) or of any size (the others) for every example."""
        farthest = room.farthest(self.norm)
        return _Rule(
            norm=self.norm,
            radius=torch.full_like(value, 1.0 if self.norm == "l0" else math.inf),
            best=farthest.clone(),
            farthest=farthest,
            found=torch.zeros_like(value, dtype=torch.bool),
            step_size=_FIRST_STEP[self.norm] if self.step_size is None else self.step_size,
            gamma=self.gamma,
            last_gamma=self.last_gamma,
        )
