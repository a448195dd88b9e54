"""Images and perturbations as PNG pictures inside a page, and pictures that a visitor uploads as images."""

import io
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from casemate.arrays import UnsoundError
from casemate.data import to_float
from casemate.data.sources.pictures import decode
from casemate.data.sources.resizing import Resizing
from casemate.errors import DataError
from casemate.norms import Bounds
from casemate.report.page import data_uri
from casemate.types import Images

MOST_BYTES = 10_000_000
"""Largest file that a visitor may upload."""
_LOWER, _RAISED = (33, 102, 172), (178, 24, 43)
"""Colours of a pixel that became darker, and brighter; white is unchanged. Distinct without colour vision."""


def image_uri(image: Images, bounds: Bounds) -> str:
    """An image `(1, channels, height, width)` as a data URI."""
    low, high = bounds
    return _uri(_rows(((image - low) / (high - low)).clamp(0, 1)))


def perturbation_uri(change: Tensor) -> str:
    """A perturbation `(1, channels, height, width)`, scaled to its largest change, as a data URI.

    A single channel is blue where it became darker and red where it became brighter; of several, each channel is shown
    in its own colour, half bright where it is unchanged.
    """
    largest = change.abs().max().clamp(min=torch.finfo(change.dtype).tiny)
    share = change / largest
    if change.shape[1] > 1:
        return _uri(_rows((share + 1) / 2))
    strength = share[0, 0].abs().unsqueeze(2)
    colours = torch.where(share[0, 0].unsqueeze(2) < 0, torch.tensor(_LOWER), torch.tensor(_RAISED))
    return _uri(((1 - strength) * 255 + strength * colours).round().to(torch.uint8).numpy())


def _rows(image: Images) -> np.ndarray:
    """The bytes of an image within [0, 1], `(height, width)` or `(height, width, 3)`."""
    levels = (image[0] * 255).round().to(torch.uint8)
    return levels[0].numpy() if len(levels) < 3 else levels[:3].permute(1, 2, 0).contiguous().numpy()


def _uri(pixels: np.ndarray) -> str:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return data_uri("image/png", out.getvalue())


def read_upload(raw: bytes, shape: Sequence[int], bounds: Bounds) -> tuple[Images, list[str]]:
    """A picture file as an image for a model, and what was done to it, in words.

    Args:
        raw: the bytes of the file.
        shape: channels, height and width that the model takes; the picture is stretched to them.
        bounds: of the model's pixels.

    Raises:
        DataError: it is no picture, damaged, too large, transparent or animated, or the model takes other images than
            grey or colour ones.
    """
    channels, height, width = shape
    if channels not in (1, 3):
        raise DataError(f"the model takes images of {channels} channels; a picture has 1 or 3")
    if len(raw) > MOST_BYTES:
        raise DataError(f"the file has {len(raw):,} bytes; expected {MOST_BYTES:,} at most: scale the picture down")
    done = Counter[str]()
    try:
        pixels = decode(raw, Resizing(size=(height, width), channels=3 if channels == 3 else 1), done)
    except UnsoundError as error:
        raise DataError(f"cannot read the picture: {error}") from error
    low, high = bounds
    return to_float(pixels) * (high - low) + low, list(done)
