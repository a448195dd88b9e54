"""The masks of `casemate attack`: where pixels may change, from a file or as a rectangle."""

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from casemate.arrays import UnsoundError, guarded
from casemate.attacks.masks import as_mask
from casemate.data.sources.pictures import SUFFIXES, decode, read_picture
from casemate.data.sources.resizing import Resizing
from casemate.errors import CasemateError, DataError, SettingError
from casemate.types import Images

_WHITE = 128
"""Grey level from which on a pixel of a picture counts as white."""
Box = tuple[int, int, int, int]
"""First row and column, height and width of a rectangle, in pixels."""


def read_mask(file: Path | None, box: Box | None, images: Images) -> tuple[Tensor, str] | None:
    """The mask that the options describe, of a shape that broadcasts to the images', and how a user calls it.

    None without either option. Raises `SettingError` for both, or for a rectangle outside the images, and `DataError`
    for a file that is no mask for them.
    """
    if file is not None and box is not None:
        raise SettingError("--mask and --mask-box; expected one of them")
    if box is not None:
        return _rectangle(box, *images.shape[2:]), " ".join(map(str, box))
    if file is None:
        return None
    try:
        mask = _picture(file) if file.suffix.lower() in SUFFIXES else _array(file)
        as_mask(mask, images)
    except CasemateError as error:
        raise DataError(f"--mask {file}: {error}") from error
    return mask, str(file)


def _rectangle(box: Box, height: int, width: int) -> Tensor:
    top, left, rows, columns = box
    if min(top, left) < 0 or min(rows, columns) < 1 or top + rows > height or left + columns > width:
        raise SettingError(
            f"--mask-box {' '.join(map(str, box))}: rows {top} to {top + rows - 1} and columns {left} to "
            f"{left + columns - 1}; expected a rectangle within the images of {height} x {width} pixels"
        )
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top : top + rows, left : left + columns] = True
    return mask


def _picture(file: Path) -> Tensor:
    """The white pixels of a picture, `(height, width)`."""
    pixels = decode(read_picture(file, file.resolve().parent), Resizing(channels=1), Counter())
    return pixels[0, 0] >= _WHITE


@guarded
def _array(file: Path) -> Tensor:
    """The array in a .npy file; what is not there is not allocated."""
    if file.suffix.lower() != ".npy":
        raise UnsoundError(f"expected a .npy file, or a picture ({', '.join(SUFFIXES)})")
    return torch.from_numpy(np.array(np.load(file, mmap_mode="r", allow_pickle=False)))
