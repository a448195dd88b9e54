"""SHA-256 of models and images, by which an evaluation and a record name what they are about."""

import hashlib

import safetensors.torch
import torch
from torch import Tensor, nn

from casemate.data import LabelledImages, ReadableImages, hash_of_images
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
    if isinstance(images, LabelledImages) and not as_floats:
        return hash_of_images([images.pixels], images.labels)

    def part(start: int) -> Tensor:
        found = images.read(slice(start, min(start + _PART, len(images))))
        return found.tensors()[0] if as_floats else found.pixels

    return hash_of_images(map(part, range(0, max(1, len(images)), _PART)), images.labels)
