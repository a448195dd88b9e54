"""Loops compiled for the processor by Numba: how they are made, what they take, and on how many threads they run.

What PyTorch does operation by operation passes over memory for each of them; a loop over images that does it all for
one image stays in the cache. Loops are compiled when they are first needed, for the sizes and types in question; Numba
keeps what it has compiled on disk. (Their arguments have no annotations, since Numba finds types of its own.)
Numba comes with the extra `fast`, and this is the one module that imports it. Without it `takes` is always false, and
the plain operations of PyTorch or NumPy that stand beside every loop do the work, with the same results up to rounding.

Maps and images are `(n, height, width, channels)` for them, or rows of as many numbers, contiguous.
"""

import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

try:
    from numba import njit
except ImportError:
    njit = None

AVAILABLE = njit is not None
"""Whether loops are compiled here."""

Loop = Callable[..., None]


def loop(function: Loop) -> Loop:
    """Compiled when it is first called.

    Products and sums may be rounded once, but sums stay in their order: of several numbers that are largest the first
    counts in a pooling, so equal places must get equal numbers.
    """
    return _compiled(function, {"contract"})


def loop_in_any_order(function: Loop) -> Loop:
    """The same with sums in whatever order is fastest: for numbers of which only the size counts."""
    return _compiled(function, {"contract", "reassoc"})


def _compiled(function: Loop, freedom: set[str]) -> Loop:
    if njit is None:
        return function  # which nobody calls, see `takes`
    settings = {"fastmath": freedom, "nogil": True, "error_model": "numpy"}  # what is divided by zero is infinite
    try:
        return njit(cache=True, **settings)(function)
    except RuntimeError:  # there is no folder to keep it in
        return njit(**settings)(function)


def takes(values: Tensor, *, to_compare: bool = False) -> bool:
    """Whether there are compiled loops and they can take it (see `is_plain`)."""
    return AVAILABLE and is_plain(values, to_compare=to_compare)


def is_plain(values: Tensor, *, to_compare: bool = False) -> bool:
    """Whether NumPy can look at it: plain numbers of 32 or 64 bits, in the memory of the processor.

    Loops that only compare and move numbers can take bfloat16 too.
    """
    functional = torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore[reportAttributeAccessIssue]
    transformed = functional or forward_ad._current_level >= 0  # which the loops do not know
    known = values.dtype in (torch.float32, torch.float64) or (to_compare and values.dtype is torch.bfloat16)
    return values.device.type == "cpu" and known and not transformed


def channels_last(maps: Tensor) -> Tensor:
    """Maps `(n, channels, height, width)` as the loops take them, without a history."""
    return maps.detach().permute(0, 2, 3, 1).contiguous()


def empty_maps(like: Tensor, count: int, channels: int, height: int, width: int) -> Tensor:
    """Room for maps `(n, channels, height, width)`, of which `channels_last` is a view and no copy.

    (What a layer returns must not be a view itself: others may write over it.)
    """
    shape = (count, channels, height, width)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def over_images(function: Loop, *maps: Tensor, fixed: tuple[Tensor, ...] = ()) -> None:
    """Run a loop over images that are first in each of `maps`, on as many threads as PyTorch uses."""
    count = len(maps[0])
    threads = max(1, min(torch.get_num_threads(), count))
    bounds = [count * part // threads for part in range(threads + 1)]
    arrays, constants = [_array(tensor) for tensor in maps], [_array(tensor) for tensor in fixed]

    def part(first: int, last: int) -> None:
        function(*(array[first:last] for array in arrays), *constants)

    ends = list(itertools.pairwise(bounds))
    others = [_pool(threads).submit(part, *those) for those in ends[1:]]
    part(*ends[0])
    for other in others:
        other.result()


def _array(tensor: Tensor) -> np.ndarray:
    """The tensor's memory; of bfloat16, which NumPy does not know, the bits."""
    return (tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor).numpy()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="casemate-loops")


if hasattr(os, "register_at_fork"):  # threads stay behind when a process forks
    os.register_at_fork(after_in_child=_pool.cache_clear)
