"""Weights of a network of the user's own: a .safetensors file or a state dict of PyTorch, read without running code."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from casemate.arrays import SIGNATURE, UnsoundError, is_archive, is_pickle, parse_safetensors
from casemate.errors import ModelError, kind_of
from casemate.files import read_file
from casemate.models.classifier import Classifier
from casemate.models.sources.facts import ModelFacts
from casemate.models.sources.failures import quoted, shortened
from casemate.models.sources.source_files import head_of
from casemate.models.sources.stated_sizes import check_archive, check_tensors

_INSIDE = ("state_dict", "model_state_dict", "model", "network", "net", "weights")
"""Names under which checkpoints hold the state dict beside other values."""
_PREFIXES = ("module.", "_orig_mod.", "network.")
"""What wrappers put before the names of weights: data parallelism, torch.compile, and `Classifier`."""
_NORMALISATION = {"mean", "std"}
"""Buffers of a `Classifier` beside its network."""
_MOST_CHANNELS = 4096
"""Largest number of means and of standard deviations."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name.

    Raises `ModelError` if it cannot be read as .safetensors or, by `torch.load(weights_only=True)`, as a state dict.
    """
    if not path.exists():
        raise ModelError(f"--weights {path} does not exist; expected a .safetensors file or a state dict")
    head = head_of(path, SIGNATURE)
    if is_archive(head) or is_pickle(head):
        return _state_dict(path)
    try:
        return parse_safetensors(
            read_file(path, ModelError, "a .safetensors file, or a state dict saved by torch.save")
        )
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
    return load_tensors(network, read_weights(path), path)


def load_tensors(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> ModelFacts:
    """`load_weights` of tensors that have been read from a file."""
    target, named, beside = fitting_weights(network, tensors, path)
    try:
        target.load_state_dict(named)
    except Exception as error:  # a network of the user's own may have its own code for this
        raise ModelError(f"{path} cannot be loaded into the network: {quoted(error)}") from error
    if not beside:
        return ModelFacts()
    if isinstance(network, Classifier):
        network.mean, network.std = beside["mean"].clone(), beside["std"].clone()
    mean, std = (tuple(beside[name].flatten().tolist()) for name in ("mean", "std"))
    return ModelFacts(mean=mean, std=std).known_from(f"the Classifier whose weights are in {path.name}")


def fitting_weights(
    network: nn.Module, tensors: Mapping[str, Tensor], path: Path
) -> tuple[nn.Module, dict[str, Tensor], dict[str, Tensor]]:
    """Which part of a network the tensors fit, these by its names, and the mean and std that lie beside them.

    Raises `ModelError` if they do not fit.
    """
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
    missing, extra = sorted(expected.keys() - named.keys()), sorted(named.keys() - expected.keys())
    if missing or extra:
        raise ModelError(
            f"{path} has the weights of another network than the one that was built: missing {shortened(missing)}, "
            f"unexpected {shortened(extra)}; give the weights that belong to it with --weights"
        )
    for name, own in expected.items():
        if own.shape != named[name].shape:
            raise ModelError(
                f"{path}: {name} has the shape {tuple(named[name].shape)}, but the network that was built has "
                f"{tuple(own.shape)}; build it for as many classes and channels, and images of that size, or give "
                "other --weights"
            )
        if own.is_complex() != named[name].is_complex():
            raise ModelError(f"{path}: {name} has the type {named[name].dtype}; the network has {own.dtype}")
    for name, each in beside.items():
        if not each.is_floating_point() or not each.isfinite().all() or each.numel() > _MOST_CHANNELS:
            raise ModelError(
                f"{path}: {name}, beside the weights, has the shape {tuple(each.shape)} and the type {each.dtype}; "
                "expected finite numbers, one per channel"
            )
    return target, named, beside


def _state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by torch.save, read with the unpickler that makes only tensors and plain values."""
    if head_of(path, 2) == b"PK":
        check_archive(path)
    try:
        with path.open("rb") as file:  # the name of a file could make PyTorch read it as another format
            found = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} is damaged, or a pickle of more than tensors, which is not loaded, since it could run code. Save "
            "the weights alone, torch.save(network.state_dict(), FILE), or, if it is a whole network and you trust it, "
            "give it as MODEL with --trust-code"
        ) from error
    except Exception as error:
        raise ModelError(f"{path} is damaged: {quoted(error)}") from error
    for name in _INSIDE:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
            break
    if not isinstance(found, Mapping) or not found:
        raise ModelError(f"{path} holds {_summary(found)}; expected a state dict: names of weights, each with a tensor")
    odd = [name for name, each in found.items() if not isinstance(each, Tensor) or not isinstance(name, str)]
    if odd:
        raise ModelError(
            f"{path} holds {shortened(odd)[0]!r} with {_summary(found[odd[0]])}; expected a state dict: names of "
            "weights, each with a tensor"
        )
    check_tensors(path, found)
    return dict(found)


def _summary(value: Any) -> str:
    return kind_of(value) + (f" of {len(value)}" if isinstance(value, Mapping | list | tuple) else "")
