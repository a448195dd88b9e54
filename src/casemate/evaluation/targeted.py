"""Targeted attacks from every class to every other class: how often each target is reached."""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import nn

from casemate.attacks import (
    COMPARED_IMAGES,
    AbstractAttack,
    Passes,
    Status,
    as_attack,
    check_first,
    group_size,
    prepare_for_attack,
)
from casemate.data import Array, ImageSource, as_labelled
from casemate.errors import ShapeError
from casemate.evaluation.intervals import Estimate, share
from casemate.logits import is_right
from casemate.models import as_classifier, user_call
from casemate.progress import NULL_OBSERVER, Observer
from casemate.settings import at_least


@final
@dataclass(frozen=True, kw_only=True)
class Targeted:
    """Success of targeted attacks with every other class as target, on the `n` images that are classified correctly."""

    classes: tuple[str, ...]
    labels: np.ndarray
    """True classes of the images that are classified correctly, `(n,)`."""
    reached: np.ndarray
    """Whether the attack on each image with each class as its target succeeded, booleans `(n, classes)`; False for the
    true class."""
    passes: Passes

    def __repr__(self) -> str:
        others = np.arange(len(self.classes)) != self.labels[:, None]
        rate = f"; targets reached {share(self.reached[others]):n}" if len(self.labels) else ""
        passes = f"{self.passes.forward:,} forward, {self.passes.backward:,} backward"
        return f"Targeted({len(self.labels)} images, {len(self.classes)} classes{rate}; passes {passes})"

    def rate(self, source: int, target: int) -> Estimate | None:
        """Share of the correctly classified images of class `source` that were classified as `target` after the attack.

        None if there are no such images.
        """
        chosen = self.reached[self.labels == source, target]
        return share(chosen) if chosen.size else None


def targeted_matrix(
    model: nn.Module,
    attack: AbstractAttack,
    images: ImageSource,
    labels: Array | None = None,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    observer: Observer = NULL_OBSERVER,
) -> Targeted:
    """Attack every correctly classified image once with each other class as its target.

    Args:
        model: a `Classifier`, or a module that maps images within [0, 1] to logits.
        images, labels: as for `evaluate`.
        attack: one that supports targets.
        seed: of all random draws, which are keyed by example.
        batch_size: images that pass through the network at a time; measured if None.

    Raises:
        ShapeError: no images.
        SettingError: an attack that does not support targets.
    """
    attack = as_attack(attack)
    batch_size = at_least(1).check_optional(batch_size, "batch_size")
    model, images = as_classifier(model), as_labelled(images, labels)
    if len(images) == 0:
        raise ShapeError("no images to attack; expected at least one")
    check_first(model, images)
    passes = Passes()
    truths: list[torch.Tensor] = []
    reached: list[torch.Tensor] = []
    first = 0
    most = attack.max_passes(len(model.classes))
    work = most and len(images) * (len(model.classes) - 1) * most.total
    first_ones = images[:COMPARED_IMAGES].tensors(model.device)[0]
    no_gradient = not_finite = attacked = 0
    with (
        user_call(model, attack.ball(), seed=seed) as call,
        prepare_for_attack(model, first_ones, pass_size=batch_size, passes=work, observer=observer) as prepared,
        observer.work("Targeted attacks", len(images)) as advance,
    ):
        for pixels, truth in images.batches(group_size(model.input_shape), model.device):
            with torch.no_grad():
                right = is_right(prepared.verifier(pixels), truth)
            pixels, truth = pixels[right], truth[right]
            numbers = (right.nonzero().squeeze(1) + first).cpu()
            found = torch.zeros(len(truth), len(model.classes), dtype=torch.bool)
            for target in range(len(model.classes)):
                chosen = (truth != target).nonzero().squeeze(1)
                if len(chosen):
                    result = attack(
                        prepared,
                        pixels[chosen],
                        truth[chosen],
                        targets=torch.full_like(truth[chosen], target),
                        seed=seed,
                        index=numbers[chosen.cpu()],
                    )
                    found[chosen.cpu(), target] = result.success.cpu()
                    passes.add(result.passes)
                    attacked += len(chosen)
                    no_gradient += int((result.status == Status.ZERO_GRADIENT).sum())
                    not_finite += int((result.status == Status.NON_FINITE).sum())
            truths.append(truth.cpu())
            reached.append(found)
            first += len(right)
            advance(len(right), "")
    call.warn_of_failures(type(attack).__name__, attacked, no_gradient=no_gradient, not_finite=not_finite)
    return Targeted(
        classes=model.classes, labels=torch.cat(truths).numpy(), reached=torch.cat(reached).numpy(), passes=passes
    )
