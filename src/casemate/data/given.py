"""Images and labels as users have them: tensors, arrays, lists, data loaders and data sets, as `LabelledImages`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from casemate.data.dataset import Array, Dataset, LabelledImages, as_labels, as_tensor, summarised
from casemate.data.streamed import StreamedImages
from casemate.errors import DataError, kind_of
from casemate.rng import all_forked

ImageSource = (
    LabelledImages
    | StreamedImages
    | torch.utils.data.DataLoader[Any]
    | torch.utils.data.Dataset[Any]
    | Array
    | Iterable[Any]
)
"""Labelled images as users have them; see `as_labelled`."""

_EXPECTED = (
    "expected images and labels as tensors or arrays, a DataLoader or Dataset of (image, label) pairs, "
    "or LabelledImages"
)


def as_labelled(given: ImageSource, labels: Array | None = None) -> LabelledImages:
    """The labelled images that a user gave, on the device that they are on.

    Args:
        given: `LabelledImages`; `StreamedImages`, which are read into memory; a data loader, or another iterable, of
            batches `(images, labels)`; a data set of pairs `(image, label)`; a pair of all images and all labels; or
            the images alone, as a tensor or array of bytes or floating-point numbers, `(n, channels, height, width)`.
        labels: the true classes, whole numbers `(n,)`, of images given alone.

    Raises:
        DataError: anything else, or images and labels of other types, shapes or lengths.
    """
    if labels is not None:
        if not _is_array(given):
            raise DataError(f"labels beside {summarised(given)}, which has its own; {_EXPECTED}")
        pixels = as_tensor(given, "images")  # pyright: ignore[reportArgumentType]
        return LabelledImages(pixels=pixels, labels=as_labels(labels))
    if isinstance(given, LabelledImages):
        return given
    if isinstance(given, StreamedImages):
        return given.read(slice(None))
    if isinstance(given, Dataset):
        raise DataError(f"the data set {given.title} as a whole; give its images, such as data.test")
    if isinstance(given, tuple | list) and len(given) == 2 and _is_array(given[0]) and _is_label(given[1]):
        return LabelledImages(pixels=as_tensor(given[0], "images"), labels=as_labels(given[1]))
    if isinstance(given, Tensor | np.ndarray):
        raise DataError("images without labels; give the true classes too, as the labels after the images or labels=")
    with all_forked():  # a loader draws from the global generator
        pairs = list(_pairs(given))
    if not pairs:
        raise DataError(f"{summarised(given)} has no images; expected at least one")
    _check_shapes([pixels for pixels, _ in pairs])
    return LabelledImages(
        pixels=torch.cat([pixels for pixels, _ in pairs]), labels=torch.cat([some for _, some in pairs])
    )


def _is_array(given: Any) -> bool:
    """Whether something can be an array of numbers: a tensor, an array, or a list of numbers, tensors or arrays."""
    if isinstance(given, list | tuple):
        return all(isinstance(each, int | float | np.generic | Tensor | np.ndarray | list) for each in given)
    return isinstance(given, Tensor | np.ndarray)


def _is_label(given: Any) -> bool:
    """Whether something can be the labels of all images: a tensor, an array, or a list of numbers."""
    if isinstance(given, list | tuple):
        return all(np.ndim(each) == 0 and _is_array([each]) for each in given)
    return isinstance(given, Tensor | np.ndarray)


def _pairs(given: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Images `(n, channels, height, width)` and labels `(n,)`, one batch of a loader, or image of a set, at a time."""
    indexed = not isinstance(given, Sequence | torch.utils.data.IterableDataset) and all(
        hasattr(given, name) for name in ("__getitem__", "__len__")
    )
    if isinstance(given, Mapping):
        listed = ", ".join(map(str, given))
        raise DataError(f"{kind_of(given)} as images; give one of its parts ({listed[:200]}): {_EXPECTED}")
    if not indexed and not isinstance(given, Iterable):
        raise DataError(f"{summarised(given)} as images; {_EXPECTED}")
    source: Any = given
    _check_repeatable(getattr(given, "dataset", given))
    items = (source[place] for place in range(len(source))) if indexed else source
    for number, item in enumerate(items):
        if isinstance(item, Mapping) or not isinstance(item, Sequence) or len(item) != 2:
            raise DataError(f"element {number} of {summarised(given)} is {summarised(item)}; expected (image, label)")
        pixels, label = item[0], item[1]
        if not _is_array(pixels):
            raise DataError(
                f"the image of element {number} of {summarised(given)} is {summarised(pixels)}; expected a tensor: "
                "give the data set a transform, such as torchvision's ToTensor()"
            )
        pixels = as_tensor(pixels, "images")
        if pixels.ndim == 3 and np.ndim(label) == 0:
            pixels, label = pixels.unsqueeze(0), [label]
        yield pixels, as_labels(label)


def _check_repeatable(given: Any) -> None:
    """Raise `DataError` if element 0 of a data set is another image at every reading, as with augmentation."""
    if isinstance(given, torch.utils.data.IterableDataset | Mapping | list | tuple):
        return
    if not all(hasattr(given, name) for name in ("__getitem__", "__len__")) or not len(given):
        return
    pairs = [given[0], given[0]]
    if not all(isinstance(pair, Sequence) and len(pair) == 2 and _is_array(pair[0]) for pair in pairs):
        return
    first, again = (as_tensor(pair[0], "images") for pair in pairs)
    if not torch.equal(first, again):
        raise DataError(
            f"element 0 of {summarised(given)} is another image at a second reading: its transform draws at random. "
            "Give it the transform of test images; for training, augmentation is the argument augment="
        )


def _check_shapes(parts: list[Tensor]) -> None:
    """Raise `DataError` unless all batches have images of one shape and type."""
    kinds = {(tuple(part.shape[1:]), part.dtype): None for part in parts}
    if len(kinds) > 1:
        (one, first), (other, second), *_ = kinds
        raise DataError(
            f"images of shape {one} and type {first}, and of shape {other} and type {second}; expected all alike: "
            "resize them to one shape"
        )
