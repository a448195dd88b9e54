"""Copies of a classifier that compute in another precision than it does.

In bfloat16, where that is asked for: some processors multiply it several times as fast as float32. In float32, of a
model in half precision, in which small gradients are zero. What an attack finds with either counts only as far as the
model itself is fooled; see `Frozen.in_turn`.
"""

import copy
from typing import Literal

import torch
from torch import nn

from casemate.models.accel.equivalence import answers, largest_difference, own_randomness
from casemate.models.accel.pass_size import seconds_per_pass
from casemate.models.classifier import Classifier
from casemate.types import Images, Logits

Precision = Literal["float32", "bfloat16"]

_TOLERANCE = 0.1
"""By how much a logit may differ in bfloat16, as a share of the largest: its rounding is 0.4 %, and many layers add up
to some per cent."""
_WORTH = 1.2
"""How many times as fast an input gradient in bfloat16 must be."""


def is_half(model: Classifier) -> bool:
    """Whether its weights are in half precision."""
    return model.dtype in (torch.float16, torch.bfloat16)


def in_float32(model: Classifier) -> Classifier | None:
    """A copy in float32, if one can be made."""
    try:
        made = copy.deepcopy(model).float().requires_grad_(False)
        made.forget()
        with torch.no_grad():
            made(torch.zeros(1, *model.input_shape, device=model.device))
    except Exception:  # a model may hold what cannot be copied, or its code insist on half precision
        return None
    return made


def in_bfloat16(model: Classifier) -> Classifier:
    """A copy that computes in bfloat16, and takes and returns what the model does."""
    made = copy.deepcopy(model, {id(model.observer): model.observer})  # messages still go where they went
    made.network = _InBfloat16(made.network)
    return made


def faster_in_bfloat16(model: Classifier, original: Classifier, images: Images) -> Classifier | None:
    """A copy of `model` in bfloat16, unless it fails, answers too differently from the original, or is no faster.

    The model's observer gets the reason.
    """
    try:
        made = in_bfloat16(model)
        with own_randomness(model), torch.no_grad():
            difference = largest_difference(answers(original, images), answers(made, images))
            gain = seconds_per_pass(model, images, len(images)) / seconds_per_pass(made, images, len(images))
    except Exception as error:  # the model's own code may not bear another precision, in whatever way
        model.observer.message(f"bfloat16 is not used: the model fails in it ({type(error).__name__}: {error})")
        return None
    if difference > _TOLERANCE:
        model.observer.message(f"bfloat16 is not used: it changes logits by {difference:.0%} of the largest")
        return None
    if gain < _WORTH:
        model.observer.message(f"bfloat16 is not used: here it is {gain:.1f} times as fast as float32")
        return None
    return made


class _InBfloat16(nn.Module):
    """A network in bfloat16; its images and logits are not."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.to(torch.bfloat16)

    def forward(self, images: Images) -> Logits:
        return self.network(images.to(torch.bfloat16)).to(images.dtype)
