"""Random numbers that depend only on a seed and on what they are used for.

A seed for a whole task comes from `derive(seed, "train", epoch, ...)`. Draws for single examples come from
`Streams`: each number is a hash of (seed, purpose, example index, restart, step, position), so it does not depend
on batch size, order, number of workers or device. The hash is the finaliser of SplitMix64 (Steele, Lea and Flood,
"Fast splittable pseudorandom number generators", OOPSLA 2014), applied to a counter.
"""

import hashlib
import math
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from casemate.rows import Rows


def _signed(value: int) -> int:
    """The unsigned 64-bit integer `value` as the signed one with the same bits."""
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def derive(*parts: int | str) -> int:
    """A 63-bit seed hashed from `parts`; different parts give unrelated seeds."""
    digest = hashlib.sha256("\x1f".join(f"{type(part).__name__}:{part}" for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def torch_forked(*devices: torch.device) -> AbstractContextManager[None]:
    """Context that restores PyTorch's global generators at its end: the CPU's and those of the GPUs in `devices`."""
    return torch.random.fork_rng(devices=[device for device in devices if device.type == "cuda"])


@contextmanager
def seeded(device: torch.device, *parts: int | str) -> Iterator[None]:
    """Context that seeds PyTorch's global generators with a hash of `parts`, and restores them at its end.

    For random numbers that cannot be keyed by example, such as noise inside a model.
    """
    with torch_forked(device):
        torch.manual_seed(derive(*parts))
        yield


@contextmanager
def all_forked(*devices: torch.device) -> Iterator[None]:
    """Context that restores the global generators of PyTorch (as `torch_forked`), NumPy and Python at its end."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  # what a network may draw from
    try:
        with torch_forked(*devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def seed_all(seed: int, torch_seed: int) -> None:
    """Seed the global generators: Python's and NumPy's with `seed`, PyTorch's with `torch_seed`."""
    torch.manual_seed(torch_seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002


@contextmanager
def all_seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Context that seeds the global generators of PyTorch, NumPy and Python, and restores them at its end."""
    with all_forked(device):
        seed_all(seed, derive(seed))
        yield


def _shift(bits: Int64[Tensor, "..."], by: int) -> Int64[Tensor, "..."]:
    """Shift 64-bit integers to the right by some bits; zeros come in from the left, whatever the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _mix(bits: Int64[Tensor, "..."]) -> Int64[Tensor, "..."]:
    bits = (bits ^ _shift(bits, 30)) * _MIX_1
    bits = (bits ^ _shift(bits, 27)) * _MIX_2
    return bits ^ _shift(bits, 31)


@final
@dataclass(frozen=True)
class Streams(Rows):
    """One stream of random numbers per example of a batch; `streams[mask]` selects examples.

    Args:
        seed: of all streams, from `derive`.
        index: position of each example in the data set, int64 `(n,)`; it keys the example's stream.
    """

    seed: int
    index: Int64[Tensor, " n"]

    def uniform(self, shape: tuple[int, ...], *purpose: int | str) -> Float[Tensor, "n ..."]:
        """Random numbers in [0, 1), `(n, *shape)`, keyed by a `purpose` such as ("start", restart).

        Each call with the same purpose returns the same numbers; another purpose gives others.
        """
        key = _mix(self.index * _GOLDEN + derive(self.seed, *purpose))
        position = torch.arange(1, math.prod(shape) + 1, device=self.index.device)
        bits = _mix(key.unsqueeze(1) + position * _GOLDEN)
        return (_shift(bits, 40).float() * 2.0**-24).view(-1, *shape)

    def normal(self, shape: tuple[int, ...], *purpose: int | str) -> Float[Tensor, "n ..."]:
        """Standard normal numbers, `(n, *shape)`, by the method of Box and Muller (1958); `purpose` as in `uniform`."""
        radius = (-2 * torch.log1p(-self.uniform(shape, *purpose, "radius"))).sqrt()
        return radius * torch.cos(2 * math.pi * self.uniform(shape, *purpose, "angle"))
