"""A convolution that leaves out what the pooling behind it drops.

A max-pooling over 2 x 2 takes 3 x 3 numbers from maps of 7 x 7 and never looks at the last row and column. Not
computing them saves 27 % of the convolution before it, and an eighth of appendix A of the paper.
"""

from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from casemate.models.accel import few_channels
from casemate.models.accel.convolutions import Border, StandIn, border_of, pair

_WORTH = 0.1
"""Share of the maps that must be dropped: the images have to be copied with a smaller border for it."""


def suits(layer: nn.Conv2d, pooling: nn.MaxPool2d) -> bool:
    """Whether the pooling may leave something out, and the convolution may too."""
    return (
        type(layer) is nn.Conv2d
        and not few_channels.suits(layer)  # such a one has a faster form of its own
        and layer.padding_mode == "zeros"
        and type(pooling) is nn.MaxPool2d
        and not pooling.ceil_mode
        and not pooling.return_indices
        and all(padding == 0 for padding in pair(pooling.padding))
        and all(dilation == 1 for dilation in pair(pooling.dilation))
    )


@final
class Cropped(StandIn):
    """Does what a convolution does, as far as a pooling behind it looks."""

    def __init__(self, layer: nn.Conv2d, pooling: nn.MaxPool2d) -> None:
        super().__init__(layer)
        self._pooled = tuple(zip(pair(pooling.kernel_size), pair(pooling.stride), strict=True))

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps, without the last rows and columns that would be dropped."""
        layer = self.layer
        border = self.border(maps) if maps.ndim == 4 else border_of(layer)
        if border == border_of(layer):
            return layer(maps)
        return F.conv2d(F.pad(maps, border), layer.weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups)

    def border(self, maps: Tensor) -> Border:
        """What to put round maps `(n, channels, height, width)`: less than the convolution would, if that pays."""
        left, right, top, bottom = border_of(self.layer)
        behind, tall = self._behind(maps.shape[2], top + bottom, 0)
        beyond, wide = self._behind(maps.shape[3], left + right, 1)
        return (left, right - beyond, top, bottom - behind) if 1 - tall * wide >= _WORTH else (left, right, top, bottom)

    def _behind(self, size: int, border: int, side: int) -> tuple[int, float]:
        """How many of the last pixels along one side are not needed, and the share of the outputs that is looked at."""
        layer, (window, step) = self.layer, self._pooled[side]
        reach, stride = layer.dilation[side] * (layer.kernel_size[side] - 1), layer.stride[side]
        places = (size + border - reach - 1) // stride + 1
        if places < window:
            return 0, 1.0
        used = (places - window) // step * step + window
        return size + border - ((used - 1) * stride + reach + 1), used / places
