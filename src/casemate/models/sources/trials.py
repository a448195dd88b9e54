"""Which other images a network accepts, for an error whose advice works: another layout, number of channels, size."""

import time
from dataclasses import dataclass
from itertools import product
from typing import final

import torch
from torch import nn

from casemate.models.state import frozen

_CHANNELS = (1, 3)
_SIZES = (
    *(8, 14, 16, 20, 24, 28, 32, 48, 64, 96, 112, 128, 160, 192, 224),
    *(227, 240, 256, 288, 299, 320, 384, 448, 512),
)
_SECONDS = 10.0
"""Processor time, in seconds, after which no more is tried."""


@final
@dataclass(frozen=True, kw_only=True)
class Accepted:
    """Images that a network accepts."""

    channels: int
    size: tuple[int, int]
    channels_last: bool


@torch.no_grad()
def accepted_images(
    network: nn.Module, shape: tuple[int, ...], *, channels_last: bool, device: torch.device
) -> Accepted | None:
    """The first images that a network accepts, of those that differ least from the ones it failed on; None if none.

    Args:
        network: takes images in its own layout, and failed on those.
        shape: `(channels, height, width)` of them.
        channels_last: whether they had the channels last.
        device: where the network is.
    """
    start = time.process_time()
    sizes = [(shape[1], shape[2]), *((side, side) for side in _SIZES)]
    channels = [shape[0], *(each for each in _CHANNELS if each != shape[0])]
    with frozen(network):
        for size, last, count in product(sizes, (channels_last, not channels_last), channels):
            if (size, last, count) == (sizes[0], channels_last, shape[0]):
                continue
            images = torch.zeros(2, *size, count) if last else torch.zeros(2, count, *size)
            try:
                network(images.to(device))
            except Exception:  # the network may raise anything
                if time.process_time() - start > _SECONDS:
                    return None
                continue
            return Accepted(channels=count, size=size, channels_last=last)
    return None
