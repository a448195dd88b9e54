"""Channels-last weights and images during training: faster on most machines, if the network supports it.

A network that uses `view`, or otherwise depends on the memory layout, does not: it fails or returns other logits.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from casemate.models.accel.equivalence import TOLERANCE, logit_difference
from casemate.models.accel.pass_size import run_input_gradient
from casemate.models.classifier import Classifier
from casemate.rng import torch_forked
from casemate.types import Images


@contextmanager
def channels_last_if_supported(model: Classifier, images: Images) -> Iterator[None]:
    """Make the weights and the images that the network gets channels-last inside the context, if its logits stay equal.

    Args:
        model: its weights have their own layout again afterwards.
        images: a few, `(n, channels, height, width)`, to compare the logits of a channels-last copy on.
    """
    if not _supports_channels_last(model, images):
        yield
        return
    before = model.memory_format
    own = [(each, each.data) for each in model.parameters()]
    _to_channels_last(model)
    try:
        yield
    finally:
        model.memory_format = before
        for each, data in own:
            each.data = data if each.data is data else data.copy_(each.data)


def _to_channels_last(model: Classifier) -> None:
    model.memory_format = torch.channels_last
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # its stubs require more arguments


def _supports_channels_last(model: Classifier, images: Images) -> bool:
    """Whether a channels-last copy returns the model's logits for `images`, up to rounding, and no pass fails.

    The passes are the forward pass and a backward pass to the images, whose gradient is not looked at.
    """
    try:
        plain, made = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
        _to_channels_last(made)
        with torch_forked(model.device):
            difference = logit_difference(plain, made, images)
            run_input_gradient(made, images[:2])
    except Exception:  # the user's own code may raise anything
        return False
    return difference <= TOLERANCE
