"""Weights and images channels-last while a network is trained: faster on most machines, if the network takes it.

A network that uses `view`, or reads memory as it lies, does not: it fails, or answers otherwise.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from casemate.models.accel.equivalence import TOLERANCE, answers, largest_difference, own_randomness
from casemate.models.accel.pass_size import ask_for_gradient
from casemate.models.classifier import Classifier
from casemate.types import Images


@contextmanager
def channels_last_if_taken(model: Classifier, images: Images) -> Iterator[None]:
    """Inside, weights lie channels-last and images are handed over so, if a copy of the model bears that.

    Args:
        model: afterwards its weights lie as they did before.
        images: a few, `(n, channels, height, width)`, to try it with.
    """
    if not _takes(model, images):
        yield
        return
    before = model.memory_format
    theirs = [(each, each.data) for each in model.parameters()]
    _turn(model)
    try:
        yield
    finally:
        model.memory_format = before
        for each, data in theirs:
            each.data = data if each.data is data else data.copy_(each.data)


def _turn(model: Classifier) -> None:
    model.memory_format = torch.channels_last
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # its stubs want more


def _takes(model: Classifier, images: Images) -> bool:
    """Whether a copy answers as before, and has a gradient."""
    try:
        plain, made = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
        _turn(made)
        with own_randomness(model), torch.no_grad():
            apart = largest_difference(answers(plain, images), answers(made, images))
            ask_for_gradient(made, images[:2])
    except Exception:  # a model may hold what cannot be copied, and its own code may raise anything
        return False
    return apart <= TOLERANCE
