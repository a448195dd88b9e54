"""A user's own images and labels, from one file; nothing in it is executed."""

import zipfile
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from casemate.data.dataset import LabelledImages
from casemate.errors import DataError

_EXPECTED = "expected a .npz or .safetensors file that holds `images` and `labels`"
_COLOURS = (1, 3, 4)


def read_images(path: Path) -> LabelledImages:
    """Read `images` and `labels` from a .npz or .safetensors file.

    Images are bytes (uint8) or floating-point numbers as the model takes them, `(n, channels, height, width)` or, with
    one channel, `(n, height, width)`; labels are whole numbers `(n,)`. Pickled objects are refused.

    Raises:
        DataError: a file that is not there or cannot be read, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist; {_EXPECTED}")
    arrays = _read(path)
    missing = [name for name in ("images", "labels") if name not in arrays]
    if missing:
        raise DataError(f"{path} has no {' and no '.join(missing)}, but {', '.join(arrays) or 'nothing'}; {_EXPECTED}")
    images, labels = _images(path, arrays["images"]), _labels(path, arrays["labels"])
    if len(images) != len(labels) or not len(images):
        raise DataError(f"{path} holds {len(images)} images and {len(labels)} labels; expected as many, at least one")
    return LabelledImages(pixels=images, labels=labels)


def _read(path: Path) -> dict[str, Tensor]:
    """The arrays of a file by name."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        if path.suffix == ".npz":
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                return {name: _tensor(path, name, file[name]) for name in file.files if name in ("images", "labels")}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, safetensors.SafetensorError) as error:
        raise DataError(f"cannot read {path}: {error}; {_EXPECTED}") from error
    raise DataError(f"{path} ends in {path.suffix or 'nothing'}; {_EXPECTED}")


def _tensor(path: Path, name: str, array: np.ndarray) -> Tensor:
    """The same numbers in a type that PyTorch has."""
    if array.dtype.kind not in "uif":
        raise DataError(f"{path}: {name} are of type {array.dtype}; expected numbers (uint8, float32, int64)")
    array = array.astype(array.dtype.newbyteorder("="))
    return torch.from_numpy(array.astype(np.int64) if name == "labels" and array.dtype.kind in "ui" else array)


def _images(path: Path, images: Tensor) -> Tensor:
    """Images with channels, uint8 or float32."""
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
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise DataError(
            f"{path}: images of type {images.dtype}; expected bytes (uint8, 0 to 255) or floating point within [0, 1]"
        )
    return images if images.dtype == torch.uint8 else images.float()


def _labels(path: Path, labels: Tensor) -> Tensor:
    """Labels as int64."""
    if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(
            f"{path}: labels of type {labels.dtype} and shape {tuple(labels.shape)}; expected a whole number per image"
        )
    return labels.to(torch.int64)
