"""Work in batches that are halved when memory runs out."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch

from casemate.errors import MachineError
from casemate.progress import NULL_OBSERVER, Observer
from casemate.settings import at_least

T = TypeVar("T")

_CPU_WORDS = ("not enough memory", "can't allocate memory")
"""Words by which the plain RuntimeError that PyTorch raises when the main memory runs out is recognised."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on a GPU or a CPU."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or (isinstance(error, RuntimeError) and any(words in str(error) for words in _CPU_WORDS))


_CGROUP = Path("/sys/fs/cgroup")


def memory_of_machine() -> int:
    """Bytes of main memory of the machine, or of the container; a very large number where the system does not say."""
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        found = 2**62
    with suppress(OSError, ValueError):  # no container, or no limit ("max")
        found = min(found, int((_CGROUP / "memory.max").read_text()))
    return found


def processors() -> int:
    """The number of processors that this process may use, at least 1: of the machine, or of the container."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no container, or no limit ("max")
        quota, period = map(int, (_CGROUP / "cpu.max").read_text().split())
        found = min(found, max(1, quota // period))
    return found


def free_memory(device: torch.device) -> int:
    """Free bytes of a CUDA GPU's memory; 0 for any other device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def batched(
    count: int,
    batch_size: int,
    work: Callable[[slice], T],
    observer: Observer = NULL_OBSERVER,
    *,
    shrunk: Callable[[int], None] | None = None,
) -> list[T]:
    """Call `work` with one slice of `count` examples after the other, `batch_size` in each; return the results.

    Whenever memory runs out, the batch size is halved, and `shrunk` is called with the new one. Raises `MachineError`
    if memory does not suffice for one example, and `SettingError` for a batch size below one.
    """
    batch_size = at_least(1).check(batch_size, "batch_size")
    found: list[T] = []
    start = 0
    while start < count:
        try:
            found.append(work(slice(start, min(start + batch_size, count))))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if batch_size == 1:
                raise MachineError("memory does not suffice for one image at a time; use a smaller model") from error
        else:
            start += batch_size
            continue
        # outside the handler, so that the failed attempt's tensors are gone before the next
        batch_size = max(1, min(batch_size, count - start) // 2)
        observer.message(f"Out of memory; continuing with {batch_size} images at a time")
        if shrunk is not None:
            shrunk(batch_size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return found
