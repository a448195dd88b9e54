"""The state of a training between epochs, as one safetensors file written after every epoch.

Random numbers need no place in it: every epoch starts its own streams from (seed, epoch). So an epoch that is run
after a resume sees what it would have seen without one, bit for bit (on the same machine and number of threads).
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import safetensors.torch
import torch
from torch import Tensor, nn

from casemate.arrays import UnsoundError, read_safetensors
from casemate.errors import TrainingError
from casemate.files import write_bytes

Weights = dict[str, Tensor]


def snapshot(model: nn.Module) -> Weights:
    """A copy of the parameters and buffers of `model`, on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def checksum(text: str, weights: Weights) -> str:
    """SHA-256 of `text` and of the names and values of `weights`, in the order of the names."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())  # NumPy has no bfloat16
    return digest.hexdigest()


@final
@dataclass
class TrainingState:
    """Everything that the next epoch depends on, and everything worth keeping of the ones before."""

    fingerprint: str
    """Identifies settings, model and data: a state of another training is not resumed."""
    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best_loss: float = float("inf")
    best: Weights | None = None
    stopped_at: int | None = None
    """The epoch after which early stopping ended, or would have ended, the training."""
    average: Weights | None = None
    kept: dict[int, Weights] = field(default_factory=dict)

    def write(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Write the state whole or not at all."""
        tensors: Weights = {f"model/{name}": tensor for name, tensor in snapshot(model).items()}
        for number, slot in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{name}": torch.as_tensor(value) for name, value in slot.items()}
        for title, weights in (("best", self.best), ("average", self.average)):
            tensors |= {f"{title}/{name}": tensor for name, tensor in (weights or {}).items()}
        for epoch, weights in self.kept.items():
            tensors |= {f"kept/{epoch}/{name}": tensor for name, tensor in weights.items()}
        facts = {
            "fingerprint": self.fingerprint,
            "epoch": self.epoch,
            "history": self.history,
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss,
            "stopped_at": self.stopped_at,
        }
        # clones, since the best and a kept epoch may share memory, which the format does not hold
        own = {name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
        text = json.dumps(facts)
        write_bytes(path, safetensors.torch.save(own, metadata={"state": text, "sha256": checksum(text, own)}))


def read_state(path: Path, fingerprint: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainingState:
    """Load `path` into `model` and `optimizer` and return the rest.

    Raises `TrainingError` if the file is damaged or belongs to another training.
    """
    try:
        tensors, metadata = read_safetensors(path)
        if metadata["sha256"] != checksum(metadata["state"], tensors):
            raise ValueError("its checksum does not match")
        facts = json.loads(metadata["state"])
        if facts["fingerprint"] != fingerprint:
            raise TrainingError(f"{path} belongs to a training with other settings, model or data; use another path")
        return _restored(facts, tensors, model, optimizer)
    except (UnsoundError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise TrainingError(
            f"{path} is not a whole training checkpoint ({error}); delete it to start afresh"
        ) from error


def _restored(
    facts: dict[str, Any], tensors: Weights, model: nn.Module, optimizer: torch.optim.Optimizer
) -> TrainingState:
    """Fill `model` and `optimizer`; return the rest."""
    fingerprint = facts["fingerprint"]
    whole = [facts["epoch"], facts["best_epoch"], *([] if facts["stopped_at"] is None else [facts["stopped_at"]])]
    if not all(type(each) is int and each >= 0 for each in whole) or not isinstance(facts["best_loss"], int | float):
        raise ValueError("its epochs and losses are not numbers")
    if not isinstance(facts["history"], list) or len(facts["history"]) != facts["epoch"]:
        raise ValueError("its history is not a row per epoch")
    state = TrainingState(
        fingerprint=fingerprint,
        epoch=facts["epoch"],
        history=facts["history"],
        best_epoch=facts["best_epoch"],
        best_loss=facts["best_loss"],
        stopped_at=facts["stopped_at"],
    )
    parts: dict[str, Weights] = {}
    slots: dict[int, Weights] = {}
    for name, tensor in tensors.items():
        title, rest = name.split("/", 1)
        if title == "optimizer":
            number, entry = rest.split("/")
            slots.setdefault(int(number), {})[entry] = tensor
        elif title == "kept":
            epoch, entry = rest.split("/", 1)
            state.kept.setdefault(int(epoch), {})[entry] = tensor
        else:
            parts.setdefault(title, {})[rest] = tensor
    model.load_state_dict(parts["model"])
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    state.best, state.average = parts.get("best"), parts.get("average")
    return state
