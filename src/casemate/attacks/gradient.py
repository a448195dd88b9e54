"""Projected gradient ascent, the loop that FGSM, BIM, PGD and MI-FGSM share: they only choose its settings.

`EOT` and `Transferable` wrap such an attack, and change how the loop computes its gradients.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, final

import torch

from casemate.attacks.base import AbstractAttack, as_attack
from casemate.attacks.criterion import Criterion
from casemate.attacks.differentiate import input_gradient, value_and_grad
from casemate.attacks.parts import (
    AnyParts,
    InputDiversity,
    Momentum,
    Nesterov,
    ScaledCopies,
    TranslationKernel,
    VarianceTuning,
    find_part,
    record_of,
)
from casemate.attacks.result import Passes, RunResult
from casemate.errors import SettingError
from casemate.logits import is_valid
from casemate.losses import AnyLoss, as_loss
from casemate.models import Classifier
from casemate.norms import Ball, norm_of
from casemate.progress import Advance, no_progress
from casemate.rng import Streams
from casemate.settings import at_least, expect, not_negative, one_of
from casemate.types import Flags, Images, Logits

Keep = Literal["first_success", "last"]
AnyKeep = Annotated[Keep, one_of("first_success", "last")]
"""`first_success`: stop at an example's first fooling iterate. `last`: make all steps and take the last iterate."""

Visit = Callable[[int, Images, Logits, Flags], None]
"""A function called at each iterate with its number (0: the start), all images, their logits, and `AscentResult.finite`
so far."""


@final
@dataclass(frozen=True, kw_only=True)
class Loop:
    """The settings of `gradient_ascent`, the loop of projected gradient ascent that all gradient attacks run."""

    ball: Ball
    """The set that every iterate is projected onto."""
    steps: Annotated[int, at_least(1)]
    """Gradient steps of each run."""
    step_size: Annotated[float, not_negative()]
    """Length of each step, in the ball's norm."""
    loss: AnyLoss
    """Loss to maximise, by name (see `casemate.losses`) or a function (see `OwnLoss`)."""
    random_start: bool = False
    """Start from a random point of the ball instead of the clean image."""
    restarts: Annotated[int, at_least(1)] = 1
    """Number of runs from different random starts; later ones are only for examples not yet fooled."""
    decay: Annotated[float, not_negative()] | None = None
    """Momentum: the decay of the accumulated gradient (MI-FGSM); None for no momentum."""
    keep: AnyKeep = "first_success"
    eot_samples: Annotated[int, at_least(1)] = 1
    """Passes whose gradients are averaged at every step, for a model with random outputs (see `EOT`)."""
    parts: AnyParts = ()
    """Changes of the gradient for images that fool other models too (see `Transferable`); without `Momentum`, which
    is `decay`."""

    def __post_init__(self) -> None:
        expect(self)
        if self.restarts > 1 and not self.random_start:
            raise SettingError("restarts without a random start would repeat the same run; set random_start")
        if find_part(self.parts, Nesterov) is not None and self.decay is None:
            raise SettingError("Nesterov for an attack without momentum; expected MIFGSM, or Momentum() as a part too")

    @property
    def is_random(self) -> bool:
        """Whether two runs with different draws differ, on any model: by the start, or by a part."""
        return self.random_start or any(isinstance(each, InputDiversity | VarianceTuning) for each in self.parts)

    @property
    def passes(self) -> Passes:
        """Forward and backward passes of one run for one image that is never fooled."""
        copies, tuning = find_part(self.parts, ScaledCopies), find_part(self.parts, VarianceTuning)
        points = self.steps + (self.steps - 1) * (0 if tuning is None else tuning.samples)
        gradients = self.eot_samples * points * (1 if copies is None else copies.copies)
        return Passes(gradients + (self.eot_samples * self.steps if self.sees_other_inputs else 0), gradients)

    @property
    def sees_other_inputs(self) -> bool:
        """Whether gradients are computed at other images than the iterates, which are then classified by themselves."""
        return any(isinstance(each, Nesterov | ScaledCopies | InputDiversity) for each in self.parts)


@final
@dataclass
class AscentResult:
    """The result of a run of `gradient_ascent`, one entry per example."""

    images: Images
    """The first iterate that fools (with `keep="first_success"`), or else the last one."""
    fooled: Flags
    """Fooled at an iterate whose logits were computed, which excludes the last one of a complete run."""
    has_gradient: Flags
    """The gradient was not exactly zero at some step."""
    finite: Flags
    """Logits and gradient were finite at every step; where they were not, `images` has the clean one."""
    passes: Passes


def _step_gradient(
    model: Classifier,
    images: Images,
    criterion: Criterion,
    loop: Loop,
    velocity: Images | None,
    streams: Streams,
    restart: int,
    number: int,
    *,
    passes: Passes,
) -> tuple[Logits, Images]:
    """The logits of the iterates, and the gradients there, without the correction by `VarianceTuning`.

    With parts that show the network other images, the iterates are classified in passes of their own. The passes made
    are added to `passes`.
    """
    nesterov, at = find_part(loop.parts, Nesterov), images
    if nesterov is not None and velocity is not None and loop.decay is not None:
        at = nesterov.look_ahead(images, velocity, loop.ball, loop.step_size * loop.decay)
    logits, gradient = _part_gradient(model, at, criterion, loop, streams, "step", restart, number, passes=passes)
    if loop.sees_other_inputs:
        passes.add(Passes(forward=loop.eot_samples * len(images)))
        logits, _, _ = value_and_grad(
            model, images, lambda _, each: each[:, 0], eot_samples=loop.eot_samples, differentiate=False
        )
    return logits, gradient


def _part_gradient(
    model: Classifier,
    images: Images,
    criterion: Criterion,
    loop: Loop,
    streams: Streams,
    *key: int | str,
    passes: Passes,
) -> tuple[Logits, Images]:
    """The gradient at `images`: the mean over the inputs that the loop's parts make of them, smoothed; and logits.

    `key` keys the draws of `InputDiversity`, which are others for every copy and in every pass of `EOT`. The logits are
    those of the images only where no part makes other inputs of them. The criterion's mask comes last: what the network
    sees may be shifted, and smoothing spreads gradients.
    """
    everywhere = criterion.with_changes(mask=None)
    diversity, copies = find_part(loop.parts, InputDiversity), find_part(loop.parts, ScaledCopies)
    count = 1 if copies is None else copies.copies
    draws = loop.eot_samples * count
    passes.add(Passes(draws * len(images), draws * len(images)))
    if diversity is None and copies is None:
        logits, gradient = input_gradient(model, images, everywhere, loop.loss, loop.eot_samples)
    else:
        logits, gradient = torch.empty(0), torch.zeros_like(images)
        for number in range(draws):
            with torch.enable_grad():
                leaf = images.detach().requires_grad_(True)
                seen = leaf if copies is None else copies.scaled(leaf, number % count, model.bounds)
                if diversity is not None:
                    seen = diversity.transform(seen, model.bounds, streams, "diversity", *key, number)
            logits, there = input_gradient(model, seen.detach(), everywhere, loop.loss)
            gradient += torch.autograd.grad(seen, leaf, there)[0]
        gradient /= draws
    kernel = find_part(loop.parts, TranslationKernel)
    return logits, criterion.masked(gradient if kernel is None else kernel.smooth(gradient))


def gradient_ascent(
    model: Classifier,
    clean: Images,
    criterion: Criterion,
    loop: Loop,
    streams: Streams,
    *,
    restart: int = 0,
    start: Images | None = None,
    first: tuple[Logits, Images] | None = None,
    visit: Visit | None = None,
    advance: Advance = no_progress,
) -> AscentResult:
    """One run of projected gradient ascent with the settings `loop`, from one start.

    Args:
        model: in evaluation mode, with frozen weights.
        restart: number of the run, a key of its random start.
        start: images within the ball to start from, instead of the loop's start.
        first: logits and gradient at the clean images, if known already; they do not depend on eps. Not used by a loop
            with parts.
        visit: called at every iterate before the last; with it no example leaves the batch when it is fooled.
        advance: progress, called at every step with the number of examples divided by the number of steps.
    """
    drop = loop.keep == "first_success" and visit is None
    if start is not None:
        images = start
    elif loop.random_start:
        images = loop.ball.sample(clean, model.bounds, streams, "start", restart, mask=criterion.mask)
    else:
        images = clean.clone()
    result = AscentResult(
        images=images.clone(),
        fooled=torch.zeros(len(clean), dtype=torch.bool, device=clean.device),
        has_gradient=torch.zeros(len(clean), dtype=torch.bool, device=clean.device),
        finite=torch.ones(len(clean), dtype=torch.bool, device=clean.device),
        passes=Passes(),
    )
    active = torch.arange(len(clean), device=clean.device)
    velocity = torch.zeros_like(clean) if loop.decay is not None else None
    tuning = find_part(loop.parts, VarianceTuning)
    variance: Images | None = None
    for number in range(loop.steps):
        if len(active) == 0:
            break
        if number == 0 and first is not None and start is None and not loop.random_start and not loop.parts:
            logits, gradient = first
        else:
            logits, gradient = _step_gradient(
                model, images, criterion, loop, velocity, streams, restart, number, passes=result.passes
            )
            advance(len(active) / loop.steps, "")
        uncorrected = gradient
        if variance is not None:
            gradient = gradient + variance
        if visit is not None:
            visit(number, images, logits, result.finite.clone())
        fooled = criterion.is_adversarial(logits)
        result.fooled[active] |= fooled
        steepest = gradient.flatten(1).abs().amax(1)  # finite and zero where all entries are
        result.has_gradient[active] |= steepest != 0
        finite = is_valid(logits) & steepest.isfinite()
        result.finite[active] &= finite | fooled if drop else finite
        if drop and fooled.any():
            result.images[active[fooled]] = images[fooled]
            going = ~fooled
            active, images, clean, gradient = active[going], images[going], clean[going], gradient[going]
            criterion, streams, uncorrected = criterion[going], streams[going], uncorrected[going]
            velocity = velocity[going] if velocity is not None else None
        if velocity is not None and loop.decay is not None:
            length = norm_of(gradient, "l1").clamp(min=torch.finfo(gradient.dtype).tiny)
            velocity = loop.decay * velocity + gradient / length.view(-1, 1, 1, 1)
            gradient = velocity
        if tuning is not None and tuning.samples and number < loop.steps - 1:
            around = torch.zeros_like(images)
            for sample in range(tuning.samples):
                key = "around", restart, number, sample
                near = tuning.neighbour(images, loop.ball, streams, *key, mask=criterion.mask)
                around += _part_gradient(model, near, criterion, loop, streams, *key, passes=result.passes)[1]
            variance = around / tuning.samples - uncorrected
        images = loop.ball.ascend(gradient, images, clean, model.bounds, loop.step_size)
        images = torch.where(result.finite[active].view(-1, 1, 1, 1), images, clean)
    result.images[active] = images
    return result


def gradient_ascent_restarts(
    model: Classifier,
    clean: Images,
    criterion: Criterion,
    loop: Loop,
    streams: Streams,
    *,
    start: Images | None = None,
    first: tuple[Logits, Images] | None = None,
    advance: Advance = no_progress,
) -> AscentResult:
    """All restarts of `gradient_ascent`; keep each example's first run that fools, or else the one of highest loss.

    `start` and `first` are for the first run (see `gradient_ascent`). Not done by `Restarts`, which has neither, keys
    random starts differently and compares runs by the cross-entropy, not by the loop's loss.
    """

    def share(amount: float, note: str = "") -> None:
        advance(amount / loop.restarts, note)

    best = gradient_ascent(model, clean, criterion, loop, streams, start=start, first=first, advance=share)
    for restart in range(1, loop.restarts):
        with torch.no_grad():
            logits = model(best.images)
        best.passes.forward += len(logits)
        left = (~criterion.is_adversarial(logits)).nonzero().squeeze(1)
        if len(left) == 0:
            break
        rest = criterion[left]
        again = gradient_ascent(model, clean[left], rest, loop, streams[left], restart=restart, advance=share)
        with torch.no_grad():
            new = model(again.images)
        again.passes.forward += len(left)
        loss = as_loss(loop.loss)
        better = rest.is_adversarial(new) | (rest.objective(loss, new) > rest.objective(loss, logits[left]))
        best.images[left[better]] = again.images[better]
        best.finite[left[better]] = again.finite[better]
        best.fooled[left] |= again.fooled
        best.has_gradient[left] |= again.has_gradient
        best.passes.add(again.passes)
    return best


@dataclass(frozen=True, kw_only=True)
class AbstractGradientAttack(AbstractAttack):
    """Base of FGSM, BIM, PGD and MI-FGSM, which only choose the settings (`loop`) of one gradient ascent.

    Also of the wrappers EOT and Transferable, which change those of another attack.
    """

    def __post_init__(self) -> None:
        expect(self)
        self.loop()  # settings that contradict each other are refused here, not when the attack is called

    @abstractmethod
    def loop(self) -> Loop:
        """The settings of the gradient ascent that this attack runs."""

    @final
    def ball(self) -> Ball:
        """The ball that the iterates are projected onto, from `loop`."""
        return self.loop().ball

    @final
    def max_passes(self, classes: int) -> Passes:
        """Per image at most: the passes of every restart (`Loop.passes`).

        Two forward passes compare each restart with the best run before it.
        """
        del classes
        loop = self.loop()
        run = loop.passes
        return Passes(loop.restarts * run.forward + 2 * (loop.restarts - 1), loop.restarts * run.backward)

    @final
    def run(
        self, model: Classifier, clean: Images, criterion: Criterion, streams: Streams, advance: Advance
    ) -> RunResult:
        """Run the gradient ascent with all its restarts."""
        best = gradient_ascent_restarts(model, clean, criterion, self.loop(), streams, advance=advance)
        return RunResult(best.images, best.finite, best.has_gradient, best.passes)


@final
@dataclass(frozen=True, kw_only=True)
class EOT(AbstractGradientAttack):
    """Expectation over transformation: another attack with averaged gradients (Athalye et al. 2018, section 4.2).

    For models with random outputs: noise at inference, random resizing or rotation. Every pass has new random draws.
    The final image is classified by a single pass, as a user of the model would. For such a model use `keep="last"`:
    `first_success` counts an image as fooled if any one of many predictions was wrong, by the attack or by chance.
    """

    attack: AbstractGradientAttack
    """The attack whose gradients are averaged."""
    eot_samples: Annotated[int, at_least(1)] = 20
    """Passes whose gradients are averaged at every step."""

    def loop(self) -> Loop:
        """The settings of the inner attack, with averaged gradients. Raises `SettingError` for an EOT of an EOT."""
        as_attack(self.attack, AbstractGradientAttack)
        inner = self.attack.loop()
        if inner.eot_samples > 1 or isinstance(self.attack, EOT):
            raise SettingError("EOT of EOT; expected one EOT, with all eot_samples in it")
        return replace(inner, eot_samples=self.eot_samples)


@final
@dataclass(frozen=True, kw_only=True)
class Transferable(AbstractGradientAttack):
    """Another attack whose gradients are computed so that its images fool other models too, by one or several parts.

    With `MIFGSM` and its decay of 1 these are the published attacks: DI-MI-FGSM with `InputDiversity()` (Xie et al.
    2019), TI-MI-FGSM with `TranslationKernel()` (Dong et al. 2019), SI-NI-FGSM with `ScaledCopies()` and `Nesterov()`
    (Lin et al. 2020), VMI-FGSM with `VarianceTuning()`, VNI-FGSM with `Nesterov()` too (Wang and He 2021). See
    `casemate.attacks.parts` for what they compute together.

    As other gradient attacks it stops at an image's first success on the model that it runs on; inside `Transfer`, or
    with `keep="last"`, it uses its whole budget.
    """

    attack: AbstractGradientAttack
    """The attack to change."""
    parts: AnyParts = field(metadata={"record": record_of})
    """Changes of its gradient, at most one of each kind, in any order."""

    def loop(self) -> Loop:
        """The settings of the inner attack, with the parts.

        Raises `SettingError` for parts that do not fit together or to the attack, and for a Transferable inside.
        """
        as_attack(self.attack, AbstractGradientAttack)
        inner = self.attack.loop()
        if inner.parts or isinstance(self.attack, Transferable):
            raise SettingError("Transferable of Transferable; expected one, with all the parts in it")
        if inner.ball.norm == "l0" and find_part(self.parts, VarianceTuning) is not None:
            raise SettingError("VarianceTuning in l0, where a ball has no neighbourhood; expected linf, l2 or l1")
        momentum, others = find_part(self.parts, Momentum), tuple(p for p in self.parts if not isinstance(p, Momentum))
        if momentum is not None and inner.decay is not None:
            raise SettingError(
                f"Momentum for {type(self.attack).__name__}, which has its own, with decay = {inner.decay}; leave the "
                "part out, or use PGD or BIM"
            )
        return replace(inner, parts=others, decay=inner.decay if momentum is None else momentum.decay)


def with_steps(attack: AbstractGradientAttack, steps: int) -> AbstractGradientAttack:
    """A copy of the attack with another number of steps. Raises `SettingError` for a single-step attack."""
    if isinstance(attack, EOT | Transferable):
        return replace(attack, attack=with_steps(attack.attack, steps))
    if "steps" not in attack.__dataclass_fields__:
        raise SettingError(f"{type(attack).__name__} has a single step; expected BIM, PGD or MIFGSM")
    return replace(attack, steps=steps)  # type: ignore[call-arg]


def to_last_iterate(attack: AbstractGradientAttack) -> AbstractGradientAttack:
    """A copy of the attack with `keep="last"`: it makes all steps on every example and returns the last iterate."""
    if isinstance(attack, EOT | Transferable):
        return replace(attack, attack=to_last_iterate(attack.attack))
    return replace(attack, keep="last")  # type: ignore[call-arg]  # every preset has that field
