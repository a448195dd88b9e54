"""The one gradient loop: a ball, a step, a loss and a start. FGSM, BIM, PGD and MI-FGSM are presets of it."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, final

import torch
from torch import Tensor

from casemate.attacks.base import Attack, Criterion, Passes
from casemate.errors import SettingError
from casemate.logits import is_valid
from casemate.losses import LossName, loss_by_name
from casemate.memory import is_out_of_memory
from casemate.models import Classifier, backward_failed
from casemate.norms import Ball, norm_of
from casemate.progress import Advance, no_progress
from casemate.rng import Streams
from casemate.types import Flags, Images, Logits, PerExample

Track = Literal["worst", "last"]
"""`worst`: stop at an example's first fooling iterate. `last`: go to the end and take the raw last iterate."""

Visit = Callable[[int, Images, Logits, Flags], None]
"""Called at each iterate with its number (0 = the start), all its images, their logits, and `Climb.finite` so far."""


@final
@dataclass(frozen=True, kw_only=True)
class Loop:
    """What one run of the loop does."""

    ball: Ball
    """Where the iterates stay."""
    steps: int
    """Gradient steps."""
    step: float
    """Length of each, in the ball's norm."""
    loss: LossName
    """What is ascended."""
    random_start: bool = False
    """Start from a point drawn from the ball, not from the clean image."""
    restarts: int = 1
    """Runs from fresh starts, for the examples not yet fooled."""
    decay: float | None = None
    """Momentum: the decay of the accumulated gradient (MI-FGSM); None for none."""
    track: Track = "worst"
    draws: int = 1
    """Passes whose gradients are averaged at every step, for a model that answers at random (see `EOT`)."""

    def __post_init__(self) -> None:
        loss_by_name(self.loss)
        if self.draws < 1:
            raise SettingError(f"draws = {self.draws}; expected at least 1")
        if self.steps < 1:
            raise SettingError(f"steps = {self.steps}; expected at least 1")
        if not 0 <= self.step < float("inf"):
            raise SettingError(f"step = {self.step}; expected zero or more and finite")
        if self.restarts < 1:
            raise SettingError(f"restarts = {self.restarts}; expected at least 1")
        if self.restarts > 1 and not self.random_start:
            raise SettingError("restarts without a random start would repeat the same run; set random_start")
        if self.decay is not None and self.decay < 0:
            raise SettingError(f"decay = {self.decay}; expected zero or more")
        if self.track not in ("worst", "last"):
            raise SettingError(f"track {self.track!r}; expected worst or last")


@dataclass
class Climb:
    """Where a run of the loop ended, per example."""

    images: Images
    """The first fooling iterate, or the last one."""
    fooled: Flags
    """Fooled at an iterate whose logits were seen, which excludes the last one of a complete run."""
    steered: Flags
    """The gradient was not exactly zero at some step."""
    finite: Flags
    """Logits and gradient were finite at every step; where they were not, the image is the clean one."""
    passes: Passes


def input_gradient(
    model: Classifier, images: Images, criterion: Criterion, loss: LossName, draws: int = 1
) -> tuple[Logits, Images]:
    """The logits, and the gradient with respect to the images of what the criterion wants to rise.

    The loss is summed over the batch, so each example's gradient is its own, whatever the batch size. Of several
    `draws` the means are returned: of the gradients (Athalye et al. 2018, section 4.2), and of the logits. A model
    that cannot be differentiated has a gradient of zero.
    """
    function = loss_by_name(loss)
    logits, _, gradient = look(
        model, images, lambda part, logits: criterion.take(part).rising(function, logits), draws=draws
    )
    return logits, gradient


def look(
    model: Classifier,
    images: Images,
    loss: Callable[[slice, Logits], PerExample],
    *,
    draws: int = 1,
    differentiate: bool = True,
) -> tuple[Logits, PerExample, Images]:
    """Logits, a loss of them, and its gradient with respect to the images (zero unless `differentiate`).

    Done for as many images at a time as pass through the network; `loss` is told which, and gives one number each. Of
    several `draws` the means are returned.
    """

    def differentiated(part: slice) -> tuple[Tensor, ...]:
        some = images[part].detach().requires_grad_(differentiate)
        found: list[tuple[Tensor, ...]] = []
        for _ in range(draws):
            with torch.set_grad_enabled(differentiate):
                logits = model(some)
                value = loss(part, logits)
                gradient = gradient_of(value.sum(), some) if differentiate else torch.zeros_like(some)
            found.append((logits.detach(), value.detach(), gradient))
        return found[0] if draws == 1 else tuple(torch.stack(each).mean(0) for each in zip(*found, strict=True))

    logits, value, gradient = model.in_parts(len(images), differentiated)
    return logits, value, gradient


def gradient_of(rising: Tensor, images: Images, *, retain: bool = False) -> Images:
    """The derivative of a sum with respect to images; zero if it does not depend on them differentiably.

    With `retain` the graph is kept, for the derivative of another sum of the same pass. Raises `ModelError` for a model
    that fails on the way back.
    """
    if not rising.requires_grad:
        return torch.zeros_like(images)
    try:
        (gradient,) = torch.autograd.grad(rising, images, retain_graph=retain, allow_unused=True)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise backward_failed(error) from error
    return torch.zeros_like(images) if gradient is None else gradient


def climb(
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
) -> Climb:
    """One run from one start. `model` must be frozen.

    Args:
        start: where to start, inside the ball, instead of where the loop says.
        first: logits and gradient at the clean images, if they are known already (they serve every eps).
        visit: sees the logits of every iterate before the last; with it no example is dropped on the way.
        advance: is told of every step, in shares of whole runs.
    """
    drop = loop.track == "worst" and visit is None
    if start is not None:
        images = start
    elif loop.random_start:
        images = loop.ball.sample(clean, model.bounds, streams, "start", restart)
    else:
        images = clean.clone()
    result = Climb(
        images=images.clone(),
        fooled=torch.zeros(len(clean), dtype=torch.bool, device=clean.device),
        steered=torch.zeros(len(clean), dtype=torch.bool, device=clean.device),
        finite=torch.ones(len(clean), dtype=torch.bool, device=clean.device),
        passes=Passes(),
    )
    active = torch.arange(len(clean), device=clean.device)
    velocity = torch.zeros_like(clean) if loop.decay is not None else None
    for number in range(loop.steps):
        if len(active) == 0:
            break
        if number == 0 and first is not None and start is None and not loop.random_start:
            logits, gradient = first
        else:
            logits, gradient = input_gradient(model, images, criterion, loop.loss, loop.draws)
            advance(len(active) / loop.steps, "")
            result.passes.add(Passes(loop.draws * len(active), loop.draws * len(active)))
        if visit is not None:
            visit(number, images, logits, result.finite.clone())
        fooled = criterion.met(logits)
        result.fooled[active] |= fooled
        steepest = gradient.flatten(1).abs().amax(1)  # finite and zero where all entries are
        result.steered[active] |= steepest != 0
        finite = is_valid(logits) & steepest.isfinite()
        result.finite[active] &= finite | fooled if drop else finite
        if drop and fooled.any():
            result.images[active[fooled]] = images[fooled]
            going = ~fooled
            active, images, clean, gradient = active[going], images[going], clean[going], gradient[going]
            criterion = criterion.take(going)
            velocity = velocity[going] if velocity is not None else None
        if velocity is not None and loop.decay is not None:
            length = norm_of(gradient, "l1").clamp(min=torch.finfo(gradient.dtype).tiny)
            velocity = loop.decay * velocity + gradient / length.view(-1, 1, 1, 1)
            gradient = velocity
        images = images + loop.step * loop.ball.ascent(gradient, images, model.bounds)
        images = loop.ball.project(images, clean, model.bounds)
        images = torch.where(result.finite[active].view(-1, 1, 1, 1), images, clean)
    result.images[active] = images
    return result


def climb_all(
    model: Classifier,
    clean: Images,
    criterion: Criterion,
    loop: Loop,
    streams: Streams,
    *,
    start: Images | None = None,
    first: tuple[Logits, Images] | None = None,
    advance: Advance = no_progress,
) -> Climb:
    """All restarts of the loop; of several, keep per example the first that fools, or else the highest loss.

    `start` and `first` are those of the first run; see `climb`.
    """

    def share(amount: float, note: str = "") -> None:
        advance(amount / loop.restarts, note)

    best = climb(model, clean, criterion, loop, streams, start=start, first=first, advance=share)
    for restart in range(1, loop.restarts):
        with torch.no_grad():
            logits = model(best.images)
        best.passes.forward += len(logits)
        left = (~criterion.met(logits)).nonzero().squeeze(1)
        if len(left) == 0:
            break
        rest = criterion.take(left)
        again = climb(model, clean[left], rest, loop, streams.take(left), restart=restart, advance=share)
        with torch.no_grad():
            new = model(again.images)
        again.passes.forward += len(left)
        loss = loss_by_name(loop.loss)
        better = rest.met(new) | (rest.rising(loss, new) > rest.rising(loss, logits[left]))
        best.images[left[better]] = again.images[better]
        best.finite[left[better]] = again.finite[better]
        best.fooled[left] |= again.fooled
        best.steered[left] |= again.steered
        best.passes.add(again.passes)
    return best


@dataclass(frozen=True, kw_only=True)
class GradientAttack(Attack):
    """An attack that is a preset of the loop."""

    def __post_init__(self) -> None:
        self.loop()  # refuses settings outside their values at once, not when the attack is called

    @abstractmethod
    def loop(self) -> Loop:
        """The loop that this attack's hyper-parameters stand for."""

    @final
    def ball(self) -> Ball:
        """The ball of the loop."""
        return self.loop().ball

    @final
    def most_passes(self, classes: int) -> Passes:
        """Every step of every restart, and two looks between one restart and the next."""
        del classes
        loop = self.loop()
        gradients = loop.restarts * loop.steps * loop.draws
        return Passes(gradients + 2 * (loop.restarts - 1), gradients)

    @final
    def run(
        self, model: Classifier, clean: Images, criterion: Criterion, streams: Streams, advance: Advance
    ) -> tuple[Images, Flags, Passes]:
        """Run the loop with all its restarts."""
        best = climb_all(model, clean, criterion, self.loop(), streams, advance=advance)
        return best.images.where(best.finite.view(-1, 1, 1, 1), torch.nan), best.steered, best.passes


@final
@dataclass(frozen=True, kw_only=True)
class EOT(GradientAttack):
    """Expectation over transformation: another attack with averaged gradients (Athalye et al. 2018, section 4.2).

    For models that answer at random: noise at inference, random resizing or rotation. Every pass draws anew. The
    result is still classified once, by one draw, as a user of the model would. Of such a model read `last`: `worst`
    counts an image as fooled if any one of many answers on the way was wrong, by the attack or by chance.
    """

    attack: GradientAttack
    """What is done with the gradients."""
    draws: int = 20
    """Passes per gradient."""

    def loop(self) -> Loop:
        """The inner attack's loop with averaged gradients. Raises `SettingError` for an average of averages."""
        if isinstance(self.attack, EOT):
            raise SettingError("EOT of EOT; give the number of draws once")
        return replace(self.attack.loop(), draws=self.draws)


def with_steps(attack: GradientAttack, steps: int) -> GradientAttack:
    """The same attack with another number of steps. Raises `SettingError` if it takes exactly one."""
    if isinstance(attack, EOT):
        return replace(attack, attack=with_steps(attack.attack, steps))
    if "steps" not in attack.__dataclass_fields__:
        raise SettingError(f"{type(attack).__name__} takes one step; sweep the steps of BIM, PGD or MIFGSM")
    return replace(attack, steps=steps)  # type: ignore[call-arg]
