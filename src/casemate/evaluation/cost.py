"""An upper bound of the time of an evaluation before it starts: the passes are counted, their speed is measured."""

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch

from casemate.attacks import (
    APGD,
    PGD,
    AbstractAttack,
    AbstractMinimumNormAttack,
    Misclassification,
    Passes,
    SparseRS,
    Square,
    prepare_for_attack,
)
from casemate.attacks.prepare import prepare_images
from casemate.data import LabelledImages, ReadableImages
from casemate.evaluation.budgets import DRAWS, Budget, attacks_for, budgets_in
from casemate.evaluation.findings import CHEAP, EXPENSIVE, FALLEN, FIRST
from casemate.evaluation.findings.context import SAMPLE_SIZE
from casemate.evaluation.probe import PROBED, probe_model
from casemate.evaluation.time_left import Afterwards
from casemate.memory import batched
from casemate.models import Classifier, mean_over_samples
from casemate.norms import Norm
from casemate.rng import Streams, seeded

_MIN_SECONDS = 0.3
"""Least duration of the timed run of an attack, in seconds."""
_MARGIN = 1.2
"""Factor on the estimate, since passes of some attacks cost up to a tenth more than those measured; with a reserve."""


@final
@dataclass(frozen=True)
class PassCost:
    """Measured seconds per image of a forward and of a backward pass, including an attack's own work between passes."""

    forward: float
    backward: float
    """Seconds per image of a backward pass, without the forward pass before it."""

    def seconds(self, passes: Passes) -> float:
        """The seconds that a number of passes of single images take."""
        return passes.forward * self.forward + passes.backward * self.backward


def seconds_at_most(
    model: Classifier,
    images: ReadableImages,
    values: Sequence[float],
    *,
    norm: Norm,
    thorough: bool = False,
    checks: bool = True,
) -> dict[Budget, float]:
    """Seconds that an evaluation with each budget takes at most: the case in which no image is ever fooled.

    Args:
        model: the model to be evaluated.
        images: all images of the evaluation.
        values: the values of eps.
        norm: in which eps is measured.
        thorough: include the checks that take minutes with every budget, not only with "thorough".
        checks: include the checks of `casemate.evaluate`; without, the seconds are those of the attacks alone.

    Raises:
        ShapeError, ModelError: see `probe_model`.
    """
    randomised = probe_model(model, images)
    speeds: dict[int, PassCost] = {}
    found: dict[Budget, float] = {}
    for budget in budgets_in(norm):
        draws = DRAWS[budget] if randomised else 1
        if draws not in speeds:
            with seeded(model.device, 0, "speed"):
                speeds[draws] = measure_pass_cost(
                    mean_over_samples(model, draws) if randomised else model, images, norm
                )
        speed = speeds[draws]
        attacks = attacks_for(budget, norm, min(values), randomised=randomised)
        passes = attack_passes(attacks, len(model.classes), len(images), len(values))
        if checks:
            passes.add(check_passes(len(images), thorough=thorough or budget == "thorough"))
        found[budget] = _MARGIN * speed.seconds(passes)
    return found


def attack_passes(attacks: Mapping[str, AbstractAttack], classes: int, images: int, values: int) -> Passes:
    """Upper bound of the passes of `attacks` together, on `images` images at `values` values of eps.

    Attacks without a known bound count as zero.
    """
    total = Passes()
    for attack in attacks.values():
        most = attack.max_passes(classes)
        if most is None:
            continue
        times = images if isinstance(attack, AbstractMinimumNormAttack) else images * values
        total.add(Passes(times * (most.forward + 1), times * most.backward))  # and one to verify
    return total


def checks_afterwards(falls: Callable[[int], bool], images: int, *, thorough: bool) -> Afterwards:
    """Upper bound of the passes of the checks that follow the attacks.

    Args:
        falls: whether the model has fallen if that many images withstand the attacks.
        images: number of all images.
        thorough: all checks are run whether the model has fallen or not, with the slow ones.
    """
    standing = check_passes(images, thorough=thorough)
    standing.forward -= int(min(1.0, images / SAMPLE_SIZE) * FIRST.forward) + images
    if thorough:
        return Afterwards(standing, standing)
    border = bisect_left(range(images + 1), True, key=lambda robust: not falls(robust)) - 1
    return Afterwards(Passes(images + FALLEN.forward, FALLEN.backward), standing, border)


def check_passes(images: int, *, thorough: bool) -> Passes:
    """Upper bound of the passes of all checks of an evaluation on `images` images; `thorough`: with the slow checks."""
    share = min(1.0, images / SAMPLE_SIZE)
    total = Passes(2 * images + int(share * CHEAP.forward), int(share * CHEAP.backward))
    if thorough:
        total.add(Passes(int(share * EXPENSIVE.forward), int(share * EXPENSIVE.backward)))
    return total


def measure_pass_cost(model: Classifier, images: ReadableImages, norm: Norm) -> PassCost:
    """Measure the seconds per pass in runs of APGD and Square on a few images, of which none counts as fooled.

    In L0, for which these are not defined, they are PGD and Sparse-RS.

    Running attacks includes their work between passes, which is most of the time for small networks.
    """

    def ascent(steps: int) -> AbstractAttack:
        return PGD(eps=1.0, norm=norm, steps=steps) if norm == "l0" else APGD(eps=1.0, norm=norm, steps=steps)

    def search(steps: int) -> AbstractAttack:
        if norm == "l0":
            return SparseRS(eps=1.0, n_queries=steps)
        return Square(eps=1.0, norm=norm, n_queries=steps, rescale_schedule=True)

    few = images.read(slice(0, PROBED))
    with prepare_for_attack(model, few.tensors(model.device)[0]) as prepared:
        forward, passes = _measured(search, prepared.copy, few)
        alone = forward / passes.forward
        both, passes = _measured(ascent, prepared.copy, few)
    return PassCost(alone, max(both - passes.forward * alone, 0.0) / passes.backward)


def _measured(
    attack: Callable[[int], AbstractAttack], model: Classifier, images: LabelledImages
) -> tuple[float, Passes]:
    """Seconds and passes of one run of an attack with enough steps to take `_MIN_SECONDS`; shorter runs before warm up.

    `attack` makes the attack with a given number of steps.
    """
    pixels, labels = images.tensors(model.device)
    index = torch.arange(len(labels), device=labels.device)
    steps = 2
    while True:
        chosen = attack(steps)

        def run(part: slice, chosen: AbstractAttack = chosen) -> Passes:
            clean, truth = prepare_images(pixels[part], model), Misclassification(labels[part]).with_changes(never=True)
            return chosen.run(model, clean, truth, Streams(0, index[part]), lambda amount, note="": None).passes

        start = time.perf_counter()
        parts = batched(len(labels), len(labels), run)
        seconds = time.perf_counter() - start
        if seconds > _MIN_SECONDS:
            break
        steps *= 4
    passes = Passes()
    for part in parts:
        passes.add(part)
    return seconds, passes
