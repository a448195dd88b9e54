"""Saving and loading of models: weights as safetensors, and a JSON sidecar; loading executes no code.

`NAME.safetensors` contains the tensors; `NAME.json` describes them: architecture, data set, classes, recipe, seed,
metrics, version of casemate, and the SHA-256 of the weights file. Pickles are rejected unopened.
"""

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import safetensors.torch
import torch
from torch import nn

from casemate._version import __version__
from casemate.arrays import UnsoundError, is_archive, is_pickle, parse_safetensors
from casemate.errors import ModelError, SettingError, kind_of
from casemate.files import as_path, read_file, read_json, write_bytes, write_json
from casemate.models.classifier import Classifier
from casemate.models.given import as_classifier
from casemate.models.registry import create, names

_SCHEMA = 1
_SMALL = 1 << 24
"""Largest number of pixels times classes for which a network that does not support the meta device is built without a
check of its size; a dense layer of that many float32 weights takes 64 MB."""

_OWN = (
    "For a network of your own write a function without arguments that builds it, loads its weights and returns it, "
    "such as load() in mine.py, and give mine:load as the model; or one that only builds it, and --weights FILE"
)
"""What to do with weights that `save` did not write."""


@final
@dataclass(frozen=True, kw_only=True)
class ModelMetadata:
    """Description of a saved model, besides its weights."""

    architecture: str
    """Name of a registered network; see `casemate.models.registry`."""
    dataset: str
    """Name of the data set that the model was trained on."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """Settings of the training, in types that JSON can express."""
    seed: int = 0
    """Seed of the training."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Results such as accuracies, by name, in types that JSON can express."""


def sidecar_of(path: Path) -> Path:
    """The path of the JSON file that belongs to a weights file."""
    return path.with_suffix(".json")


def check_storable(model: Classifier) -> None:
    """Raise `ModelError` for a model that `save` cannot store: `output` is a function, or an extra state no tensor."""
    if callable(model.output):
        raise ModelError("a model with a function as output= cannot be saved; expected an index, a key or a name")
    for name, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise ModelError(
                f"the extra state {name.removeprefix('network.')} is no tensor, and cannot be saved; return tensors "
                "from get_extra_state"
            )


def save(model: nn.Module, path: Path | str, description: ModelMetadata, *, half: bool = False) -> Path:
    """Write `path` (ending in .safetensors) and its sidecar, each whole or not at all; return `path`.

    With `half` the numbers are stored in float16, in half the space; the model that is loaded computes in float32 with
    the rounded weights.

    Raises `ModelError` for another ending, and for a model whose input shape and classes are not known, whose `output`
    is a function, or that has an extra state which is no tensor; `StoreError` if a file cannot be written.
    """
    model, path = as_classifier(model), as_path(path)
    if not isinstance(description, ModelMetadata):
        raise SettingError(f"description is {kind_of(description)}; expected casemate.models.ModelMetadata(...)")
    check_storable(model)
    if path.suffix != ".safetensors":
        raise ModelError(f"{path}: weights are saved as .safetensors; choose a name with that ending")
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if half:
        tensors = {name: each.half() if each.is_floating_point() else each for name, each in tensors.items()}
        if not all(bool(each.isfinite().all()) for each in tensors.values()):
            raise ModelError("a model with numbers beyond 65,504, the largest of float16; save it without half=True")
    raw = safetensors.torch.save(tensors)
    sidecar = {
        "schema": _SCHEMA,
        "architecture": description.architecture,
        "input_shape": list(model.input_shape),
        "bounds": list(model.bounds),
        "normalised": model.mean is not None,
        "classes": list(model.classes),
        **({} if model.output is None else {"output": model.output}),
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


def load(path: Path | str, *, architecture: str | None = None) -> tuple[Classifier, ModelMetadata]:
    """Load a model saved by `save`, in evaluation mode; nothing in the file is executed.

    Args:
        path: the .safetensors file; its JSON sidecar must be in the same folder.
        architecture: the expected network; None accepts any.

    Raises:
        ModelError: the file is not safetensors, the sidecar is missing or invalid, or checksum or architecture do not
            match.
    """
    path = as_path(path)
    raw = read_file(path, ModelError, "a .safetensors file written by casemate")
    tensors = _tensors(path, raw)
    if not sidecar_of(path).is_file():
        raise ModelError(
            f"{sidecar_of(path)} is missing: {path.name} has weights only, and that file names their network. {_OWN}"
        )
    sidecar = read_json(sidecar_of(path), ModelError)
    try:
        if sidecar["schema"] != _SCHEMA:
            raise ModelError(f"{sidecar_of(path)}: schema {sidecar['schema']}, this version reads {_SCHEMA}")
        digest = hashlib.sha256(raw).hexdigest()
        if digest != sidecar["sha256"]:
            raise ModelError(
                f"{path} does not match its sidecar: SHA-256 {digest[:16]}..., expected {sidecar['sha256'][:16]}...; "
                "one of the files was changed or copied without the other"
            )
        named = sidecar["architecture"]
        if architecture is not None and architecture != named:
            raise ModelError(
                f"{path} contains a {named}, but a {architecture} is expected; choose the matching checkpoint"
            )
        if named not in names():
            raise ModelError(
                f"{path} contains a {named}, which is not registered here; known: {', '.join(names())}. If that is a "
                f"model of your own, give it with these weights: {named} --weights {path}"
            )
        _check_sidecar(sidecar)
        description = ModelMetadata(
            architecture=named,
            dataset=sidecar["dataset"],
            recipe=sidecar["recipe"],
            seed=sidecar["seed"],
            metrics=sidecar["metrics"],
        )
        model = _network(path, sidecar, tensors)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ModelError(f"{sidecar_of(path)} is not a valid sidecar: {error!r}") from error
    model.load_state_dict(tensors)
    return model.eval(), description


def _check_sidecar(sidecar: dict[str, Any]) -> None:
    """Raise `ValueError` unless the fields of a sidecar have valid types and values."""
    shape, classes, bounds = sidecar["input_shape"], sidecar["classes"], sidecar["bounds"]
    valid = {
        "input_shape": len(shape) == 3 and all(type(size) is int and size >= 1 for size in shape),
        "classes": isinstance(classes, list) and all(isinstance(name, str) for name in classes),
        "bounds": len(bounds) == 2 and all(map(math.isfinite, bounds)) and bounds[0] < bounds[1],
        "normalised": isinstance(sidecar["normalised"], bool),
        "output": sidecar.get("output") is None or type(sidecar["output"]) in (int, str),
        "seed": type(sidecar["seed"]) is int,
        "dataset": isinstance(sidecar["dataset"], str),
        "recipe": isinstance(sidecar["recipe"], dict),
        "metrics": isinstance(sidecar["metrics"], dict),
    }
    wrong = [name for name, holds in valid.items() if not holds]
    if wrong:
        raise ValueError(f"invalid {', '.join(wrong)}: {', '.join(str(sidecar[name])[:100] for name in wrong)}")


def _network(path: Path, sidecar: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Classifier:
    """Build the classifier that a sidecar describes, if `tensors` fit its weights; they are not loaded into it yet.

    It is first built on the meta device, so that an invalid sidecar cannot exhaust the memory. Raises `ModelError`.
    """
    shape, classes = tuple(sidecar["input_shape"]), tuple(sidecar["classes"])

    def build(device: str) -> Classifier:
        with torch.device(device):
            model = create(sidecar["architecture"], input_shape=shape, classes=classes)
        if sidecar["normalised"]:
            model.mean, model.std = tensors["mean"].to(device), tensors["std"].to(device)
        low, high = sidecar["bounds"]
        model.bounds, model.output = (float(low), float(high)), sidecar.get("output")
        return model

    try:
        try:
            planned = build("meta")
        except (RuntimeError, NotImplementedError):
            if math.prod(shape) * len(classes) > _SMALL:
                raise
            planned = build("cpu")  # a registered network that does not support the meta device
        _check_weights(planned, tensors, path)
        return build("cpu")
    except RuntimeError as error:
        raise ModelError(
            f"{path}: a {sidecar['architecture']} cannot be built for the images of shape {shape} and {len(classes)} "
            f"classes in its sidecar: {error}"
        ) from error


def _tensors(path: Path, raw: bytes) -> dict[str, torch.Tensor]:
    """The tensors by name in `raw`, the bytes of the safetensors file at `path`.

    Raises `ModelError` for a pickle, and for an incomplete or damaged file.
    """
    if is_pickle(raw) or is_archive(raw):
        raise ModelError(
            f"{path} is a pickle (or a PyTorch .pt file), which is not loaded, since it could execute code. {_OWN}"
        )
    try:
        return parse_safetensors(raw)
    except UnsoundError as error:
        raise ModelError(f"{path} is not a complete safetensors file: {error}") from error


def _check_weights(model: Classifier, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Raise `ModelError` unless the tensors have the weights' names and shapes, and mean and std are valid."""
    expected = model.state_dict()
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    wrong = [name for name in expected.keys() & tensors.keys() if expected[name].shape != tensors[name].shape]
    if missing or extra or wrong:
        raise ModelError(
            f"{path} contains the weights of another network: missing {missing[:3]}, unexpected {extra[:3]}, "
            f"of another shape {sorted(wrong)[:3]}"
        )
    mean, std = tensors.get("mean"), tensors.get("std")
    channels = (1, model.input_shape[0], 1, 1)
    sizes = {channels, (1, 1, 1, 1)}
    if mean is not None and std is not None:
        finite = bool(mean.isfinite().all() and std.isfinite().all() and (std > 0).all())
        if not {tuple(mean.shape), tuple(std.shape)} <= sizes or not finite:
            raise ModelError(f"{path}: expected a finite mean and a positive std for each of {channels[1]} channels")
