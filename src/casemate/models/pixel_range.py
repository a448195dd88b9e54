"""Whether the pixels of images lie where a model's pixels do."""

import torch
from torch import Tensor

from casemate.data import to_float
from casemate.errors import ShapeError
from casemate.norms import Bounds
from casemate.types import Images

BEYOND = 9e-7
"""By how much pixels may exceed the bounds, as rounding leaves them; they count as at the bound."""


def check_range(images: Images, bounds: Bounds, start: int | None = None) -> None:
    """Raise `ShapeError` unless all pixels are finite and within the bounds, up to the rounding of float32.

    With `start`, the position of the first image in the data, the error names the image.
    """
    low, high = images.amin().item(), images.amax().item()
    beyond = max(bounds[0] - low, high - bounds[1])
    if beyond <= BEYOND:  # not so if a pixel is NaN, since then both are
        return
    finite = images.isfinite().flatten(1).all(1)
    if not finite.all():
        raise ShapeError(
            f"{int((~finite).sum())} of {len(images)} images have pixels that are not finite numbers, the first of "
            f"them image {(start or 0) + int(finite.long().argmin())}; leave them out, or look at what made them"
        )
    seen = f"pixels from {low:.4g} to {high:.4g}, but the model's bounds are {bounds}"
    if start is not None:
        outside = ((images < bounds[0] - BEYOND) | (images > bounds[1] + BEYOND)).flatten(1).any(1)
        seen += f" (image {start + int(outside.long().argmax())} is the first)"
    if beyond < 0.01 * (bounds[1] - bounds[0]):
        raise ShapeError(
            f"{seen}: {beyond:.1g} beyond, as resizing makes them. Clip them: images.clamp({bounds[0]:g}, "
            f"{bounds[1]:g})"
        )
    raise ShapeError(
        f"{seen}. Scale the images (bytes by 1/255) and put any normalisation into the Classifier (mean=, std=), not "
        "into the images: Classifier(network, mean=..., std=...). If the pixels are meant to have this range, give it "
        "as bounds="
    )


def check_type(pixels: Tensor, bounds: Bounds) -> None:
    """Raise `ShapeError` for bytes, which stand for pixels within [0, 1], where a model's bounds are others."""
    if pixels.dtype == torch.uint8 and tuple(bounds) != (0, 1):
        low, high = bounds
        scaled = "" if (low, high) == (0, 255) else f" / 255 * {high - low:g}{f' + {low:g}' if low > 0 else ''}"
        scaled += f" - {-low:g}" if low < 0 else ""
        raise ShapeError(
            f"the images are bytes (uint8), which stand for pixels within [0, 1], but the model's bounds are {bounds}; "
            f"give floating-point numbers within these, such as images.float(){scaled}, or a Classifier for [0, 1]"
        )


def floats_within(pixels: Tensor, bounds: Bounds) -> Images:
    """Pixels as floating-point numbers: bytes scaled to [0, 1], others as they are. Raises as `check_type`."""
    check_type(pixels, bounds)
    return to_float(pixels, pixels.device) if pixels.dtype == torch.uint8 else pixels


def check_part(pixels: Tensor, bounds: Bounds, part: str) -> None:
    """Raise `ShapeError`, which names the part of the images, unless they pass `check_type` and `check_range`."""
    try:
        check_type(pixels, bounds)
        if pixels.is_floating_point():
            check_range(pixels, bounds, 0)
    except ShapeError as error:
        raise ShapeError(f"{part} images: {error}") from error
