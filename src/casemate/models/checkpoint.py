"""Saving and loading without executing anything: weights as safetensors, everything else as a JSON sidecar.

`NAME.safetensors` holds the tensors, `NAME.json` says what they are: architecture, data set, classes, recipe, seed,
metrics, code version, and the SHA-256 of the weights file. A pickle is refused, not opened.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from casemate import __version__
from casemate.errors import ModelError
from casemate.files import read_json, write_bytes, write_json
from casemate.models.classifier import Classifier
from casemate.models.registry import create, names

_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a saved model says of itself, besides its weights."""

    architecture: str
    dataset: str
    recipe: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)


def sidecar_of(path: Path) -> Path:
    """The JSON file beside a weights file."""
    return path.with_suffix(".json")


def save(model: Classifier, path: Path, description: Description) -> Path:
    """Write `path` (ending in .safetensors) and its sidecar, each whole or not at all; return `path`."""
    if path.suffix != ".safetensors":
        raise ModelError(f"{path}: weights are saved as .safetensors; choose a name with that ending")
    raw = safetensors.torch.save({name: tensor.contiguous() for name, tensor in model.state_dict().items()})
    sidecar = {
        "schema": _SCHEMA,
        "architecture": description.architecture,
        "input_shape": list(model.input_shape),
        "bounds": list(model.bounds),
        "normalised": model.mean is not None,
        "classes": list(model.classes),
        "dataset": description.dataset,
        "recipe": description.recipe,
        "seed": description.seed,
        "metrics": description.metrics,
        "casemate": __version__,
        "sha256": hashlib.sha256(raw).hexdigest(),
    }
    write_json(sidecar_of(path), sidecar)
    write_bytes(path, raw)
    return path


def load(path: Path, *, architecture: str | None = None) -> tuple[Classifier, Description]:
    """Load a model saved by `save`, in evaluation mode; nothing in the file is executed.

    Args:
        path: the .safetensors file; its JSON sidecar must lie beside it.
        architecture: refuse anything but this network (None: whatever the sidecar names).

    Raises:
        ModelError: not safetensors, no sidecar, a checksum or an architecture that does not match.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{path} does not exist; expected a .safetensors file written by casemate")
    raw = path.read_bytes()
    tensors = _tensors(path, raw)
    if not sidecar_of(path).is_file():
        raise ModelError(f"{sidecar_of(path)} is missing; {path.name} needs its sidecar to say what network it is")
    sidecar = read_json(sidecar_of(path), ModelError)
    try:
        if sidecar["schema"] != _SCHEMA:
            raise ModelError(f"{sidecar_of(path)}: schema {sidecar['schema']}, this version reads {_SCHEMA}")
        digest = hashlib.sha256(raw).hexdigest()
        if digest != sidecar["sha256"]:
            raise ModelError(
                f"{path} does not match its sidecar: SHA-256 {digest[:16]}..., expected {sidecar['sha256'][:16]}...; "
                "one of the two was changed or copied without the other"
            )
        named = sidecar["architecture"]
        if architecture is not None and architecture != named:
            raise ModelError(
                f"{path} holds a {named}, but a {architecture} is expected; choose the matching checkpoint"
            )
        if named not in names():
            raise ModelError(f"{path} holds a {named}, which is not registered here; known: {', '.join(names())}")
        description = Description(
            architecture=named,
            dataset=sidecar["dataset"],
            recipe=sidecar["recipe"],
            seed=sidecar["seed"],
            metrics=sidecar["metrics"],
        )
        channels, height, width = sidecar["input_shape"]
        model = create(named, input_shape=(channels, height, width), classes=tuple(sidecar["classes"]))
        if sidecar["normalised"]:
            model.mean, model.std = tensors["mean"], tensors["std"]
        low, high = sidecar["bounds"]
        model.bounds = (float(low), float(high))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{sidecar_of(path)} is not a sidecar of casemate: {error!r}") from error
    _fill(model, tensors, path)
    return model.eval(), description


def _tensors(path: Path, raw: bytes) -> dict[str, torch.Tensor]:
    if raw[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK"):
        raise ModelError(
            f"{path} is a pickle (or a PyTorch .pt file), which could execute code when opened, so it is not. "
            "Save the state dict as .safetensors and load that."
        )
    try:
        return safetensors.torch.load(raw)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ModelError(f"{path} is not a whole safetensors file: {error}") from error


def _fill(model: Classifier, tensors: dict[str, torch.Tensor], path: Path) -> None:
    expected = model.state_dict()
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    wrong = [name for name in expected.keys() & tensors.keys() if expected[name].shape != tensors[name].shape]
    if missing or extra or wrong:
        raise ModelError(
            f"{path} holds the weights of another network: missing {missing[:3]}, unexpected {extra[:3]}, "
            f"of another shape {sorted(wrong)[:3]}"
        )
    model.load_state_dict(tensors)
