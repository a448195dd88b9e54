"""Small networks of strided convolutions with batch norm: cheap enough for adversarial and certified training.

`strided-cnn` needs a sixth of the multiplications of `paper-cnn` on 28 x 28 images, because its convolutions have
stride 2.

In `pixelwise-cnn` a function of each pixel alone comes first, a convolution of size 1 with batch norm and ReLU. It can
be flat where small changes mean nothing, such as near the black of a background, before any pixels are added up. A
first convolution of size 4 adds up the perturbations of 16 pixels, and no layer after it can tell them apart.
`wide-pixelwise-cnn` has twice the channels after it: more accurate under attack, and half as fast.
"""

from torch import nn

from casemate.models.halving import halved_positions
from casemate.models.registry import register

_PIXELWISE = 6
"""Channels of the function of each pixel."""


def _strided(channels: int, width: int, positions: int, classes: int) -> list[nn.Module]:
    """Two convolutions with stride 2 and two dense layers; each but the last is followed by batch norm and ReLU.

    Batch norm helps certified training (Shi et al. 2021).

    Args:
        channels: of the images, or of what comes before.
        width: channels of the first convolution; the second has twice as many.
        positions: pixels of the second one's output.
        classes: number of logits.
    """
    return [
        nn.Conv2d(channels, width, 4, stride=2, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * positions, 256),
        nn.BatchNorm1d(256),
        nn.ReLU(),
        nn.Linear(256, classes),
    ]


@register("strided-cnn")
def strided_cnn(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build the network with 32 and 64 channels: 840k parameters for images of 1 x 28 x 28 in 10 classes."""
    return nn.Sequential(*_strided(input_shape[0], 32, halved_positions(input_shape, 2, "strided-cnn"), classes))


@register("pixelwise-cnn")
def pixelwise_cnn(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build `strided-cnn` behind a function of each pixel with 6 channels: 842k parameters, as above."""
    return pixelwise(input_shape, classes, 32)


@register("wide-pixelwise-cnn")
def wide_pixelwise_cnn(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build `pixelwise-cnn` with 64 and 128 channels: 1.7M parameters, as above."""
    return pixelwise(input_shape, classes, 64)


def pixelwise(input_shape: tuple[int, int, int], classes: int, width: int) -> nn.Module:
    """Build `pixelwise-cnn` with `width` channels in its first strided convolution, and twice as many in the second."""
    positions = halved_positions(input_shape, 2, "pixelwise-cnn")
    return nn.Sequential(
        nn.Conv2d(input_shape[0], _PIXELWISE, 1),
        nn.BatchNorm2d(_PIXELWISE),
        nn.ReLU(),
        *_strided(_PIXELWISE, width, positions, classes),
    )
