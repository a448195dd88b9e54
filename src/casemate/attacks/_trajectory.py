"""One run from the clean image across the decision boundary and along it, of which the nearest image that fools is
kept.

DDN, FMN, ALMA, PDGD, PDPGD and sigma-zero are such runs, and differ only in how an iterate follows from the one before
(`AbstractRule`). The loop here evaluates the iterates, keeps the nearest that fools, and takes examples out that are
finished. Rules see perturbations, in shares of the range of the pixels, so that step sizes mean the same for all
bounds.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
from jaxtyping import Int64
from torch import Tensor

from casemate.attacks._minimum_norm import MinimumNormSearch
from casemate.attacks.base import AbstractMinimumNormAttack
from casemate.attacks.criterion import Criterion
from casemate.attacks.result import Passes, RunResult
from casemate.losses import LossName, loss_by_name
from casemate.models import Classifier
from casemate.norms import Norm, norm_of
from casemate.progress import Advance
from casemate.rng import Streams
from casemate.rows import Rows
from casemate.settings import between
from casemate.types import Flags, Images, Logits, PerExample


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


@dataclass(frozen=True, kw_only=True)
class AbstractTrajectoryAttack(AbstractMinimumNormAttack):
    """Base of the minimum-norm attacks with a single run, which differ in their rule and in the objective it
    follows.
    """

    objective: ClassVar[LossName] = "margin"
    """The loss that the rule gets value and gradient of."""

    steps: int
    stop_at_distance: Annotated[float, between(0, math.inf, "a distance of")] | None = None
    """Stop attacking an example once an adversarial image within this distance is found, in the unit of eps. None:
    never. With the smallest eps of interest the accuracy at every eps stays as it is, up to a nearer image, and is
    reached sooner."""

    @abstractmethod
    def rule(self, room: Room, like: PerExample) -> AbstractRule:
        """The rule at the start of a run, for examples with some `room`; `like`: a number per example, for its type."""

    @final
    def max_passes(self, classes: int) -> Passes:
        """Per image at most: a forward and backward pass for every step, and a forward pass for the last iterate."""
        del classes
        return Passes(self.steps + 1, self.steps)

    @final
    def run(
        self, model: Classifier, clean: Images, criterion: Criterion, streams: Streams, advance: Advance
    ) -> RunResult:
        """Make all steps, on each example until it is finished; the candidates are the nearest images that fooled."""
        del streams
        low, high = model.bounds
        width = high - low
        objective = loss_by_name(self.objective)

        def size(delta: Images) -> PerExample:
            return norm_of(delta, self.norm)

        def loss(criterion: Criterion, logits: Logits) -> PerExample:
            return criterion.objective(objective, logits)

        search = MinimumNormSearch(model, clean, criterion, size=size, loss=loss)
        unit = 1.0 if self.norm == "l0" else width
        enough = -math.inf if self.stop_at_distance is None else self.stop_at_distance / unit
        at = search.start_round()
        if not len(at):
            return search.result()
        room = Room((low - clean[at]) / width, (high - clean[at]) / width)
        none = torch.zeros_like(at, dtype=torch.bool)
        value, gradient = (each[at] for each in search.first)
        on = _Run(at, clean[at], room, Iterate(torch.zeros_like(clean[at]), none, value, width * gradient))
        rule = self.rule(room, value)
        for number in range(self.steps):
            delta = on.room.clip(rule.step(on.here, number, number / self.steps))
            images = (on.clean + width * delta).clamp(low, high)
            is_last = number + 1 == self.steps
            fooled, value, gradient = search.evaluate(on.at, images, differentiate=not is_last)
            advance(len(on.at) / self.steps, "")
            on = _Run(on.at, on.clean, on.room, Iterate(delta, fooled, value, width * gradient))
            going = ~search.broken[on.at] & (search.distance[on.at] > enough)
            if not going.all():
                on, rule = on[going], rule[going]
                if not len(on.at):
                    break
        return search.result()


@final
@dataclass(frozen=True)
class _Run(Rows):
    """The examples that are still attacked."""

    at: Int64[Tensor, " n"]
    """Their positions in the batch."""
    clean: Images
    room: Room
    here: Iterate
