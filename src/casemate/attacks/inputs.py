"""Images and labels as callers give them to attacks, and whether a model takes them."""

import torch
from torch import Tensor

from casemate.attacks.prepare import COMPARED_IMAGES, prepare_images
from casemate.data import Array, ReadableImages, as_tensor, dimensions_remedy
from casemate.errors import ModelError, ShapeError
from casemate.models import Classifier, check_labels, check_range, check_shape, check_type, floats_within


def as_images(given: Array, model: Classifier) -> Tensor:
    """Images as a tensor of the type that they have; bytes (uint8) are scaled to [0, 1].

    Raises `ShapeError` for bytes if the model's bounds are others.
    """
    return floats_within(as_tensor(given, "images"), model.bounds)


_CHANNELS = (1, 3, 4)
"""Usual numbers of channels."""


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
    check_labels(labels, len(model.classes))


def check_first(model: Classifier, images: ReadableImages, count: int = COMPARED_IMAGES) -> Tensor:
    """The first `count` images on the model's device.

    Raises `ShapeError` unless they and their labels have the type, shape and range that the model takes.
    """
    few = images.read(slice(0, count))
    check_type(few.pixels, model.bounds)
    pixels, labels = few.tensors(model.device)
    check_images(model, pixels, labels)
    return pixels


def check_pixels(model: Classifier, images: Tensor, start: int | None = None) -> None:
    """Raise `ShapeError` unless images have the type, shape and range that the model takes.

    A model whose image shape or number of classes is not known yet is called to find them out; this may raise
    `ModelError`. With `start`, the position of the first image in the data, an error about pixels names the image.
    """
    check_shape(model, images, _remedy(images, model.interface["input_shape"]))
    if not images.is_floating_point():
        raise ShapeError(
            f"images of type {images.dtype}; expected bytes (uint8), or floating point within {model.bounds}"
        )
    if len(images):
        check_range(images, model.bounds, start)
    try:
        model.infer(prepare_images(images[:2], model))
    except ModelError as error:
        if images.shape[1] in _CHANNELS or images.shape[3] not in _CHANNELS:
            raise
        raise ModelError(f"{error}. The images seem to have their channels last: images.permute(0, 3, 1, 2)") from error
