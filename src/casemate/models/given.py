"""The model that a user gave: a `Classifier`, or any module, which then has images within [0, 1] and returns logits."""

import copy
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from casemate.errors import ModelError, ShapeError, kind_of
from casemate.models.accel.freeze import Frozen
from casemate.models.classifier import Classifier, is_numbered
from casemate.models.pixel_range import check_range
from casemate.types import Images, Labels


def as_classifier(given: Any) -> Classifier:
    """The classifier that a user gave, or one around the module that they gave, which does not change.

    A module is taken to map images within [0, 1], `(n, channels, height, width)`, to logits `(n, classes)`; shape and
    number of classes are found out by the first call, and the classes are named "0", "1" and so on. For anything else
    a `Classifier` has to be made by hand.

    Raises:
        ModelError: neither a classifier nor a module, or a module with lazy layers that have no weights yet.
    """
    if isinstance(given, nn.Module):
        _check_initialised(given)
        return given if isinstance(given, Classifier) else Classifier(given)
    inside = getattr(given, "model", None)
    if isinstance(inside, Classifier):  # an opened or a hardened model
        return inside
    raise ModelError(
        f"the model is {kind_of(given)}; expected an object of a torch.nn.Module that maps images within [0, 1] to "
        "logits, or a casemate.Classifier around it for other images: Classifier(network, mean=..., std=...) or "
        f"bounds=...{_way(given)}"
    )


def check_shape(model: Classifier, images: Images, remedy: str = "") -> None:
    """Raise `ShapeError`, which ends in `remedy`, unless images `(n, ...)` have the model's shape."""
    shape = model.interface["input_shape"]
    if images.ndim != 4 or (shape is not None and tuple(images.shape[1:]) != shape):
        wanted = "channels, height, width" if shape is None else ", ".join(map(str, shape))
        raise ShapeError(f"images of shape {tuple(images.shape)}; expected (n, {wanted}){remedy}")


def check_batch(
    model: nn.Module, images: Images, labels: Labels | None = None, *, unlabelled: int | None = None
) -> None:
    """Raise unless a batch of a training can be attacked: `ModelError` for a module that is not a `Classifier`, or has
    lazy layers without weights, and `ShapeError` for images that are not floating-point numbers of its shape within its
    bounds, or labels of others.

    With `unlabelled` labels may be that number too.
    """
    if not isinstance(model, Classifier):
        raise ModelError(
            f"the model is {kind_of(model)}; expected a casemate.Classifier around it, made once before the training: "
            "model = casemate.Classifier(network)"
        )
    _check_initialised(model)
    if not images.is_floating_point():
        raise ShapeError(f"images of type {images.dtype}; expected floating point within {model.bounds}")
    check_shape(model, images)
    if len(images):
        check_range(images.detach(), model.bounds)
    if labels is not None:
        _check_labels_of(model, labels, len(images), unlabelled)


def _check_initialised(model: nn.Module) -> None:
    """Raise `ModelError` for a module with weights that have no values: lazy layers, or the device meta."""
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        shown = name.removeprefix("network.")
        if is_lazy(tensor):
            raise ModelError(
                f"the network's {shown} has no values yet, since its layer is lazy; call the network once on a few "
                "images first: network(images)"
            )
        if tensor.is_meta:
            raise ModelError(
                f"the network's {shown} has no values, since it is on the device meta; give it memory and weights "
                'first: network.to_empty(device="cpu"), then network.load_state_dict(...)'
            )


def check_labels(labels: Labels, classes: int, what: str = "labels") -> None:
    """Raise `ShapeError` unless all labels are numbers of a model's classes; `what` names them in the message."""
    if not len(labels):
        return
    least, most = torch.stack(labels.aminmax()).tolist()
    if not 0 <= least <= most < classes:
        raise ShapeError(
            f"{what} from {least} to {most}; with {classes} classes they run from 0 to {classes - 1}: number the "
            "classes from 0, in the order of the model's outputs"
        )


def _check_labels_of(model: Classifier, labels: Labels, images: int, unlabelled: int | None) -> None:
    """Raise `ShapeError` unless there is a class of the model for each image."""
    if labels.shape != (images,) or labels.dtype not in (torch.int64, torch.uint8):
        raise ShapeError(
            f"labels of type {labels.dtype} and shape {tuple(labels.shape)} for {images} images; expected one int64 "
            "number for each"
        )
    if (classes := model.interface["classes"]) is not None:
        check_labels(labels if unlabelled is None else labels[labels != unlabelled], len(classes))


def _way(given: Any) -> str:
    """How to make a model of what was given, as the end of an error's message; "" if that is not known."""
    if isinstance(given, type) and issubclass(given, nn.Module):
        return f". Make an object of the class: {given.__name__}()"
    if isinstance(given, Mapping):
        return ". For a state dict make the network, then network.load_state_dict(...)"
    if isinstance(given, str | Path):
        return ". A file is read by casemate.load, or by load_state_dict into a network of your own"
    if callable(given) and not isinstance(given, type):
        return ". Put the function into the forward of a torch.nn.Module"
    return ""


def copied(model: Classifier) -> Classifier | None:
    """A deep copy of a model, in training mode where the model is; None for a model that cannot be copied."""
    try:
        return copy.deepcopy(model)
    except Exception:  # a model may hold a lock, an open file, a generator
        return None


def as_model(given: Any) -> Classifier | Frozen:
    """A frozen model unchanged, anything else as from `as_classifier`."""
    return given if isinstance(given, Frozen) else as_classifier(given)


def model_of(given: Classifier | Frozen) -> Classifier:
    """The original model of a frozen one, or the model itself."""
    return given.original if isinstance(given, Frozen) else given


def same_classes(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether two models have the same classes: as many, and with the same names where both have been given names."""
    numbered = is_numbered(one) or is_numbered(other)
    return len(one) == len(other) and (numbered or one == other)
