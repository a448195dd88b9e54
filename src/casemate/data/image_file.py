"""Loading a user's own images and labels from one file; nothing in it is executed."""

from pathlib import Path

import torch
from torch import Tensor

from casemate.arrays import UnsoundError, npz_names, read_npz, read_safetensors
from casemate.data.dataset import LabelledImages
from casemate.errors import DataError

_EXPECTED = "expected a .npz or .safetensors file that holds `images` and `labels`"
_NAMES = ("images", "labels")
_LISTED = 8
"""Most names of arrays in an error message."""
_COLOURS = (1, 3, 4)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_images(path: Path | str) -> LabelledImages:
    """Read `images` and `labels` from a .npz or .safetensors file.

    Images are bytes (uint8) or floating-point numbers within the model's bounds, `(n, channels, height, width)` or,
    with one channel, `(n, height, width)`; labels are integers `(n,)` from 0. Pickled objects are rejected.

    Raises:
        DataError: the file is missing, unreadable or inconsistent, or its images or labels are not as above.
    """
    path = Path(path)
    arrays = _read(path)
    missing = [name for name in _NAMES if name not in arrays]
    if missing:
        held = npz_names(path) if path.suffix == ".npz" else list(arrays)
        listed = ", ".join(held[:_LISTED]) + (", ..." if len(held) > _LISTED else "")
        raise DataError(f"{path} has no {' and no '.join(missing)}; it holds {listed or 'nothing'}; {_EXPECTED}")
    images, labels = _images(path, arrays["images"]), _labels(path, arrays["labels"])
    if len(images) != len(labels) or not len(images):
        raise DataError(f"{path} holds {len(images)} images and {len(labels)} labels; expected as many, at least one")
    return LabelledImages(pixels=images, labels=labels)


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors in a .npz or .safetensors file, by name. Raises `DataError` for a file that cannot be read."""
    try:
        if not path.is_file():
            raise DataError(f"{path} does not exist; {_EXPECTED}")
        if path.suffix == ".safetensors":
            return read_safetensors(path)[0]
        if path.suffix == ".npz":
            return {name: torch.from_numpy(array) for name, array in read_npz(path, _NAMES).items()}
    except (OSError, UnsoundError) as error:
        raise DataError(f"cannot read {path}: {error}; {_EXPECTED}") from error
    raise DataError(f"{path} ends in {path.suffix or 'nothing'}; {_EXPECTED}")


def _images(path: Path, images: Tensor) -> Tensor:
    """Check the images of the file `path`; return them as `(n, channels, height, width)`, uint8 or float32.

    Raises `DataError` for other shapes or types, for channels last, and for NaN or infinity.
    """
    shape = tuple(images.shape)
    if images.ndim == 3:
        images = images.unsqueeze(1)
    if images.ndim != 4:
        raise DataError(f"{path}: images of shape {shape}; expected (n, channels, height, width) or (n, height, width)")
    if shape[-1] in _COLOURS and images.shape[1] not in _COLOURS:
        raise DataError(
            f"{path}: images of shape {shape} seem to have their channels last; expected (n, channels, height, width): "
            "in NumPy, images.transpose(0, 3, 1, 2)"
        )
    if len(images) and not images.numel():
        raise DataError(f"{path}: images of shape {shape} have no pixels; expected at least one along every axis")
    if images.dtype == torch.uint8:
        return images
    if images.dtype not in _FLOATS:
        raise DataError(
            f"{path}: images of type {images.dtype}; expected bytes (uint8, 0 to 255) or floating point within [0, 1]"
        )
    images = images.float()
    faulty = ~images.isfinite().flatten(1).all(1)
    if faulty.any():
        raise DataError(
            f"{path}: {int(faulty.sum())} of {len(images)} images have pixels that are not finite numbers, the first "
            f"of them image {int(faulty.nonzero()[0])}; expected numbers within [0, 1]"
        )
    return images


def _labels(path: Path, labels: Tensor) -> Tensor:
    """Check the labels of the file `path`; return them as int64. Raises `DataError` unless whole numbers from 0."""
    if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(
            f"{path}: labels of type {labels.dtype} and shape {tuple(labels.shape)}; expected a whole number per image"
        )
    whole = labels.to(torch.int64)
    if (whole < 0).any():  # or a uint64 that overflows
        place = int((whole < 0).nonzero()[0])
        raise DataError(f"{path}: label {labels[place].item()} at position {place}; labels count classes from 0")
    return whole
