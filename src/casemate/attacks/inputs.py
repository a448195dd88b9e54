"""Images and labels as callers give them to attacks, and whether a model takes them."""

import torch
from torch import Tensor

from casemate.attacks.prepare import prepare_images
from casemate.data import Array, as_tensor, dimensions_remedy, to_float
from casemate.errors import ModelError, ShapeError
from casemate.models import Classifier
from casemate.norms import Bounds


def as_images(given: Array) -> Tensor:
    """Images as a tensor of the type that they have; bytes (uint8) are scaled to [0, 1]."""
    images = as_tensor(given, "images")
    return to_float(images, images.device) if images.dtype == torch.uint8 else images


_CHANNELS = (1, 3, 4)
"""Usual numbers of channels."""
BEYOND = 9e-7
"""By how much pixels may exceed the bounds, as rounding leaves them; they count as at the bound."""


def _remedy(images: Tensor, shape: tuple[int, ...] | None) -> str:
    """The end of an error about images that are not of `shape` each: what to write instead, if that is clear."""
    channels_last = images.ndim == 4 and shape is not None and (*images.shape[3:], *images.shape[1:3]) == shape
    if channels_last:
        return ": images.permute(0, 3, 1, 2), since they have their channels last"
    return dimensions_remedy(tuple(images.shape))


def check_images(model: Classifier, images: Tensor, labels: Tensor, *, start: int | None = None) -> None:
    """Raise `ShapeError` unless images and labels have the type, shape and range that the model takes.

    See `check_pixels` for the images.
    """
    check_pixels(model, images, start)
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise ShapeError(f"labels of type {labels.dtype} and shape {tuple(labels.shape)}; expected {len(images)} int64")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(model.classes):
        raise ShapeError(
            f"labels from {int(labels.min())} to {int(labels.max())}; with {len(model.classes)} classes they run from "
            f"0 to {len(model.classes) - 1}: number the classes from 0, in the order of the model's outputs"
        )


def check_pixels(model: Classifier, images: Tensor, start: int | None = None) -> None:
    """Raise `ShapeError` unless images have the type, shape and range that the model takes.

    A model whose image shape or number of classes is not known yet is called to find them out; this may raise
    `ModelError`. With `start`, the position of the first image in the data, an error about pixels names the image.
    """
    shape = model.interface["input_shape"]
    if images.ndim != 4 or (shape is not None and tuple(images.shape[1:]) != shape):
        wanted = "channels, height, width" if shape is None else ", ".join(map(str, shape))
        raise ShapeError(f"images of shape {tuple(images.shape)}; expected (n, {wanted}){_remedy(images, shape)}")
    if not images.is_floating_point():
        raise ShapeError(
            f"images of type {images.dtype}; expected bytes (uint8), or floating point within {model.bounds}"
        )
    if len(images):
        _check_range(images, model.bounds, start)
    try:
        model.infer(prepare_images(images[:2], model))
    except ModelError as error:
        if images.shape[1] in _CHANNELS or images.shape[3] not in _CHANNELS:
            raise
        raise ModelError(f"{error}. The images seem to have their channels last: images.permute(0, 3, 1, 2)") from error


def _check_range(images: Tensor, bounds: Bounds, start: int | None) -> None:
    """Raise `ShapeError` unless all pixels are finite and within the bounds, up to the rounding of float32."""
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
