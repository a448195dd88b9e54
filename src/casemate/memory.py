"""Work on many examples in batches, in smaller ones where the memory does not hold them."""

from collections.abc import Callable
from typing import TypeVar

import torch

from casemate.errors import MachineError
from casemate.progress import NULL_OBSERVER, Observer

T = TypeVar("T")

_CPU_WORDS = ("not enough memory", "can't allocate memory")
"""How PyTorch says it on a CPU, where it raises a plain RuntimeError."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on a GPU or a CPU."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or (isinstance(error, RuntimeError) and any(words in str(error) for words in _CPU_WORDS))


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a GPU; none where that is not known."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def batched(
    count: int,
    batch_size: int,
    work: Callable[[slice], T],
    observer: Observer = NULL_OBSERVER,
    *,
    shrunk: Callable[[int], None] | None = None,
) -> list[T]:
    """What `work` returns for slices of `count` examples, in order; one that does not fit is halved and tried again.

    `shrunk` is told each smaller size. Raises `MachineError` if not even one example fits.
    """
    found: list[T] = []
    start = 0
    while start < count:
        try:
            found.append(work(slice(start, min(start + batch_size, count))))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if batch_size == 1:
                raise MachineError("the memory does not hold one image at a time; take a smaller model") from error
        else:
            start += batch_size
            continue
        # outside the handler, so that the failed attempt's tensors are gone before the next
        batch_size = max(1, min(batch_size, count - start) // 2)
        observer.message(f"Out of memory; going on with {batch_size} images at a time")
        if shrunk is not None:
            shrunk(batch_size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return found
