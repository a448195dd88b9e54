"""Whole networks that PyTorch saved: `torch.export` programs, TorchScript, pickled modules. All can run code."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from casemate.errors import CasemateError, CasemateWarning, ModelError, kind_of
from casemate.models.classifier import Classifier
from casemate.models.sources.facts import ModelFacts
from casemate.models.sources.failures import quoted
from casemate.models.sources.opened import OpenedModel, opened_classifier, opened_network
from casemate.models.sources.own_code import search_here
from casemate.models.sources.source_files import head_of
from casemate.models.sources.stated_sizes import check_archive, check_pickles
from casemate.models.sources.trust import require_trust
from casemate.models.sources.weights import read_weights
from casemate.types import Images

_OWN = "give the code that builds the network, and its weights: mine.py:Network --weights FILE"


def open_exported(path: Path, stated: ModelFacts | None, *, trust_code: bool) -> OpenedModel:
    """A program saved by `torch.export.save`; without `trust_code` it is not opened. Raises `ModelError`.

    A program that was exported for a fixed number of images is called with as many at a time.
    """
    require_trust(
        path,
        "a torch.export program, and loading one can run code (it may contain pickles)",
        trusted=trust_code,
        instead=_OWN,
    )
    program: Any = _loaded(path, "a torch.export program", lambda: torch.export.load(path))
    origin = "the exported program"
    shape = _input_shape(program)
    network: nn.Module = program.module()
    found = ModelFacts()
    if len(shape) == 4:
        channels, size = (shape[1], shape[2:])
        if type(shape[0]) is int:
            network = FixedBatch(network, shape[0])
        found = ModelFacts(
            channels=channels if type(channels) is int else None,
            size=(size[0], size[1]) if all(type(each) is int for each in size) else None,
        ).known_from(origin)
    return opened_network(network, found, stated, name=str(path), short=path.stem, fixed=("size", "channels"))


def open_torchscript(path: Path, stated: ModelFacts | None, *, trust_code: bool) -> OpenedModel:
    """A module saved by `torch.jit.save`, with a note that PyTorch deprecates it. Raises `ModelError`."""
    require_trust(
        path,
        "TorchScript, a program that may write files while it is loaded",
        trusted=trust_code,
        instead=f"export the network with torch.onnx.export, or {_OWN}",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        network = _loaded(path, "TorchScript", lambda: torch.jit.load(path, map_location="cpu"))
    warnings.warn(
        f"{path.name} is TorchScript, which PyTorch deprecates; save the network with torch.export, or its weights as "
        "safetensors beside its code",
        CasemateWarning,
        stacklevel=2,
    )
    return opened_network(network, ModelFacts(), stated, name=str(path), short=path.stem)


def open_pickle(path: Path, stated: ModelFacts | None, *, trust_code: bool) -> OpenedModel:
    """A whole module saved by `torch.save`; without `trust_code` it is not unpickled. Raises `ModelError`."""
    if _has_only_weights(path):
        raise ModelError(f"{path} has weights only, and no network: {_OWN.replace('FILE', str(path))}")
    require_trust(
        path,
        "a pickle of more than weights, and loading one can run code",
        trusted=trust_code,
        instead=f"save its weights alone, torch.save(network.state_dict(), FILE), and {_OWN}",
    )
    search_here()
    made = _loaded(path, "a pickle", lambda: torch.load(path, map_location="cpu", weights_only=False))
    if not isinstance(made, nn.Module):
        raise ModelError(f"{path} is a pickle of {kind_of(made)}; expected a torch.nn.Module. Otherwise {_OWN}")
    name, short = str(path), path.stem
    try:
        if isinstance(made, Classifier):
            return opened_classifier(made, stated, name=name, short=short, origin="the pickled Classifier")
        return opened_network(made, ModelFacts(), stated, name=name, short=short, keeps_mode=True)
    except CasemateError:
        raise
    except Exception as error:  # a module that lacks parts of itself
        raise ModelError(f"{path} is a pickle of a module that is damaged: {quoted(error)}") from error


def _has_only_weights(path: Path) -> bool:
    try:
        read_weights(path)
    except ModelError:
        return False
    return True


def _loaded(path: Path, what: str, load: Callable[[], Any]) -> Any:
    """What `load` returns. Raises `ModelError`, with the first line of what went wrong, if it fails."""
    if head_of(path, 2) == b"PK":  # whatever follows: the loaders look for the archive's end
        check_archive(path, packed=True)
    check_pickles(path)
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # torch.export logs tracebacks before it raises
    try:
        return load()
    except Exception as error:
        raise ModelError(f"{path} cannot be loaded as {what}: {quoted(error)}") from error
    finally:
        logging.disable(before)


def _input_shape(program: Any) -> tuple[Any, ...]:
    """The shape of the program's only input, with numbers where it is fixed; empty if it has none or several."""
    names = program.graph_signature.user_inputs
    nodes = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    value = nodes[0].meta.get("val") if len(nodes) == 1 else None
    return tuple(value.shape) if isinstance(value, Tensor) else ()


@final
class FixedBatch(nn.Module):
    """A network that accepts only batches of a fixed size, called with any number of images.

    Args:
        network: maps `size` images to a tensor with a row for each.
        size: the number of images that it accepts.
    """

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.network = network
        self.size = size
        self.training = network.training

    def forward(self, images: Images) -> Tensor:
        """The rows for all images; the last batch is filled up with copies of its last image."""
        missing = -len(images) % self.size
        filled = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)]) if missing else images
        rows = [self.network(part.contiguous()) for part in filled.split(self.size)]
        return torch.cat(rows)[: len(images)]
