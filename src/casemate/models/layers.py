"""Layers that the other networks are built from: noise inside a network."""

import math
from typing import final

import torch
from torch import Tensor, nn

from casemate.errors import SettingError


@final
class NoiseLayer(nn.Module):
    """Adds normal noise to whatever passes: while training only, or, with `at_inference`, always.

    The study names a noise layer "after a regular layer" (section 2.3). With `at_inference` the network is a
    randomised one: the same image gets another answer each time, and an attack must average over the noise.
    The noise comes from PyTorch's global generator and cannot be keyed by example.

    Args:
        std: standard deviation, in units of what passes.
        at_inference: whether noise is added in evaluation mode too; may be changed later.
    """

    def __init__(self, std: float, *, at_inference: bool = False) -> None:
        super().__init__()
        if not 0 <= std < math.inf:
            raise SettingError(f"std = {std}; expected zero or more and finite")
        self.std = std
        self.at_inference = at_inference

    def forward(self, inputs: Tensor) -> Tensor:
        """Return `inputs` with noise, or as they are."""
        if not (self.training or self.at_inference) or self.std == 0:
            return inputs
        return inputs + self.std * torch.randn_like(inputs)

    def extra_repr(self) -> str:
        """The settings, for the network's text."""
        return f"std={self.std}, at_inference={self.at_inference}"
