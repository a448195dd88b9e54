"""SHA-256 of models and images, by which an evaluation and a record name what they are about."""

import hashlib

import safetensors.torch
import torch
from torch import Tensor, nn

from casemate.data import LabelledImages
from casemate.models import as_classifier


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of a model's weights and buffers, hexadecimal: that of the file with them that `casemate.save` writes."""
    state = {name: value for name, value in as_classifier(model).state_dict().items() if isinstance(value, Tensor)}
    # clones, since tied weights share memory, which the format does not allow
    tensors = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    return hashlib.sha256(safetensors.torch.save(tensors)).hexdigest()


def fingerprint_of_images(images: LabelledImages) -> str:
    """SHA-256 of images and labels with the pixels' type and shape, hexadecimal, which identifies a data set."""
    digest = hashlib.sha256(f"{images.pixels.dtype} {tuple(images.pixels.shape)}".encode())
    for part in (images.pixels, images.labels):
        digest.update(part.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
