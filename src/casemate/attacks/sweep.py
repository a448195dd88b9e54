"""Sweeps over eps and over iterations, one call each, that share work between their points.

One clean gradient serves the first step at every eps; where the step does not depend on the number of iterations, one
run of the most gives every smaller number; and where only `worst` is asked for, an example that is fooled leaves.

Two things are kept apart at every point: `worst` (fooled at any iterate, at this or a smaller value, or misclassified
from the start: monotone by construction) and `last` (the raw last iterate of a complete run on all examples).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from casemate.attacks.base import Criterion, Passes, check_images, frozen, judge
from casemate.attacks.gradient import GradientAttack, Loop, climb, input_gradient, with_eps, with_steps
from casemate.errors import SettingError
from casemate.losses import stable_cross_entropy
from casemate.models import Classifier
from casemate.norms import norm_of
from casemate.rng import Streams, derive
from casemate.types import Images, Labels, Logits


@dataclass(frozen=True)
class Sweep:
    """Per example (rows) and value (columns, ascending)."""

    values: tuple[float, ...]
    worst: Tensor
    """Bool `(n, values)`: withstood everything up to this value."""
    last: Tensor | None
    """Bool `(n, values)`: the last iterate is not fooling. None if only `worst` was asked for."""
    loss: Tensor | None
    """Float `(n, values)`: cross-entropy of the last iterate under the true label. None likewise."""
    norm: Tensor | None
    """Float `(n, values)`: norm of the last iterate's perturbation. None likewise."""
    passes: Passes


def _ascending(values: Sequence[float]) -> tuple[float, ...]:
    if not values or any(left >= right for left, right in pairwise(values)):
        raise SettingError(f"values {tuple(values)}; expected at least one, each larger than the one before")
    return tuple(values)


class _Collector:
    """Fills the columns of a sweep, keeping `worst` cumulative."""

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.standing = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
        self.worst: list[Tensor] = []
        self.last: list[Tensor] = []
        self.loss: list[Tensor] = []
        self.norm: list[Tensor] = []

    def column(self, fooled: Tensor, logits: Logits | None, norm: Tensor | None, criterion: Criterion) -> None:
        self.standing = self.standing & ~fooled
        if logits is not None and norm is not None:
            met = criterion.met(logits)
            self.standing = self.standing & ~met
            self.last.append(~met)
            self.loss.append(stable_cross_entropy(logits, self.labels))
            self.norm.append(norm)
        self.worst.append(self.standing)

    def sweep(self, values: tuple[float, ...], passes: Passes) -> Sweep:
        def stack(columns: list[Tensor]) -> Tensor | None:
            return torch.stack(columns, 1).cpu() if columns else None

        return Sweep(
            values, torch.stack(self.worst, 1).cpu(), stack(self.last), stack(self.loss), stack(self.norm), passes
        )


def _prepare(
    attack: GradientAttack, model: Classifier, images: Images, labels: Labels, seed: int, first_index: int
) -> tuple[Images, Labels, Criterion, Streams]:
    check_images(model, images, labels)
    clean = images.to(model.device).contiguous(memory_format=torch.channels_last)
    labels = labels.to(model.device)
    index = torch.arange(first_index, first_index + len(labels), device=model.device)
    return clean, labels, Criterion(labels), Streams(derive(seed, type(attack).__name__), index)


def sweep_eps(
    attack: GradientAttack,
    model: Classifier,
    images: Images,
    labels: Labels,
    values: Sequence[float],
    *,
    only_worst: bool = False,
    seed: int = 0,
    first_index: int = 0,
) -> Sweep:
    """Run `attack` (untargeted, on one batch) at every eps of `values`, ascending; 0 means the clean images.

    With `only_worst`, fooled examples leave at once and are not attacked at larger eps; otherwise every eps gets a
    complete run on all, and `worst` comes with it for nothing.
    """
    values = _ascending(values)
    with frozen(model):
        clean, labels, criterion, streams = _prepare(attack, model, images, labels, seed, first_index)
        first_logits, first_gradient = input_gradient(model, clean, criterion, attack.loop().loss)
        passes = Passes(len(clean), len(clean))
        collector = _Collector(labels)
        collector.standing = ~criterion.met(first_logits)
        for value in values:
            if value == 0:
                nothing = torch.zeros_like(labels, dtype=torch.bool)
                still = None if only_worst else torch.zeros(len(clean), device=clean.device)
                collector.column(nothing, None if only_worst else first_logits, still, criterion)
                continue
            loop = replace(with_eps(attack, value).loop(), track="worst" if only_worst else "last")
            left = collector.standing if only_worst else torch.ones_like(collector.standing)
            chosen = left.nonzero().squeeze(1)
            fooled = torch.zeros_like(left)
            logits = norms = None
            if len(chosen):
                rest = criterion.take(chosen)
                run = climb(
                    model,
                    clean[chosen],
                    rest,
                    loop,
                    streams.take(chosen),
                    first=(first_logits[chosen], first_gradient[chosen]),
                )
                _, logits, norms = judge(model, run.images, clean[chosen], loop.ball)
                passes.add(run.passes)
                passes.forward += len(chosen)
                fooled[chosen] = run.fooled | rest.met(logits)
            collector.column(fooled, None if only_worst else logits, norms, criterion)
        return collector.sweep(values, passes)


def sweep_steps(
    attack: GradientAttack,
    model: Classifier,
    images: Images,
    labels: Labels,
    values: Sequence[int],
    *,
    seed: int = 0,
    first_index: int = 0,
) -> Sweep:
    """Run `attack` (untargeted, on one batch) for every number of iterations of `values`, ascending.

    0 means the clean images. One run of the most serves all, unless the attack's step depends on their number.
    """
    numbers = _ascending(values)
    counts = [int(number) for number in numbers if number]
    loops = [replace(with_steps(attack, count).loop(), track="last") for count in counts]
    if len({(loop.step, loop.random_start) for loop in loops}) > 1:
        shared = [[loop] for loop in loops]
    else:
        shared = [loops] if loops else []
    with frozen(model):
        clean, labels, criterion, streams = _prepare(attack, model, images, labels, seed, first_index)
        collector = _Collector(labels)
        first = input_gradient(model, clean, criterion, attack.loop().loss)
        passes = Passes(len(clean), len(clean))
        collector.standing = ~criterion.met(first[0])
        if numbers[0] == 0:
            still = torch.zeros(len(clean), device=clean.device)
            collector.column(torch.zeros_like(labels, dtype=torch.bool), first[0], still, criterion)
        for group in shared:
            passes.add(_one_run(group, model, clean, criterion, streams, first, collector))
        return collector.sweep(numbers, passes)


def _one_run(
    loops: list[Loop],
    model: Classifier,
    clean: Images,
    criterion: Criterion,
    streams: Streams,
    first: tuple[Logits, Images],
    collector: _Collector,
) -> Passes:
    """One run of the longest of `loops`, stopping at each one's length to classify the iterate there."""
    lengths = {loop.steps: loop for loop in loops}
    fooled = torch.zeros_like(collector.standing)

    def visit(number: int, images: Images, logits: Logits) -> None:
        fooled.logical_or_(criterion.met(logits))
        if number in lengths:
            norms = norm_of(images.double() - clean.double(), lengths[number].ball.norm).float()
            collector.column(fooled.clone(), logits, norms, criterion)

    longest = max(lengths)
    run = climb(model, clean, criterion, lengths[longest], streams, first=first, visit=visit)
    _, logits, norms = judge(model, run.images, clean, lengths[longest].ball)
    run.passes.forward += len(clean)
    collector.column(fooled | criterion.met(logits), logits, norms, criterion)
    return run.passes
