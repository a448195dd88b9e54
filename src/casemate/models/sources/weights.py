"""Weights of a network of the user's own: a .safetensors file or a state dict of PyTorch, read without running code."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from casemate.arrays import UnsoundError, parse_safetensors
from casemate.errors import ModelError
from casemate.files import read_file
from casemate.models.classifier import Classifier
from casemate.models.sources.facts import ModelFacts

PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""First bytes of a pickle, by its protocol."""
_INSIDE = ("state_dict", "model_state_dict", "model", "network", "net", "weights")
"""Names under which checkpoints hold the state dict beside other values."""
_PREFIXES = ("module.", "_orig_mod.", "network.")
"""What wrappers put before the names of weights: data parallelism, torch.compile, and `Classifier`."""
_NORMALISATION = {"mean", "std"}
"""Buffers of a `Classifier` beside its network."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name.

    Raises `ModelError` if it cannot be read as .safetensors or, by `torch.load(weights_only=True)`, as a state dict.
    """
    raw = read_file(path, ModelError, "weights: a .safetensors file, or a state dict saved by torch.save")
    if raw[:2] == b"PK" or raw[:2] in PICKLES:
        return _state_dict(path)
    try:
        return parse_safetensors(raw)
    except UnsoundError as error:
        raise ModelError(
            f"{path} is neither a complete .safetensors file ({error}) nor a state dict saved by torch.save"
        ) from error


def bare_name(name: str) -> str:
    """The name of a weight without what wrappers put before it."""
    for prefix in _PREFIXES * 2:  # a wrapper may be wrapped
        name = name.removeprefix(prefix)
    return name


def load_weights(network: nn.Module, path: Path) -> ModelFacts:
    """Load a weights file into a network, or into a `Classifier` or its network; every weight must be there.

    Prefixes that wrappers put before all names are removed.

    Returns the mean and std that the file has beside the weights of a bare network, if it is that of a `Classifier`; a
    `Classifier` without its own gets them.

    Raises `ModelError`.
    """
    tensors = read_weights(path)
    target = network
    if isinstance(network, Classifier) and tensors.keys() != network.state_dict().keys():
        target = network.network
    expected = target.state_dict()
    beside = {name: tensors[name] for name in _NORMALISATION if name in tensors and name not in expected}
    named = {name: each for name, each in tensors.items() if name not in beside}
    for prefix in _PREFIXES * 2:  # a wrapper may be wrapped
        if named and not named.keys() <= expected.keys() and all(name.startswith(prefix) for name in named):
            named = {name.removeprefix(prefix): each for name, each in named.items()}
    if named.keys() != expected.keys() or beside.keys() not in (set(), _NORMALISATION):
        beside, named = {}, {**named, **beside}
    tensors = named
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or extra:
        raise ModelError(
            f"{path} has the weights of another network than the one that was built: missing {missing[:3]}, unexpected "
            f"{extra[:3]}; give the weights that belong to it with --weights"
        )
    wrong = [name for name in expected if expected[name].shape != tensors[name].shape]
    if wrong:
        first = wrong[0]
        raise ModelError(
            f"{path}: {first} has the shape {tuple(tensors[first].shape)}, but the network that was built has "
            f"{tuple(expected[first].shape)}; build it for as many classes and channels, and for images of that size"
        )
    try:
        target.load_state_dict(tensors)
    except Exception as error:  # a network of the user's own may have its own code for this
        raise ModelError(f"{path} cannot be loaded into the network: {type(error).__name__}: {error}") from error
    if not beside:
        return ModelFacts()
    if isinstance(network, Classifier):
        network.mean, network.std = beside["mean"].clone(), beside["std"].clone()
    mean, std = (tuple(beside[name].flatten().tolist()) for name in ("mean", "std"))
    return ModelFacts(mean=mean, std=std).known_from(f"the Classifier whose weights are in {path.name}")


def _state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by torch.save, read with the unpickler that makes only tensors and plain values."""
    try:
        _check_archive(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except ModelError:
        raise
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} is a pickle of more than tensors, which is not loaded, since it could run code. Save the weights "
            "alone: torch.save(network.state_dict(), FILE), or safetensors.torch.save_file"
        ) from error
    except Exception as error:
        raise ModelError(f"{path} is damaged: {type(error).__name__}: {str(error).splitlines()[0][:200]}") from error
    for name in _INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
            break
    if not isinstance(found, Mapping) or not found:
        raise ModelError(f"{path} holds {_summary(found)}; expected a state dict: names of weights, each with a tensor")
    odd = [name for name, each in found.items() if not isinstance(each, Tensor) or not isinstance(name, str)]
    if odd:
        raise ModelError(
            f"{path} holds {odd[0]!r} with {_summary(found[odd[0]])}; expected a state dict: names of weights, each "
            "with a tensor"
        )
    return dict(found)


def _check_archive(path: Path) -> None:
    """Raise `ModelError` for an archive with compressed entries, which torch.save never writes: they can be bombs."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        for each in archive.infolist():
            if each.compress_type != zipfile.ZIP_STORED or each.file_size != each.compress_size:
                raise ModelError(f"{path} is not an archive by torch.save: its entry {each.filename} is compressed")


def _summary(value: Any) -> str:
    return f"a {type(value).__name__}" + (f" of {len(value)}" if isinstance(value, Mapping | list | tuple) else "")
