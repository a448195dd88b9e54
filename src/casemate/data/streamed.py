"""`StreamedImages`: labelled images of which only the labels are in memory; pixels are read when they are needed."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import final

import numpy as np
import torch
from torch import Tensor

from casemate.data.dataset import LabelledImages, hash_of_images, ranked
from casemate.errors import DataError, SettingError
from casemate.types import Images, Labels, Pixels

_SHARD_BYTES = 1 << 25
"""Bytes of pixels that are read at a time where all images are gone through."""


@final
@dataclass(frozen=True, kw_only=True)
class StreamedImages:
    """Labelled images in files, read in parts of any size; `labels` int64 `(n,)` are in memory.

    Reading the same positions again gives the same pixels. Slicing, `first` and `stratified` choose images and read
    none. Raises `DataError` where there are no images, or a label is not below the number of class names.
    """

    name: str
    """The file or folder, as the user named it."""
    labels: Labels
    image_shape: tuple[int, int, int]
    """The shape of one image, `(channels, height, width)`."""
    reader: Callable[[Labels], Pixels | Images]
    """Reads the images at positions of the source, int64 `(k,)`: uint8, or floating point within the model's bounds."""
    classes: tuple[str, ...] | None = None
    """The names of the classes that the labels count; None if the source does not name them."""
    positions: Labels | None = None
    """Where these images are in the source, int64 `(n,)`; None for all of them in their order."""
    chosen: str = "all"
    """How these images were chosen from the source: "all", "first", or "stratified, seed 0"."""
    conversions: Counter[str] = field(default_factory=Counter)
    """What was changed in images while they were read, such as "converted from a palette": how many times."""
    remarks: tuple[str, ...] = ()
    """What was assumed when the source was opened, such as which arrays of a file are used, a clause each."""

    def __post_init__(self) -> None:
        if not len(self.labels):
            raise DataError(f"{self.name} has no images; expected at least one")
        if self.classes is not None and int(self.labels.max()) >= len(self.classes):
            place = int(self.labels.argmax())
            raise DataError(
                f"{self.name}: label {int(self.labels[place])} at position {place}, but there are {len(self.classes)} "
                "class names; labels count classes from 0"
            )

    def __repr__(self) -> str:
        return f"StreamedImages({self.name}: {len(self):,} images of shape {self.image_shape}, {self.chosen})"

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> "StreamedImages":
        return replace(self, labels=self.labels[index], positions=self._places(index))

    def _places(self, index: Tensor | slice) -> Labels:
        """Where the images at these positions of this object are in the source."""
        if self.positions is not None:
            return self.positions[index]
        return torch.arange(*index.indices(len(self))) if isinstance(index, slice) else torch.arange(len(self))[index]

    @property
    def is_sorted_by_class(self) -> bool:
        """Whether all images of a class come before all of the next one, so that the first ones are of few classes."""
        changes = int((self.labels[1:] != self.labels[:-1]).sum())
        return 0 < changes == len(self.labels.unique()) - 1

    def read(self, positions: slice | Labels) -> LabelledImages:
        """The images at these positions of this object, with their labels. Raises `DataError`."""
        labels, places = self.labels[positions], self._places(positions)
        pixels = self.reader(places)
        if tuple(pixels.shape) != (len(labels), *self.image_shape):
            raise DataError(
                f"{self.name}: images of shape {tuple(pixels.shape[1:])} after others of shape {self.image_shape}; "
                "expected all alike"
            )
        if pixels.is_floating_point():
            faulty = ~pixels.isfinite().flatten(1).all(1)
            if faulty.any():
                raise DataError(
                    f"{self.name}: {int(faulty.sum())} of {len(pixels)} images have pixels that are not finite "
                    f"numbers, the first of them image {int(places[faulty][0])}; expected numbers within [0, 1]"
                )
        return LabelledImages(pixels=pixels, labels=labels)

    def batches(self, size: int, device: torch.device | str = "cpu") -> Iterator[tuple[Images, Labels]]:
        """Yield `(images, labels)` in order, in batches of `size`, the last one smaller; images as from `to_float`."""
        for start in range(0, len(self), size):
            yield self.read(slice(start, start + size)).tensors(device)

    def first(self, size: int) -> "StreamedImages":
        """The first `size` images; `self` if there are no more than that."""
        return self if size >= len(self) else replace(self[:size], chosen="first")

    def subset(self, size: int, seed: int = 0) -> "StreamedImages":
        """A stratified random sample of `size` images; `self` if there are no more than that.

        A larger sample with the same seed begins with the smaller one. Raises `SettingError` for fewer than one image.
        """
        if size < 1:
            raise SettingError(f"a sample of {size} images; expected at least 1")
        if size >= len(self):
            return self
        order, rank = ranked(self.labels, seed)
        smallest = torch.from_numpy(np.argsort(rank.numpy(), kind="stable")[:size])  # in less memory than PyTorch's
        return replace(self[order[smallest]], chosen=f"stratified, seed {seed}")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of images and labels with the pixels' type and shape, which identifies them whatever their format.

        That of `casemate.evaluation.fingerprints.fingerprint_of_images`. All images are read for it.
        """
        shard = max(1, _SHARD_BYTES // math.prod(self.image_shape))
        parts = (self.read(slice(start, start + shard)).pixels for start in range(0, len(self), shard))
        return hash_of_images(parts, self.labels)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed, and what was changed in images that were read so far, a sentence each."""
        changed = tuple(f"{what} ({count:,} of the images read)" for what, count in sorted(self.conversions.items()))
        return tuple(f"{self.name}: {each}" for each in (*self.remarks, *changed))
