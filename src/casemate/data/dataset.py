"""Data sets as tensors in memory: pixels, labels and class names. Bytes are scaled to [0, 1] one batch at a time."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import torch
from torch import Tensor

from casemate.arrays import bytes_of
from casemate.errors import DataError, SettingError, kind_of
from casemate.memory import free_memory
from casemate.types import Images, Labels, Pixels

_SMALL_PART = 0.1
"""Largest share of a GPU's free memory that a data set may take to be copied there as a whole."""


Array = Tensor | np.ndarray | Sequence[Any]
"""Numbers as users have them: a tensor, an array, or a list of numbers, tensors or arrays."""


def as_tensor(given: Array, what: str) -> Tensor:
    """A tensor with the numbers of `given`, called `what` in errors; a tensor is returned as it is, or detached.

    An array is copied only where PyTorch cannot use its memory, a sparse tensor always. Raises `DataError` for what is
    no array of numbers.
    """
    if isinstance(given, Tensor):
        dense = given if given.layout is torch.strided else given.to_dense()
        return dense.detach() if dense.requires_grad else dense
    try:
        if isinstance(given, list | tuple) and any(isinstance(each, Tensor) for each in given):
            return torch.stack([torch.as_tensor(each) for each in given])
        array = np.asarray(given)
        usable = array.flags.writeable and array.dtype.isnative and all(stride >= 0 for stride in array.strides)
        return torch.from_numpy(array if usable else np.array(array, array.dtype.newbyteorder("="), order="C"))
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{what} are {summarised(given)}; expected numbers in one shape, as a torch.Tensor or a NumPy array"
        ) from error


def as_labels(given: Array) -> Labels:
    """Labels as int64 `(n,)`, from whole numbers of any type.

    Raises `DataError` for other types and shapes, with the remedy for one-hot labels, fractions and columns.
    """
    if isinstance(given, list | tuple | np.ndarray) and any(isinstance(each, str) for each in given):
        raise DataError("labels are texts; expected the numbers of the classes: names.index(label) for each")
    labels = as_tensor(given, "labels")
    seen = f"labels of type {labels.dtype} and shape {tuple(labels.shape)}; expected one whole number per image"
    if labels.ndim == 2 and labels.shape[1] == 1:
        raise DataError(f"{seen}: labels.squeeze(1)")
    if labels.ndim == 2:
        raise DataError(f"{seen}: for one-hot labels, labels.argmax(1)")
    if labels.ndim != 1 or labels.is_complex() or labels.dtype == torch.bool:
        raise DataError(seen)
    if labels.is_floating_point():
        raise DataError(f"{seen}: labels.long(), if they are whole numbers")
    return labels.to(torch.int64)


def summarised(given: Any) -> str:
    """What a user gave instead of images or labels, in a few words."""
    if isinstance(given, Tensor | np.ndarray):
        return f"{kind_of(given)} of type {given.dtype} and shape {tuple(given.shape)}"
    if isinstance(given, list | tuple):
        return f"{kind_of(given)} of {len(given)}"
    return "None" if given is None else kind_of(given)


def dimensions_remedy(shape: tuple[int, ...]) -> str:
    """The end of an error about images of a shape without four dimensions: what to write instead."""
    return ": images[None] for a single image, images[:, None] for grey ones" if len(shape) == 3 else ""


def to_float(pixels: Pixels | Images, device: torch.device | str = "cpu") -> Images:
    """The pixels on `device` as float32, channels-last in memory: uint8 scaled to [0, 1], floats with their values."""
    moved = pixels.to(device, non_blocking=torch.device(device).type != "cpu")
    scaled = moved.float() if moved.is_floating_point() else moved.float().div_(255)
    return scaled.contiguous(memory_format=torch.channels_last)


@final
@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Labelled images as stored: `pixels` `(n, channels, height, width)`, `labels` int64 `(n,)`.

    Pixels are bytes (uint8), which are scaled to [0, 1] and need a model with these bounds, or floating-point numbers
    within the model's bounds. Raises `DataError` for other types, shapes or lengths. NumPy arrays, lists, and whole
    numbers of other types are converted.
    """

    pixels: Pixels | Images
    labels: Labels

    def __repr__(self) -> str:
        kind = str(self.pixels.dtype).removeprefix("torch.")
        return f"LabelledImages({len(self.labels):,} images of shape {tuple(self.pixels.shape[1:])}, {kind})"

    def __post_init__(self) -> None:
        object.__setattr__(self, "pixels", as_tensor(self.pixels, "images"))
        object.__setattr__(self, "labels", as_labels(self.labels))
        for name in ("pixels", "labels"):
            given = getattr(self, name)
            if given.is_inference():  # autograd cannot use tensors created in inference mode
                with torch.inference_mode(False):
                    object.__setattr__(self, name, given.clone())
        if not (self.pixels.dtype == torch.uint8 or self.pixels.is_floating_point()) or self.pixels.ndim != 4:
            raise DataError(
                f"images of type {self.pixels.dtype} and shape {tuple(self.pixels.shape)}; "
                "expected uint8 or floating point of shape (n, channels, height, width)"
                f"{dimensions_remedy(tuple(self.pixels.shape))}"
            )
        if len(self.labels) != len(self.pixels):
            raise DataError(
                f"{len(self.pixels)} images, but labels of shape {tuple(self.labels.shape)}; expected one for each"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> "LabelledImages":
        return LabelledImages(pixels=self.pixels[index], labels=self.labels[index])

    def read(self, positions: slice | Labels) -> "LabelledImages":
        """The images at these positions, as `StreamedImages.read` returns them."""
        return self[positions]

    def batches(self, size: int, device: torch.device | str = "cpu") -> Iterator[tuple[Images, Labels]]:
        """Yield `(images, labels)` in order, in batches of `size`, the last one smaller; images as from `to_float`."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield to_float(self.pixels[part], device), self.labels[part].to(device)

    def to_device_if_small(self, device: torch.device) -> "LabelledImages":
        """A copy on a GPU, pixels of unchanged type, if it takes at most a tenth of the free memory there; else `self`.

        The images are then transferred once for all attacks; as bytes they take a quarter of the memory of floats.
        """
        if device.type == "cpu" or self.pixels.nbytes > _SMALL_PART * free_memory(device):
            return self
        return LabelledImages(pixels=self.pixels.to(device), labels=self.labels.to(device))

    def tensors(self, device: torch.device | str = "cpu") -> tuple[Images, Labels]:
        """All images as float32 (see `to_float`), and their labels, on `device`."""
        return to_float(self.pixels, device), self.labels.to(device)


@final
@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A named data set with its fixed training and test sets."""

    name: str
    title: str
    classes: tuple[str, ...]
    train: LabelledImages
    test: LabelledImages
    origin: str
    """Where the images came from: a folder, or "scikit-learn"."""
    fallback_for: str | None = None
    """Title of the requested data set that this one replaces because it was not available; None if it replaces none."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape of one image, `(channels, height, width)`."""
        channels, height, width = self.train.pixels.shape[1:]
        return channels, height, width


def ranked(labels: Labels, seed: int) -> tuple[Tensor, Tensor]:
    """A random order of the examples, and each one's rank within its class, as a share in (0, 1).

    Both are `(n,)`: indices of examples, and the rank of the example at that position of the order.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    rank = torch.empty(len(labels), dtype=torch.float64)
    shuffled = labels[order]
    for label in np.unique(shuffled.numpy()).tolist():  # in less memory than torch.unique
        places = (shuffled == label).nonzero().squeeze(1)
        rank[places] = (torch.arange(len(places), dtype=torch.float64) + 0.5) / len(places)
    return order, rank


def hash_of_images(parts: Iterable[Tensor], labels: Labels) -> str:
    """SHA-256 of the pixels of images in parts, at least one, and of all their labels, with the pixels' type and shape.

    Hexadecimal; it does not depend on where the parts begin.
    """
    digest = hashlib.sha256()
    for place, pixels in enumerate(parts):
        if not place:
            digest.update(f"{pixels.dtype} {(len(labels), *pixels.shape[1:])}".encode())
        digest.update(bytes_of(pixels))
    digest.update(bytes_of(labels))
    return digest.hexdigest()


def split(images: LabelledImages, second: int, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """Split at random, stratified by class, into two parts, the second one of `second` images.

    Raises `SettingError` unless 0 < `second` < number of images.
    """
    if not 0 < second < len(images):
        raise SettingError(
            f"a split that sets {second} of {len(images)} images aside; set aside at least 1, but not all"
        )
    order, rank = ranked(images.labels, seed)
    chosen = rank.argsort(stable=True)[:second]
    mask = torch.zeros(len(images), dtype=torch.bool)
    mask[order[chosen]] = True
    return images[~mask], images[mask]


UNLABELLED: Final = -1
"""The label of a training image whose class is unknown, for objectives that can learn from such images."""


def keep_labels(images: LabelledImages, count: int, seed: int, others: Pixels | Images | None = None) -> LabelledImages:
    """All images, with the labels of a stratified random sample of `count`; those of the rest are `UNLABELLED`.

    The images with a label come first, repeated until they are a fifth of all, so that no batch of a training lacks
    them. With `others`, these have no labels either; where their pixels are of another type, all become floats.
    """
    rest, sample = split(images, count, seed) if count < len(images) else (images[:0], images)
    own = sample.pixels
    parts = [part.to(own.device) for part in (rest.pixels, others) if part is not None and len(part)]
    if not parts:
        return images
    if len({part.dtype for part in (own, *parts)}) > 1:
        own, *parts = (to_float(part) for part in (own, *parts))
    unlabelled = torch.cat(parts)
    times = max(1, round(len(unlabelled) / (4 * len(sample))))
    labels = torch.cat(
        [sample.labels.repeat(times), torch.full((len(unlabelled),), UNLABELLED, device=sample.labels.device)]
    )
    return LabelledImages(pixels=torch.cat([own.repeat(times, 1, 1, 1), unlabelled]), labels=labels)


def subset(images: LabelledImages, size: int, seed: int) -> LabelledImages:
    """A stratified random sample of `size` images; `images` itself if there are no more than that."""
    return images if size >= len(images) else split(images, size, seed)[1]
