"""Random changes to training images, as batched tensor operations that keep [0, 1].

Each is a frozen dataclass called with the batch, the images' numbers in the data set, the epoch and a generator;
what is drawn is drawn per example and epoch. Labels never change. Noise is in `casemate.data.noise`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Annotated, Protocol, final, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Generator, Tensor

from casemate.geometry import affine
from casemate.settings import Rule, at_least, between, expect
from casemate.types import Images


@runtime_checkable
class Augmentation(Protocol):
    """What the training loop asks of a change to images."""

    def __call__(self, images: Images, index: Int64[Tensor, " n"], epoch: int, generator: Generator) -> Images:
        """Return changed images of the same shape, in [0, 1]."""
        ...


def _between(low: float, high: float, shape: tuple[int, ...], generator: Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


@final
@dataclass(frozen=True, kw_only=True)
class AlternatingFlip:
    """Mirror left and right, each image in every other epoch (half of them start mirrored).

    Every two epochs show each image both ways exactly once, which repeats fewer views than a coin toss.
    Source of the idea: K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024, section 3.6.
    """

    def __call__(self, images: Images, index: Int64[Tensor, " n"], epoch: int, generator: Generator) -> Images:
        """Return the batch with the images whose turn it is mirrored."""
        del generator
        turn = ((index * 2654435761 >> 16) + epoch) % 2 == 0
        return torch.where(turn.to(images.device).view(-1, 1, 1, 1), images.flip(3), images)


@final
@dataclass(frozen=True, kw_only=True)
class Flip:
    """Mirror each image left and right, and top and bottom, by two coin tosses (the study's section 3.5.1)."""

    horizontal: Annotated[float, between(0, 1, "a probability")] = 0.5
    """Probability of left and right being exchanged."""
    vertical: Annotated[float, between(0, 1, "a probability")] = 0.5
    """Probability of top and bottom being exchanged."""

    def __post_init__(self) -> None:
        expect(self)

    def __call__(self, images: Images, index: Int64[Tensor, " n"], epoch: int, generator: Generator) -> Images:
        """Return the batch with the images mirrored whose coins say so."""
        del index, epoch
        toss = torch.rand(2, len(images), 1, 1, 1, generator=generator).to(images.device)
        images = torch.where(toss[0] < self.horizontal, images.flip(3), images)
        return torch.where(toss[1] < self.vertical, images.flip(2), images)


@final
@dataclass(frozen=True, kw_only=True)
class Shift:
    """Move each image by up to `pixels` whole pixels in both directions; what enters is black."""

    pixels: Annotated[int, at_least(0)] = 1
    """Largest move, in pixels, to every side."""

    def __post_init__(self) -> None:
        expect(self)

    def __call__(self, images: Images, index: Int64[Tensor, " n"], epoch: int, generator: Generator) -> Images:
        """Return the batch with every image moved by its own draw."""
        del index, epoch
        count, _, height, width = images.shape
        reach = 2 * self.pixels + 1
        draw = torch.randint(reach, (2, count, 1), generator=generator).to(images.device)
        rows = draw[0] + torch.arange(height, device=images.device)
        columns = draw[1] + torch.arange(width, device=images.device)
        padded = F.pad(images, (self.pixels,) * 4)
        example = torch.arange(count, device=images.device).view(-1, 1, 1)
        moved = padded.permute(0, 2, 3, 1)[example, rows.unsqueeze(2), columns.unsqueeze(1)]
        return moved.permute(0, 3, 1, 2)


@final
@dataclass(frozen=True, kw_only=True)
class Affine:
    """Shift, rotate and scale each image by its own draws, in one interpolation; what enters is black.

    Several interpolations one after the other would blur the images more with each.
    """

    rotation: Annotated[float, between(0, 180, "degrees")] = 15.0
    """Largest angle to either side, in degrees."""
    shift: Annotated[float, between(0, 1, "a share of the side")] = 0.1
    """Largest move to every side, as a share of width and height."""
    scale: Annotated[float, between(0, 1, without_high=True)] = 0.1
    """Largest change of size to either side, as a share."""

    def __post_init__(self) -> None:
        expect(self)

    def __call__(self, images: Images, index: Int64[Tensor, " n"], epoch: int, generator: Generator) -> Images:
        """Return the batch with every image moved by its own draw."""
        del index, epoch
        count = len(images)
        angle = _between(-self.rotation, self.rotation, (count,), generator)
        shift = _between(-self.shift, self.shift, (count, 2), generator)
        scale = _between(1 - self.scale, 1 + self.scale, (count,), generator)
        return affine(images, angle, shift, scale).clamp_(0, 1)


@final
@dataclass(frozen=True, kw_only=True)
class GaussianBlur:
    """Convolve each channel with a Gaussian, the same for every image (the study's section 3.5.1: 3 x 3, sigma 1)."""

    size: Annotated[int, Rule("an odd number of pixels", lambda size: index(size) >= 1 and size % 2 == 1)] = 3
    """Pixels along a side of the kernel, odd."""
    sigma: Annotated[float, between(1e-3, math.inf, without_high=True)] = 1.0
    """Standard deviation, in pixels."""

    def __post_init__(self) -> None:
        expect(self)

    def __call__(self, images: Images, index: Int64[Tensor, " n"], epoch: int, generator: Generator) -> Images:
        """Return the blurred batch; the edge pixels are repeated outwards."""
        del index, epoch, generator
        reach = self.size // 2
        along = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
        weights = torch.exp(-0.5 * (along / self.sigma) ** 2)
        weights = (weights / weights.sum()).tolist()
        # a Gaussian in two dimensions is one along each: sums of moved copies, quicker here than a convolution
        height, width = images.shape[2:]
        padded = F.pad(images, (reach,) * 4, mode="replicate")
        down = _weighted(weights, [padded[:, :, i : i + height] for i in range(self.size)])
        return _weighted(weights, [down[..., i : i + width] for i in range(self.size)]).clamp_(0, 1)


def _weighted(weights: Sequence[float], parts: Sequence[Tensor]) -> Tensor:
    total = weights[0] * parts[0]
    for weight, part in zip(weights[1:], parts[1:], strict=True):
        total.add_(part, alpha=weight)
    return total


@final
@dataclass(frozen=True, kw_only=True)
class RandomApply:
    """Another change, to a share of the images of every batch; the others stay as they are."""

    change: Augmentation
    share: Annotated[float, between(0, 1, "a probability")] = 0.5
    """Probability that an image is changed."""

    def __post_init__(self) -> None:
        expect(self)

    def __call__(self, images: Images, index: Int64[Tensor, " n"], epoch: int, generator: Generator) -> Images:
        """Return the batch with the images changed whose coin says so."""
        toss = torch.rand(len(images), 1, 1, 1, generator=generator).to(images.device)
        return torch.where(toss < self.share, self.change(images, index, epoch, generator), images)
