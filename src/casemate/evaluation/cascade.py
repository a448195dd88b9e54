"""The worst case per example: a declared list of attacks, each on what the ones before left, over a range of eps.

An image fooled at one eps stays fooled at every larger one, so later attacks and larger radii get fewer and fewer
images. Minimum-norm attacks run once, at the smallest eps, and count wherever the distance they found is within reach.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from casemate.attacks import (
    COMPARED,
    AbstractAttack,
    AbstractMinimumNormAttack,
    AttackResult,
    Passes,
    Status,
    is_unlimited,
    model_of,
    prepare_for_attack,
    with_eps,
)
from casemate.data import LabelledImages
from casemate.errors import SettingError
from casemate.evaluation.clean import is_right
from casemate.models import Classifier, Frozen, Precision, user_call
from casemate.norms import Ball, Norm
from casemate.progress import NULL_OBSERVER, Observer

ROBUST = -1
"""In `Cascade.first_success`: no attack fooled it."""
MISCLASSIFIED = -2
"""In `Cascade.first_success`: misclassified without an attack."""
_UNKNOWN = Passes(forward=100, backward=100)
"""How much an attack counts in the time left that does not know its passes."""


@final
@dataclass(kw_only=True)
class Attempt:
    """What one attack did at one eps."""

    attack: str
    eps: float
    tried: int
    """Images that it was run on: those that everything before left."""
    fooled: int
    seconds: float
    passes: Passes
    status: dict[str, int]
    """How many of `tried` ended in which status."""
    unlimited: bool = False
    """The attack looks for the nearest image that fools at whatever distance."""

    @property
    def not_found(self) -> int:
        """On how many images such an attack found nothing that fools, at whatever distance."""
        return self.status[Status.FAILED.name.lower()] if self.unlimited else 0


@final
@dataclass(kw_only=True)
class Cascade:
    """What a list of attacks left, per example and eps."""

    norm: Norm
    values: tuple[float, ...]
    """The values of eps, ascending."""
    attacks: dict[str, dict[str, Any]]
    """By name, the settings of each attack, in the order in which they ran."""
    robust: np.ndarray
    """Withstood everything at this and every smaller eps, booleans `(n, values)`."""
    first_success: np.ndarray
    """Position in `attacks` of the attack that fooled it first, or `ROBUST` or `MISCLASSIFIED`, int64 `(n,)`."""
    adversarial: Tensor
    """The image that fooled, at the smallest eps at which one did; the clean image elsewhere. On the CPU."""
    distance: np.ndarray
    """Smallest norm at which each image is known to be fooled: 0 if misclassified, infinite if nothing fooled it."""
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def passes(self) -> Passes:
        """Of all attempts together."""
        total = Passes()
        for attempt in self.attempts:
            total.add(attempt.passes)
        return total

    def alone(self, eps: float, name: str) -> Attempt | None:
        """What one attack did at one eps; None if nothing was left for it."""
        return next((each for each in self.attempts if each.attack == name and each.eps == eps), None)


def run_cascade(
    model: Classifier | Frozen,
    attacks: Mapping[str, AbstractAttack],
    images: LabelledImages,
    values: Sequence[float],
    *,
    norm: Norm = "linf",
    correct: np.ndarray | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    precision: Precision = "float32",
    observer: Observer = NULL_OBSERVER,
) -> Cascade:
    """Run `attacks` in order on the survivors, for every eps of `values`, ascending.

    Args:
        attacks: by name; attacks with an eps are run at each of `values`, whatever their own is.
        norm: in which eps is measured; every attack must use it.
        correct: which images are classified correctly without an attack, `(n,)`, if that is known already.
        seed: of all random draws, keyed by example.
        batch_size: images that pass through the network at a time; measured if None.
        precision: of the gradients that attacks within a ball follow; whether an image fools is said in float32.

    Raises:
        SettingError: no attacks, no or descending values, an attack in another norm.
    """
    values = tuple(float(value) for value in values)
    _check(attacks, values, norm)
    known = model_of(model)
    few, _ = images[:COMPARED].tensors(known.device)
    work = most_work(attacks, len(images), len(known.classes))
    with (
        user_call(known, Ball(eps=values[-1], norm=norm), seed=seed) as call,
        prepare_for_attack(
            model, few, pass_size=batch_size, passes=work, precision=precision, observer=observer
        ) as prepared,
    ):
        if correct is None:
            correct = _correct(prepared.verifier, images)
        found = _run(prepared, attacks, images, values, norm, correct, seed, observer)
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
    observer: Observer,
) -> Cascade:
    """The cascade on a model that is frozen."""
    device, classes = model.original.device, len(model.original.classes)
    images = images.to_device_if_small(device)
    found = Cascade(
        norm=norm,
        values=values,
        attacks={name: attack.record() for name, attack in attacks.items()},
        robust=np.zeros((len(images), len(values)), dtype=bool),
        first_success=np.where(correct, ROBUST, MISCLASSIFIED),
        adversarial=images.tensors()[0].detach().clone(),  # `unit` may return the images' own memory
        distance=np.where(correct, np.inf, 0.0),
    )
    robust_mask = correct.copy()
    nearest: dict[str, AttackResult] = {}  # of minimum-norm attacks, for the larger eps
    places: dict[str, Tensor] = {}
    work = {name: _work(attack, classes) for name, attack in attacks.items()}
    again = {
        name: 0 if isinstance(attack, AbstractMinimumNormAttack) else work[name] for name, attack in attacks.items()
    }
    total = sum(work.values()) + (len(values) - 1) * sum(again.values())
    with observer.work("Attacking", total) as advance:
        for column, eps in enumerate(values):
            for place, (name, attack) in enumerate(attacks.items()):
                left = torch.from_numpy(np.flatnonzero(robust_mask))
                if len(left):
                    start = time.perf_counter()
                    if name in nearest:
                        result = replace(nearest[name][places[name][left]], passes=Passes())
                    else:
                        pixels, labels = images[left].tensors(device)
                        aimed = with_eps(attack, eps)
                        result = aimed(model, pixels, labels, seed=seed, index=left, observer=observer)
                        if isinstance(attack, AbstractMinimumNormAttack):
                            nearest[name], places[name] = result, _places(left, len(images))
                    hit = result.success.cpu()
                    if isinstance(attack, AbstractMinimumNormAttack):
                        hit = hit & (result.norm.cpu() <= Ball(eps=eps, norm=norm).reach(model.original.bounds))
                    chosen = left[hit]
                    found.adversarial[chosen] = result.adversarial[hit].cpu()
                    found.distance[chosen.numpy()] = result.norm[hit].cpu().numpy()
                    found.first_success[chosen.numpy()] = place
                    robust_mask[chosen.numpy()] = False
                    found.attempts.append(
                        Attempt(
                            attack=name,
                            eps=eps,
                            tried=len(left),
                            fooled=len(chosen),
                            seconds=time.perf_counter() - start,
                            passes=result.passes,
                            status={each.name.lower(): int((result.status == each).sum()) for each in Status},
                            unlimited=is_unlimited(attack),
                        )
                    )
                words = f"{name} at eps {eps:g}: {int(robust_mask.sum())} of {len(images)} left"
                advance((again if column else work)[name], words)
            found.robust[:, column] = robust_mask
    return found


def most_work(attacks: Mapping[str, AbstractAttack], images: int, classes: int) -> int | None:
    """The passes, forward and back, that attacks take at most for so many images; None if one does not know it."""
    found = [attack.max_passes(classes) for attack in attacks.values()]
    known = [most.forward + most.backward for most in found if most is not None]
    return images * sum(known) if len(known) == len(found) else None


def _work(attack: AbstractAttack, classes: int) -> int:
    """How much an attack has to do, for the time left: a pass back costs about as much as two forward."""
    most = attack.max_passes(classes) or _UNKNOWN
    return most.forward + 2 * most.backward


def _places(numbers: Tensor, count: int) -> Tensor:
    """The inverse of a choice of images: where each of `count` stands among `numbers`."""
    places = torch.full((count,), -1)
    places[numbers] = torch.arange(len(numbers))
    return places


def _check(attacks: Mapping[str, AbstractAttack], values: Sequence[float], norm: Norm) -> None:
    if not attacks:
        raise SettingError("a worst case over no attacks; name at least one")
    if not values or list(values) != sorted(set(values)) or values[0] < 0:
        raise SettingError(f"eps = {list(values)}; expected at least one value, ascending, zero or more")
    for name, attack in attacks.items():
        if attack.ball().norm != norm:
            raise SettingError(f"{name} measures in {attack.ball().norm}, the others in {norm}; take one norm")


@torch.no_grad()
def _correct(model: Classifier, images: LabelledImages) -> np.ndarray:
    """Which images are classified correctly without an attack."""

    def classify(part: slice) -> tuple[Tensor, ...]:
        pixels, labels = images[part].tensors(model.device)
        return (is_right(model(pixels), labels),)

    return model.in_parts(len(images), classify)[0].cpu().numpy()
