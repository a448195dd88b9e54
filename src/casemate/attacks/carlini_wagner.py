"""Carlini and Wagner's attack: the shortest move that changes the decision (2017, arXiv 1608.04644).

Distance and hinge loss of the logits are minimised together by Adam, in a variable whose tanh is the image, so that no
pixel leaves its bounds; see `_minimum_norm` for the search around it. L2 is section VI.A of the paper, Linf section
VI.C; L0 (VI.B) is left out.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
from jaxtyping import Int64
from torch import Tensor

from casemate.attacks._minimum_norm import (
    CHECKS,
    BinarySearchConst,
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
from casemate.settings import at_least, expect, not_negative, one_of, positive
from casemate.types import Flags, Images, PerExample

_BEYOND = 0.2
"""By how much the tanh reaches beyond the bounds, as a share of their range. Without it the variable would be infinite
at the bounds and its derivative zero, and most pixels of a grey image could never move; with a hundredth they take
hundreds of steps to get going (100 steps of 0.01 fooled 6 % of black and white images with 0.01, and all with 0.2)."""

_SHRINK = 0.1
"""Linf: an image that fools within tau lowers tau to this much less than its norm (the published factor of 0.9)."""

_FINER, _HEAVIER = 4.0, 10.0
"""Linf: after a round that did not get below tau, rate and `_SHRINK` are this much smaller, and c this much larger."""

_DECAY, _DECAY_SQUARES, _TINY = 0.9, 0.999, 1e-8
"""Adam's parameters (Kingma and Ba 2015), the usual ones."""


@final
class _Adam(Rows):
    """Adam in the variable w whose tanh is the image; one row of every tensor per example."""

    def __init__(self, images: Images, bounds: Bounds, rate: PerExample) -> None:
        self._bounds, self._steps = bounds, 0
        self._middle, self._reach = (bounds[0] + bounds[1]) / 2, (1 + _BEYOND) * (bounds[1] - bounds[0]) / 2
        self._limit = math.atanh(1 / (1 + _BEYOND))
        self._variable = ((images - self._middle) / self._reach).atanh()
        self._mean, self._squares, self._rate = torch.zeros_like(images), torch.zeros_like(images), column(rate)

    def images(self) -> Images:
        """Where the examples are."""
        return (self._middle + self._reach * self._variable.tanh()).clamp(*self._bounds)

    def descend(self, slope: Images) -> None:
        """One step down a function with the gradient `slope` at the images; w stops where the bounds are."""
        self._steps += 1
        slope = slope * self._reach * (1 - self._variable.tanh().square())
        self._mean = _DECAY * self._mean + (1 - _DECAY) * slope
        self._squares = _DECAY_SQUARES * self._squares + (1 - _DECAY_SQUARES) * slope.square()
        mean, squares = self._mean / (1 - _DECAY**self._steps), self._squares / (1 - _DECAY_SQUARES**self._steps)
        step = self._rate * mean / (squares.sqrt() + _TINY)
        self._variable = (self._variable - step).clamp(-self._limit, self._limit)


@final
class _Squared(Rows):
    """The penalty of L2: the squared norm."""

    changed: Flags | None = None

    def of(self, delta: Images, loss: PerExample) -> tuple[PerExample, Images]:
        """The penalty and its gradient."""
        del loss
        return delta.square().flatten(1).sum(1), 2 * delta


@final
class _Excess(Rows):
    """The penalty of Linf: by how much all pixels together exceed tau, which is lowered as soon as it is met."""

    def __init__(self, tau: PerExample, shrink: PerExample) -> None:
        self._tau, self._shrink = tau, shrink
        self.changed: Flags | None = None
        """Where tau was lowered the last time."""

    def of(self, delta: Images, loss: PerExample) -> tuple[PerExample, Images]:
        """The penalty and its gradient."""
        excess = (delta.abs() - column(self._tau)).clamp(min=0)
        penalty = excess.flatten(1).sum(1)
        self.changed = (loss <= 0) & (penalty <= 0)
        self._tau = torch.where(self.changed, (1 - self._shrink) * norm_of(delta, "linf"), self._tau)
        return penalty, excess.sign() * delta.sign()


@final
@dataclass(frozen=True)
class _Active(Rows):
    """The examples that a round still works on."""

    at: Int64[Tensor, " n"]
    """Positions in the batch."""
    clean: Images
    constant: PerExample
    adam: _Adam
    plateau: PlateauDetector
    penalty: _Squared | _Excess


@final
@dataclass(frozen=True, kw_only=True)
class CarliniWagner(AbstractMinimumNormAttack):
    """Carlini and Wagner's attack for L2 and Linf, untargeted and targeted.

    L2: every round minimises |delta|^2 + c * hinge from the clean image, with another c. The c suffices if an image
    fooled in the last tenth of the round, where the published code lets a first step that overshoots count as well.

    Linf: the penalty is the sum of max(|delta_i| - tau, 0). The paper starts again with a tau lower by a tenth as often
    as an image fools within tau; here tau is lowered on the way, and a new round begins at the nearest image so far.
    After a round that did not get below tau, c is larger (as in the paper), and steps and decrease of tau are smaller
    (the paper stops there, up to a tenth above the nearest).

    Examples whose image fools from the start take no part; one whose clean image has no gradient stays as it is.
    """

    stream: ClassVar[str] = "CarliniWagner"

    norm: Annotated[Norm, one_of("l2", "linf", why="for l1 take EAD")] = "l2"
    """L2 or Linf."""
    steps: Annotated[int, at_least(1)] = 1000
    """Most passes of a round, the first of them at its start (published: 10,000 for L2, 1,000 for Linf)."""
    binary_search_steps: Annotated[int, at_least(1)] = 9
    """Rounds."""
    confidence: Annotated[float, not_negative()] = 0.0
    """By how much the logits of what fools must lead (kappa)."""
    learning_rate: Annotated[float, positive()] = 0.01
    """Of Adam, in the variable whose tanh is the image."""
    initial_const: Annotated[float, positive()] = 1e-3
    """The first c."""
    abort_early: bool = True
    """End a round for an example whose objective fell by less than 0.01 % between two tenths of it."""

    def __post_init__(self) -> None:
        expect(self)

    def max_passes(self, classes: int) -> Passes:
        """Every step of every round, and a look at the clean image."""
        del classes
        return Passes(1 + self.binary_search_steps * self.steps, 1 + self.binary_search_steps * self.steps)

    def run(
        self, model: Classifier, clean: Images, criterion: Criterion, streams: Streams, advance: Advance
    ) -> RunResult:
        """All rounds of all examples."""
        del streams

        def size(delta: Images) -> PerExample:
            return norm_of(delta, self.norm)

        search = MinimumNormSearch(model, clean, criterion, size=size, confidence=self.confidence)
        constants = BinarySearchConst(clean, self.initial_const)
        fine = torch.ones_like(constants.value)
        for _ in range(self.binary_search_steps):
            at = search.open()
            if not len(at):
                break
            rate = self.learning_rate * fine[at]
            if self.norm == "l2":
                self._round(search, at, clean[at], constants.value[at], rate, _Squared(), advance)
                constants.narrow(at, search.reached[at])
            else:
                shrink = _SHRINK * fine[at]
                tau = ((1 - shrink) * search.distance[at]).clamp(max=1)
                excess = _Excess(tau, shrink)
                self._round(search, at, search.images[at], constants.value[at], rate, excess, advance)
                distance = search.distance[at]
                missed = distance > tau
                constants.value[at] = torch.where(missed, _HEAVIER * constants.value[at], constants.value[at])
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
        """Minimise penalty + c * hinge for the examples `at`."""
        on = _Active(
            at, search.clean[at], constant, _Adam(start, search.model.bounds, rate), PlateauDetector(constant), penalty
        )
        every = max(1, self.steps // CHECKS)
        for step in range(1, self.steps + 1):
            images = on.adam.images()
            loss, gradient = search.value_and_grad(on.at, images)
            distance, slope = on.penalty.of((images - on.clean) / search.width, loss)
            on.plateau.note(distance + on.constant * loss, on.penalty.changed)
            on.adam.descend(slope / search.width + column(on.constant) * gradient)
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
