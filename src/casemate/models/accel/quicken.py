"""Less work in a training step: layers without weights are exchanged while a network is trained.

A max-pooling with a ReLU becomes one layer (`pooled.py`), and dropout draws its numbers faster (`dropout.py`).
Weights, their names and averages are not touched, so a checkpoint does not show it; afterwards everything is as it was.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from casemate.models.accel.dropout import QuickDropout
from casemate.models.accel.equivalence import TOLERANCE, answers, largest_difference, own_randomness
from casemate.models.accel.rearrange import WITHOUT_WEIGHTS, hooked, quicken
from casemate.models.classifier import Classifier
from casemate.types import Images


@contextmanager
def quickened(model: Classifier, images: Images) -> Iterator[None]:
    """Inside, training steps of the model do the same with less work; not if a comparison shows otherwise.

    Args:
        model: is left as it was.
        images: a few, `(n, channels, height, width)`, on which a changed copy is compared with an unchanged one.
    """
    theirs = dict(model.named_modules(remove_duplicate=False))
    exchanged = {
        name: layer
        for name, layer in _quick(model, images)
        if type(layer) is not type(theirs[name]) and {type(layer), type(theirs[name])} <= set(WITHOUT_WEIGHTS)
    }
    for name, layer in exchanged.items():
        _put(model, name, layer.train(theirs[name].training))
    try:
        yield
    finally:
        for name in exchanged:
            theirs[name].train(model.get_submodule(name).training)
            _put(model, name, theirs[name])


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, layer)


def _quick(model: Classifier, images: Images) -> list[tuple[str, nn.Module]]:
    """The layers of a changed copy, by name; none if it cannot be made or answers otherwise.

    A model with hooks is left: they would be called for the copies too.
    """
    if any(hooked(module) for module in model.modules()):
        return []
    try:
        plain, made = copy.deepcopy(model).train(), copy.deepcopy(model).train()
        quicken(made)
        apart = max(_apart(plain, made, images), _apart(plain.eval(), made.eval(), images))
    except Exception:  # a model may hold what cannot be copied, or ask a layer for what another does not have
        return []
    return list(made.named_modules(remove_duplicate=False)) if apart <= TOLERANCE else []


def _apart(plain: Classifier, made: Classifier, images: Images) -> float:
    """How differently they answer in the mode that they are in, but for dropout, whose draws are not the same."""
    for module in (*plain.modules(), *made.modules()):
        if isinstance(module, nn.Dropout | QuickDropout):
            module.eval()
    with own_randomness(plain), torch.no_grad():
        return largest_difference(answers(plain, images), answers(made, images))
