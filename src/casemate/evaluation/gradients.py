"""Properties of input gradients that attacks depend on: whether they are zero, and how fast their direction changes."""

import numpy as np
import torch
from torch import nn

from casemate.attacks import Misclassification, check_first, frozen, input_gradient
from casemate.data import Array, ImageSource, as_labelled
from casemate.losses import LossName
from casemate.models import as_classifier, freeze_unoptimized
from casemate.norms import Ball
from casemate.progress import NULL_OBSERVER, Observer
from casemate.rng import Streams, derive
from casemate.settings import at_least, listed

COMPARED: tuple[LossName, ...] = ("ce", "torch-ce", "prob-ce", "margin")
"""Losses compared by default, whose gradients vanish on different images; `dlr` is not among them, since its gradient
vanishes where that of `margin` does."""


def zero_gradients(
    model: nn.Module,
    images: ImageSource,
    losses: tuple[LossName, ...] = COMPARED,
    *,
    labels: Array | None = None,
    batch_size: int = 64,
    observer: Observer = NULL_OBSERVER,
) -> dict[str, np.ndarray]:
    """For each loss, by name: whether each image's input gradient is exactly zero in every pixel, booleans `(n,)`.

    A sign step along such a gradient does not move, whatever its size: the image withstands an attack that did nothing.

    Args:
        model: a `Classifier`, or a module that maps images within [0, 1] to logits.
        images, labels: as for `evaluate`.
    """
    losses, batch_size = listed(losses, "losses"), at_least(1).check(batch_size, "batch_size")
    model, given = as_classifier(model), as_labelled(images, labels)
    check_first(model, given)
    found: dict[str, list[np.ndarray]] = {loss: [] for loss in losses}
    with frozen(model), observer.work("Looking for zero gradients", len(given) * len(losses)) as advance:
        model = freeze_unoptimized(model, batch_size).copy
        for pixels, truth in given.batches(batch_size, model.device):
            for loss in losses:
                _, gradient = input_gradient(model, pixels, Misclassification(truth), loss)
                found[loss].append((gradient.flatten(1) == 0).all(1).cpu().numpy())
                advance(len(truth), "")
    return {loss: np.concatenate(parts) for loss, parts in found.items()}


def gradient_alignment(
    model: nn.Module,
    images: ImageSource,
    radius: float,
    *,
    labels: Array | None = None,
    seed: int = 0,
    batch_size: int = 64,
    observer: Observer = NULL_OBSERVER,
) -> np.ndarray:
    """Cosine between the input gradient at each image and at a point drawn from the Linf ball around it, `(n,)`.

    1 where the loss is linear nearby, as FGSM assumes; near 0 where one step is not informative, as after single-step
    adversarial training has collapsed (Andriushchenko and Flammarion 2020, section 4). NaN where either gradient is
    zero. The loss is the stable cross-entropy, so that no gradient vanishes in rounding.

    Args:
        model: a `Classifier`, or a module that maps images within [0, 1] to logits.
        images, labels: as for `evaluate`.
        radius: of the ball, in pixel units.
        seed: of the random points, which are keyed by example.
    """
    batch_size = at_least(1).check(batch_size, "batch_size")
    model, given = as_classifier(model), as_labelled(images, labels)
    check_first(model, given)
    found: list[np.ndarray] = []
    ball = Ball(eps=radius)
    with frozen(model), observer.work("Comparing gradients nearby", len(given)) as advance:
        model = freeze_unoptimized(model, batch_size).copy
        for pixels, truth in given.batches(batch_size, model.device):
            done = sum(map(len, found))
            index = torch.arange(done, done + len(truth), device=model.device)
            near = ball.sample(pixels, model.bounds, Streams(derive(seed, "alignment"), index), "near")
            here, there = (input_gradient(model, place, Misclassification(truth), "ce")[1] for place in (pixels, near))
            # each first by its largest entry: squares of gradients below 1e-19 would be zero in float32
            unit = [g.flatten(1) / g.flatten(1).abs().amax(1, keepdim=True) for g in (here, there)]
            cosine = (unit[0] * unit[1]).sum(1) / (unit[0].norm(dim=1) * unit[1].norm(dim=1))
            found.append(cosine.cpu().numpy())
            advance(len(truth), "")
    return np.concatenate(found)
