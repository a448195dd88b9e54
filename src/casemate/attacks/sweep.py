"""Sweeps over eps or over the number of iterations: one call attacks at all values, which share work.

The gradient at the clean images is the first step's at every eps. Where the step size does not depend on the number of
iterations, one run with the largest number gives all smaller ones. Where only `worst` is computed, fooled examples
are not attacked any further.

Two accuracies are kept apart at every value: `worst` (an example counts as fooled if it is at any iterate, at this or a
smaller value, or misclassified from the start; so it never rises) and `last` (the last iterate of a complete run on all
examples).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import final

import torch
from torch import Tensor, nn

from casemate.attacks.base import as_attack, innermost, stream_key, with_eps
from casemate.attacks.criterion import Criterion, Misclassification
from casemate.attacks.gradient import (
    AbstractGradientAttack,
    Loop,
    gradient_ascent,
    gradient_ascent_restarts,
    input_gradient,
    with_steps,
)
from casemate.attacks.inputs import as_images, check_images
from casemate.attacks.prepare import prepare_for_attack, prepare_images
from casemate.attacks.result import Passes, status_of
from casemate.attacks.verify import Verified, run_in_turn, verify_candidates
from casemate.data import Array, as_labels
from casemate.errors import SettingError
from casemate.logits import is_valid
from casemate.losses import stable_cross_entropy
from casemate.models import Classifier, Frozen, UserCall, as_model, model_of, normal_tensor, user_call
from casemate.norms import norm_of
from casemate.progress import Advance, no_progress
from casemate.rng import Streams, derive
from casemate.types import Flags, Images, Labels, Logits, PerExample


@final
@dataclass(frozen=True)
class Last:
    """What is known of the last iterates of complete runs, `(n, values)`: a column for each eps or number of steps."""

    right: Tensor
    """Bool: the last iterate does not fool the model."""
    prediction: Tensor
    """Int64: the class predicted for the last iterate."""
    loss: Tensor
    """Float: cross-entropy of the last iterate under the true label."""
    norm: Tensor
    """Float: norm of the last iterate's perturbation."""
    status: Tensor
    """How the run ended: `Status` codes, uint8."""


@final
@dataclass(frozen=True)
class Sweep:
    """The result of a sweep: a row for each example, a column for each eps or number of steps (ascending)."""

    values: tuple[float, ...]
    worst: Tensor
    """Bool `(n, values)`: classified correctly at every iterate, at this and all smaller values."""
    last: Last | None
    """What is known of the last iterates; None if only `worst` was computed."""
    passes: Passes
    no_gradient: Tensor
    """Bool `(n,)`: never fooled, and the gradient was zero at every step of every run."""
    not_finite: Tensor
    """Bool `(n,)`: never fooled, and logits or gradients of some run were not finite."""

    def warn(self, call: UserCall, name: str) -> None:
        """Warn of images that count as robust because the attack `name` failed (`UserCall.warn_of_failures`)."""
        call.warn_of_failures(
            name, len(self.worst), no_gradient=int(self.no_gradient.sum()), not_finite=int(self.not_finite.sum())
        )


def _ascending(values: Sequence[float] | Sequence[int]) -> tuple[float, ...]:
    if not values or any(left >= right for left, right in pairwise(values)):
        raise SettingError(f"values {tuple(values)}; expected at least one, each larger than the one before")
    return tuple(value if isinstance(value, float) else float(value) for value in values)


@final
class _Collector:
    """Collects the columns of a `Sweep`, one for each eps or number of steps, in ascending order.

    `robust_mask` marks the examples not fooled at any value so far.
    """

    def __init__(self, labels: Labels, criterion: Criterion, correct: Flags) -> None:
        self._labels = labels
        self._criterion = criterion
        self.robust_mask = correct
        self._attacked = torch.zeros_like(correct)
        self._has_gradient, self._finite = torch.zeros_like(correct), torch.ones_like(correct)
        self._worst: list[Flags] = []
        self._last: list[tuple[Tensor, ...]] = []

    def add_run(self, at: Tensor, has_gradient: Flags, finite: Flags) -> None:
        """Record whether a run on the examples at positions `at` had a gradient other than zero, and finite numbers."""
        self._attacked[at] = True
        self._has_gradient[at] |= has_gradient
        self._finite[at] &= finite

    def add_worst(self, fooled: Flags) -> None:
        """Add the next column of `Sweep.worst`; `fooled` marks the examples fooled at that value."""
        self.robust_mask = self.robust_mask & ~fooled
        self._worst.append(self.robust_mask)

    def add_last(self, fooled: Flags, logits: Logits, norm: PerExample, has_gradient: Flags, finite: Flags) -> None:
        """Add the next column of `Sweep.worst` and of `Sweep.last`, from a complete run at one value.

        Args:
            fooled: which examples were fooled at an iterate before the last.
            logits: at the last iterate.
            norm: of the last iterate's perturbation.
            has_gradient: as in `AscentResult`; so is `finite`.
        """
        success = self._criterion.is_adversarial(logits)
        self.add_worst(fooled | success)
        status = status_of(success, finite & is_valid(logits), has_gradient)
        loss = stable_cross_entropy(logits, self._labels)
        self._last.append((~success, logits.argmax(1), loss, norm, status))

    def sweep(self, values: tuple[float, ...], passes: Passes) -> Sweep:
        """The `Sweep` with the columns added so far, its tensors on the CPU."""
        columns = [torch.stack(column, 1).cpu() for column in zip(*self._last, strict=True)]
        withstood = self._attacked & self.robust_mask
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
    return clean, labels, Misclassification(labels), Streams(derive(seed, stream_key(attack)), index)


def _first(loop: Loop, model: Classifier, clean: Images, criterion: Criterion) -> tuple[tuple[Logits, Images], Passes]:
    """Logits and loss gradient at the clean images, computed once for all values of the sweep, and the passes made."""
    cost = loop.eot_samples * len(clean)
    return input_gradient(model, clean, criterion, loop.loss, loop.eot_samples), Passes(cost, cost)


def _logits_of_one_pass(
    loop: Loop, prepared: Frozen, models: Sequence[Classifier], images: Images, logits: Logits, passes: Passes
) -> Logits:
    """The logits of `images` from a single pass through a model of full precision.

    These are `logits`, which the loop computed with the first of `models`, unless those are means over several passes
    or come from a copy in lower precision. Then a new pass is made, and added to `passes`.
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
    """Attack each example until it is fooled, on `models` in turn (see `run_in_turn`).

    Args:
        start: images to start from; the loop's own start if None.
        first: logits and gradient of the first model at the clean images.

    Returns:
        which examples were fooled at any iterate, and the verified candidates.
    """

    def run(model: Classifier, at: Tensor | slice) -> Verified:
        known = first if model is models[0] else None
        begin = None if start is None else start[at]
        ascent = gradient_ascent_restarts(model, clean[at], criterion[at], loop, streams[at], start=begin, first=known)
        found = verify_candidates(prepared.classify, ascent.images, clean[at], loop.ball, model.bounds)
        found.passes.add(ascent.passes)
        return replace(
            found, finite=found.finite & ascent.finite, has_gradient=ascent.has_gradient, claimed=ascent.fooled
        )

    found = run_in_turn(models, criterion, run)
    return criterion.is_adversarial(found.logits) | found.claimed, found


def sweep_eps(
    attack: AbstractGradientAttack,
    given: nn.Module | Frozen,
    images: Array,
    labels: Array,
    values: Sequence[float],
    *,
    only_worst: bool = False,
    warm_start: bool = False,
    seed: int = 0,
    first_index: int = 0,
    advance: Advance = no_progress,
) -> Sweep:
    """Run `attack`, untargeted, on one batch at every eps of `values`.

    Args:
        given: the model: a `Classifier`, a module that maps images within [0, 1] to logits, or a frozen model.
        images, labels: as for a call of the attack.
        values: of eps, ascending; 0 means the clean images.
        only_worst: attack an example only until it is fooled, also over larger eps; compute `Sweep.worst` only.
            Otherwise every eps gets a complete run on all examples, which gives both. Gradients are in low precision
            only with `only_worst`, and only if there is such a copy (see `casemate.models.accel.precision`).
        warm_start: start each run where the run at the next smaller eps ended. Fewer steps then suffice, but the result
            at an eps depends on the smaller ones.
        seed: of all random draws, which are keyed by example.
        first_index: number of the first image in the data set; the keys of the draws count from it.
        advance: called after each value with the number of images divided by the number of values.

    Raises:
        SettingError: no values, or values that do not ascend.
        ShapeError: images or labels that the model does not take.
    """
    values, attack = _ascending(values), as_attack(attack, AbstractGradientAttack)
    given = as_model(given)
    known = model_of(given)
    images, labels = as_images(images, known), as_labels(labels)
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
        logits = _logits_of_one_pass(attack.loop(), prepared, models, clean, first_logits, passes)
        collector = _Collector(labels, criterion, ~criterion.is_adversarial(logits))
        none = torch.zeros_like(collector.robust_mask)
        ended: Images | None = None
        for value in values:
            chosen = (collector.robust_mask if only_worst else ~none).nonzero().squeeze(1)
            if value == 0 and not only_worst:
                norms = torch.zeros(len(clean), device=clean.device)
                collector.add_last(none, logits, norms, first_gradient.flatten(1).ne(0).any(1), ~none)
            elif value == 0 or len(chosen) == 0:
                collector.add_worst(none)
            else:
                loop = replace(with_eps(attack, value).loop(), keep="first_success" if only_worst else "last")
                rest = criterion[chosen]
                first = (first_logits[chosen], first_gradient[chosen])
                start = None if ended is None else ended[chosen]
                where = (clean[chosen], rest, loop, streams[chosen])
                if only_worst:
                    fooled, run = _until_fooled(prepared, models, *where, start=start, first=first)
                    collector.add_run(chosen, run.has_gradient, run.finite)
                    collector.add_worst(none.index_fill(0, chosen[fooled], True))
                else:
                    run = gradient_ascent_restarts(model, *where, start=start, first=first)
                    found = verify_candidates(prepared.classify, run.images, clean[chosen], loop.ball, model.bounds)
                    run.passes.add(found.passes)
                    finite = run.finite & found.finite
                    collector.add_run(chosen, run.has_gradient, finite)
                    collector.add_last(run.fooled, found.logits, found.norm, run.has_gradient, finite)
                passes.add(run.passes)
                if warm_start:
                    ended = (clean if ended is None else ended).index_put((chosen,), run.images)
            advance(len(images) / len(values), "")
        sweep = collector.sweep(values, passes)
    sweep.warn(call, type(attack).__name__)
    return sweep


def sweep_steps(
    attack: AbstractGradientAttack,
    given: nn.Module | Frozen,
    images: Array,
    labels: Array,
    values: Sequence[int],
    *,
    seed: int = 0,
    first_index: int = 0,
    advance: Advance = no_progress,
) -> Sweep:
    """Run `attack`, untargeted, on one batch for every number of iterations of `values`.

    One run with the largest number gives all, unless the attack's step size depends on that number.

    Args:
        values: numbers of iterations, ascending; 0 means the clean images. For the others see `sweep_eps`.

    Raises:
        SettingError: no values, values that do not ascend, or an attack with restarts.
        ShapeError: images or labels that the model does not take.
    """
    numbers, attack = _ascending(values), as_attack(attack, AbstractGradientAttack)
    counts = [int(number) for number in numbers if number]
    loops = [replace(with_steps(attack, count).loop(), keep="last") for count in counts]
    if any(loop.restarts > 1 for loop in loops):
        raise SettingError(f"restarts = {loops[0].restarts} in a sweep over iterations; expected restarts = 1")
    if len({(loop.step_size, loop.random_start) for loop in loops}) > 1:
        shared = [[loop] for loop in loops]
    else:
        shared = [loops] if loops else []
    given = as_model(given)
    known = model_of(given)
    images, labels = as_images(images, known), as_labels(labels)
    check_images(known, images, labels)
    with user_call(known, attack.ball(), seed=seed) as call, prepare_for_attack(given, images) as prepared:
        model = prepared.copy
        clean, labels, criterion, streams = _prepare(attack, model, images, labels, seed, first_index)
        first, passes = _first(attack.loop(), model, clean, criterion)
        logits = _logits_of_one_pass(attack.loop(), prepared, (model,), clean, first[0], passes)
        collector = _Collector(labels, criterion, ~criterion.is_adversarial(logits))
        if numbers[0] == 0:
            norms = torch.zeros(len(clean), device=clean.device)
            has_gradient = first[1].flatten(1).ne(0).any(1)
            none = torch.zeros_like(collector.robust_mask)
            collector.add_last(none, logits, norms, has_gradient, ~none)

        def advance_share(amount: float, note: str = "") -> None:
            advance(amount / len(shared), note)

        for group in shared:
            passes.add(_one_run(group, prepared, clean, criterion, streams, first, collector, advance_share))
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
    """Run the longest of `loops`, which differ in the number of steps only; return the passes made.

    The iterate after the steps of each loop becomes a column of `collector`.
    """
    lengths = {loop.steps: loop for loop in loops}
    fooled = torch.zeros_like(collector.robust_mask)
    seen: list[tuple[Flags, Logits, PerExample, Flags]] = []
    classified = Passes()

    def visit(number: int, images: Images, logits: Logits, finite: Flags) -> None:
        if number in lengths:
            logits = _logits_of_one_pass(lengths[number], prepared, (prepared.copy,), images, logits, classified)
            valid = is_valid(logits)  # where not, the attack of this length returns the clean image
            norms = norm_of(images.double() - clean.double(), lengths[number].ball.norm).float().where(valid, 0.0)
            seen.append((fooled.clone(), logits.where(valid.unsqueeze(1), first[0]), norms, finite & valid))
        fooled.logical_or_(criterion.is_adversarial(logits))

    longest = lengths[max(lengths)]
    run = gradient_ascent(prepared.copy, clean, criterion, longest, streams, first=first, visit=visit, advance=advance)
    found = verify_candidates(prepared.classify, run.images, clean, longest.ball, prepared.original.bounds)
    run.passes.add(found.passes)
    run.passes.add(classified)
    all_finite = run.finite & found.finite
    collector.add_run(torch.arange(len(clean), device=clean.device), run.has_gradient, all_finite)
    for fooled_before, logits, norms, finite in [*seen, (fooled, found.logits, found.norm, all_finite)]:
        collector.add_last(fooled_before, logits, norms, run.has_gradient, finite)
    return run.passes
