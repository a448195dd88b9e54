"""Labelled images that are read part by part, so that a data set need not fit into memory."""

import math
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from casemate.data.dataset import Array, LabelledImages
from casemate.data.given import ImageSource, as_labelled
from casemate.data.sources.resizing import Resizing
from casemate.data.sources.torch_data import can_be_read_by_position, open_torch
from casemate.rng import all_forked
from casemate.types import Labels

MOST_NUMBERS = 1 << 28
"""Most pixel values of images that are read into memory at once (1 GB as float32); more are read part by part."""


@runtime_checkable
class ReadableImages(Protocol):
    """Interface of labelled images in memory or elsewhere: their number, their labels, and some of them at a time.

    `LabelledImages` has it. Reading the same positions again must give the same images.
    """

    @property
    def labels(self) -> Labels:
        """The classes of all images, int64 `(n,)`, in memory."""
        ...

    def __len__(self) -> int: ...

    def read(self, positions: slice | Tensor) -> LabelledImages:
        """The images at some positions: a slice, or int64 `(k,)` in any order."""
        ...


def as_readable(given: ImageSource | ReadableImages, labels: Array | None = None) -> ReadableImages:
    """Images that can be read part by part.

    Those with a method `read` are returned as they are. A data set or data loader with more than `MOST_NUMBERS` pixel
    values is read by position whenever images are needed; everything else is read now, as `as_labelled` does.

    Raises `DataError` as `as_labelled`.
    """
    if labels is None and isinstance(given, ReadableImages):
        return given
    if labels is None and can_be_read_by_position(given) and _numbers(given) > MOST_NUMBERS:
        return open_torch(given, Resizing())
    return as_labelled(given, labels)  # pyright: ignore[reportArgumentType]


def _numbers(given: Any) -> int:
    """The number of pixel values in a data set or data loader; 0 if its first element is no pair of image and label."""
    dataset: Any = given.dataset if isinstance(given, DataLoader) else given
    try:
        with all_forked():
            return len(dataset) * math.prod(np.shape(dataset[0][0])) if len(dataset) else 0
    except Exception:  # the data set is the user's own; what is wrong with it, `as_labelled` finds out
        return 0


def first_of(images: ReadableImages, count: int) -> ReadableImages:
    """The first `count` of the images, or all if they are fewer."""
    if count >= len(images):
        return images
    return images[:count] if isinstance(images, LabelledImages) else _First(images, count)


@final
@dataclass(frozen=True)
class _First:
    """The first `count` of `images`, which are more."""

    images: ReadableImages
    count: int

    @property
    def labels(self) -> Labels:
        return self.images.labels[: self.count]

    def __len__(self) -> int:
        return self.count

    def read(self, positions: slice | Tensor) -> LabelledImages:
        if isinstance(positions, slice):
            positions = slice(*positions.indices(self.count))
        return self.images.read(positions)
