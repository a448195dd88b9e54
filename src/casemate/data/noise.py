"""Noise on training images within [0, 1], of the three kinds that the study names (section 2.3).

They are `Augmentation`s, drawn anew for each example and epoch. Noise inside a network is in `casemate.models.layers`.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
from jaxtyping import Int64
from torch import Generator, Tensor

from casemate.settings import between, expect
from casemate.types import Images

_LARGEST = 1e3
"""Largest standard deviation of noise; beyond it no image is recognisable, and float32 eventually overflows."""


def _normal(images: Images, generator: Generator) -> Tensor:
    return torch.randn(images.shape, generator=generator).to(images.device, images.dtype)


@final
@dataclass(frozen=True, kw_only=True)
class GaussianNoise:
    """Add independent normal noise to every pixel and channel."""

    unit_pixels: ClassVar[bool] = True
    std: Annotated[float, between(0, _LARGEST, unit="in units of pixels within [0, 1]")] = 0.1
    """Standard deviation of the noise, in units of pixels within [0, 1]."""

    def __post_init__(self) -> None:
        expect(self)

    def __call__(self, images: Images, index: Int64[Tensor, " n"], epoch: int, generator: Generator) -> Images:
        """Return the noisy batch, clipped to [0, 1]."""
        del index, epoch
        return (images + self.std * _normal(images, generator)).clamp_(0, 1)


@final
@dataclass(frozen=True, kw_only=True)
class Speckle:
    """Multiply every pixel and channel by one plus independent normal noise, so that black stays black."""

    unit_pixels: ClassVar[bool] = True
    std: Annotated[float, between(0, _LARGEST, unit="in units of pixels within [0, 1]")] = 0.3
    """Standard deviation of the factor that multiplies each pixel; its mean is 1."""

    def __post_init__(self) -> None:
        expect(self)

    def __call__(self, images: Images, index: Int64[Tensor, " n"], epoch: int, generator: Generator) -> Images:
        """Return the noisy batch, clipped to [0, 1]."""
        del index, epoch
        return (images + images * self.std * _normal(images, generator)).clamp_(0, 1)


@final
@dataclass(frozen=True, kw_only=True)
class SaltAndPepper:
    """Make a random part of the pixels white or black, half each, in all channels at once."""

    unit_pixels: ClassVar[bool] = True
    share: Annotated[float, between(0, 1, "a probability")] = 0.05
    """Probability that a pixel becomes white or black."""

    def __post_init__(self) -> None:
        expect(self)

    def __call__(self, images: Images, index: Int64[Tensor, " n"], epoch: int, generator: Generator) -> Images:
        """Return the batch with randomly chosen pixels of each image made white or black."""
        del index, epoch
        count, _, height, width = images.shape
        draw = torch.rand(count, 1, height, width, generator=generator).to(images.device)
        images = torch.where(draw < self.share, 1.0, images)
        return torch.where(draw < self.share / 2, 0.0, images)
