"""The L-BFGS attack, the first for adversarial examples (Szegedy et al. 2014, arXiv 1312.6199, section 4.1).

The paper minimises c * |r| + loss(x + r, target) within the bounds by L-BFGS, and searches for the c that gives the
nearest image. Here, as in `_minimum_norm`, c multiplies the loss instead, which gives the same images, and the norm is
squared, which makes it smooth. The optimiser is a projected L-BFGS for a whole batch: every example has its own history
and step size, and one pass evaluates new iterates for some examples and shortened steps for others.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from casemate.attacks._minimum_norm import CHECKS, MinimumNormSearch
from casemate.attacks.base import AbstractMinimumNormAttack
from casemate.attacks.criterion import Criterion
from casemate.attacks.result import Passes, RunResult
from casemate.models import Classifier
from casemate.norms import Norm, norm_of
from casemate.progress import Advance
from casemate.rng import Streams
from casemate.rows import Rows
from casemate.settings import at_least, one_of, positive
from casemate.types import Flags, Images, Logits, PerExample

_MEMORY = 8
"""Number of past steps that L-BFGS keeps per example; scipy's default is 10, textbooks say 3 to 20."""

_ARMIJO = 1e-4
"""A step is accepted if it decreases the objective by this share of the linear prediction (Nocedal and Wright 2006,
section 3.1)."""

_CURVED = 1e-6
"""A step enters the history if the cosine between it and the change of the gradient is larger than this."""

_SETTLED = 1e-6
"""An example has converged when a step lowers its objective by less than this share, or when the next one would move no
pixel by as much as this share of the range of the pixels."""

_Flat = Float[Tensor, "n pixels"]


def _dot(first: _Flat, second: _Flat) -> PerExample:
    return (first * second).sum(1)


def improbability(criterion: Criterion, logits: Logits) -> PerExample:
    """The loss to minimise, `(n,)`: the cross-entropy of the target, or, untargeted, of the likeliest wrong class in a
    softmax over that class and the label alone.

    The former is the paper's loss; the paper has no untargeted one. The loss of the label has no maximum, and its
    gradient vanishes where the network is confident. The loss used here falls to zero, and its gradient does not vanish
    before an image fools. (With all wrong classes together perturbations were up to 16 % longer.) Under a criterion of
    the user's own its margin takes the place of that of the logits.
    """
    if not criterion.targeted:
        return F.softplus(-criterion.checked_margin(logits), threshold=40)
    target = criterion.classes.unsqueeze(1)
    others = logits.scatter(1, target, float("-inf")).logsumexp(1)
    return F.softplus(others - logits.gather(1, target).squeeze(1), threshold=40)


@final
class _Minimizer(Rows):
    """Projected L-BFGS for a batch; every tensor has one row per example, and perturbations are flattened.

    Pixels at a bound that a step would cross are held fixed (Bertsekas 1982); for the others the two-loop recursion
    (Nocedal and Wright 2006, algorithm 7.4) gives the direction, and steps are shortened until they are accepted.
    """

    def __init__(self, low: _Flat, high: _Flat) -> None:
        self._low, self._high = low, high
        rows = low[:, 0]
        self._here = self.trial = self._direction = torch.zeros_like(low)
        self._gradient = torch.zeros_like(low)
        self._value, self._length = torch.full_like(rows, float("inf")), torch.ones_like(rows)
        self._steps = low.new_zeros(len(low), _MEMORY, low.shape[1])
        """The last `_MEMORY` steps of each example, `(n, _MEMORY, pixels)`."""
        self._changes = torch.zeros_like(self._steps)
        """The change of the gradient in each of these steps."""
        self._count = torch.zeros_like(rows, dtype=torch.int64)
        self.settled = torch.zeros_like(rows, dtype=torch.bool)
        """Converged, so that no further step is useful."""

    def arrive(self, value: PerExample, gradient: _Flat) -> Flags:
        """Process the objective's value and gradient at `trial`, and choose the next trial.

        Returns which examples' trials were accepted; the others' steps are shortened.
        """
        first = self._value.isinf()
        step = self.trial - self._here
        promised = _dot(self._gradient, step)
        taken = first | (value <= self._value + _ARMIJO * promised)
        self._remember(taken & ~first, step, gradient - self._gradient)
        self.settled |= taken & (self._value - value < _SETTLED * value.abs())
        column = taken.unsqueeze(1)
        # a rejected step is shortened to the minimum of the parabola through the known values, at most to a tenth
        curved = -promised / (2 * (value - self._value - promised)).clamp(min=torch.finfo(value.dtype).tiny)
        shorter = self._length * curved.nan_to_num(0.5).clamp(0.1, 0.5)
        self._here = self.trial.where(column, self._here)
        self._gradient, self._value = gradient.where(column, self._gradient), value.where(taken, self._value)
        self._direction = self._downhill().where(column, self._direction)
        self._length = torch.where(taken, 1.0, shorter)
        self.trial = (self._here + self._length.unsqueeze(1) * self._direction).maximum(self._low).minimum(self._high)
        self.settled |= (self.trial - self._here).abs().amax(1) < _SETTLED
        return taken

    def _remember(self, where: Flags, step: _Flat, change: _Flat) -> None:
        """Replace the oldest step and change of the gradient in the history by these, in the rows that `where` marks.

        Rows whose curvature along the step is not positive are left unchanged.
        """
        where = where & (_dot(step, change) > _CURVED * step.norm(dim=1) * change.norm(dim=1))
        rows = where.nonzero().squeeze(1)
        place = self._count[rows] % _MEMORY
        self._steps[rows, place], self._changes[rows, place] = step[rows], change[rows]
        self._count[rows] += 1

    def _downhill(self) -> _Flat:
        """The L-BFGS direction of the next step, or minus half the gradient if that one does not descend.

        It is zero in the pixels that are held fixed.
        """
        held = ((self._here <= self._low) & (self._gradient > 0)) | ((self._here >= self._high) & (self._gradient < 0))
        gradient = self._gradient.masked_fill(held, 0)
        everyone = torch.arange(len(gradient), device=gradient.device)
        direction, scale = gradient, torch.full_like(self._value, 0.5)  # the inverse Hessian of the squared distance
        used: list[tuple[_Flat, _Flat, PerExample, PerExample]] = []
        for back in range(1, _MEMORY + 1):
            place = (self._count - back) % _MEMORY
            step = self._steps[everyone, place].masked_fill(held, 0)
            change = self._changes[everyone, place].masked_fill(held, 0)
            curvature = _dot(step, change)
            known = (self._count >= back) & (curvature > 0)
            weight = torch.where(known, 1 / curvature, 0.0)
            share = weight * _dot(step, direction)
            direction = direction - share.unsqueeze(1) * change
            if back == 1:
                scale = torch.where(known, curvature / _dot(change, change), scale)
            used.append((step, change, weight, share))
        direction = scale.unsqueeze(1) * direction
        for step, change, weight, share in reversed(used):
            direction = direction + (share - weight * _dot(change, direction)).unsqueeze(1) * step
        downhill = _dot(direction, gradient) > 0
        return -direction.where(downhill.unsqueeze(1), gradient / 2)


@final
@dataclass
class _Round(Rows):
    """The state of the examples that the current round still optimises."""

    at: Int64[Tensor, " n"]
    """Positions of the examples in the batch."""
    clean: Images
    constant: PerExample
    fools: Flags
    """The last accepted iterate fools."""
    minimizer: _Minimizer


@final
@dataclass(frozen=True, kw_only=True)
class LBFGS(AbstractMinimumNormAttack):
    """The L-BFGS attack, targeted as in the paper, and untargeted: minimises squared L2 distance plus a weighted loss.

    On small networks about a hundred passes find images as near as thousands of passes of Carlini and Wagner's attack.

    Images that are misclassified already, or have a gradient of zero, are returned unchanged.
    """

    stream: ClassVar[str] = "LBFGS"

    norm: Annotated[Norm, one_of("l2", why="for linf take CarliniWagner, for l1 EAD")] = "l2"
    """Norm of the perturbation that is minimised: L2 only."""
    steps: Annotated[int, at_least(1)] = 30
    """Largest number of gradients in a round, those at the clean image and of rejected steps included."""
    binary_search_steps: Annotated[int, at_least(1)] = 15
    """Number of rounds of the search, with another weight c of the loss in each."""
    initial_const: Annotated[float, positive()] = 1e-3
    """The first c, the weight of the loss."""

    def max_passes(self, classes: int) -> Passes:
        """Per image at most: a forward and backward pass for the clean image, and for every step of every round."""
        del classes
        return Passes(1 + self.binary_search_steps * self.steps, 1 + self.binary_search_steps * self.steps)

    def run(
        self, model: Classifier, clean: Images, criterion: Criterion, streams: Streams, advance: Advance
    ) -> RunResult:
        """Run all rounds; the candidates are the nearest images that fooled in any of them."""
        del streams
        search = MinimumNormSearch(model, clean, criterion, size=lambda delta: norm_of(delta, "l2"), loss=improbability)
        return search.run_rounds(
            self.binary_search_steps, self.initial_const, lambda at, const: self._round(search, at, const, advance)
        )

    def _round(self, search: MinimumNormSearch, at: Tensor, constant: PerExample, advance: Advance) -> None:
        """Run one round: minimise |delta|^2 + c * loss from the clean images, for the examples at positions `at`.

        `search.reached` is set where the last accepted iterate fools; `constant` are the weights c.
        """
        width, (low, high) = search.width, search.model.bounds
        clean = search.clean[at]
        flat = clean.flatten(1)
        minimizer = _Minimizer((low - flat) / width, (high - flat) / width)
        on = _Round(at, clean, constant, torch.zeros_like(search.reached[at]), minimizer)
        every = max(1, self.steps // CHECKS)
        for step in range(1, self.steps + 1):
            delta = on.minimizer.trial
            search.reached[on.at] = False
            images = (on.clean + width * delta.view_as(on.clean)).clamp(low, high)
            loss, gradient = search.value_and_grad(on.at, images)
            value = delta.square().sum(1) + on.constant * loss
            gradient = 2 * delta + width * on.constant.unsqueeze(1) * gradient.flatten(1)
            taken = on.minimizer.arrive(value, gradient)
            on.fools = search.reached[on.at].where(taken, on.fools)
            search.reached[on.at] = on.fools
            if step % every == 0:
                advance(len(on.at) * every / (self.steps * self.binary_search_steps), "")
                going = ~(on.minimizer.settled | search.broken[on.at])
                if not going.all():
                    on = on[going]
                    if not len(on.at):
                        break
