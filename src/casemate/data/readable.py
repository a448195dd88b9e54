"""Labelled images that are read part by part, so that a data set need not fit into memory."""

from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

from torch import Tensor

from casemate.data.dataset import Array, LabelledImages
from casemate.data.given import ImageSource, as_labelled
from casemate.types import Labels


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
    """Images that can be read part by part: those with a method `read` as they are, others as `as_labelled` takes them.

    Raises `DataError` as `as_labelled`.
    """
    if labels is None and isinstance(given, ReadableImages):
        return given
    return as_labelled(given, labels)  # pyright: ignore[reportArgumentType]


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
