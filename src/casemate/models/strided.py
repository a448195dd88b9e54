"""A small network of strided convolutions with batch norm: cheap enough for adversarial and certified training.

It halves its images where `paper-cnn` convolves them at full size, and has a sixth of its multiplications on 28 x 28
images.
"""

from torch import nn

from casemate.models.halving import halved_positions
from casemate.models.registry import register


@register("strided-cnn")
def strided_cnn(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build a network of two convolutions with stride 2, of 32 and 64 channels, and two dense layers.

    Each but the last has batch norm and ReLU, whose intervals are exact, for certified training (Shi et al. 2021). It
    has 840k parameters for images of 1 x 28 x 28 in 10 classes.
    """
    flat = 64 * halved_positions(input_shape, 2, "strided-cnn")
    return nn.Sequential(
        nn.Conv2d(input_shape[0], 32, 4, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 4, stride=2, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(flat, 256),
        nn.BatchNorm1d(256),
        nn.ReLU(),
        nn.Linear(256, classes),
    )
