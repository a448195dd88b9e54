"""A first pass of a few images: whether the model takes them, returns one logit per class, and is randomised."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from casemate.attacks import check_images, frozen
from casemate.data import LabelledImages, ReadableImages
from casemate.errors import ShapeError
from casemate.evaluation.shards import shards_of
from casemate.models import Classifier, check_type, is_randomised, judge_of
from casemate.models.pixel_range import BEYOND
from casemate.types import Labels

PROBED = 32
"""Largest number of images that a model is tried on before its evaluation: logits that are random on a share of 10 % of
the images are found with probability 0.97."""


def probe_model(model: Classifier, images: ReadableImages) -> bool:
    """Check that a model can be evaluated on the images; return whether it is randomised in evaluation mode.

    All labels are looked at, but of images that are not in memory only the first; the others are when they are
    classified. The model itself does not change.

    Raises:
        ShapeError: no images, or images and labels that the model does not take.
        ModelError: a model that fails, returns something other than one logit per class, or is on Apple's MPS device
            and cannot be copied to the CPU.
    """
    if not len(images):
        raise ShapeError("no images; expected at least one")
    judge_of(model)  # raises, before any attack, for a model with which claims cannot be checked
    for part in shards_of(images) if isinstance(images, LabelledImages) else [slice(0, PROBED)]:
        found = images.read(part)
        check_type(found.pixels, model.bounds)
        check_images(model, *found.tensors(), start=part.start)
    _check_labels(images.labels, len(model.classes))
    few, _ = images.read(slice(0, PROBED)).tensors(model.device)
    with frozen(model):
        model.examine(few)
        return is_randomised(model, few)


def _check_labels(labels: Labels, classes: int) -> None:
    """Raise `ShapeError` unless all labels are below the number of `classes`."""
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        place = int(wrong.long().argmax())
        raise ShapeError(
            f"label {int(labels[place])} of image {place}; with {classes} classes labels run from 0 to {classes - 1}"
        )


def within_bounds(images: ReadableImages, model: Classifier) -> ReadableImages:
    """The images with pixels that are beyond the model's bounds by rounding at the bound, as attacks take them.

    Pixels further out stay, since `check_images` refuses them. Raises `ShapeError`, at the latest when they are read,
    for bytes where the bounds are others than [0, 1].
    """
    found = _Clamped(images, *model.bounds)
    return found.read(slice(None)) if isinstance(images, LabelledImages) else found


@final
@dataclass(frozen=True)
class _Clamped:
    """`images` with pixels that rounding put beyond the bounds at the bound."""

    images: ReadableImages
    low: float
    high: float

    @property
    def labels(self) -> Labels:
        return self.images.labels

    def __len__(self) -> int:
        return len(self.images)

    def read(self, positions: slice | Tensor) -> LabelledImages:
        found = self.images.read(positions)
        pixels = found.pixels
        check_type(pixels, (self.low, self.high))
        if pixels.dtype == torch.uint8 or not len(pixels):
            return found
        beyond = max(self.low - pixels.amin().item(), pixels.amax().item() - self.high)
        if not 0 < beyond <= BEYOND:
            return found
        return LabelledImages(pixels=pixels.clamp(self.low, self.high), labels=found.labels)
