"""Augmented Lagrangian method for adversarial attacks (Rony et al. 2021, arXiv 2011.11857, algorithm 2).

The distance is minimised under the constraint that the image is misclassified, y < 0 with the difference of logits
ratio y. The constraint enters by the penalty function P2, whose multiplier mu follows the derivative of the penalty as
a running mean, and whose parameter rho grows where, for some steps, the constraint has neither held nor improved. The
step is RMSProp with momentum; its length is chosen for each example such that the first step moves it by a set
distance, and falls from the first iterate that fools on.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch

from casemate.attacks._iterates import AbstractRule, Iterate, Room
from casemate.attacks._minimum_norm import column
from casemate.attacks._trajectory import AbstractTrajectoryAttack
from casemate.losses import LossName
from casemate.norms import Norm, norm_of, unit_length
from casemate.settings import at_least, one_of, positive
from casemate.types import Flags, Images, PerExample

_FIRST_DISTANCE: dict[Norm, float] = {"l2": 0.1, "l1": 0.5}
"""Distance of the first step, by norm (the authors' settings)."""
_LAST_RATE = 0.01
"""The last learning rate as a share of the first."""
_CHECKED_STEPS, _IMPROVED, _GROWTH = 10, 0.95, 1.2
"""Every tenth step rho grows by the last factor where the constraint did not fall below the second times its value
before (the paper's M, tau and gamma)."""
_MEAN = 0.9
"""Weight of the past in all running means (alpha)."""
_TOLERANCE = 1e-4
"""Added to the constraint, so that it is not met by equal logits."""
_LEAST_MULTIPLIER, _MOST_MULTIPLIER = 1e-6, 1e12
_HALVINGS = 20
"""Of the interval for the learning rate of an example."""


def penalty_slope(constraint: PerExample, rho: PerExample, mu: PerExample) -> PerExample:
    """The derivative of the penalty P2(y, rho, mu) with respect to the constraint y (Birgin et al. 2005; section 3).

    P2 is mu y + mu rho y^2 + rho^2 y^3 / 6 for y >= 0, and mu y / (1 - rho y) below.
    """
    above = mu + 2 * mu * rho * constraint + 0.5 * rho.square() * constraint.square()
    below = mu / (1 - rho * constraint.clamp(max=0)).square()
    return torch.where(constraint >= 0, above, below)


@final
@dataclass
class _Rule(AbstractRule):
    """The state of each example: step, penalty, and when it first fooled."""

    norm: Norm
    room: Room
    rate: PerExample
    squares: Images
    momentum: Images
    mu: PerExample
    rho: PerExample
    before: PerExample
    """The constraint when it was last compared."""
    found: Flags
    since: PerExample
    """The share of the steps after which an iterate first fooled; 1 before."""
    scale: PerExample
    """What the constraint is divided by: 1, as it is a ratio, but for two classes, where it is a difference of
    logits."""
    first_distance: float

    def step(self, here: Iterate, number: int, share: float) -> Images:
        """One step of RMSProp on distance and penalty; the first one on the penalty alone."""
        constraint = (_TOLERANCE - here.value) / self.scale
        if number:
            self._adapt(constraint, number)
        self.since = self.since.where(self.found | ~here.fooled, share)
        self.found = self.found | here.fooled
        gradient = -column(penalty_slope(constraint, self.rho, self.mu) / self.scale) * here.gradient
        if number:
            gradient = gradient + (here.delta.sign() if self.norm == "l1" else unit_length(here.delta))
        else:
            self.before = constraint
            self.rate = self._first_rate(gradient)
        rate = self.rate * _LAST_RATE ** ((share - self.since).clamp(min=0) / (1 - self.since).clamp(min=1e-12))
        self.squares = _MEAN * self.squares + (1 - _MEAN) * gradient.square()
        self.momentum = _MEAN * self.momentum + gradient / (self.squares.sqrt() + 1e-8)
        return here.delta - column(rate) * self.momentum

    def _adapt(self, constraint: PerExample, number: int) -> None:
        """Change rho where the constraint does not improve, and mu towards the slope of the penalty."""
        if (number + 1) % _CHECKED_STEPS == 0:
            stalled = ~self.found & (constraint >= _IMPROVED * self.before)
            self.rho = torch.where(stalled, _GROWTH * self.rho, self.rho)
            self.before = constraint
        slope = penalty_slope(constraint, self.rho, self.mu)
        self.mu = (_MEAN * self.mu + (1 - _MEAN) * slope).clamp(_LEAST_MULTIPLIER, _MOST_MULTIPLIER)

    def _first_rate(self, gradient: Images) -> PerExample:
        """The learning rate with which a step along the gradient, within the bounds, has norm `first_distance`."""

        def reaches(rate: PerExample) -> Flags:
            return norm_of(self.room.clip(-column(rate) * gradient), self.norm) > self.first_distance

        # a step of unit length, and from there up or down by factors of two
        high = 1 / norm_of(gradient, "l2").clamp(min=torch.finfo(gradient.dtype).tiny)
        low = torch.zeros_like(high)
        for _ in range(_HALVINGS):
            short = ~reaches(high)
            if not short.any():
                break
            low, high = high.where(short, low), torch.where(short, 2 * high, high)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            far = reaches(middle)
            low, high = low.where(far, middle), middle.where(far, high)
        return (low + high) / 2


@final
@dataclass(frozen=True, kw_only=True)
class ALMA(AbstractTrajectoryAttack):
    """Augmented Lagrangian method: distance and a penalty for correct classification, by RMSProp."""

    stream: ClassVar[str] = "ALMA"
    objective: ClassVar[LossName] = "dlr"

    norm: Annotated[Norm, one_of("l2", "l1", why="for linf and l0 take FMN or PDPGD")] = "l2"
    """Norm of the perturbation that is minimised: L2 or L1."""
    steps: Annotated[int, at_least(1)] = 300
    """Number of gradient steps (published: 100 and 1,000)."""
    first_distance: Annotated[float, positive()] | None = None
    """Distance, in shares of the range of the pixels, that the first step moves an image by. If None the authors': 0.1
    for L2, 0.5 for L1."""

    def rule(self, room: Room, value: PerExample) -> AbstractRule:
        """The rule at the start, with mu = rho = 1."""
        one = torch.ones_like(value)
        return _Rule(
            norm=self.norm,
            room=room,
            rate=one,
            squares=torch.ones_like(room.low),
            momentum=torch.zeros_like(room.low),
            mu=one,
            rho=one,
            before=one,
            found=torch.zeros_like(value, dtype=torch.bool),
            since=one,
            scale=value.abs().clamp(min=1),
            first_distance=_FIRST_DISTANCE[self.norm] if self.first_distance is None else self.first_distance,
        )
