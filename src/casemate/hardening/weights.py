"""The weights of a network as its own state dict, and their file, which plain PyTorch can load."""

import hashlib
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from casemate.files import write_bytes
from casemate.models import Classifier


def network_weights(model: Classifier) -> dict[str, Tensor]:
    """The state dict of the network inside a classifier: weights and buffers under the names that the network has.

    They are copies, on the CPU; tied weights are under each of their names.
    """
    state = model.network.state_dict()
    found = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in found.items()}


def write_network_weights(model: Classifier, path: Path) -> str:
    """Write `network_weights` as safetensors, whole or not at all, and return the file's SHA-256.

    Raises `StoreError`.
    """
    raw = safetensors.torch.save(network_weights(model))
    write_bytes(path, raw)
    return hashlib.sha256(raw).hexdigest()
