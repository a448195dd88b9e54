"""A program that copies an HDF5 file, for a process of its own: the parser may crash, or never end, on damaged files.

It is called with the paths of the file and of the copy, and the most seconds and bytes of memory that it may use
beyond its imports. The
copy has the same groups, arrays of numbers and attributes, and no links. The number of values in all arrays is printed;
what is refused is the last line of standard error.
"""

import sys
import time
from importlib import import_module
from math import ceil, prod
from pathlib import Path
from typing import Any, NoReturn

SMALL = 256_000_000
"""Size in bytes up to which the arrays may take any multiple of the file's size."""
RATIO = 100
"""Largest ratio of the size of larger arrays to the file's."""
_KINDS = "fiubV"
"""NumPy's letters for the types that are copied: numbers, and bfloat16, which NumPy lacks."""


def copy_arrays(source: Path, target: Path, seconds: int, memory: int) -> None:
    """Copy the file, and print the number of values in it."""
    h5py = import_module("h5py")
    _limit(seconds, memory)
    with h5py.File(source, "r") as found, h5py.File(target, "w") as made:
        most = max(SMALL, RATIO * source.stat().st_size)
        sys.stdout.write(f"{_copied(found, made, h5py, set(), [most])}\n")


def _limit(seconds: int, memory: int) -> None:
    """Limit the processor time and the memory of this process, where the system can."""
    try:
        resource = import_module("resource")
    except ModuleNotFoundError:
        return
    seconds += ceil(time.process_time())  # of the imports
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))


def _copied(found: Any, made: Any, h5py: Any, seen: set[int], left: list[int]) -> int:
    """Copy the content of a group; return the number of values in all arrays of it.

    `seen` are the addresses of the objects that have been copied, `left` is the number of bytes that may still be.
    """
    count = 0
    for name, value in found.attrs.items():
        made.attrs[name] = value
    for name in found:
        if not isinstance(found.get(name, getlink=True), h5py.HardLink):
            _refuse(f"its weights lead elsewhere ({name[:80]} is a link); nothing of that was read")
        child = found[name]
        address = h5py.h5o.get_info(child.id).addr
        if address in seen:
            _refuse(f"its weights lead in a circle, or twice to the same ({name[:80]})")
        seen.add(address)
        if isinstance(child, h5py.Group):
            count += _copied(child, made.create_group(name), h5py, seen, left)
            continue
        if not isinstance(child, h5py.Dataset) or child.dtype.kind not in _KINDS:
            _refuse(f"its weights have more than numbers ({name[:80]})")
        if child.external or child.is_virtual:
            _refuse(f"its weights lie in another file ({name[:80]}); nothing of that was read")
        values = prod(child.shape)
        left[0] -= values * child.dtype.itemsize
        if left[0] < 0:
            _refuse(f"its weights state far more bytes than the file has ({name[:80]} of shape {child.shape})")
        count += values
        written = made.create_dataset(name, data=child[()])
        for attribute, value in child.attrs.items():
            written.attrs[attribute] = value
    return count


def _refuse(what: str) -> NoReturn:
    """End with a message."""
    sys.exit(what)


if __name__ == "__main__":
    copy_arrays(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
