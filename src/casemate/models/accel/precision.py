"""Copies of a classifier that compute in another precision: bfloat16 on request, float32 for half-precision models.

Some processors multiply bfloat16 several times as fast as float32. In half precision small gradients are zero, so such
a model is attacked through a float32 copy. In both cases only what fools the model itself counts; see
`Frozen.precision_stages`.
"""

import copy
from typing import Literal

import torch
from torch import nn

from casemate.models.accel.equivalence import logit_difference
from casemate.models.accel.pass_size import seconds_per_pass
from casemate.models.classifier import Classifier
from casemate.rng import torch_forked
from casemate.types import Images, Logits

Precision = Literal["float32", "bfloat16"]

_TOLERANCE = 0.1
"""Largest accepted logit difference in bfloat16, relative to the largest logit: one rounding is 0.4 %, and over many
layers the errors add up to some per cent."""
_MIN_SPEEDUP = 1.2
"""How many times as fast as the model's an input gradient in bfloat16 must be for the copy to be used."""


def is_half(model: Classifier) -> bool:
    """Whether the weights are float16 or bfloat16."""
    return model.dtype in (torch.float16, torch.bfloat16)


def in_float32(model: Classifier) -> Classifier | None:
    """A copy of the model in float32, without weight gradients; None if it cannot be copied or fails in float32."""
    try:
        made = copy.deepcopy(model).float().requires_grad_(False)
        made.forget()
        with torch.no_grad():
            made(torch.zeros(1, *model.input_shape, device=model.device))
    except Exception:  # the user's own code may raise anything
        return None
    return made


def in_bfloat16(model: Classifier) -> Classifier:
    """A copy of the model that computes in bfloat16, but takes images and returns logits of the type that it does."""
    made = copy.deepcopy(model)
    made.network = _InBfloat16(made.network)
    return made


def faster_in_bfloat16(model: Classifier, original: Classifier, images: Images) -> Classifier | None:
    """A copy of `model` in bfloat16; None if it fails, differs too much from the original, or is no faster.

    The reason is reported to the model's observer.
    """
    try:
        made = in_bfloat16(model)
        with torch_forked(model.device), torch.no_grad():
            difference = logit_difference(original, made, images)
            gain = seconds_per_pass(model, images, len(images)) / seconds_per_pass(made, images, len(images))
    except Exception as error:  # the user's own code may raise anything
        model.observer.message(f"bfloat16 is not used: the model fails in it ({type(error).__name__}: {error})")
        return None
    if difference > _TOLERANCE:
        model.observer.message(f"bfloat16 is not used: it changes logits by {difference:.0%} of the largest")
        return None
    if gain < _MIN_SPEEDUP:
        model.observer.message(f"bfloat16 is not used: on this machine it is {gain:.1f} times as fast as float32")
        return None
    return made


class _InBfloat16(nn.Module):
    """A module that runs a network in bfloat16 on images of another type, and returns logits of that type."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.to(torch.bfloat16)

    def forward(self, images: Images) -> Logits:
        return self.network(images.to(torch.bfloat16)).to(images.dtype)
