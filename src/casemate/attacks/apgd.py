"""Auto-PGD: gradient ascent that finds its own step size (Croce and Hein 2020, arXiv 2003.01690).

The steps are in `adaptive.py`; for L1 they are those of Croce and Hein 2021 (arXiv 2103.01208). Parameters are those of
the original code (github.com/fra31/auto-attack), with these differences: an example leaves as soon as it is fooled,
draws are per example, the first step is compared with the start (there: with zero), of the wide schedule's steps the
last ball gets what rounding leaves, and where a model answers at random the means over the draws are taken of losses
and logits too.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import ClassVar, final

import torch
from torch import Tensor

from casemate.attacks.adaptive import Ascent, checkpoints
from casemate.attacks.base import Attack, Criterion, Passes
from casemate.attacks.gradient import look
from casemate.attacks.hyperplane import is_new, likeliest_rivals
from casemate.errors import SettingError
from casemate.logits import is_valid
from casemate.losses import LossName, loss_by_name, targeted_dlr
from casemate.models import Classifier
from casemate.norms import Ball, Bounds, Norm, parse_eps
from casemate.progress import Advance
from casemate.rng import Streams
from casemate.types import Flags, Images, Labels, Logits, PerExample


@final
@dataclass(frozen=True)
class Goal:
    """What is ascended, and when an image counts as fooled."""

    criterion: Criterion
    loss: LossName = "ce"
    aims: Labels | None = None
    """Wrong classes: ascend the targeted difference of logits ratio towards them, whatever `loss` is."""

    def rising(self, logits: Logits) -> PerExample:
        """The number to ascend.

        Minus the ratio of a target would be flat wherever the target ranks third; the targeted ratio against the
        strongest other class is not.
        """
        classes = self.criterion.classes
        if self.aims is not None:
            return targeted_dlr(logits, classes, self.aims)
        if self.criterion.targeted and self.loss == "dlr":
            return targeted_dlr(logits, _without(logits, classes).argmax(1), classes)
        return self.criterion.rising(loss_by_name(self.loss), logits)

    def differs(self, first: "Goal") -> Flags:
        """For which examples this goal is not the first one again: it is where a masked class would be aimed at."""
        if self.aims is None or first.aims is None:
            return torch.ones_like(self.criterion.classes, dtype=torch.bool)
        return is_new(self.aims.unsqueeze(1), first.aims.unsqueeze(1))

    def take(self, chosen: Tensor | slice) -> "Goal":
        """The goal of some of the examples (a mask, positions or a range)."""
        return Goal(self.criterion.take(chosen), self.loss, None if self.aims is None else self.aims[chosen])


@dataclass(frozen=True, kw_only=True)
class AutoPGD(Attack):
    """What APGD and its targeted version share: all but what is ascended."""

    eps: float
    """Radius of the ball, in pixel units."""
    norm: Norm = "linf"
    """Linf, L2 or L1."""
    steps: int = 100
    """Gradient steps of each run (AutoAttack's number)."""
    restarts: int = 1
    """Runs from fresh random starts, for the examples not yet fooled."""
    rho: float = 0.75
    """The step is halved where at most this share of the steps since the last checkpoint raised the loss; not for L1,
    whose step follows the sparsity."""
    draws: int = 1
    """Passes whose gradients are averaged at every step, for a model that answers at random."""
    wide: bool = False
    """Spend 30 % of the steps in a ball of 3 eps, 30 % in one of 2 eps and the rest in the ball itself; L1 only."""

    def __post_init__(self) -> None:
        self.ball()
        for name in ("steps", "restarts", "draws"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} = {getattr(self, name)}; expected at least 1")
        if not 0 <= self.rho <= 1:
            raise SettingError(f"rho = {self.rho}; expected 0 to 1, a share of the steps")
        if self.wide and self.norm != "l1":
            raise SettingError(f"wide = True with norm {self.norm}; expected l1, for which larger balls were proposed")

    @final
    def ball(self) -> Ball:
        """The ball of the final images."""
        return Ball(eps=parse_eps(self.eps), norm=self.norm)

    @abstractmethod
    def goals(self, criterion: Criterion, logits: Logits) -> list[Goal]:
        """What to ascend, one after the other, given what the model says of the clean images."""

    @abstractmethod
    def most_goals(self, classes: int) -> int:
        """How many goals there are at most."""

    @final
    def most_passes(self, classes: int) -> Passes:
        """Every step of every run, a look at the end of each of its balls, and one at the clean image."""
        runs = self.restarts * self.most_goals(classes) * self.draws
        return Passes(self.draws + runs * (self.steps + len(self._balls())), runs * self.steps)

    @final
    @torch.no_grad()
    def run(
        self, model: Classifier, clean: Images, criterion: Criterion, streams: Streams, advance: Advance
    ) -> tuple[Images, Flags, Passes]:
        """Every goal from every start, on those not fooled yet; of the others, the image with the highest loss."""
        logits = _look(model, clean, Goal(criterion), self.draws, differentiate=False)[0]
        passes = Passes(forward=self.draws * len(clean))
        movable = self.ball().eps > 0
        finite = is_valid(logits)
        steered = torch.full_like(finite, not movable)
        found = clean.clone()
        highest = torch.full_like(logits[:, 0], -math.inf, dtype=torch.float64)
        left = (finite & ~criterion.met(logits)).nonzero().squeeze(1)
        goals = self.goals(criterion, logits)
        for number, restart in product(range(len(goals)), range(self.restarts)):
            if not (len(left) and movable):
                break
            at = left[goals[number].differs(goals[0])[left]] if number else left
            if not len(at):
                continue
            share = len(at) / (len(goals) * self.restarts * self.steps)
            run = self._run(
                model,
                clean[at],
                goals[number].take(at),
                self._start(clean[at], model.bounds, streams.take(at), "start", number, restart),
                lambda share=share: advance(share, ""),
            )
            passes.add(run.passes)
            steered[at] |= run.steered
            finite[at] = run.fooled | (finite[at] & run.finite)
            better = run.fooled | (run.highest > highest[at])
            found[at[better]] = run.images[better]
            highest[at[better]] = run.highest[better]
            left = left[~torch.isin(left, at[run.fooled])]
        return found.where(finite.view(-1, 1, 1, 1), torch.nan), steered, passes

    def _balls(self) -> list[tuple[Ball, int]]:
        """The balls that a run goes through, and the steps in each."""
        ball = self.ball()
        if not self.wide:
            return [(ball, self.steps)]
        part = 3 * self.steps // 10
        first, second = replace(ball, eps=3 * ball.eps), replace(ball, eps=2 * ball.eps)
        return [(first, part), (second, part), (ball, self.steps - 2 * part)]

    def _start(self, clean: Images, bounds: Bounds, streams: Streams, *purpose: int | str) -> Images:
        """A random point of the first ball; for L1 the projection of noise, which unlike a uniform one is sparse."""
        ball = self._balls()[0][0]
        if self.norm != "l1":
            return ball.sample(clean, bounds, streams, *purpose)
        noise = (bounds[1] - bounds[0]) * streams.normal(tuple(clean.shape[1:]), *purpose)
        return ball.project(clean + noise, clean, bounds)

    def _run(self, model: Classifier, clean: Images, goal: Goal, images: Images, stepped: Callable[[], None]) -> "_Run":
        """One run from one start, through all balls; what fools in a larger one than the last does not count."""
        *larger, (ball, steps) = self._balls()
        unending = replace(goal, criterion=replace(goal.criterion, never=True))
        before: list[_Run] = []
        for wide, some in larger:
            before.append(self._ascend(model, clean, unending, wide, some, images, stepped))
            images = before[-1].images
        run = self._ascend(model, clean, goal, ball, steps, images, stepped)
        for each in before:
            run.steered |= each.steered
            run.finite &= each.finite
            run.passes.add(each.passes)
        return run

    def _ascend(
        self,
        model: Classifier,
        clean: Images,
        goal: Goal,
        ball: Ball,
        steps: int,
        images: Images,
        stepped: Callable[[], None],
    ) -> "_Run":
        """The ascent in one ball."""
        images = ball.project(images, clean, model.bounds)
        run, on = _Run(images), Ascent(clean, images, ball, model.bounds, dense=not self.wide)
        looks = set(checkpoints(steps, self.norm))
        checked = 0
        for step in range(steps + 1):
            logits, loss, gradient = _look(model, on.images, goal, self.draws, differentiate=step < steps)
            run.passes.add(Passes(self.draws * len(loss), self.draws * len(loss) * (step < steps)))
            fooled = goal.criterion.met(logits)
            steepest = gradient.flatten(1).abs().amax(1)  # finite and zero where all entries are
            finite = is_valid(logits) & steepest.isfinite()
            run.fooled[on.place] = fooled
            run.finite[on.place] = fooled | finite
            run.steered[on.place] |= steepest != 0
            on.arrive(loss, gradient, first=step == 0)
            going = finite & ~fooled
            if not going.all():
                run.images[on.place[fooled]] = on.images[fooled]
                on.keep(going)
                goal = goal.take(going)
            if step == steps or not len(on.place):
                break
            if step in looks:
                on.adapt(ball.eps) if self.norm == "l1" else on.halve(self.rho * (step - checked))
                checked = step
            on.move(ball, model.bounds, first=step == 0)
            stepped()
        run.images[on.place], run.highest[on.place] = on.best, on.highest
        return run


@final
@dataclass(frozen=True, kw_only=True)
class APGD(AutoPGD):
    """Auto-PGD on any loss; with targets it descends the loss of the target (`dlr`: ascends the targeted ratio)."""

    stream: ClassVar[str] = "APGD"

    loss: LossName = "ce"
    """What is ascended: `torch-ce` is the original's cross-entropy, `dlr` its other loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        loss_by_name(self.loss)

    def goals(self, criterion: Criterion, logits: Logits) -> list[Goal]:
        """The loss."""
        del logits
        return [Goal(criterion, self.loss)]

    def most_goals(self, classes: int) -> int:
        """One."""
        del classes
        return 1


@final
@dataclass(frozen=True, kw_only=True)
class TargetedAPGD(AutoPGD):
    """Auto-PGD towards the most likely wrong classes, one after the other (AutoAttack's APGD-T).

    It ascends the targeted difference of logits ratio (Croce and Hein 2020, eq. 7); any wrong class on the way will do.
    """

    stream: ClassVar[str] = "TargetedAPGD"
    targetable: ClassVar[bool] = False

    classes: int = 9
    """Wrong classes aimed at, fewer where the model has fewer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes < 1:
            raise SettingError(f"classes = {self.classes}; expected at least 1")

    def goals(self, criterion: Criterion, logits: Logits) -> list[Goal]:
        """One for each rank of the wrong classes, the most likely first."""
        ranked = likeliest_rivals(logits, criterion.classes, self.classes)
        return [Goal(criterion, aims=aims) for aims in ranked.unbind(1)]

    def most_goals(self, classes: int) -> int:
        """One for each wrong class."""
        return min(self.classes, classes - 1)


def _without(logits: Logits, classes: Labels) -> Logits:
    """The logits with one class of each example at minus infinity."""
    return logits.scatter(1, classes.unsqueeze(1), -math.inf)


def _look(
    model: Classifier, images: Images, goal: Goal, draws: int, *, differentiate: bool
) -> tuple[Logits, PerExample, Images]:
    """Means over the draws of the logits, of what is ascended, and of its gradient (zero unless `differentiate`)."""
    logits, loss, gradient = look(
        model,
        images,
        lambda part, logits: goal.take(part).rising(logits),
        draws=draws,
        differentiate=differentiate,
    )
    return logits, loss.double(), gradient


class _Run:
    """Where a run ended, per example."""

    def __init__(self, images: Images) -> None:
        none = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self.images = images.clone()
        """The first that fooled, or the one with the highest loss; the start where not `finite`."""
        self.highest = torch.full((len(images),), -math.inf, dtype=torch.float64, device=images.device)
        """The loss there, if it did not fool."""
        self.fooled, self.finite, self.steered = none.clone(), ~none, none.clone()
        self.passes = Passes()
