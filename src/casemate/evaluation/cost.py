"""The time that an evaluation takes at most, told before it begins: passes counted, their speed measured."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final, get_args

import torch

from casemate.attacks import (
    APGD,
    AbstractAttack,
    AbstractMinimumNormAttack,
    Criterion,
    Passes,
    Square,
    prepare_for_attack,
)
from casemate.attacks.holding import prepare_images
from casemate.data import LabelledImages
from casemate.evaluation.budgets import DRAWS, Budget, attacks_for
from casemate.evaluation.findings import CHEAP, EXPENSIVE
from casemate.evaluation.findings.context import SAMPLE_SIZE
from casemate.evaluation.probe import PROBED, probe_model
from casemate.memory import batched
from casemate.models import Classifier, mean_over_samples
from casemate.norms import Norm
from casemate.rng import Streams, seeded

_LONG = 0.3
"""Seconds over which each kind of pass is measured, at least."""
_DEARER = 1.2
"""How much more than those two attacks others take, pass by pass (measured: up to a tenth), and a margin."""


@final
@dataclass(frozen=True)
class PassCost:
    """Seconds that a pass of one image takes, with what an attack does around it."""

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
        ShapeError, ModelError: see `probe_model`.
    """
    randomised = probe_model(model, images)
    speeds: dict[int, PassCost] = {}
    found: dict[Budget, float] = {}
    for budget in get_args(Budget):
        draws = DRAWS[budget] if randomised else 1
        if draws not in speeds:
            with seeded(model.device, 0, "speed"):
                speeds[draws] = measure_pass_cost(
                    mean_over_samples(model, draws) if randomised else model, images, norm
                )
        speed = speeds[draws]
        attacks = attacks_for(budget, norm, min(values), randomised=randomised)
        checks = check_passes(len(images), thorough=thorough or budget == "thorough")
        total = speed.seconds(attack_passes(attacks, len(model.classes), len(images), len(values)))
        found[budget] = _DEARER * (total + speed.seconds(checks))
    return found


def attack_passes(attacks: Mapping[str, AbstractAttack], classes: int, images: int, values: int) -> Passes:
    """The passes that attacks take at most on so many images at so many values of eps; without those of attacks that
    do not know theirs.
    """
    total = Passes()
    for attack in attacks.values():
        most = attack.max_passes(classes)
        if most is None:
            continue
        times = images if isinstance(attack, AbstractMinimumNormAttack) else images * values
        total.add(Passes(times * (most.forward + 1), times * most.backward))  # and one to verify
    return total


def check_passes(images: int, *, thorough: bool) -> Passes:
    """The passes that all checks take at most on so many images."""
    share = min(1.0, images / SAMPLE_SIZE)
    total = Passes(images + int(share * CHEAP.forward), int(share * CHEAP.backward))
    if thorough:
        total.add(Passes(int(share * EXPENSIVE.forward), int(share * EXPENSIVE.backward)))
    return total


def measure_pass_cost(model: Classifier, images: LabelledImages, norm: Norm) -> PassCost:
    """Measure a search without gradients and an ascent along them on a few images that count as never fooled.

    So what attacks do between passes is counted too, which for small networks is most of it.
    """

    def ascent(steps: int) -> AbstractAttack:
        return APGD(eps=1.0, norm=norm, steps=steps)

    def search(steps: int) -> AbstractAttack:
        return Square(eps=1.0, norm=norm, n_queries=steps, rescale_schedule=True)

    few = images[:PROBED]
    with prepare_for_attack(model, few.tensors(model.device)[0]) as prepared:
        forward, passes = _measured(search, prepared.copy, few)
        alone = forward / passes.forward
        both, passes = _measured(ascent, prepared.copy, few)
    return PassCost(alone, max(both - passes.forward * alone, 0.0) / passes.backward)


def _measured(
    attack: Callable[[int], AbstractAttack], model: Classifier, images: LabelledImages
) -> tuple[float, Passes]:
    """Seconds and passes of an attack with so many steps that they can be measured; shorter ones prepare."""
    pixels, labels = images.tensors(model.device)
    index = torch.arange(len(labels), device=labels.device)
    steps = 2
    while True:
        chosen = attack(steps)

        def run(part: slice, chosen: AbstractAttack = chosen) -> Passes:
            clean, truth = prepare_images(pixels[part], model), Criterion(labels[part], never=True)
            return chosen.run(model, clean, truth, Streams(0, index[part]), lambda amount, note="": None).passes

        start = time.perf_counter()
        parts = batched(len(labels), len(labels), run)
        seconds = time.perf_counter() - start
        if seconds > _LONG:
            break
        steps *= 4
    passes = Passes()
    for part in parts:
        passes.add(part)
    return seconds, passes
