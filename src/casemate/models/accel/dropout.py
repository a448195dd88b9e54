"""Dropout whose random numbers are hashes of the position of each activation.

PyTorch's dropout draws its numbers one after another, which takes a twentieth of a training step, and stores a mask for
the backward pass. Here the mask is recomputed from the hash in both passes: on one core of a Xeon the dropout layers of
appendix A of the paper took 3 instead of 39 microseconds per image forward. Without Numba, NumPy computes the same
hashes.
"""

from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from casemate import compiled
from casemate.models.accel import loops


@final
class HashDropout(nn.Module):
    """A layer that replaces `nn.Dropout`; each call in training draws two seeds from PyTorch's global generator."""

    def __init__(self, layer: nn.Dropout) -> None:
        super().__init__()
        self.p: float = layer.p
        self.train(layer.training)

    def forward(self, values: Tensor) -> Tensor:
        """Return `values` with a random part zeroed and the rest scaled up; in evaluation mode `values` unchanged."""
        keep = round((1 - self.p) * 2**32)
        readable = compiled.is_plain(values, bfloat16=True)
        if not self.training or not 0 < keep < 2**32 or values.ndim < 2 or not readable:
            return F.dropout(values, self.p, self.training)
        seeds = torch.randint(2**32, (2,), device=values.device)
        # bfloat16 by way of float32, which takes a quarter of the time of PyTorch's own; the same numbers are dropped
        wide = values.float() if values.dtype is torch.bfloat16 else values
        return _Dropout.apply(wide, seeds.new_tensor([keep]), seeds).to(values.dtype)  # pyright: ignore[reportAttributeAccessIssue]


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, keep: Tensor, seeds: Tensor) -> Tensor:
        ctx.save_for_backward(keep, seeds)
        maps = values.ndim == 4
        given = compiled.channels_last(values) if maps else values.detach().contiguous()
        kept = compiled.empty_maps(values, *values.shape) if maps else torch.empty_like(given)
        filled = compiled.channels_last(kept) if maps else kept
        rows = torch.arange(len(values), device=values.device)
        drop = loops.drop if compiled.AVAILABLE else _drop_by_operations
        compiled.over_images(drop, given.flatten(1), rows, filled.flatten(1), fixed=(keep, seeds))
        return kept

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _Dropout.apply(*gradients, *ctx.saved_tensors), None, None  # pyright: ignore[reportReturnType]


def _drop_by_operations(
    values: np.ndarray, numbers: np.ndarray, kept: np.ndarray, keep: np.ndarray, seeds: np.ndarray
) -> None:
    """`loops.drop` in NumPy operations, with the same result."""
    one, other = seeds.astype(np.uint32)
    size = values.shape[1]
    mixed = (numbers[:, np.newaxis] * size + np.arange(size)).astype(np.uint32) ^ one
    for last in (other, np.uint32(0)):
        mixed = (mixed ^ (mixed >> 16)) * np.uint32(0x7FEB352D)
        mixed = (mixed ^ (mixed >> 15)) * np.uint32(0x846CA68B)
        mixed = mixed ^ (mixed >> 16) ^ last
    scale = values.dtype.type(2.0**32 / keep[0])
    kept[...] = np.where(mixed < keep[0], values * scale, values.dtype.type(0))
