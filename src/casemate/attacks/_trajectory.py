"""One run from the clean image across the decision boundary and along it, of which the nearest image that fools is
kept.

DDN, FMN, ALMA, PDGD, PDPGD and sigma-zero are such runs, and differ only in how an iterate follows from the one before
(`_iterates.py`). The loop here evaluates the iterates, keeps the nearest that fools, and takes examples out that are
finished. The last few steps of every run follow another rule, which all share (`_refine.py`).
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, final

import torch
from jaxtyping import Int64
from torch import Tensor

from casemate.attacks._iterates import AbstractRule, Iterate, Room
from casemate.attacks._minimum_norm import MinimumNormSearch
from casemate.attacks._refine import refining_rule
from casemate.attacks.base import AbstractMinimumNormAttack
from casemate.attacks.criterion import Criterion
from casemate.attacks.result import Passes, RunResult
from casemate.losses import Loss, LossName, loss_by_name, margin
from casemate.models import Classifier
from casemate.norms import norm_of
from casemate.progress import Advance
from casemate.rng import Streams
from casemate.rows import Rows
from casemate.settings import between, not_negative
from casemate.types import Images, Logits, PerExample


@dataclass(frozen=True, kw_only=True)
class AbstractTrajectoryAttack(AbstractMinimumNormAttack):
    """Base of the minimum-norm attacks with a single run, which differ in their rule and in the objective it
    follows.
    """

    objective: ClassVar[LossName] = "margin"
    """The loss that the rule gets value and gradient of."""

    steps: int
    refining_steps: Annotated[int, not_negative()] = 20
    """How many of the steps, half of them at most, come last and go from the nearest image so far to nearer ones along
    the decision boundary; not a part of the published algorithm, which ends where its last step does. 0: none."""
    stop_at_distance: Annotated[float, between(0, math.inf, "a distance of")] | None = None
    """Stop attacking an example once an adversarial image within this distance is found, in the unit of eps. None:
    never. With the smallest eps of interest the search ends sooner, and what is nearer than it needs is not found."""

    @abstractmethod
    def rule(self, room: Room, value: PerExample) -> AbstractRule:
        """The rule at the start of a run, for examples with some `room`; `value` is the objective at their clean
        images.
        """

    @final
    def max_passes(self, classes: int) -> Passes:
        """Per image at most: a forward and backward pass for every step, and for the clean image."""
        del classes
        return Passes(self.steps + 1, self.steps + 1)

    @final
    def run(
        self, model: Classifier, clean: Images, criterion: Criterion, streams: Streams, advance: Advance
    ) -> RunResult:
        """Make all steps, on each example until it is finished; the candidates are the nearest images that fooled."""
        del streams

        def size(delta: Images) -> PerExample:
            return norm_of(delta, self.norm)

        loss = loss_by_name(self.objective)
        if criterion.targeted and self.objective == "dlr":
            loss = margin  # the ratio for the least likely of the classes that it spreads over is constant
        search = MinimumNormSearch(model, clean, criterion, size=size, loss=_objective(loss))
        enough = -math.inf
        if self.stop_at_distance is not None:
            enough = self.stop_at_distance / (1 if self.norm == "l0" else search.width)
        last = min(self.refining_steps, self.steps // 2)

        def report(made: int) -> None:
            advance(made / self.steps, "")

        at = search.start_round()
        if len(at):
            run = _Run.start(search, at, enough)
            _make_steps(search, run, self.rule(run.room, run.here.value), self.steps - last, report)
            at = at[search.distance[at].isfinite() & (search.distance[at] > enough) & ~search.broken[at]]
        if last > 1 and len(at):
            search.loss = _objective(margin)
            run = _Run.at_nearest(search, at, enough)
            _make_steps(search, run, refining_rule(run.here, run.room, self.norm), last - 1, report)
        return search.result()


def _objective(loss: Loss) -> Callable[[Criterion, Logits], PerExample]:
    """What an attack with `loss` maximises, as a function of criterion and logits."""
    return lambda criterion, logits: criterion.objective(loss, logits)


@final
@dataclass(frozen=True)
class _Run(Rows):
    """The examples that are still attacked."""

    at: Int64[Tensor, " n"]
    """Their positions in the batch."""
    clean: Images
    room: Room
    here: Iterate
    enough: float
    """The distance, in shares of the range of the pixels, within which an example is finished."""

    @classmethod
    def start(cls, search: MinimumNormSearch, at: Tensor, enough: float) -> "_Run":
        """The examples at positions `at`, at their clean images."""
        clean = search.clean[at]
        value, gradient = (each[at] for each in search.first)
        none = torch.zeros_like(at, dtype=torch.bool)
        here = Iterate(torch.zeros_like(clean), none, value, search.width * gradient)
        return cls(at, clean, _room(search, at), here, enough)

    @classmethod
    def at_nearest(cls, search: MinimumNormSearch, at: Tensor, enough: float) -> "_Run":
        """The examples at positions `at`, at their nearest adversarial images, which takes a pass."""
        clean, images = search.clean[at], search.images[at]
        fooled, value, gradient = search.evaluate(at, images)
        here = Iterate((images - clean) / search.width, fooled, value, search.width * gradient)
        return cls(at, clean, _room(search, at), here, enough)


def _room(search: MinimumNormSearch, at: Tensor) -> Room:
    """The room of the examples at positions `at`: none for the values that the mask holds fixed."""
    clean, criterion, (low, high) = search.clean[at], search.criterion[at], search.model.bounds
    ends = ((low - clean) / search.width, (high - clean) / search.width)
    return Room(*(criterion.masked(end) for end in ends))


def _make_steps(
    search: MinimumNormSearch, run: _Run, rule: AbstractRule, steps: int, report: Callable[[int], None]
) -> None:
    """Make a number of steps by a rule, each on the examples that are not finished; `search` keeps what it finds.

    The last iterate is only classified. `report` gets the number of examples that made a step.
    """
    for number in range(steps):
        delta = run.room.clip(rule.step(run.here, number, number / steps))
        images = (run.clean + search.width * delta).clamp(*search.model.bounds)
        fooled, value, gradient = search.evaluate(run.at, images, differentiate=number + 1 < steps)
        report(len(run.at))
        run = replace(run, here=Iterate(delta, fooled, value, search.width * gradient))
        going = ~search.broken[run.at] & (search.distance[run.at] > run.enough)
        if rule.done is not None:
            going &= ~rule.done
        if not going.all():
            run, rule = run[going], rule[going]
            if not len(run.at):
                break
