"""Auto-PGD: gradient ascent that finds its own step size (Croce and Hein 2020, arXiv 2003.01690).

Linf and L2 (algorithm 1 of the paper): the step size starts at 2 eps, with momentum; at checkpoints it is halved where
the loss has stopped rising. L1 (Croce and Hein 2021, arXiv 2103.01208): a step moves only the pixels with the largest
gradient, fewer of them as the best point becomes sparser. Every example has its own step size; the checkpoints are the
same for all.

Parameters are those of the original code (github.com/fra31/auto-attack), with these differences: an example is not
attacked any further once it is fooled; random draws are per example; the loss after the first step is compared with
that of the start (there: with zero); with `use_larger_eps` the steps lost to rounding are made in the last ball; and
for a model with random outputs losses and logits are averaged too, not only gradients.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor

from casemate.attacks._hyperplane import is_new, likeliest_classes
from casemate.attacks._worst_case import BestCandidates, RunState
from casemate.attacks.base import AbstractAttack
from casemate.attacks.criterion import Criterion
from casemate.attacks.differentiate import value_and_grad
from casemate.attacks.result import Passes, RunResult
from casemate.errors import SettingError
from casemate.logits import is_valid
from casemate.losses import AnyLoss, Loss, LossName, as_loss, targeted_dlr, without
from casemate.models import Classifier
from casemate.norms import Ball, Bounds, ConvexNorm, Eps, Norm, norm_of
from casemate.progress import Advance
from casemate.rng import Streams
from casemate.rows import Rows
from casemate.settings import at_least, between, expect
from casemate.types import Flags, Images, Labels, Logits, Mask, PerExample

_MOMENTUM = 0.75
"""Weight of the new step in the next iterate; the previous step has weight 1 minus this (alpha in the paper)."""


def checkpoints(steps: int, norm: Norm) -> Iterator[int]:
    """The numbers of the steps after which the step size is reconsidered.

    Linf and L2: first after 22 % of the steps; then intervals shrink by 3 % each time, down to 6 %. L1: every 4 %.
    """
    shares = (4, 0, 4) if norm == "l1" else (22, 3, 6)
    interval, shorter, shortest = (max(steps * share // 100, share > 0) for share in shares)
    step = interval
    while step < steps:
        yield step
        interval = max(interval - shorter, shortest)
        step += interval


@final
class Ascent(Rows):
    """The state of one run, for the examples still attacked: every tensor has one row for each of them."""

    place: Tensor
    """Positions of the examples in the batch."""
    clean: Images
    images: Images
    before: Images
    """The images before the last step."""
    best: Images
    gradient: Images
    best_gradient: Images
    low: Images
    high: Images
    loss: Tensor
    """The loss of `images`."""
    rises: Tensor
    """How often the loss rose since the last checkpoint."""
    highest: Tensor
    """The loss of `best`."""
    highest_checked: Tensor
    """The loss of `best` at the last checkpoint."""
    halved: Tensor
    """The step size was halved at the last checkpoint; True before the first."""
    size: Tensor
    """The step size."""
    changed: Tensor
    """L1: the number of pixels in which `best` differed from `clean` at the last checkpoint."""
    moved: Tensor
    """L1: the number of pixels that a step changes."""

    def __init__(
        self, clean: Images, images: Images, ball: Ball, bounds: Bounds, *, dense: bool, mask: Mask | None = None
    ) -> None:
        """Start at `images`. `dense`: the first L1 steps change a fifth of the pixels, however sparse the start is.

        With a `mask`, of the pixels where it is True.
        """
        nothing = torch.zeros(len(images), dtype=torch.float64, device=images.device)
        self.place = torch.arange(len(images), device=images.device)
        self.clean, self.images, self.before, self.best = clean, images, images, images.clone()
        self.gradient = self.best_gradient = torch.zeros_like(images)
        if ball.norm == "linf":
            self.low, self.high = ball.limits(clean, bounds)
        self.highest = self.highest_checked = nothing - math.inf
        self.loss, self.rises = nothing, nothing
        self.halved = torch.ones_like(self.place, dtype=torch.bool)
        self.size = torch.full_like(images[:, 0, 0, 0], ball.eps if ball.norm == "l1" else 2 * ball.eps)
        pixels = torch.full_like(self.place, clean[0].numel()) if mask is None else mask.flatten(1).sum(1)
        self.changed = pixels if dense else self._changed(images)
        self.moved = (pixels - pixels * 4 // 5).clamp(min=1) if dense else _two_thirds(self.changed)

    def arrive(self, loss: PerExample, gradient: Images, *, first: bool) -> None:
        """Update the state with loss and gradient at `images`; `first`: these are the start, so the loss has not risen.

        A loss that is not a number is never the highest.
        """
        if not first:
            self.rises = self.rises + (loss > self.loss)
        self.loss, self.gradient = loss, gradient
        rose = loss > self.highest
        self.highest = loss.where(rose, self.highest)
        place = rose.nonzero().squeeze(1)
        self.best[place], self.best_gradient[place] = self.images[place], gradient[place]

    def halve(self, max_rises: float) -> None:
        """Checkpoint of Linf and L2: halve the step size and go back to the best point where the ascent has stalled.

        That is (conditions 1 and 2 of the paper) where the loss rose at most `max_rises` times, or where the step size
        was not halved at the last checkpoint and no better point was found since.
        """
        stalled = (self.rises <= max_rises) | (~self.halved & (self.highest_checked >= self.highest))
        self.halved, self.highest_checked, self.rises = stalled, self.highest, torch.zeros_like(self.rises)
        self._put(stalled, size=self.size / 2, images=self.best, gradient=self.best_gradient)

    def adapt(self, eps: float) -> None:
        """Checkpoint of L1: from now on, move two thirds as many pixels as the best point changes.

        Where the best point has become at least 5 % sparser, go back to it with step size eps; elsewhere reduce the
        step size by a factor of 1.5, to no less than eps / 10.
        """
        changed = self._changed(self.best)
        sparser = changed < 0.95 * self.changed
        self.changed, self.moved = changed, _two_thirds(changed)
        self.size = (self.size / 1.5).clamp(min=eps / 10).masked_fill(sparser, eps)
        self._put(sparser, images=self.best, gradient=self.best_gradient)

    def move(self, ball: Ball, bounds: Bounds, *, first: bool) -> None:
        """Move `images` by one step, within ball and bounds; Linf and L2 with momentum, except in the `first` step."""
        here, size = self.images, self.size.view(-1, 1, 1, 1)
        direction = self._sparse() if ball.norm == "l1" else ball.steepest_step(self.gradient, here, bounds)
        there = self._inside(here + direction.mul_(size), ball, bounds)
        if ball.norm != "l1" and not first:
            there = there.sub_(here).mul_(_MOMENTUM).add_(here).add_((here - self.before).mul_(1 - _MOMENTUM))
            there = self._inside(there, ball, bounds)
        self.images, self.before = there, here

    def _inside(self, images: Images, ball: Ball, bounds: Bounds) -> Images:
        """`images` projected onto ball and bounds; for Linf in place."""
        return images.clamp_(self.low, self.high) if ball.norm == "linf" else ball.project(images, self.clean, bounds)

    def _sparse(self) -> Images:
        """The L1 step of length 1: the gradient's sign in its `moved` largest entries (more if some are equal)."""
        magnitude = self.gradient.abs()
        ranked = magnitude.flatten(1).sort(dim=1, descending=True).values
        least = ranked.gather(1, (self.moved - 1).unsqueeze(1))
        sign = self.gradient.sign() * (magnitude >= least.view(-1, 1, 1, 1))
        return sign / norm_of(sign, "l1").clamp(min=1).view(-1, 1, 1, 1)

    def _changed(self, images: Images) -> Tensor:
        """The number of entries in which images differ from the clean ones, `(n,)`."""
        return images.ne(self.clean).flatten(1).sum(1)

    def _put(self, where: Flags, **new: Tensor) -> None:
        """Replace the rows that `where` marks, in the attributes that `new` names, by those given."""
        for name, rows in new.items():
            old = getattr(self, name)
            setattr(self, name, rows.where(where.view(-1, *[1] * (old.ndim - 1)), old))


def _two_thirds(changed: Tensor) -> Tensor:
    """Two thirds of a number of pixels, rounded up, at least one."""
    return (-(-2 * changed // 3)).clamp(min=1)


@final
@dataclass(frozen=True)
class Goal(Rows):
    """The loss to maximise, and the criterion of success; `goal[mask]` is for some of the examples."""

    criterion: Criterion
    loss: LossName | Loss = "ce"
    target_classes: Labels | None = None
    """A wrong class per example: maximise the targeted difference of logits ratio towards it instead of `loss`."""

    def objective(self, logits: Logits) -> PerExample:
        """The value to maximise, `(n,)`.

        For a targeted attack with `dlr` it is the targeted ratio against the strongest other class: minus the
        untargeted ratio would be constant wherever the target ranks third.
        """
        classes = self.criterion.classes
        if self.target_classes is not None:
            return targeted_dlr(logits, classes, self.target_classes)
        if self.criterion.targeted and self.loss == "dlr":
            return targeted_dlr(logits, without(logits, classes).argmax(1), classes)
        return self.criterion.objective(as_loss(self.loss), logits)

    def differs(self, first: "Goal") -> Flags:
        """Which examples have another target class here than in `first`, the attack's first goal.

        True for all if a goal has no target classes. Where the network masks a class, `likeliest_classes` repeats
        the most likely one, that of the first goal, in its place: it was tried already.
        """
        if self.target_classes is None or first.target_classes is None:
            classes = self.criterion.classes
            return torch.ones(len(classes), dtype=torch.bool, device=classes.device)
        return is_new(self.target_classes.unsqueeze(1), first.target_classes.unsqueeze(1))


@dataclass(frozen=True, kw_only=True)
class AbstractAPGD(AbstractAttack):
    """Base of `APGD` and `TargetedAPGD`, which differ only in the losses that they maximise (`goals`)."""

    eps: Eps
    """Radius of the ball, in pixel units."""
    norm: ConvexNorm = "linf"
    """Norm of the ball: Linf, L2 or L1."""
    steps: Annotated[int, at_least(1)] = 100
    """Gradient steps of each run (the default is AutoAttack's)."""
    restarts: Annotated[int, at_least(1)] = 1
    """Number of runs from different random starts; later ones are only for images not yet fooled."""
    rho: Annotated[float, between(0, 1, "a share of the steps")] = 0.75
    """The step size is halved where at most this share of the steps since the last checkpoint raised the loss; not for
    L1, whose step size depends on the sparsity."""
    eot_samples: Annotated[int, at_least(1)] = 1
    """Passes whose gradients are averaged at every step, for a model with random outputs."""
    use_larger_eps: bool = False
    """Make 30 % of the steps in a ball of 3 eps, 30 % in one of 2 eps and the rest in the ball itself; L1 only."""

    def __post_init__(self) -> None:
        expect(self)
        if self.use_larger_eps and self.norm != "l1":
            raise SettingError(
                f"use_larger_eps = True with norm {self.norm}; expected l1, for which larger balls were proposed"
            )

    @abstractmethod
    def goals(self, criterion: Criterion, logits: Logits) -> list[Goal]:
        """What to maximise, one goal after the other, each in runs of its own; `logits` are of the clean images."""

    @abstractmethod
    def max_goals(self, classes: int) -> int:
        """The largest number of goals that `goals` returns for a model with `classes` classes."""

    @final
    def max_passes(self, classes: int) -> Passes:
        """Per image at most: a forward and backward pass for every step of every run; forward passes at the end of each
        ball of each run, and for the clean image. Each is made `eot_samples` times.
        """
        runs = self.restarts * self.max_goals(classes) * self.eot_samples
        return Passes(self.eot_samples + runs * (self.steps + len(self._balls())), runs * self.steps)

    @final
    @torch.no_grad()
    def run(
        self, model: Classifier, clean: Images, criterion: Criterion, streams: Streams, advance: Advance
    ) -> RunResult:
        """Maximise every goal from every random start, each on the examples not fooled yet.

        The candidate of an example is its first image that fools, or else the one with the highest loss.
        """
        logits = _value_and_grad(model, clean, Goal(criterion), self.eot_samples, differentiate=False)[0]
        passes = Passes(forward=self.eot_samples * len(clean))
        movable = self.ball().eps > 0
        best = BestCandidates(clean, criterion, logits)
        has_gradient = torch.full_like(best.finite, not movable)
        goals = self.goals(criterion, logits)
        # not `Restarts`: the runs share the pass over the clean images, and the draws are keyed by goal and restart
        for number, restart in product(range(len(goals)), range(self.restarts if movable else 0)):
            at = best.left[goals[number].differs(goals[0])[best.left]] if number else best.left
            if not len(at):
                continue
            share = len(at) / (len(goals) * self.restarts * self.steps)
            run = self._run(
                model,
                clean[at],
                goals[number][at],
                self._start(clean[at], model.bounds, criterion[at], streams[at], "start", number, restart),
                lambda share=share: advance(share, ""),
            )
            passes.add(run.passes)
            has_gradient[at] |= run.has_gradient
            best.update(at, run.images, run.loss, run.fooled, run.finite)
        return RunResult(best.images, best.finite, has_gradient, passes)

    def _balls(self) -> list[tuple[Ball, int]]:
        """The balls of a run in order, with the number of steps in each: three with `use_larger_eps`, else one."""
        ball = self.ball()
        if not self.use_larger_eps:
            return [(ball, self.steps)]
        part = 3 * self.steps // 10
        first, second = replace(ball, eps=3 * ball.eps), replace(ball, eps=2 * ball.eps)
        return [(first, part), (second, part), (ball, self.steps - 2 * part)]

    def _start(
        self, clean: Images, bounds: Bounds, criterion: Criterion, streams: Streams, *purpose: int | str
    ) -> Images:
        """A random point of the first ball per image: uniform, or for L1 projected Gaussian noise, which is sparse.

        `purpose` keys the random numbers.
        """
        ball = self._balls()[0][0]
        if self.norm != "l1":
            return ball.sample(clean, bounds, streams, *purpose, mask=criterion.mask)
        noise = criterion.masked((bounds[1] - bounds[0]) * streams.normal(tuple(clean.shape[1:]), *purpose))
        return ball.project(clean + noise, clean, bounds)

    def _run(
        self, model: Classifier, clean: Images, goal: Goal, images: Images, stepped: Callable[[], None]
    ) -> RunState:
        """One run from the start `images` through all balls; only an image in the last ball counts as fooling.

        `stepped` is called after every step.
        """
        *larger, (ball, steps) = self._balls()
        run = RunState(images)
        unending = replace(goal, criterion=goal.criterion.with_changes(never=True))
        for larger_ball, larger_steps in larger:
            self._ascend(model, clean, unending, larger_ball, larger_steps, run, stepped)
        self._ascend(model, clean, goal, ball, steps, run, stepped)
        return run

    def _ascend(
        self,
        model: Classifier,
        clean: Images,
        goal: Goal,
        ball: Ball,
        steps: int,
        run: RunState,
        stepped: Callable[[], None],
    ) -> None:
        """Gradient ascent in one ball, from `run.images` projected onto it; updates `run` in place."""
        images = ball.project(run.images, clean, model.bounds)
        mask = goal.criterion.mask
        on = Ascent(clean, images, ball, model.bounds, dense=not self.use_larger_eps, mask=mask)
        run.images, run.loss = images.clone(), torch.full_like(run.loss, -math.inf)
        checks = set(checkpoints(steps, self.norm))
        checked = 0
        for step in range(steps + 1):
            last = step == steps
            logits, loss, gradient = _value_and_grad(model, on.images, goal, self.eot_samples, differentiate=not last)
            cost = self.eot_samples * len(loss)
            run.passes.add(Passes(cost, 0 if last else cost))
            fooled = goal.criterion.is_adversarial(logits)
            steepest = gradient.flatten(1).abs().amax(1)  # finite and zero where all entries are
            finite = is_valid(logits) & steepest.isfinite()
            run.fooled[on.place] = fooled
            run.finite[on.place] &= fooled | finite
            run.has_gradient[on.place] |= steepest != 0
            on.arrive(loss, gradient, first=step == 0)
            going = finite & ~fooled
            if not going.all():
                run.images[on.place[fooled]] = on.images[fooled]
                on = on[going]
                goal = goal[going]
            if last or not len(on.place):
                break
            if step in checks:
                on.adapt(ball.eps) if self.norm == "l1" else on.halve(self.rho * (step - checked))
                checked = step
            on.move(ball, model.bounds, first=step == 0)
            stepped()
        run.images[on.place], run.loss[on.place] = on.best, on.highest


@final
@dataclass(frozen=True, kw_only=True)
class APGD(AbstractAPGD):
    """Auto-PGD: PGD with an adaptive step size, on any loss (with targets and `dlr` on the targeted ratio)."""

    stream: ClassVar[str] = "APGD"

    loss: AnyLoss = "ce"
    """Loss to maximise, or a function (see `OwnLoss`). The original code's losses are `torch-ce` (PyTorch's
    cross-entropy) and `dlr`."""

    def goals(self, criterion: Criterion, logits: Logits) -> list[Goal]:
        """A single goal: to maximise the field `loss`."""
        del logits
        return [Goal(criterion, self.loss)]

    def max_goals(self, classes: int) -> int:
        """One goal, for any number of classes."""
        del classes
        return 1


@final
@dataclass(frozen=True, kw_only=True)
class TargetedAPGD(AbstractAPGD):
    """Auto-PGD towards the most likely wrong classes, one after the other (AutoAttack's APGD-T).

    It maximises the targeted difference of logits ratio (Croce and Hein 2020, eq. 7); an iterate of any wrong class
    counts as a success.
    """

    stream: ClassVar[str] = "TargetedAPGD"
    targetable: ClassVar[bool] = False
    without_classes: ClassVar[str] = "APGD"

    classes: Annotated[int, at_least(1)] = 9
    """Number of wrong classes to try; at most all there are."""

    def goals(self, criterion: Criterion, logits: Logits) -> list[Goal]:
        """One goal for each wrong class, the most likely first."""
        ranked = likeliest_classes(logits, criterion.classes, self.classes)
        return [Goal(criterion, target_classes=target_classes) for target_classes in ranked.unbind(1)]

    def max_goals(self, classes: int) -> int:
        """One goal for each wrong class to try: the field `classes`, or all wrong classes if there are fewer."""
        return min(self.classes, classes - 1)


def _value_and_grad(
    model: Classifier, images: Images, goal: Goal, eot_samples: int, *, differentiate: bool
) -> tuple[Logits, PerExample, Images]:
    """The logits, the goal's objective in float64, and its gradient, averaged over `eot_samples` passes.

    The gradient is zero unless `differentiate`.
    """
    logits, loss, gradient = value_and_grad(
        model,
        images,
        lambda part, logits: goal[part].objective(logits),
        eot_samples=eot_samples,
        differentiate=differentiate,
        mask=goal.criterion.mask,
    )
    return logits, loss.double(), gradient
