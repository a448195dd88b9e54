"""What is no tensor in a state dict: the extra state of modules, which `get_extra_state` may return as any object.

It is copied with the weights. In files it is bytes that are read without running code.
"""

import copy
import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from casemate.errors import ModelError, kind_of

_MARK = "#object"
"""The end of the names under which files hold what is no tensor."""


def others(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a state dict that are no tensors."""
    return {name: value for name, value in weights.items() if not isinstance(value, Tensor)}


def load_state(model: nn.Module, weights: Mapping[str, Any]) -> None:
    """Load a state dict; a module that keeps the extra state it is given, and changes it, leaves `weights` alone."""
    model.load_state_dict(dict(weights) | copy.deepcopy(others(weights)))


def as_tensors(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict for a file that holds tensors only; `from_tensors` reads it.

    Raises `ModelError` for an object that could not be read without running code.
    """
    made = {name: value for name, value in weights.items() if isinstance(value, Tensor)}
    for name, value in others(weights).items():
        buffer = io.BytesIO()
        try:
            torch.save(value, buffer)
            _read(buffer.getvalue())
        except Exception as error:  # whatever the object's own code raises
            raise ModelError(
                f"the extra state {name.removeprefix('network.')} ({kind_of(value)}) cannot be kept in a file, from "
                f"which nothing is run ({type(error).__name__}); expected tensors, numbers, texts, and lists and "
                "dictionaries of them from get_extra_state, or a training without a checkpoint"
            ) from error
        made[name + _MARK] = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
    return made


def from_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state dict that `as_tensors` made the tensors of. Raises `ValueError` for bytes that are not its."""
    return {
        name.removesuffix(_MARK): _object(tensor) if name.endswith(_MARK) else tensor
        for name, tensor in tensors.items()
    }


def _object(tensor: Tensor) -> Any:
    try:
        return _read(tensor.numpy().tobytes())
    except Exception as error:  # PyTorch's reader raises many kinds
        raise ValueError(f"an extra state is damaged ({type(error).__name__})") from error


def _read(raw: bytes) -> Any:
    return torch.load(io.BytesIO(raw), weights_only=True, map_location="cpu")
