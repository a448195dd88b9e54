"""SHA-256 of models and images, by which an evaluation and a record name what they are about."""

import hashlib
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from casemate.arrays import bytes_of
from casemate.data import LabelledImages, ReadableImages
from casemate.models import as_classifier

_PART = 500
"""Number of images that are hashed at a time, if they are not in memory."""


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of a model's weights and buffers, hexadecimal: that of the file with them that `casemate.save` writes."""
    state = {name: value for name, value in as_classifier(model).state_dict().items() if isinstance(value, Tensor)}
    # clones, since tied weights share memory, which the format does not allow
    tensors = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    return hashlib.sha256(safetensors.torch.save(tensors)).hexdigest()


def fingerprint_of_images(images: ReadableImages, *, as_floats: bool = False) -> str:
    """SHA-256 of images and labels with the pixels' type and shape, hexadecimal, which identifies a data set.

    With `as_floats` it is that of the pixels as float32. Images that are not in memory are read part by part.
    """
    if as_floats or not isinstance(images, LabelledImages):
        return _of_parts(images, as_floats=as_floats)
    digest = hashlib.sha256(f"{images.pixels.dtype} {tuple(images.pixels.shape)}".encode())
    for part in (images.pixels, images.labels):
        _add(digest, part)
    return digest.hexdigest()


def _add(digest: Any, tensor: Tensor) -> None:
    digest.update(bytes_of(tensor))


def _of_parts(images: ReadableImages, *, as_floats: bool) -> str:
    """`fingerprint_of_images`, of which a part at a time is in memory."""

    def pixels(at: slice) -> Tensor:
        part = images.read(at)
        return part.tensors()[0] if as_floats else part.pixels

    first = pixels(slice(0, 1))
    digest = hashlib.sha256(f"{first.dtype} {(len(images), *first.shape[1:])}".encode())
    for start in range(0, len(images), _PART):
        _add(digest, pixels(slice(start, min(start + _PART, len(images)))))
    _add(digest, images.labels)
    return digest.hexdigest()
