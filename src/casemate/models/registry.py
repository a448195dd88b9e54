"""Networks by name, so that a checkpoint can name its architecture and needs no code."""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from casemate.errors import ModelError
from casemate.models.classifier import Classifier, class_names
from casemate.rng import torch_forked
from casemate.settings import unknown_name

Build = Callable[[tuple[int, int, int], int], nn.Module]
"""A function that builds an untrained network, from the input shape `(channels, height, width)` and the number of
classes."""

_BUILDERS: dict[str, Build] = {}


def register(name: str) -> Callable[[Build], Build]:
    """Decorator that registers a network builder under `name`.

    Your own networks can be registered too, and are then saved, loaded and trained like the built-in ones. Raises
    `ModelError` if the name is registered already.
    """

    def add(build: Build) -> Build:
        if name in _BUILDERS:
            raise ModelError(f"a network named {name!r} is registered already; choose another name")
        _BUILDERS[name] = build
        return build

    return add


def names() -> tuple[str, ...]:
    """The names of all registered networks, sorted."""
    return tuple(sorted(_BUILDERS))


def builder(name: str) -> Build:
    """The function that builds the network `name`. Raises `SettingError`, with the known names, for any other."""
    if name not in _BUILDERS:
        raise unknown_name("network", name, names())
    return _BUILDERS[name]


def create(name: str, *, input_shape: tuple[int, int, int], classes: int | Iterable[str], seed: int = 0) -> Classifier:
    """Return an untrained `Classifier` of the registered network, initialised from `seed` alone.

    `classes` are the names in the order of the logits, or their number. PyTorch's random state is restored. Raises
    `SettingError` for an unknown name, `ShapeError` for classes that are neither.
    """
    build, names = builder(name), class_names(classes)
    with torch_forked():
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which seeds every GPU too
        network = build(input_shape, len(names))
    return Classifier(network, input_shape=input_shape, classes=names)
