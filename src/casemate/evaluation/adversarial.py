"""The first adversarial image found for each image of an evaluation, in memory or in the stored pieces.

For every image the part that holds its adversarial image is known, and its row there. A part is a tensor in memory or
the file of a piece, of which only the rows wanted are read.
"""

from pathlib import Path
from typing import final

import numpy as np
import safetensors
import torch
from torch import Tensor

from casemate.data import ReadableImages
from casemate.errors import StoreError
from casemate.types import Images

TENSOR = "adversarial"
"""Name of the adversarial images in the file of a piece."""
_NONE = -1


@final
class AdversarialImages:
    """The first adversarial image of each of `images`, or else the clean image, float32 on the CPU."""

    def __init__(self, images: ReadableImages) -> None:
        self._images = images
        self._parts: list[Tensor | Path] = []
        self._part = np.full(len(images), _NONE, dtype=np.int32)
        self._row = np.zeros(len(images), dtype=np.int32)

    def __len__(self) -> int:
        return len(self._part)

    def add(self, places: np.ndarray, part: Tensor | Path) -> None:
        """Add the adversarial images of the images at `places`: a tensor, or the file of a piece that holds them."""
        if len(places):
            self._part[places], self._row[places] = len(self._parts), np.arange(len(places))
            self._parts.append(part)

    def read(self, positions: slice | Tensor) -> Images:
        """The adversarial images at some positions, in that order. Raises `StoreError` for a piece that is gone."""
        clean, _ = self._images.read(positions).tensors()
        found = clean.detach().cpu().clone()  # `tensors` may return the images' own memory
        chosen = positions if isinstance(positions, slice) else positions.cpu().numpy()
        part, row = self._part[chosen], self._row[chosen]
        for number in np.unique(part[part != _NONE]):
            places = torch.from_numpy(np.flatnonzero(part == number))
            found[places] = _rows(self._parts[number], torch.from_numpy(row[part == number]))
        return found

    def whole(self) -> Images:
        """All of them, `(n, channels, height, width)`."""
        return self.read(slice(0, len(self)))


def _rows(part: Tensor | Path, rows: Tensor) -> Tensor:
    if isinstance(part, Tensor):
        return part[rows.long()]
    try:
        with safetensors.safe_open(part, framework="pt") as opened:
            return opened.get_tensor(TENSOR)[rows.long()]
    except (OSError, safetensors.SafetensorError) as error:
        raise StoreError(
            f"{part}, a piece of the evaluation, is gone or damaged ({error}); evaluate again, which computes it anew"
        ) from error
