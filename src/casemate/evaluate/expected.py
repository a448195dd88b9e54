"""The time that an evaluation takes at most, told before it begins: passes counted, their speed measured."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import torch

from casemate.attacks import Attack, Criterion, MinimumNormAttack, Passes, frozen, input_gradient
from casemate.data import LabelledImages
from casemate.evaluate.budgets import DRAWS, Budget, attacks_for
from casemate.evaluate.findings import CHEAP, EXPENSIVE
from casemate.evaluate.findings.evidence import FEW
from casemate.evaluate.trial import TRIED, try_out
from casemate.memory import batched
from casemate.models import Classifier
from casemate.norms import Norm

_LONG = 0.3
"""Seconds over which each kind of pass is measured."""
_BESIDES = 1.3
"""What attacks do besides their passes (projections, draws, sorting) takes up to this much more; measured."""


@dataclass(frozen=True)
class Speed:
    """Seconds that a pass of one image takes."""

    forward: float
    backward: float
    """Beyond those of the pass forward before it."""

    def seconds(self, passes: Passes) -> float:
        """What so many passes take."""
        return passes.forward * self.forward + passes.backward * self.backward


def seconds_at_most(
    model: Classifier,
    images: LabelledImages,
    values: Sequence[float],
    *,
    norm: Norm,
    thorough: bool = False,
) -> dict[Budget, float]:
    """Seconds that each budget takes if no image is ever fooled, which is the longest that it can take.

    Args:
        values: of eps.
        thorough: the checks that take minutes are made with every budget.

    Raises:
        ShapeError, ModelError: see `try_out`.
    """
    randomised = try_out(model, images)
    one = measure_speed(model, images)
    found: dict[Budget, float] = {}
    for budget in get_args(Budget):
        draws = DRAWS[budget] if randomised else 1
        speed = Speed(draws * one.forward, draws * one.backward)
        attacks = attacks_for(budget, norm, min(values), randomised=randomised)
        checks = check_passes(len(images), thorough=thorough or budget == "thorough")
        total = speed.seconds(attack_passes(attacks, len(model.classes), len(images), len(values)))
        found[budget] = _BESIDES * (total + speed.seconds(checks))
    return found


def attack_passes(attacks: Mapping[str, Attack], classes: int, images: int, values: int) -> Passes:
    """The passes that attacks take at most on so many images at so many values of eps."""
    total = Passes()
    for attack in attacks.values():
        most = attack.most_passes(classes)
        times = images if isinstance(attack, MinimumNormAttack) else images * values
        total.add(Passes(times * (most.forward + 1), times * most.backward))  # and one to verify
    return total


def check_passes(images: int, *, thorough: bool) -> Passes:
    """The passes that all checks take at most on so many images."""
    share = min(1.0, images / FEW)
    total = Passes(images + int(share * CHEAP.forward), int(share * CHEAP.backward))
    if thorough:
        total.add(Passes(int(share * EXPENSIVE.forward), int(share * EXPENSIVE.backward)))
    return total


def measure_speed(model: Classifier, images: LabelledImages) -> Speed:
    """Measure both kinds of pass on a few images."""
    pixels, labels = images[:TRIED].unit(model.device)

    def forward(part: slice) -> None:
        with torch.no_grad():
            model(pixels[part])[0, 0].item()

    def both(part: slice) -> None:
        input_gradient(model, pixels[part], Criterion(labels[part]), "ce")[1][0, 0, 0, 0].item()

    with frozen(model):
        there = _seconds(forward, len(labels))
        back = _seconds(both, len(labels))
    return Speed(there, max(back - there, 0.0))


def _seconds(run: Callable[[slice], None], count: int) -> float:
    """Seconds per image, without the first run, which prepares."""
    batched(count, count, run)
    start, times = time.perf_counter(), 0
    while times == 0 or time.perf_counter() - start < _LONG:
        batched(count, count, run)
        times += 1
    return (time.perf_counter() - start) / (times * count)
