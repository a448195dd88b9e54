"""Images and labels as two arrays of one file: .npz or .safetensors."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from casemate.arrays import StoredArray, UnsoundError, npz_names, open_npz, open_safetensors
from casemate.data.dataset import UNLABELLED
from casemate.data.sources.resizing import Resizing
from casemate.data.streamed import StreamedImages
from casemate.errors import DataError
from casemate.types import Labels

EXPECTED = "expected a .npz or .safetensors file that holds `images` and `labels`"
_USUAL = ("images", "labels")
_IMAGES = ("images", "image", "x", "X", "data")
_LABELS = ("labels", "label", "y", "Y", "targets")
_LISTED = 8
"""Most names of arrays in an error message."""
_COLOURS = (1, 3, 4)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def open_arrays(path: Path, split: str | None, resizing: Resizing, *, labelled: bool = True) -> StreamedImages:
    """The images and labels in a .npz or .safetensors file.

    The arrays are called `images` and `labels`, or by another usual pair of names (x and y), perhaps with a split in
    front or behind (x_test, test_images). Images are bytes (uint8) or floating-point numbers within the model's bounds,
    `(n, channels, height, width)` or, with one channel, `(n, height, width)`; labels are integers `(n,)` from 0. Of
    images that need not be `labelled` no labels are read, and all are `UNLABELLED`.

    Raises:
        DataError: the file is missing, unreadable or inconsistent, or its images or labels are not as above.
    """
    try:
        if not path.exists():
            raise DataError(f"{path} does not exist; {EXPECTED}")
        arrays = open_safetensors(path) if path.suffix == ".safetensors" else {}
        held = list(arrays) if arrays or path.suffix == ".safetensors" else npz_names(path)
        names = _names(held, split, labelled=labelled)
        if names is None:
            raise _unnamed(path, held, split, labelled=labelled)
        arrays = arrays or open_npz(path, names)
        stored = arrays[names[0]]
        if labelled:
            labels = _labels(path, torch.from_numpy(arrays[names[1]].whole()))
        else:
            labels = torch.full((stored.shape[0] if stored.shape else 0,), UNLABELLED)
    except (OSError, UnsoundError) as error:
        raise DataError(f"cannot read {path}: {error}; {EXPECTED}") from error
    shape = _image_shape(path, stored)
    if stored.shape[0] != len(labels) or not len(labels):
        raise DataError(
            f"{path} holds {stored.shape[0]} images and {len(labels)} labels; expected as many, at least one"
        )
    usual = names == _USUAL[: len(names)] or split is not None
    used = " and ".join(f"`{name}` as the {what}" for name, what in zip(names, _USUAL, strict=False))
    return resizing.applied(
        StreamedImages(
            name=str(path),
            labels=labels,
            image_shape=shape,
            reader=lambda positions: read_rows(stored, positions, shape, path),
            remarks=() if usual else (f"used {used}",),
        )
    )


def array_splits(path: Path) -> tuple[str, ...]:
    """The splits of which a .npz file has both images and labels. Raises `DataError` for a file that cannot be read."""
    try:
        held = npz_names(path)
    except UnsoundError as error:
        raise DataError(f"cannot read {path}: {error}; {EXPECTED}") from error
    return tuple(part for part in ("test", "train", "val") if _names(held, part, labelled=True) is not None)


def read_rows(stored: StoredArray, positions: Labels, shape: tuple[int, int, int], path: Path) -> Tensor:
    """Images of an array in the file `path`, `(k, *shape)`, uint8 or float32. Raises `DataError`."""
    try:
        found = torch.from_numpy(stored.rows(positions.numpy())).reshape(len(positions), *shape)
    except (OSError, UnsoundError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    return found if found.dtype == torch.uint8 else found.float()


def _names(held: Sequence[str], split: str | None, *, labelled: bool) -> tuple[str, ...] | None:
    """The names of the arrays with the images and, if `labelled`, the labels, among those that a file holds.

    None if there are none. Without a `split` those are preferred that name none; then of labelled images those to test
    on, of others those to train on.
    """
    usual = (None, "test") if labelled else (None, "train", "test")
    kinds = (_IMAGES, _LABELS) if labelled else (_IMAGES,)
    for part in usual if split is None else (split,):
        patterns = ("{}",) if part is None else (f"{{}}_{part}", f"{part}_{{}}")
        for words, pattern in product(product(*kinds), patterns):
            names = tuple(map(pattern.format, words))
            if all(name in held for name in names):
                return names
    return None


def _unnamed(path: Path, held: Sequence[str], split: str | None, *, labelled: bool) -> DataError:
    """The error that a file has no arrays of a known name."""
    listed = ", ".join(held[:_LISTED]) + (", ..." if len(held) > _LISTED else "")
    wanted = [name if split is None else f"{name}_{split}" for name in (_USUAL if labelled else _USUAL[:1])]
    missing = [name for name in wanted if name not in held]
    advice = "" if split is None else f" (--split {split})"
    expected = EXPECTED if labelled else "expected a .npz or .safetensors file that holds `images`"
    return DataError(f"{path} has no {' and no '.join(missing)}{advice}; it holds {listed or 'nothing'}; {expected}")


def _image_shape(path: Path, stored: StoredArray) -> tuple[int, int, int]:
    """The shape of one image, `(channels, height, width)`, of an array of images.

    Raises `DataError` for other shapes or types, and for channels last.
    """
    shape = stored.shape
    if len(shape) not in (3, 4):
        raise DataError(f"{path}: images of shape {shape}; expected (n, channels, height, width) or (n, height, width)")
    one = (1, *shape[1:]) if len(shape) == 3 else shape[1:]
    if shape[-1] in _COLOURS and one[0] not in _COLOURS:
        raise DataError(
            f"{path}: images of shape {shape} seem to have their channels last; expected (n, channels, height, width): "
            "in NumPy, images.transpose(0, 3, 1, 2)"
        )
    if shape[0] and 0 in shape:
        raise DataError(f"{path}: images of shape {shape} have no pixels; expected at least one along every axis")
    kind = torch.bfloat16 if stored.is_bfloat16 else _torch_type(stored.dtype)
    if kind != torch.uint8 and kind not in _FLOATS:
        raise DataError(
            f"{path}: images of type {kind}; expected bytes (uint8, 0 to 255) or floating point within [0, 1]"
        )
    return one[0], one[1], one[2]


def _torch_type(kind: np.dtype) -> torch.dtype:
    return torch.from_numpy(np.empty(0, kind.newbyteorder("="))).dtype


def _labels(path: Path, labels: Tensor) -> Labels:
    """Check the labels of the file `path`; return them as int64. Raises `DataError` unless whole numbers from 0."""
    if labels.ndim == 2 and labels.shape[1] == 1:  # a column, as in Keras' and MedMNIST's files
        labels = labels.squeeze(1)
    if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(
            f"{path}: labels of type {labels.dtype} and shape {tuple(labels.shape)}; expected a whole number per image"
        )
    whole = labels.to(torch.int64)
    if (whole < 0).any():  # or a uint64 that overflows
        place = int((whole < 0).nonzero()[0])
        raise DataError(f"{path}: label {labels[place].item()} at position {place}; labels count classes from 0")
    return whole
