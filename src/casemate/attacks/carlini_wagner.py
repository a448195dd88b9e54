"""The nearest adversarial image, found by Adam (Carlini and Wagner 2017, arXiv 1608.04644).

Adam minimises the sum of distance and hinge loss of the logits, in a variable whose tanh is the image, so that no pixel
leaves its bounds; see `_minimum_norm` for the search around it. L2 is section VI.A of the paper, Linf section VI.C; L0
(VI.B) is left out.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
from jaxtyping import Int64
from torch import Tensor

from casemate.attacks._minimum_norm import (
    CHECKS,
    AdamMoments,
    MinimumNormSearch,
    PlateauDetector,
    column,
)
from casemate.attacks.base import AbstractMinimumNormAttack
from casemate.attacks.criterion import Criterion
from casemate.attacks.result import Passes, RunResult
from casemate.models import Classifier
from casemate.norms import Bounds, Norm, norm_of
from casemate.progress import Advance
from casemate.rng import Streams
from casemate.rows import Rows
from casemate.settings import at_least, not_negative, one_of, positive
from casemate.types import Flags, Images, PerExample

_BEYOND = 0.2
"""How far the range of the tanh extends beyond the bounds, as a share of their range. Without it, pixels at a bound
would have an infinite variable with a derivative of zero and could never move; with a share of 0.01 they need hundreds
of steps to start (100 steps of 0.01 fooled 6 % of black-and-white images with 0.01, and all with 0.2)."""

_SHRINK = 0.1
"""Linf: when an image fools within tau, tau becomes its norm minus this share of it (the published factor is 0.9)."""

_FINER, _HEAVIER = 4.0, 10.0
"""Linf: after a round that did not get below tau, learning rate and `_SHRINK` are divided by the first number, and c is
multiplied by the second."""


@final
class _Adam(Rows):
    """Adam in a variable w of which the image is a scaled tanh; every tensor has one row per example."""

    def __init__(self, images: Images, bounds: Bounds, rate: PerExample) -> None:
        self._bounds = bounds
        self._middle, self._reach = (bounds[0] + bounds[1]) / 2, (1 + _BEYOND) * (bounds[1] - bounds[0]) / 2
        self._limit = math.atanh(1 / (1 + _BEYOND))
        self._variable = ((images - self._middle) / self._reach).atanh()
        self._moments, self._rate = AdamMoments(images), column(rate)

    def images(self) -> Images:
        """The current iterates as images, within the bounds."""
        return (self._middle + self._reach * self._variable.tanh()).clamp(*self._bounds)

    def descend(self, gradient: Images) -> None:
        """One step of Adam to lower the objective, given its gradient with respect to the images.

        w is clamped to the values that the bounds of the pixels correspond to.
        """
        mean, size = self._moments.add(gradient * self._reach * (1 - self._variable.tanh().square()))
        self._variable = (self._variable - self._rate * mean / size).clamp(-self._limit, self._limit)


@final
class _Squared(Rows):
    """The penalty that the L2 attack minimises: the squared norm of the perturbation."""

    changed: Flags | None = None

    def of(self, delta: Images, loss: PerExample) -> tuple[PerExample, Images]:
        """The penalty of the perturbations `delta`, `(n,)`, and its gradient; the hinge `loss` is not used."""
        del loss
        return delta.square().flatten(1).sum(1), 2 * delta


@final
class _Excess(Rows):
    """The penalty that the Linf attack minimises: the sum over all pixels of max(|delta_i| - tau, 0).

    An example's tau is lowered as soon as an image fools within it.
    """

    def __init__(self, tau: PerExample, shrink: PerExample) -> None:
        self._tau, self._shrink = tau, shrink
        self.changed: Flags | None = None
        """Mask of the examples whose tau the last call of `of` lowered."""

    def of(self, delta: Images, loss: PerExample) -> tuple[PerExample, Images]:
        """The penalty of the perturbations `delta`, `(n,)`, and its gradient.

        Lowers tau where penalty and hinge `loss` are zero, that is, where an image fools within tau.
        """
        excess = (delta.abs() - column(self._tau)).clamp(min=0)
        penalty = excess.flatten(1).sum(1)
        self.changed = (loss <= 0) & (penalty <= 0)
        self._tau = torch.where(self.changed, (1 - self._shrink) * norm_of(delta, "linf"), self._tau)
        return penalty, excess.sign() * delta.sign()


@final
@dataclass(frozen=True)
class _Round(Rows):
    """The state of the examples that the current round still optimises."""

    at: Int64[Tensor, " n"]
    """Positions of the examples in the batch."""
    clean: Images
    constant: PerExample
    adam: _Adam
    plateau: PlateauDetector
    penalty: _Squared | _Excess


@final
@dataclass(frozen=True, kw_only=True)
class CarliniWagner(AbstractMinimumNormAttack):
    """Carlini and Wagner's attack: minimises the sum of distance and hinge loss of the logits by Adam.

    L2: every round minimises |delta|^2 + c * hinge from the clean image, with another c. A round succeeds if an image
    fooled in its last tenth; the published code also counts a first step that overshoots.

    Linf: the penalty is the sum of max(|delta_i| - tau, 0). In the paper, each success within tau starts a new round
    with a tau lower by a tenth; here tau is lowered within the round, and a new round begins at the nearest image so
    far. After a round that did not get below tau, c is larger (as in the paper), and the learning rate and the decrease
    of tau are smaller (the paper stops there, up to a tenth above the minimum).

    Images that are misclassified already, or have a gradient of zero, are returned unchanged.
    """

    stream: ClassVar[str] = "CarliniWagner"

    norm: Annotated[Norm, one_of("l2", "linf", why="for l1 take EAD")] = "l2"
    """Norm of the perturbation that is minimised: L2 or Linf."""
    steps: Annotated[int, at_least(1)] = 1000
    """Largest number of steps in a round, each one gradient (published: 10,000 for L2, 1,000 for Linf)."""
    binary_search_steps: Annotated[int, at_least(1)] = 9
    """Number of rounds; for L2 with another weight c of the hinge loss in each, for Linf see the class."""
    confidence: Annotated[float, not_negative()] = 0.0
    """Smallest logit margin by which an adversarial image must be misclassified (kappa)."""
    learning_rate: Annotated[float, positive()] = 0.01
    """Learning rate of Adam, in the variable whose tanh is the image."""
    initial_const: Annotated[float, positive()] = 1e-3
    """The first c, the weight of the hinge loss."""
    abort_early: bool = True
    """End the round of an example whose objective fell by less than 0.01 % from one tenth of the round to the next."""

    def max_passes(self, classes: int) -> Passes:
        """Per image at most: a forward and backward pass for the clean image, and for every step of every round."""
        del classes
        return Passes(1 + self.binary_search_steps * self.steps, 1 + self.binary_search_steps * self.steps)

    def run(
        self, model: Classifier, clean: Images, criterion: Criterion, streams: Streams, advance: Advance
    ) -> RunResult:
        """Run all rounds; the candidates are the nearest images that fooled in any of them."""
        del streams

        def size(delta: Images) -> PerExample:
            return norm_of(delta, self.norm)

        search = MinimumNormSearch(model, clean, criterion, size=size, confidence=self.confidence)
        fine = torch.ones_like(clean[:, 0, 0, 0])
        if self.norm == "l2":

            def minimize(at: Tensor, const: PerExample) -> None:
                self._round(search, at, clean[at], const, self.learning_rate * fine[at], _Squared(), advance)

            return search.run_rounds(self.binary_search_steps, self.initial_const, minimize)
        constant = self.initial_const * fine
        for _ in range(self.binary_search_steps):
            at = search.start_round()
            if not len(at):
                break
            shrink = _SHRINK * fine[at]
            tau = ((1 - shrink) * search.distance[at]).clamp(max=1)
            excess = _Excess(tau, shrink)
            self._round(search, at, search.images[at], constant[at], self.learning_rate * fine[at], excess, advance)
            distance = search.distance[at]
            missed = distance > tau
            constant[at] = torch.where(missed, _HEAVIER * constant[at], constant[at])
            fine[at] = torch.where(missed & distance.isfinite(), fine[at] / _FINER, fine[at])
        return search.result()

    def _round(
        self,
        search: MinimumNormSearch,
        at: Tensor,
        start: Images,
        constant: PerExample,
        rate: PerExample,
        penalty: _Squared | _Excess,
        advance: Advance,
    ) -> None:
        """Run one round: minimise penalty + c * hinge by Adam, for the examples at positions `at`.

        Args:
            search: receives the iterates, and keeps those that fool and are the nearest.
            start: the images to start from.
            constant: the weight c of each example.
            rate: the learning rate of each example.
        """
        on = _Round(
            at, search.clean[at], constant, _Adam(start, search.model.bounds, rate), PlateauDetector(constant), penalty
        )
        every = max(1, self.steps // CHECKS)
        for step in range(1, self.steps + 1):
            images = search.restricted(on.at, on.adam.images())  # the way there and back through atanh rounds
            loss, gradient = search.value_and_grad(on.at, images)
            distance, distance_gradient = on.penalty.of((images - on.clean) / search.width, loss)
            on.plateau.add(distance + on.constant * loss, on.penalty.changed)
            on.adam.descend(distance_gradient / search.width + column(on.constant) * gradient)
            if step % every == 0:
                advance(len(on.at) * every / (self.steps * self.binary_search_steps), "")
                going = ~search.broken[on.at]
                if self.abort_early:
                    going &= ~on.plateau.check()
                if not going.all():
                    on = on[going]
                    if not len(on.at):
                        break
                if step + every <= self.steps:
                    search.reached[on.at] = False
