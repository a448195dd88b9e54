"""Primal-dual gradient descent attacks (Matyasko and Chau 2021, arXiv 2106.01538): PDGD and PDPGD.

Both look for a saddle point of the Lagrangian, distance plus weight times the logistic loss of the logit margin. Adam
lowers it in the perturbation; the logarithm of the weight rises by a fixed step where the image does not fool, and
falls where it does. PDGD takes the gradient of the L2 distance. PDPGD lets Adam see the loss alone, and then applies
the proximal operator of the distance in Adam's own metric, which exists for every norm and leaves values exactly zero
for L1 and L0. For Linf and L2 the operator is computed exactly. For L1 and L0 it is approached by five inner steps, as
published: the exact one sets values with small gradients to zero for good (on a network trained in Linf the median L1
distance is 8.7 by the exact operator and 6.8 by five steps).
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch

from casemate.attacks._iterates import AbstractRule, Iterate, Room
from casemate.attacks._minimum_norm import AdamMoments, column
from casemate.attacks._trajectory import AbstractTrajectoryAttack
from casemate.norms import AnyNorm, Norm, unit_length
from casemate.rows import Rows
from casemate.settings import at_least, between, one_of, positive
from casemate.types import Images, PerExample

_LAST_RATE, _LAST_DUAL_RATE = 0.01, 0.1
"""The last learning rates of perturbation and weight, as shares of the first."""
_DUAL_MEAN = 0.9
"""Weight of the past in the running mean of the Lagrangian's two weights."""
_MOST_LOG_RATIO = math.log(1e6)
"""Largest absolute value of the logarithm of the ratio of the two weights."""
_INNER_STEPS = 5
"""Of `approach_proximal`."""
_NEWTON_STEPS = 12
"""Most steps of Newton's method for a proximal operator; four or five usually reach the rounding error."""


@final
@dataclass
class _Weights(Rows):
    """The Lagrangian's weights of distance and loss, which add up to one, for each example."""

    log_ratio: PerExample
    """Logarithm of the loss's weight over the distance's."""
    loss: PerExample
    """Running mean of the loss's weight."""
    rate: float

    @classmethod
    def start(cls, like: PerExample, ratio: float, rate: float) -> "_Weights":
        """Weights of which that of the distance is `ratio` times the other, for as many examples as `like` has."""
        log_ratio = torch.full_like(like, -math.log(ratio))
        return cls(log_ratio, log_ratio.sigmoid(), rate)

    def adapt(self, value: PerExample, share: float) -> None:
        """Make the loss's weight larger where the margin `value` is not positive, and smaller where it is."""
        rate = self.rate * (1 - (1 - _LAST_DUAL_RATE) * share)
        change = torch.where(value > 0, -rate, rate).to(value)
        self.log_ratio = (self.log_ratio + change).clamp(-_MOST_LOG_RATIO, _MOST_LOG_RATIO)
        self.loss = _DUAL_MEAN * self.loss + (1 - _DUAL_MEAN) * self.log_ratio.sigmoid()


def _loss_gradient(here: Iterate) -> Images:
    """The gradient of the logistic loss of the margin, log(1 + exp(-value)), with respect to the perturbation."""
    return -column((-here.value).sigmoid()) * here.gradient


@final
@dataclass
class _Descent(AbstractRule):
    """PDGD: Adam on the whole Lagrangian."""

    weights: _Weights
    moments: AdamMoments
    learning_rate: float

    def step(self, here: Iterate, number: int, share: float) -> Images:
        """One step of Adam, and one of the weights."""
        del number
        loss = column(self.weights.loss)
        mean, size = self.moments.add((1 - loss) * unit_length(here.delta) + loss * _loss_gradient(here))
        self.weights.adapt(here.value, share)
        return here.delta - self.learning_rate * _LAST_RATE**share * mean / size


@final
@dataclass
class _Proximal(AbstractRule):
    """PDPGD: Adam on the loss, and the proximal operator of the distance in Adam's metric."""

    norm: Norm
    room: Room
    weights: _Weights
    moments: AdamMoments
    learning_rate: float

    def step(self, here: Iterate, number: int, share: float) -> Images:
        """One step of Adam within the bounds, the proximal operator, and a step of the weights."""
        del number
        mean, size = self.moments.add(_loss_gradient(here))
        rate = self.learning_rate * _LAST_RATE**share
        moved = self.room.clip(here.delta - rate * mean / size)
        weight = (1 - self.weights.loss) / self.weights.loss
        self.weights.adapt(here.value, share)
        near = proximal if self.norm in ("linf", "l2") else approach_proximal
        return near(moved, size / rate, weight, self.norm)


def proximal(point: Images, metric: Images, weight: PerExample, norm: Norm) -> Images:
    """The z that minimises weight * |z| + the sum of metric_i (z_i - point_i)^2 / 2, for each example.

    For L0 |z| is replaced by the sum of |z_i|^(2/3), as in the published code, whose operator is less abrupt.

    Args:
        point: perturbations.
        metric: positive numbers of the same shape.
        weight: one per example, `(n,)`, zero or more.
    """
    if norm == "l1":
        return point.sign() * (point.abs() - column(weight) / metric).clamp(min=0)
    if norm == "l0":
        return _two_thirds(point, column(weight) / metric)
    return _linf(point, metric, weight) if norm == "linf" else _l2(point, metric, weight)


def approach_proximal(point: Images, metric: Images, weight: PerExample, norm: Norm) -> Images:
    """Five steps from `point` towards `proximal`: gradient descent on the quadratic form, each with a proximal operator
    of its own in the plain metric (algorithm 2 of the paper, after Melchior et al. 2019, arXiv 1910.10094).
    """
    largest = metric.flatten(1).amax(1)
    share, weight, near = metric / column(largest), weight / largest, point
    for _ in range(_INNER_STEPS):
        near = proximal(near - share * (near - point), torch.ones_like(share), weight, norm)
    return near


def _two_thirds(point: Images, weight: Images) -> Images:
    """The z that minimises weight * |z|^(2/3) + (z - point)^2 / 2, value by value (Cao, Sun and Xu 2013, theorem 1)."""
    double, size = 2 * weight, point.abs()
    limit = (2 / 3) * (3 * double**3) ** 0.25
    angle = torch.acosh((27 / 16 * size.square() * double.clamp(min=1e-30) ** -1.5).clamp(min=1))
    root = (2 / math.sqrt(3)) * double.clamp(min=1e-30) ** 0.25 * (angle / 3).cosh().sqrt()
    moved = ((root + (2 * size / root - root.square()).clamp(min=0).sqrt()) / 2) ** 3
    return point.sign() * torch.where(size > limit, moved.minimum(size), 0.0)


def _linf(point: Images, metric: Images, weight: PerExample) -> Images:
    """The values cut off at the t for which the metric times what is cut off adds up to the weight; zero if none does.

    The sum falls with t, is convex and piecewise linear, so that Newton's method from t = 0 reaches the root.
    """
    size, steep = point.abs().flatten(1), metric.flatten(1)
    cut = torch.zeros_like(weight)
    for _ in range(_NEWTON_STEPS):
        above = (size > cut.unsqueeze(1)).to(steep.dtype) * steep
        slope = above.sum(1)
        root = ((above * size).sum(1) - weight) / slope.clamp(min=torch.finfo(slope.dtype).tiny)
        rises = (root > cut) & (slope > 0)
        if not rises.any():
            break
        cut = root.where(rises, cut)
    limit = column(cut)
    return point.minimum(limit).maximum(-limit)


def _l2(point: Images, metric: Images, weight: PerExample) -> Images:
    """z_i = point_i * metric_i s / (metric_i s + weight) for the length s of z; zero if the weight is too large.

    1 over the length of pull_i / (metric_i s + weight), with pull = metric * point, is concave in s, and 1 at the root:
    Newton's method from s = 0 reaches it.
    """
    steep, pull = metric.flatten(1), (metric * point).flatten(1)
    length = torch.zeros_like(weight)
    for _ in range(_NEWTON_STEPS):
        below = steep * length.unsqueeze(1) + weight.unsqueeze(1).clamp(min=torch.finfo(steep.dtype).tiny)
        share = pull / below
        total = share.square().sum(1)
        slope = (share.square() * steep / below).sum(1)  # minus half the derivative of `total`
        step = total * (total.sqrt() - 1) / slope.clamp(min=torch.finfo(steep.dtype).tiny)
        grows = step > 1e-6 * length
        if not grows.any():
            break
        length = torch.where(grows, length + step, length)
    scaled = metric * column(length)
    return point * scaled / (scaled + column(weight)).clamp(min=torch.finfo(steep.dtype).tiny)


@dataclass(frozen=True, kw_only=True)
class AbstractPrimalDual(AbstractTrajectoryAttack):
    """Base of PDGD and PDPGD, which differ in how they take the distance into account."""

    steps: Annotated[int, at_least(1)] = 300
    """Number of gradient steps (published: 500)."""
    learning_rate: Annotated[float, positive()] = 0.1
    """Learning rate of Adam at the start, in shares of the range of the pixels; the last is a hundredth of it."""
    dual_learning_rate: Annotated[float, positive()] = 0.1
    """First step of the logarithm of the loss's weight; the last is a tenth of it."""
    initial_ratio: Annotated[float, between(1e-6, 1e6)] = 0.01
    """The first weight of the distance over that of the loss."""

    @final
    def weights(self, value: PerExample) -> _Weights:
        """The weights at the start."""
        return _Weights.start(value, self.initial_ratio, self.dual_learning_rate)


@final
@dataclass(frozen=True, kw_only=True)
class PDGD(AbstractPrimalDual):
    """Primal-dual gradient descent: Adam on the distance and a weighted loss."""

    stream: ClassVar[str] = "PDGD"

    norm: Annotated[Norm, one_of("l2", why="for other norms take PDPGD")] = "l2"
    """Norm of the perturbation that is minimised: L2."""

    def rule(self, room: Room, value: PerExample) -> AbstractRule:
        """The rule at the start."""
        return _Descent(self.weights(value), AdamMoments(room.low), self.learning_rate)


@final
@dataclass(frozen=True, kw_only=True)
class PDPGD(AbstractPrimalDual):
    """Primal-dual proximal gradient descent: Adam on the loss, a proximal step on the norm."""

    stream: ClassVar[str] = "PDPGD"

    norm: AnyNorm = "l1"
    """Norm of the perturbation that is minimised: Linf, L2, L1 or L0."""

    def rule(self, room: Room, value: PerExample) -> AbstractRule:
        """The rule at the start."""
        return _Proximal(self.norm, room, self.weights(value), AdamMoments(room.low), self.learning_rate)
