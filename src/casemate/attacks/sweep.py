"""Sweeps over eps and over iterations, one call each, that share work between their points.

One clean gradient serves the first step at every eps; where the step does not depend on the number of iterations, one
run of the most gives every smaller number; and where only `worst` is asked for, an example that is fooled leaves.

Two things are kept apart at every point: `worst` (fooled at any iterate, at this or a smaller value, or misclassified
from the start: monotone by construction) and `last` (the raw last iterate of a complete run on all examples).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import final

import torch
from torch import Tensor

from casemate.attacks.base import (
    Verified,
    check_images,
    innermost,
    model_of,
    prepare_for_attack,
    prepare_images,
    run_in_turn,
    stream_key,
    verify,
    with_eps,
)
from casemate.attacks.criterion import Criterion
from casemate.attacks.gradient import (
    AbstractGradientAttack,
    Loop,
    gradient_ascent,
    gradient_ascent_restarts,
    input_gradient,
    with_steps,
)
from casemate.attacks.result import Passes, status_of
from casemate.errors import SettingError
from casemate.logits import is_valid
from casemate.losses import stable_cross_entropy
from casemate.models import Classifier, Frozen, UserCall, normal_tensor, user_call
from casemate.norms import norm_of
from casemate.progress import Advance, no_progress
from casemate.rng import Streams, derive
from casemate.types import Flags, Images, Labels, Logits, PerExample


@final
@dataclass(frozen=True)
class Last:
    """The last iterates of complete runs: per example (rows) and value (columns)."""

    right: Tensor
    """Bool: not fooling."""
    prediction: Tensor
    """Int64: the class it is taken for."""
    loss: Tensor
    """Float: cross-entropy under the true label."""
    norm: Tensor
    """Float: norm of the perturbation."""
    status: Tensor
    """`Status` codes, uint8."""


@final
@dataclass(frozen=True)
class Sweep:
    """Per example (rows) and value (columns, ascending)."""

    values: tuple[float, ...]
    worst: Tensor
    """Bool `(n, values)`: withstood everything up to this value."""
    last: Last | None
    """None if only `worst` was asked for."""
    passes: Passes
    no_gradient: Tensor
    """Bool `(n,)`: withstood everything, and no run on it ever had a gradient other than zero."""
    not_finite: Tensor
    """Bool `(n,)`: withstood everything, and some run on it met logits or gradients that are not finite."""

    def warn(self, call: UserCall, name: str) -> None:
        """Warn of images that count as withstanding an attack that did not take place on them."""
        call.warn_of_failures(
            name, len(self.worst), no_gradient=int(self.no_gradient.sum()), not_finite=int(self.not_finite.sum())
        )


def _ascending(values: Sequence[float] | Sequence[int]) -> tuple[float, ...]:
    if not values or any(left >= right for left, right in pairwise(values)):
        raise SettingError(f"values {tuple(values)}; expected at least one, each larger than the one before")
    return tuple(float(value) for value in values)


@final
class _Collector:
    """Fills the columns of a sweep, keeping `worst` cumulative."""

    def __init__(self, labels: Labels, criterion: Criterion, standing: Flags) -> None:
        self._labels = labels
        self._criterion = criterion
        self.standing = standing
        self._attacked = torch.zeros_like(standing)
        self._has_gradient, self._finite = torch.zeros_like(standing), torch.ones_like(standing)
        self._worst: list[Flags] = []
        self._last: list[tuple[Tensor, ...]] = []

    def ran(self, at: Tensor, has_gradient: Flags, finite: Flags) -> None:
        """Note of a run on the examples `at` whether they had a gradient, and whether all was finite."""
        self._attacked[at] = True
        self._has_gradient[at] |= has_gradient
        self._finite[at] &= finite

    def fooled(self, fooled: Flags) -> None:
        """Enter a value of which only the fooled examples are known."""
        self.standing = self.standing & ~fooled
        self._worst.append(self.standing)

    def complete(self, fooled: Flags, logits: Logits, norm: PerExample, has_gradient: Flags, finite: Flags) -> None:
        """Enter a value with its last iterates; the flags tell of the iterates before."""
        met = self._criterion.is_adversarial(logits)
        self.fooled(fooled | met)
        status = status_of(met, finite & is_valid(logits), has_gradient)
        loss = stable_cross_entropy(logits, self._labels)
        self._last.append((~met, logits.argmax(1), loss, norm, status))

    def sweep(self, values: tuple[float, ...], passes: Passes) -> Sweep:
        """The finished sweep, on the CPU."""
        columns = [torch.stack(column, 1).cpu() for column in zip(*self._last, strict=True)]
        withstood = self._attacked & self.standing
        return Sweep(
            values,
            torch.stack(self._worst, 1).cpu(),
            Last(*columns) if columns else None,
            passes,
            no_gradient=(withstood & self._finite & ~self._has_gradient).cpu(),
            not_finite=(withstood & ~self._finite).cpu(),
        )


def _prepare(
    attack: AbstractGradientAttack, model: Classifier, images: Images, labels: Labels, seed: int, first_index: int
) -> tuple[Images, Labels, Criterion, Streams]:
    clean = prepare_images(images, model)
    labels = normal_tensor(labels).to(model.device)
    index = torch.arange(first_index, first_index + len(labels), device=model.device)
    return clean, labels, Criterion(labels), Streams(derive(seed, stream_key(attack)), index)


def _first(loop: Loop, model: Classifier, clean: Images, criterion: Criterion) -> tuple[tuple[Logits, Images], Passes]:
    """Logits and gradient at the clean images, which serve every value, and what they cost."""
    cost = loop.eot_samples * len(clean)
    return input_gradient(model, clean, criterion, loop.loss, loop.eot_samples), Passes(cost, cost)


def _one_answer(
    loop: Loop, prepared: Frozen, models: Sequence[Classifier], images: Images, logits: Logits, passes: Passes
) -> Logits:
    """What the model says of images, once: `logits` of the first of `models`, if they are neither the mean of several
    draws nor those of a copy that others of `models` come after.
    """
    if loop.eot_samples == 1 and len(models) == 1:
        return logits
    passes.add(Passes(forward=len(images)))
    with torch.no_grad():
        return models[0](images) if len(models) == 1 else prepared.classify(images)


def _until_fooled(
    prepared: Frozen,
    models: Sequence[Classifier],
    clean: Images,
    criterion: Criterion,
    loop: Loop,
    streams: Streams,
    *,
    start: Images | None,
    first: tuple[Logits, Images],
) -> tuple[Flags, Verified]:
    """Who is fooled by one run on each of `models` in turn, on the way or at its end, and the run.

    `first`: logits and gradient at the clean images, of the first model.
    """

    def run(model: Classifier, at: Tensor | slice) -> Verified:
        known = first if model is models[0] else None
        begin = None if start is None else start[at]
        ascent = gradient_ascent_restarts(model, clean[at], criterion[at], loop, streams[at], start=begin, first=known)
        found = verify(prepared.classify, ascent.images, clean[at], loop.ball, model.bounds)
        found.passes.add(ascent.passes)
        return replace(
            found, finite=found.finite & ascent.finite, has_gradient=ascent.has_gradient, claimed=ascent.fooled
        )

    found = run_in_turn(models, criterion, run)
    return criterion.is_adversarial(found.logits) | found.claimed, found


def sweep_eps(
    attack: AbstractGradientAttack,
    given: Classifier | Frozen,
    images: Images,
    labels: Labels,
    values: Sequence[float],
    *,
    only_worst: bool = False,
    warm_start: bool = False,
    seed: int = 0,
    first_index: int = 0,
    advance: Advance = no_progress,
) -> Sweep:
    """Run `attack` (untargeted, on one batch) at every eps of `values`, ascending; 0 means the clean images.

    With `only_worst`, fooled examples leave at once and are not attacked at larger eps; otherwise every eps gets a
    complete run on all, and `worst` comes with it for nothing. Only the former follows gradients in low precision, if
    there is such a copy (see `casemate.models.accel.precision`). With `warm_start` every run starts where the one at
    the eps before ended: fewer steps then do, but an eps no longer gets what it would get alone.
    """
    values = _ascending(values)
    known = model_of(given)
    check_images(known, images, labels)
    ball = with_eps(attack, values[-1]).ball()
    with user_call(known, ball, seed=seed) as call, prepare_for_attack(given, images) as prepared:
        models = (
            prepared.precision_stages(low_precision=innermost(attack).supports_low_precision)
            if only_worst
            else (prepared.copy,)
        )
        model = models[0]
        clean, labels, criterion, streams = _prepare(attack, model, images, labels, seed, first_index)
        (first_logits, first_gradient), passes = _first(attack.loop(), model, clean, criterion)
        answer = _one_answer(attack.loop(), prepared, models, clean, first_logits, passes)
        collector = _Collector(labels, criterion, ~criterion.is_adversarial(answer))
        nobody = torch.zeros_like(collector.standing)
        ended: Images | None = None
        for value in values:
            chosen = (collector.standing if only_worst else ~nobody).nonzero().squeeze(1)
            if value == 0 and not only_worst:
                still = torch.zeros(len(clean), device=clean.device)
                collector.complete(nobody, answer, still, first_gradient.flatten(1).ne(0).any(1), ~nobody)
            elif value == 0 or len(chosen) == 0:
                collector.fooled(nobody)
            else:
                loop = replace(with_eps(attack, value).loop(), keep="first_success" if only_worst else "last")
                rest = criterion[chosen]
                first = (first_logits[chosen], first_gradient[chosen])
                start = None if ended is None else ended[chosen]
                where = (clean[chosen], rest, loop, streams[chosen])
                if only_worst:
                    fooled, run = _until_fooled(prepared, models, *where, start=start, first=first)
                    collector.ran(chosen, run.has_gradient, run.finite)
                    collector.fooled(nobody.index_fill(0, chosen[fooled], True))
                else:
                    run = gradient_ascent_restarts(model, *where, start=start, first=first)
                    found = verify(prepared.classify, run.images, clean[chosen], loop.ball, model.bounds)
                    run.passes.add(found.passes)
                    collector.ran(chosen, run.has_gradient, run.finite & found.finite)
                    collector.complete(
                        run.fooled, found.logits, found.norm, run.has_gradient, run.finite & found.finite
                    )
                passes.add(run.passes)
                if warm_start:
                    ended = (clean if ended is None else ended).index_put((chosen,), run.images)
            advance(len(images) / len(values), "")
        sweep = collector.sweep(values, passes)
    sweep.warn(call, type(attack).__name__)
    return sweep


def sweep_steps(
    attack: AbstractGradientAttack,
    given: Classifier | Frozen,
    images: Images,
    labels: Labels,
    values: Sequence[int],
    *,
    seed: int = 0,
    first_index: int = 0,
    advance: Advance = no_progress,
) -> Sweep:
    """Run `attack` (untargeted, on one batch) for every number of iterations of `values`, ascending.

    0 means the clean images. One run of the most serves all, unless the attack's step depends on their number.
    Raises `SettingError` for an attack with restarts: a number of iterations is one of a single run.
    """
    numbers = _ascending(values)
    counts = [int(number) for number in numbers if number]
    loops = [replace(with_steps(attack, count).loop(), keep="last") for count in counts]
    if any(loop.restarts > 1 for loop in loops):
        raise SettingError(f"restarts = {loops[0].restarts} over iterations; sweep them with restarts=1")
    if len({(loop.step_size, loop.random_start) for loop in loops}) > 1:
        shared = [[loop] for loop in loops]
    else:
        shared = [loops] if loops else []
    known = model_of(given)
    check_images(known, images, labels)
    with user_call(known, attack.ball(), seed=seed) as call, prepare_for_attack(given, images) as prepared:
        model = prepared.copy
        clean, labels, criterion, streams = _prepare(attack, model, images, labels, seed, first_index)
        first, passes = _first(attack.loop(), model, clean, criterion)
        answer = _one_answer(attack.loop(), prepared, (model,), clean, first[0], passes)
        collector = _Collector(labels, criterion, ~criterion.is_adversarial(answer))
        if numbers[0] == 0:
            still = torch.zeros(len(clean), device=clean.device)
            has_gradient = first[1].flatten(1).ne(0).any(1)
            nobody = torch.zeros_like(collector.standing)
            collector.complete(nobody, answer, still, has_gradient, ~nobody)

        def shared_out(amount: float, note: str = "") -> None:
            advance(amount / len(shared), note)

        for group in shared:
            passes.add(_one_run(group, prepared, clean, criterion, streams, first, collector, shared_out))
        sweep = collector.sweep(numbers, passes)
    sweep.warn(call, type(attack).__name__)
    return sweep


def _one_run(
    loops: list[Loop],
    prepared: Frozen,
    clean: Images,
    criterion: Criterion,
    streams: Streams,
    first: tuple[Logits, Images],
    collector: _Collector,
    advance: Advance,
) -> Passes:
    """One run of the longest of `loops`, entering the iterate at each one's length."""
    lengths = {loop.steps: loop for loop in loops}
    fooled = torch.zeros_like(collector.standing)
    seen: list[tuple[Flags, Logits, PerExample, Flags]] = []
    asked = Passes()

    def visit(number: int, images: Images, logits: Logits, finite: Flags) -> None:
        if number in lengths:
            logits = _one_answer(lengths[number], prepared, (prepared.copy,), images, logits, asked)
            known = is_valid(logits)  # where not, the attack of this length returns the clean image
            norms = norm_of(images.double() - clean.double(), lengths[number].ball.norm).float().where(known, 0.0)
            seen.append((fooled.clone(), logits.where(known.unsqueeze(1), first[0]), norms, finite & known))
        fooled.logical_or_(criterion.is_adversarial(logits))

    longest = lengths[max(lengths)]
    run = gradient_ascent(prepared.copy, clean, criterion, longest, streams, first=first, visit=visit, advance=advance)
    found = verify(prepared.classify, run.images, clean, longest.ball, prepared.original.bounds)
    run.passes.add(found.passes)
    run.passes.add(asked)
    collector.ran(torch.arange(len(clean), device=clean.device), run.has_gradient, run.finite & found.finite)
    for fooled_before, logits, norms, finite in [*seen, (fooled, found.logits, found.norm, run.finite & found.finite)]:
        collector.complete(fooled_before, logits, norms, run.has_gradient, finite)
    return run.passes
