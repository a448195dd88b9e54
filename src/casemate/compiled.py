"""Loops compiled for the processor by Numba: compilation, supported tensors, and multi-threading.

PyTorch passes over memory once per operation; a compiled loop that does all of them for one image stays in the cache.
Loops are compiled on first use for the given sizes and types, and Numba caches the result on disk. (Their arguments
have no annotations, since Numba infers types itself.)
Numba comes with the extra `fast`, and only this module imports it. Without it `supports` is always false, and the plain
PyTorch or NumPy operations beside every loop are used, with the same results up to rounding.

Loops get maps and images as contiguous `(n, height, width, channels)`, or as flattened rows.
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
"""Whether Numba is installed."""

Loop = Callable[..., None]


def loop(function: Loop) -> Loop:
    """Decorator that compiles a function of loops over NumPy arrays with Numba on its first call.

    Numba may fuse multiplications and additions, but not reorder sums: in a pooling the first of several equal maxima
    counts, so equal inputs must give equal numbers.
    """
    return _compiled(function, {"contract"})


def reordering_loop(function: Loop) -> Loop:
    """Like `loop`, but sums may be reordered to be faster, for results where rounding does not matter."""
    return _compiled(function, {"contract", "reassoc"})


def _compiled(function: Loop, fastmath: set[str]) -> Loop:
    if njit is None:
        return function  # never called, see `supports`
    settings = {"fastmath": fastmath, "nogil": True, "error_model": "numpy"}  # division by zero gives infinity
    try:
        return njit(cache=True, **settings)(function)
    except RuntimeError:  # no writable cache folder
        return njit(**settings)(function)


def supports(values: Tensor, *, bfloat16: bool = False) -> bool:
    """Whether Numba is installed and its compiled loops can process this tensor (see `is_plain`)."""
    return AVAILABLE and is_plain(values, bfloat16=bfloat16)


def is_plain(values: Tensor, *, bfloat16: bool = False) -> bool:
    """Whether NumPy can read a tensor: float32 or float64 on the CPU, outside `torch.func` and forward-mode autograd.

    `bfloat16` allows that type too, for loops that only compare and move numbers.
    """
    functional = torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore[reportAttributeAccessIssue]
    transformed = functional or forward_ad._current_level >= 0
    known = values.dtype in (torch.float32, torch.float64) or (bfloat16 and values.dtype is torch.bfloat16)
    return values.device.type == "cpu" and known and not transformed


def channels_last(maps: Tensor) -> Tensor:
    """Feature maps `(n, channels, height, width)` as a contiguous `(n, height, width, channels)`, detached."""
    return maps.detach().permute(0, 2, 3, 1).contiguous()


def empty_maps(like: Tensor, count: int, channels: int, height: int, width: int) -> Tensor:
    """Uninitialised feature maps `(count, channels, height, width)`, of which `channels_last` is a view, not a copy.

    Their type and device are those of `like`.

    (The output of a layer must not be a view itself, since the next layer may work in place.)
    """
    shape = (count, channels, height, width)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def over_images(function: Loop, *maps: Tensor, fixed: tuple[Tensor, ...] = ()) -> None:
    """Run a compiled loop over the first dimension of all `maps`, divided among as many threads as PyTorch uses.

    The loop gets the tensors as NumPy views and writes its results into some of them. `fixed` are further arguments,
    passed whole to each thread.
    """
    count = len(maps[0])
    threads = max(1, min(torch.get_num_threads(), count))
    bounds = [count * part // threads for part in range(threads + 1)]
    arrays, constants = [_array(tensor) for tensor in maps], [_array(tensor) for tensor in fixed]

    def run(first: int, last: int) -> None:
        function(*(array[first:last] for array in arrays), *constants)

    parts = list(itertools.pairwise(bounds))
    others = [_pool(threads).submit(run, *part) for part in parts[1:]]
    run(*parts[0])
    for other in others:
        other.result()


def _array(tensor: Tensor) -> np.ndarray:
    """A NumPy view of the tensor; of bfloat16, which NumPy lacks, as int16."""
    return (tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor).numpy()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="casemate-loops")


if hasattr(os, "register_at_fork"):  # a forked child has none of the threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
