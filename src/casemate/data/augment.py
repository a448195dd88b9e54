"""Random changes to training images, as batched tensor operations that keep [0, 1].

Each is a frozen dataclass called with the batch, the images' numbers in the data set, the epoch and a generator;
what is drawn is drawn per example and epoch.
"""

from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Generator, Tensor

from casemate.errors import SettingError
from casemate.types import Images


@runtime_checkable
class Augmentation(Protocol):
    """What the training loop asks of a change to images."""

    def __call__(self, images: Images, index: Int64[Tensor, " n"], epoch: int, generator: Generator) -> Images:
        """Return changed images of the same shape, in [0, 1]."""
        ...


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
class Shift:
    """Move each image by up to `pixels` whole pixels in both directions; what enters is black."""

    pixels: int = 1
    """Largest move, in pixels, to every side."""

    def __post_init__(self) -> None:
        if self.pixels < 0:
            raise SettingError(f"pixels = {self.pixels}; expected zero or more")

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
