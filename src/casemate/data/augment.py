"""Augmentations of training images, as batched tensor operations within [0, 1]; noise is in `casemate.data.noise`.

Each is a frozen dataclass, called with the batch, each image's index in the data set, the epoch and a generator. Random
numbers are drawn for each example and epoch. Labels never change.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Annotated, Any, ClassVar, Protocol, final, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Generator, Tensor

from casemate.geometry import affine
from casemate.settings import Rule, at_least, between, expect
from casemate.types import Images


@runtime_checkable
class Augmentation(Protocol):
    """Interface of a random change to training images, which the training loop calls on each batch."""

    def __call__(self, images: Images, index: Int64[Tensor, " n"], epoch: int, generator: Generator) -> Images:
        """Return changed images of the same shape, in [0, 1].

        `index` are the images' positions in the data set; `generator` is on the CPU.
        """
        ...


def takes_unit_pixels(change: Augmentation) -> bool:
    """Whether an augmentation takes pixels within [0, 1] only: it says so by `unit_pixels`."""
    return bool(getattr(change, "unit_pixels", False))


def _uniform(low: float, high: float, shape: tuple[int, ...], generator: Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


@final
@dataclass(frozen=True, kw_only=True)
class AlternatingFlip:
    """Flip each image horizontally in every other epoch; half of the images start flipped.

    Two consecutive epochs show each image in both orientations, whereas random flips often repeat one.
    Source of the idea: K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024, section 3.6.
    """

    def __call__(self, images: Images, index: Int64[Tensor, " n"], epoch: int, generator: Generator) -> Images:
        """Return the batch with about half of the images flipped, by a hash of `index`; in the next epoch the rest."""
        del generator
        flipped = ((index * 2654435761 >> 16) + epoch) % 2 == 0
        return torch.where(flipped.to(images.device).view(-1, 1, 1, 1), images.flip(3), images)


@final
@dataclass(frozen=True, kw_only=True)
class Flip:
    """Flip each image horizontally and vertically at random (the study's section 3.5.1)."""

    horizontal: Annotated[float, between(0, 1, "a probability")] = 0.5
    """Probability of a horizontal flip."""
    vertical: Annotated[float, between(0, 1, "a probability")] = 0.5
    """Probability of a vertical flip."""

    def __post_init__(self) -> None:
        expect(self)

    def __call__(self, images: Images, index: Int64[Tensor, " n"], epoch: int, generator: Generator) -> Images:
        """Return the batch with each image flipped along either axis at random, with that axis' probability."""
        del index, epoch
        toss = torch.rand(2, len(images), 1, 1, 1, generator=generator).to(images.device)
        images = torch.where(toss[0] < self.horizontal, images.flip(3), images)
        return torch.where(toss[1] < self.vertical, images.flip(2), images)


@final
@dataclass(frozen=True, kw_only=True)
class Shift:
    """Translate each image along each axis by a random whole number of pixels; new pixels are black."""

    unit_pixels: ClassVar[bool] = True
    pixels: Annotated[int, at_least(0)] = 1
    """Largest translation along each axis, in pixels."""

    def __post_init__(self) -> None:
        expect(self)

    def __call__(self, images: Images, index: Int64[Tensor, " n"], epoch: int, generator: Generator) -> Images:
        """Return the batch with each image translated by its own random numbers of pixels."""
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
    """Shift, rotate and scale each image at random, in one bilinear interpolation; new pixels are black.

    A sequence of several interpolations would blur the images more.
    """

    unit_pixels: ClassVar[bool] = True
    rotation: Annotated[float, between(0, 180, "degrees")] = 15.0
    """Largest rotation in either direction, in degrees."""
    shift: Annotated[float, between(0, 1, "a share of the side")] = 0.1
    """Largest shift along each axis, as a share of width and height."""
    scale: Annotated[float, between(0, 1, without_high=True)] = 0.1
    """Largest relative change of size: factors are drawn from 1 - `scale` to 1 + `scale`."""

    def __post_init__(self) -> None:
        expect(self)

    def __call__(self, images: Images, index: Int64[Tensor, " n"], epoch: int, generator: Generator) -> Images:
        """Return the batch with each image shifted, rotated and scaled by its own random numbers."""
        del index, epoch
        count = len(images)
        angle = _uniform(-self.rotation, self.rotation, (count,), generator)
        shift = _uniform(-self.shift, self.shift, (count, 2), generator)
        scale = _uniform(1 - self.scale, 1 + self.scale, (count,), generator)
        return affine(images, angle, shift, scale).clamp_(0, 1)


@final
@dataclass(frozen=True, kw_only=True)
class GaussianBlur:
    """Convolve each channel with a Gaussian, the same for every image (the study's section 3.5.1: 3 x 3, sigma 1)."""

    unit_pixels: ClassVar[bool] = True
    size: Annotated[int, Rule("an odd number of pixels", lambda size: index(size) >= 1 and size % 2 == 1)] = 3
    """Pixels along a side of the kernel, odd."""
    sigma: Annotated[float, between(1e-3, math.inf, without_high=True)] = 1.0
    """Standard deviation of the Gaussian, in pixels."""

    def __post_init__(self) -> None:
        expect(self)

    def __call__(self, images: Images, index: Int64[Tensor, " n"], epoch: int, generator: Generator) -> Images:
        """Return the blurred batch; the border is padded with the edge pixels."""
        del index, epoch, generator
        reach = self.size // 2
        along = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
        weights = torch.exp(-0.5 * (along / self.sigma) ** 2)
        weights = (weights / weights.sum()).tolist()
        # the kernel is separable, and sums of shifted copies are faster here than a convolution
        height, width = images.shape[2:]
        padded = F.pad(images, (reach,) * 4, mode="replicate")
        down = _weighted_sum(weights, [padded[:, :, i : i + height] for i in range(self.size)])
        return _weighted_sum(weights, [down[..., i : i + width] for i in range(self.size)]).clamp_(0, 1)


def _weighted_sum(weights: Sequence[float], parts: Sequence[Tensor]) -> Tensor:
    total = weights[0] * parts[0]
    for weight, part in zip(weights[1:], parts[1:], strict=True):
        total.add_(part, alpha=weight)
    return total


def _is_one(change: Any) -> bool:
    return callable(change) and not isinstance(change, type)


@final
@dataclass(frozen=True, kw_only=True)
class RandomApply:
    """Apply another augmentation to randomly chosen images of each batch only."""

    change: Annotated[Augmentation, Rule("an augmentation, such as Shift()", _is_one)]
    """The augmentation to apply."""
    share: Annotated[float, between(0, 1, "a probability")] = 0.5
    """Probability that an image is changed."""

    def __post_init__(self) -> None:
        expect(self)

    @property
    def unit_pixels(self) -> bool:
        """Whether the augmentation takes pixels within [0, 1] only."""
        return takes_unit_pixels(self.change)

    def __call__(self, images: Images, index: Int64[Tensor, " n"], epoch: int, generator: Generator) -> Images:
        """Return the batch with the augmentation applied to randomly chosen images, the others unchanged."""
        toss = torch.rand(len(images), 1, 1, 1, generator=generator).to(images.device)
        return torch.where(toss < self.share, self.change(images, index, epoch, generator), images)
