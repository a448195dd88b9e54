"""The worst case per example: a list of attacks in order, each on the images that the ones before it left, over eps.

An image fooled at one eps counts as fooled at every larger one, so later attacks and larger radii get fewer and fewer
images. Minimum-norm attacks run once, at the smallest eps, and count at every eps that the distance found is within.
The survivors are those of the whole data set, so that the batches of later attacks stay full; within one batch
`AutoAttack` does the same. `worst_case` (in `curves.py`) runs each attack on all images instead, to compare them.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from casemate.attacks import (
    COMPARED_IMAGES,
    AbstractAttack,
    AbstractMinimumNormAttack,
    AttackResult,
    Passes,
    Status,
    innermost,
    is_unlimited,
    model_of,
    prepare_for_attack,
    with_eps,
)
from casemate.data import LabelledImages
from casemate.errors import SettingError
from casemate.evaluation.clean import is_right
from casemate.evaluation.intervals import share
from casemate.evaluation.time_left import Afterwards, cost_of, part_size, time_left
from casemate.models import Classifier, Frozen, Precision, as_model, full_precision, user_call
from casemate.norms import Ball, Norm, format_eps, parse_eps
from casemate.progress import NULL_OBSERVER, Observer

ROBUST = -1
"""In `Cascade.first_success`: no attack fooled the image."""
MISCLASSIFIED = -2
"""In `Cascade.first_success`: the image is misclassified without an attack."""
_UNKNOWN = Passes(forward=100, backward=100)
"""Passes per image that estimates of the remaining time assume for an attack without a known upper bound."""


@final
@dataclass(kw_only=True)
class Attempt:
    """One attack at one eps of a `Cascade`: how many images it was run on, how many it fooled, and its cost."""

    attack: str
    """Name of the attack in `Cascade.attacks`."""
    eps: float
    tried: int = 0
    """Number of images that the attack was run on: those correctly classified that no attempt before had fooled."""
    fooled: int = 0
    """Number of images fooled within eps."""
    seconds: float = 0.0
    passes: Passes = field(default_factory=Passes)
    """Forward and backward passes over all images; zero if a minimum-norm attack's earlier result was used again."""
    status: dict[str, int] = field(default_factory=lambda: {each.name.lower(): 0 for each in Status})
    """Number of the images tried that ended with each `Status`, by its name in lower case."""
    unlimited: bool = False
    """Whether it is a minimum-norm attack on the model (not on a substitute), which searches at any distance."""

    @property
    def not_found(self) -> int:
        """Number of images for which a minimum-norm attack found no adversarial image at all; 0 for other attacks."""
        return self.status[Status.FAILED.name.lower()] if self.unlimited else 0

    def add(self, result: AttackResult, fooled: int, seconds: float) -> None:
        """Add the result of the attack on some of the images, of which `fooled` are fooled within eps."""
        self.tried += len(result.success)
        self.fooled += fooled
        self.seconds += seconds
        self.passes.add(result.passes)
        for each in Status:
            self.status[each.name.lower()] += int((result.status == each).sum())


@final
@dataclass(kw_only=True)
class Cascade:
    """The result of `run_cascade`: the worst case over a list of attacks, per image and eps."""

    norm: Norm
    values: tuple[float, ...]
    """The values of eps, ascending."""
    attacks: dict[str, dict[str, Any]]
    """The settings of each attack by its name, in the order in which the attacks were run."""
    robust: np.ndarray
    """Whether each image is classified correctly under all attacks at this and every smaller eps, `(n, values)`."""
    first_success: np.ndarray
    """Position in `attacks` of the first attack that fooled each image, `ROBUST` or `MISCLASSIFIED`, int64 `(n,)`."""
    adversarial: Tensor
    """The first adversarial image found for each image, at the smallest eps that gave one, or else the clean image;
    `(n, channels, height, width)`, on the CPU."""
    distance: np.ndarray
    """Norm of the perturbation in `adversarial`, `(n,)`: 0 if the clean image is misclassified, infinite if no attack
    succeeded."""
    attempts: list[Attempt] = field(default_factory=list)
    """One for each attack and eps, in the order in which they were run; left out where no image was left to attack."""

    @property
    def passes(self) -> Passes:
        """Forward and backward passes of all attempts together."""
        total = Passes()
        for attempt in self.attempts:
            total.add(attempt.passes)
        return total

    def attempt(self, eps: float, name: str) -> Attempt | None:
        """The attempt of the attack `name` at `eps`; None if no image was left for it."""
        return next((each for each in self.attempts if each.attack == name and each.eps == eps), None)


def run_cascade(
    model: nn.Module | Frozen,
    attacks: Mapping[str, AbstractAttack],
    images: LabelledImages,
    values: Sequence[float],
    *,
    norm: Norm = "linf",
    correct: np.ndarray | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    precision: Precision = "float32",
    afterwards: Afterwards | None = None,
    observer: Observer = NULL_OBSERVER,
) -> Cascade:
    """Run `attacks` in order, at every eps of `values`, on the images that no attack before has fooled.

    The observer receives the time left, as a range: after a pilot, which is a twentieth of the first attack, as a
    message, and after each attack in the note on the progress.

    Args:
        attacks: by name. An attack with a field `eps` is run at each of `values` instead of at its own eps.
        values: of eps, ascending, in pixel units.
        norm: the norm of every attack, in which eps is measured.
        correct: which images are classified correctly without an attack, booleans `(n,)`; computed if None.
        seed: of all random draws, which are keyed by example.
        batch_size: images that pass through the network at a time; measured if None.
        precision: of the gradients of attacks within a ball; whether an image fools is decided in float32.
        afterwards: the most passes that the caller makes after the attacks, for the time left; none if None.

    Raises:
        SettingError: no attacks, no values or values that do not ascend, an attack in another norm.
    """
    values = tuple(parse_eps(value) for value in values)
    _check(attacks, values, norm)
    model = as_model(model)
    known = model_of(model)
    few, _ = images[:COMPARED_IMAGES].tensors(known.device)
    known.infer(few)
    work = most_work(attacks, len(images), len(known.classes))
    with (
        user_call(known, Ball(eps=values[-1], norm=norm), seed=seed) as call,
        prepare_for_attack(
            model, few, pass_size=batch_size, passes=work, precision=precision, observer=observer
        ) as prepared,
    ):
        if correct is None:
            correct = _correct(prepared.verifier, images)
        found = _run(prepared, attacks, images, values, norm, correct, seed, afterwards or Afterwards(), observer)
    for attempt in (each for each in found.attempts if each.eps == values[-1]):
        status = {each: attempt.status[each.name.lower()] for each in Status}
        call.warn_of_failures(
            attempt.attack,
            attempt.tried,
            no_gradient=status[Status.ZERO_GRADIENT],
            not_finite=status[Status.NON_FINITE],
            not_found=attempt.not_found,
        )
    return found


def _run(
    model: Frozen,
    attacks: Mapping[str, AbstractAttack],
    images: LabelledImages,
    values: tuple[float, ...],
    norm: Norm,
    correct: np.ndarray,
    seed: int,
    afterwards: Afterwards,
    observer: Observer,
) -> Cascade:
    """`run_cascade` on a model prepared for attacks, without checks of its arguments and without warnings."""
    device, classes = model.original.device, len(model.original.classes)
    images = images.to_device_if_small(device)
    found = Cascade(
        norm=norm,
        values=values,
        attacks={name: attack.record() for name, attack in attacks.items()},
        robust=np.zeros((len(images), len(values)), dtype=bool),
        first_success=np.where(correct, ROBUST, MISCLASSIFIED),
        adversarial=images.tensors()[0].detach().clone(),  # `tensors` may return the images' own memory
        distance=np.where(correct, np.inf, 0.0),
    )
    robust_mask = correct.copy()
    nearest: dict[str, tuple[Tensor, AttackResult]] = {}  # of minimum-norm attacks: images and result at the first eps
    work = {name: _work(attack, classes) for name, attack in attacks.items()}
    run_once = {name for name, attack in attacks.items() if isinstance(innermost(attack), AbstractMinimumNormAttack)}
    again = {name: 0 if name in run_once else steps for name, steps in work.items()}
    total = remaining = sum(work.values()) + (len(values) - 1) * sum(again.values())
    start, piloted, announced = time.perf_counter(), False, False

    def attacked(name: str, attack: AbstractAttack, part: Tensor) -> AttackResult:
        """The result of an attack at its eps on the images at some positions; of a minimum-norm attack, the first."""
        if name in nearest:
            tried, result = nearest[name]
            return replace(result[torch.searchsorted(tried, part)], passes=Passes())
        pixels, labels = images[part].tensors(device)
        result = attack(model, pixels, labels, seed=seed, index=part, observer=observer)
        if name in run_once:
            nearest[name] = part, result
        return result

    with observer.work("Attacking", total) as advance:
        for column, eps in enumerate(values):
            reach = Ball(eps=eps, norm=norm).reach(model.original.bounds)
            for place, (name, attack) in enumerate(attacks.items()):
                left = torch.from_numpy(np.flatnonzero(robust_mask))
                cost = (again if column else work)[name]
                remaining -= cost
                note = ""
                attempt = Attempt(attack=name, eps=eps, unlimited=is_unlimited(attack))
                while attempt.tried < len(left):
                    whole = announced or piloted or name in run_once
                    size = len(left) if whole else part_size(len(left), attempt.tried)
                    part, begun = left[attempt.tried :][:size], time.perf_counter()
                    result = attacked(name, with_eps(attack, eps), part)
                    # not every attack stays within eps: minimum-norm ones, BIM with clip `range`, Spatial
                    hit = (result.success & (result.norm <= reach)).cpu()
                    chosen = part[hit]
                    found.adversarial[chosen] = result.adversarial[hit].cpu()
                    found.distance[chosen.numpy()] = result.norm[hit].cpu().numpy()
                    found.first_success[chosen.numpy()] = place
                    robust_mask[chosen.numpy()] = False
                    attempt.add(result, len(chosen), time.perf_counter() - begun)
                    to_go = time_left(
                        (time.perf_counter() - start) / max(cost_of(found.passes) + cost_of(attempt.passes), 1),
                        share(robust_mask[left[: attempt.tried].numpy()]),
                        given=len(left),
                        rest=len(left) - attempt.tried,
                        cost=cost_of(attempt.passes) / attempt.tried,
                        most=cost,
                        later=remaining,
                        afterwards=afterwards,
                    )
                    note = f", {to_go} to go"
                    known = attempt.tried == len(left) or to_go.is_known(time.perf_counter() - start)
                    if not announced and known and to_go.is_worth_saying:
                        announced = True
                        observer.message(f"Time left, by {name} on {attempt.tried} of {len(images)} images: {to_go}")
                piloted |= attempt.tried > 0
                if attempt.tried:
                    found.attempts.append(attempt)
                advance(cost, f"{name} at eps {format_eps(eps)}: {int(robust_mask.sum())} of {len(images)} left{note}")
            found.robust[:, column] = robust_mask
            if robust_mask.sum() > afterwards.fallen_up_to:  # it stands at this eps, whatever larger ones show
                afterwards = Afterwards(afterwards.standing, afterwards.standing)
    return found


def most_work(attacks: Mapping[str, AbstractAttack], images: int, classes: int) -> int | None:
    """Upper bound of the passes, forward and backward added up, of all attacks on `images` images at one eps.

    None if one of the attacks has no known bound.
    """
    found = [attack.max_passes(classes) for attack in attacks.values()]
    known = [most.total for most in found if most is not None]
    return images * sum(known) if len(known) == len(found) else None


def _work(attack: AbstractAttack, classes: int) -> int:
    """Most passes of an attack on one image, a backward pass counting as two; a guess for an attack without a bound."""
    most = attack.max_passes(classes) or _UNKNOWN
    return most.forward + 2 * most.backward


def _check(attacks: Mapping[str, AbstractAttack], values: Sequence[float], norm: Norm) -> None:
    if not attacks:
        raise SettingError("no attacks; expected at least one, such as {'pgd': PGD(eps=8 / 255)}")
    if not values or list(values) != sorted(set(values)) or values[0] < 0:
        raise SettingError(f"eps = {list(values)}; expected at least one value, ascending, none below zero")
    for name, attack in attacks.items():
        if attack.ball().norm != norm:
            raise SettingError(f"the attack {name} has norm {attack.ball().norm}; expected {norm}, the norm of eps")


@torch.no_grad()
@full_precision()
def _correct(model: Classifier, images: LabelledImages) -> np.ndarray:
    """Which images are classified correctly without an attack, booleans `(n,)`."""

    def classify(part: slice) -> tuple[Tensor, ...]:
        pixels, labels = images[part].tensors(model.device)
        return (is_right(model(pixels), labels),)

    return model.in_parts(len(images), classify)[0].cpu().numpy()
