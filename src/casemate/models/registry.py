"""Networks by name, so that a checkpoint can say what it is without carrying code."""

import difflib
from collections.abc import Callable

import torch
from torch import nn

from casemate.errors import ModelError, SettingError
from casemate.models.classifier import Classifier

Build = Callable[[tuple[int, int, int], int], nn.Module]
"""Takes the input shape `(channels, height, width)` and the number of classes; returns an untrained network."""

_BUILDERS: dict[str, Build] = {}


def register(name: str) -> Callable[[Build], Build]:
    """Enter a network builder under `name`; the same name twice is an error.

    Your own networks can be registered too, and are then saved, loaded and trained like the built-in ones.
    """

    def enter(build: Build) -> Build:
        if name in _BUILDERS:
            raise ModelError(f"a network named {name!r} is registered already; choose another name")
        _BUILDERS[name] = build
        return build

    return enter


def names() -> tuple[str, ...]:
    """The registered names, sorted."""
    return tuple(sorted(_BUILDERS))


def builder(name: str) -> Build:
    """The builder registered under `name`. Raises `SettingError` with the nearest names."""
    if name not in _BUILDERS:
        near = difflib.get_close_matches(name, _BUILDERS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise SettingError(f"unknown network {name!r}; known: {', '.join(names())}{hint}")
    return _BUILDERS[name]


def create(name: str, *, input_shape: tuple[int, int, int], classes: tuple[str, ...], seed: int = 0) -> Classifier:
    """Return an untrained `Classifier` round the registered network, initialised from `seed` alone.

    The global random state is left as it was.
    """
    build = builder(name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which seeds every GPU too
        network = build(input_shape, len(classes))
    model = Classifier(network, input_shape=input_shape, classes=classes)
    return model
