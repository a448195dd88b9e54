"""Predictions on one image at a time, by which a claim about an image is checked, whatever it was attacked with."""

from collections.abc import Iterable, Iterator

import torch
from torch import nn

from casemate.attacks import frozen
from casemate.errors import ModelError
from casemate.float32_precision import full_precision
from casemate.logits import magnitude, top_gap
from casemate.models import as_classifier, judge_of, mean_over_samples
from casemate.norms import Bounds
from casemate.progress import NULL_OBSERVER, Observer
from casemate.rng import seeded
from casemate.types import Flags, Images, Logits

_ROUNDING = 1e-5
"""Lead of the largest logit over the second, divided by the largest absolute logit, up to which another machine's
rounding may change the predicted class."""


def predict_singly(
    model: nn.Module, images: Images, *, draws: int = 1, seed: int = 0, observer: Observer = NULL_OBSERVER
) -> Logits:
    """The logits of each image in a batch of its own, `(n, classes)`, on the CPU; NaN where the model fails on it.

    Raises as `predict_parts_singly`, which has the same arguments.
    """
    return torch.cat([*predict_parts_singly(model, [images], len(images), draws=draws, seed=seed, observer=observer)])


@torch.no_grad()
def predict_parts_singly(
    model: nn.Module,
    parts: Iterable[Images],
    count: int,
    *,
    draws: int = 1,
    seed: int = 0,
    observer: Observer = NULL_OBSERVER,
) -> Iterator[Logits]:
    """The logits of each image in a batch of its own, `(n, classes)`, of one part of the images after the other.

    They are on the CPU, NaN where the model fails on an image, and computed in full float32: without TensorFloat-32,
    and on the CPU for a model on Apple's MPS device.

    Args:
        model: run in evaluation mode.
        parts: images within the model's bounds.
        count: number of images in all parts together.
        draws: number of passes whose mean is taken, for a randomised model.
        seed: of the model's random numbers; the state of the caller's generators does not change.
        observer: is informed of every image.

    Raises:
        ModelError: a model on MPS that cannot be copied to the CPU.
    """
    model = judge_of(as_classifier(model))
    mean = mean_over_samples(model, draws) if draws > 1 else model
    with (
        frozen(mean),
        full_precision(),
        seeded(model.device, seed, "alone"),
        observer.work("Classifying one by one", count) as advance,
    ):
        for images in parts:
            found = [torch.zeros(0, len(model.classes))]
            for image in images.split(1) if len(images) else ():
                try:
                    found.append(mean(image.to(model.device)).cpu())
                except ModelError:
                    found.append(torch.full((1, len(model.classes)), torch.nan))
                advance(1, "")
            yield torch.cat(found[1:] or found)


def has_margin(logits: Logits) -> Flags:
    """Whether the largest logit exceeds the second by more than rounding on another machine may change, `(n,)`."""
    return top_gap(logits) > _ROUNDING * magnitude(logits)


def in_grey_levels(images: Images, bounds: Bounds) -> Images:
    """The images rounded to what 8 bits can store: 256 levels from the lower to the upper of the bounds."""
    low, high = bounds
    return ((images - low) / (high - low) * 255).round() / 255 * (high - low) + low
