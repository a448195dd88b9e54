"""A network by its name in timm (extra `timm`), with weights from a local file; nothing is downloaded.

Mean, std and size come from timm's configuration of the name; the number of classes and of channels from the shapes of
the weights.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from casemate.data import Interpolation, Resizing
from casemate.errors import ModelError
from casemate.models.classifier import numbered_classes
from casemate.models.sources.extras import import_extra
from casemate.models.sources.facts import ModelFacts
from casemate.models.sources.failures import quoted
from casemate.models.sources.opened import OpenedModel, opened_network
from casemate.models.sources.weights import bare_name, fitting_weights, load_tensors, read_weights

PREFIX = "timm:"
"""What a model's name begins with if the rest is a name in timm."""
_MOST = 1 << 20
"""Largest number of classes and of channels that the weights may state."""


def open_timm(text: str, weights: Path | None, stated: ModelFacts | None) -> OpenedModel:
    """The network timm:NAME with the weights in a file.

    Raises:
        MissingExtraError: without timm.
        ModelError: an unknown name, no weights, or weights of another network.
    """
    name = text.removeprefix(PREFIX)
    timm = import_extra("timm", f"the model {text}", "timm", torchvision="always")
    if not timm.is_model(name.split(".")[0]):
        near = timm.list_models(f"*{name[:6]}*")[:5]
        similar = f"; similar: {', '.join(near)}" if near else ""
        raise ModelError(f"timm has no model {name!r}{similar}; expected a name such as timm:resnet18")
    if weights is None:
        raise ModelError(
            f"{text} names a network without its weights, and nothing is downloaded; give a local file: --weights FILE"
        )
    tensors = {bare_name(each): tensor for each, tensor in read_weights(weights).items()}
    config = _config(timm, name)
    found = _facts(config, tensors)
    size = None if stated is None else stated.size
    try:
        network = _built(timm, name, found, size, tensors, weights)
        load_tensors(network, tensors, weights)
    except ModelError as error:
        if size is None and found.size is not None and "has the shape" in str(error):
            raise ModelError(f"{error}. If it is the size, give the size that it was trained for: --size") from error
        raise
    return opened_network(network, found, stated, name=text, short=name, fixed=("classes", "channels"))


def _config(timm: Any, name: str) -> dict[str, Any]:
    """The configuration that timm has of a name, empty if it has none."""
    found = timm.get_pretrained_cfg(name)
    return {} if found is None else found.to_dict()


def _facts(config: dict[str, Any], tensors: dict[str, Tensor]) -> ModelFacts:
    """What configuration and weights say; a mean of three channels is not that of images with another number."""
    first, last = (_weight(config.get(key), tensors) for key in ("first_conv", "classifier"))
    channels = None if first is None else first.shape[1]
    weights = ModelFacts(channels=channels, classes=None if last is None else numbered_classes(last.shape[0]))
    mean, std, size = config.get("mean"), config.get("std"), config.get("input_size")
    fits = mean is not None and std is not None and channels in (None, len(mean))
    stated = ModelFacts(
        mean=tuple(map(float, mean)) if fits and mean is not None else None,
        std=tuple(map(float, std)) if fits and std is not None else None,
        size=(size[1], size[2]) if size is not None and config.get("fixed_input_size") else None,
        preparation=None if size is None else _preparation(config, (size[1], size[2])),
    )
    return weights.known_from("the shapes of the weights").completed(stated.known_from("timm's configuration"))


def _preparation(config: dict[str, Any], size: tuple[int, int]) -> Resizing | None:
    """The resizing and cropping of timm's evaluations; None if it is not known.

    The centre is cut out of an image whose shorter side is longer by 1 / `crop_pct`; `crop_mode` may say otherwise.
    """
    share, method = config.get("crop_pct") or 1.0, config.get("interpolation") or "bicubic"
    if method not in get_args(Interpolation) or not 0 < share <= 1:
        return None
    match config.get("crop_mode") or "center":
        case "center" if size[0] == size[1]:
            return Resizing(size=int(size[0] / share), crop=size, interpolation=method)
        case "squash":
            return Resizing(size=(int(size[0] / share), int(size[1] / share)), crop=size, interpolation=method)
        case _:
            return None


def _weight(names: Any, tensors: dict[str, Tensor]) -> Tensor | None:
    """The weight of the layer that a configuration names (the first, if several), unless its shape is impossible."""
    name = names[0] if isinstance(names, list | tuple) and names else names
    found = tensors.get(f"{name}.weight")
    possible = found is not None and found.ndim >= 2 and min(found.shape) > 0 and max(found.shape) <= _MOST
    return found if possible else None


def _built(
    timm: Any, name: str, found: ModelFacts, size: tuple[int, int] | None, tensors: Mapping[str, Tensor], weights: Path
) -> Any:
    """The network without trained weights, for the classes, channels and size. Raises `ModelError`.

    It is first built without memory, so that weights of impossible shapes do not exhaust it.
    """
    options: dict[str, Any] = {}
    if found.classes is not None:
        options["num_classes"] = len(found.classes)
    if found.channels is not None:
        options["in_chans"] = found.channels
    if size is not None and found.size is not None:
        options["img_size"] = size

    def made(device: str) -> Any:
        with torch.device(device):
            return timm.create_model(name, pretrained=False, **options)

    try:
        try:
            planned = made("meta")
        except (RuntimeError, NotImplementedError):  # of a network that cannot be built so
            return made("cpu")
        fitting_weights(planned, tensors, weights)
        return made("cpu")
    except ModelError:
        raise
    except Exception as error:
        settings = ", ".join(f"{key}={value}" for key, value in options.items())
        raise ModelError(f"timm cannot build {name} with {settings}: {quoted(error)}") from error
