"""Training checkpoints: the state between two epochs, in one safetensors file that is rewritten after every epoch.

The state contains no random state, since every epoch seeds its own from (seed, epoch). A resumed training therefore
continues bit for bit as without the interruption (on the same machine and number of threads).
"""

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import safetensors.torch
import torch
from torch import Tensor, nn

from casemate.arrays import UnsoundError, bytes_of, read_safetensors
from casemate.errors import TrainingError
from casemate.files import write_bytes
from casemate.training.extra_state import as_tensors, from_tensors, load_state

Weights = dict[str, Any]
"""A state dict: tensors by name, and the extra state of modules, which may be anything."""


def snapshot(model: nn.Module) -> Weights:
    """A copy of the state dict of `model` (weights, buffers, extra state), on the CPU."""
    return copied_weights(model.state_dict(), "cpu")


def copied_weights(weights: Mapping[str, Any], device: torch.device | str | None = None) -> Weights:
    """A copy of a state dict, of its extra state too, with its tensors on `device`; None for where they are."""
    return {
        name: value.detach().to(device=device, copy=True) if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in weights.items()
    }


def checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of `text` and of the names and values of `tensors`, sorted by name."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def undone_epochs(history: Sequence[Mapping[str, Any]]) -> list[int]:
    """The epochs of a training that its guard undid, from 1."""
    return [row["epoch"] for row in history if row.get("rolled_back", False)]


@final
@dataclass
class TrainingState:
    """What a checkpoint holds besides the model's weights and the optimiser's state: results of the epochs so far."""

    fingerprint: str
    """Hash of settings, initial model and data, so that a checkpoint of another training is not resumed."""
    epoch: int = 0
    """Number of epochs finished."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One row per finished epoch; see `TrainResult.history`."""
    best_epoch: int = 0
    """Epoch of the best value of the monitor, up to `stopped_at`; 0 before the first epoch."""
    best_value: float = float("inf")
    """The value at `best_epoch`, lower is better: the validation loss, or one minus robust accuracy."""
    best: Weights | None = None
    """Weights after `best_epoch`; None before the first epoch."""
    stopped_at: int | None = None
    """Epoch after which early stopping ended, or would have ended, the training; None if it has not."""
    robust_before: float = 0.0
    """With a guard: robust accuracy on the validation images before the first epoch."""
    average: Weights | None = None
    """Average of the weights; None without `TrainConfig.ema` or `swa_start`."""
    kept: dict[int, Weights] = field(default_factory=dict)
    """Weights after each of `TrainConfig.save_epochs` that is finished, by epoch."""

    def write(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Write a checkpoint of this state, the model's weights and the optimiser's state, whole or not at all.

        Raises `StoreError`, and `ModelError` for an extra state of the model that a file cannot hold.
        """
        tensors: dict[str, Tensor] = {f"model/{name}": each for name, each in as_tensors(snapshot(model)).items()}
        for number, slot in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{name}": torch.as_tensor(value) for name, value in slot.items()}
        for title, weights in (("best", self.best), ("average", self.average)):
            tensors |= {f"{title}/{name}": tensor for name, tensor in as_tensors(weights or {}).items()}
        for epoch, weights in self.kept.items():
            tensors |= {f"kept/{epoch}/{name}": tensor for name, tensor in as_tensors(weights).items()}
        entries = {
            "fingerprint": self.fingerprint,
            "epoch": self.epoch,
            "history": self.history,
            "best_epoch": self.best_epoch,
            "best_value": self.best_value,
            "stopped_at": self.stopped_at,
            "robust_before": self.robust_before,
        }
        # clones, since the format forbids tensors that share memory, as the best and a kept epoch may
        own = {name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
        text = json.dumps(entries)
        metadata = {"state": text, "sha256": checksum(text, own)}
        # not by `save_file`, which writes a temporary file of its own, and after a kill nobody knows whose it is
        write_bytes(path, safetensors.torch.save(own, metadata))


def read_state(path: Path, fingerprint: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainingState:
    """Load a checkpoint: its tensors into `model` and `optimizer`, the rest into the state that is returned.

    Raises `TrainingError` if the file is damaged or has another fingerprint than `fingerprint`.
    """
    try:
        tensors, metadata = read_safetensors(path)
        if metadata["sha256"] != checksum(metadata["state"], tensors):
            raise ValueError("its checksum does not match")
        entries = json.loads(metadata["state"])
        if entries["fingerprint"] != fingerprint:
            raise TrainingError(
                f"{path} belongs to a training with other settings, model, data or functions (or with functions that "
                "cannot be compared, such as those that use a lock); delete it to train from the start, or write to "
                "another path"
            )
        return _restored(entries, tensors, model, optimizer)
    except (UnsoundError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise TrainingError(
            f"{path} is not a complete training checkpoint ({error}); delete it to train from the start"
        ) from error


def _restored(
    entries: dict[str, Any], tensors: Mapping[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer
) -> TrainingState:
    """`read_state` from the parsed contents of the file: its JSON `entries` and its tensors by name.

    Raises `ValueError` for invalid entries.
    """
    fingerprint = entries["fingerprint"]
    whole = [
        entries["epoch"],
        entries["best_epoch"],
        *([] if entries["stopped_at"] is None else [entries["stopped_at"]]),
    ]
    numbers = [entries["best_value"], entries["robust_before"]]
    if not all(type(each) is int and each >= 0 for each in whole) or not all(type(n) in (int, float) for n in numbers):
        raise ValueError("its epochs and losses are not numbers")
    if not isinstance(entries["history"], list) or len(entries["history"]) != entries["epoch"]:
        raise ValueError("its history is not a row per epoch")
    state = TrainingState(
        fingerprint=fingerprint,
        epoch=entries["epoch"],
        history=entries["history"],
        best_epoch=entries["best_epoch"],
        best_value=entries["best_value"],
        stopped_at=entries["stopped_at"],
        robust_before=entries["robust_before"],
    )
    parts: dict[str, Weights] = {}
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in from_tensors(tensors).items():
        title, rest = name.split("/", 1)
        if title == "optimizer":
            number, entry = rest.split("/")
            slots.setdefault(int(number), {})[entry] = tensor
        elif title == "kept":
            epoch, entry = rest.split("/", 1)
            state.kept.setdefault(int(epoch), {})[entry] = tensor
        else:
            parts.setdefault(title, {})[rest] = tensor
    load_state(model, parts["model"])
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    state.best, state.average = parts.get("best"), parts.get("average")
    return state
