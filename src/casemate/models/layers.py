"""Layers for the registered networks: noise inside a network."""

import math
from typing import final

import torch
from torch import Tensor, nn

from casemate.errors import SettingError


@final
class NoiseLayer(nn.Module):
    """Adds normal noise to its input, during training only or, with `at_inference`, always.

    The study proposes a noise layer "after a regular layer" (section 2.3). With `at_inference` the network is
    randomised: its logits differ from call to call, and an attack must average over the noise. The noise comes from
    PyTorch's global generator, not from the per-example streams.

    Args:
        std: standard deviation, in units of the input.
        at_inference: whether noise is added in evaluation mode too; the attribute may be changed later.

    Raises `SettingError` for a negative or infinite std.
    """

    def __init__(self, std: float, *, at_inference: bool = False) -> None:
        super().__init__()
        if not 0 <= std < math.inf:
            raise SettingError(f"std = {std}; expected zero or more and finite")
        self.std = std
        self.at_inference = at_inference

    def forward(self, inputs: Tensor) -> Tensor:
        """Return `inputs` with noise in training mode or with `at_inference`, else unchanged."""
        if not (self.training or self.at_inference) or self.std == 0:
            return inputs
        return inputs + self.std * torch.randn_like(inputs)

    def extra_repr(self) -> str:
        """The settings as text, for `repr`."""
        return f"std={self.std}, at_inference={self.at_inference}"
