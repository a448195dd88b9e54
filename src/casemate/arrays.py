"""Arrays from files that nobody vouches for: .npz and .safetensors, whose every claim is held against the file's size.

A header is a claim. What it says of types, sizes and places is compared with the bytes that are there before anything
is allocated, and a compressed part is unpacked no further than it says. Nothing is executed: of .npz only the arrays
that are asked for are looked at, and no type that needs Python's pickle.
"""

import copy
import io
import json
import math
import os
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import safetensors
import safetensors.torch
from torch import Tensor

from casemate.errors import CasemateError
from casemate.files import unique

P = ParamSpec("P")
T = TypeVar("T")

_MOST_HEADER = 10_000_000
"""Bytes that the header of a .safetensors file may take: a hundred thousand tensors."""
_MOST_NPY_HEADER = 1 << 16
"""Bytes looked at for the header of one array in a .npz file; NumPy itself reads no longer one than 10,000."""
_FREELY = 256_000_000
"""Bytes that a compressed array may unpack to, however small it was packed."""
_RATIO = 100
"""Beyond that, how many times its packed size; deflate reaches 1,032, photographs reach 3."""
_CHUNK = 1 << 20
_SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4}
_SIZES |= {"U64": 8, "I64": 8, "F64": 8}
"""Bytes of a number, by the names of .safetensors."""


class UnsoundError(CasemateError):
    """A file that is cut short, damaged, or claims what it does not hold; readers turn it into an error of theirs."""


def _guarded(read: Callable[P, T]) -> Callable[P, T]:
    """Whatever the parsers of other libraries raise on hostile bytes is one error; there is no list of all they do."""

    @wraps(read)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(*args, **kwargs)
        except UnsoundError:
            raise
        except MemoryError as error:
            raise UnsoundError("the memory of this machine does not hold it") from error
        except OSError as error:
            raise UnsoundError(error.strerror or str(error) or type(error).__name__) from error
        except Exception as error:
            raise UnsoundError(f"{str(error) or 'it is cut short or damaged'} ({type(error).__name__})") from error

    return guarded


# .safetensors ---------------------------------------------------------------------------------------------------------
@_guarded
def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a .safetensors file by name, and its metadata. Raises `UnsoundError`."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        metadata = _metadata(file.read(8 + _MOST_HEADER), size)
    _afford(size)
    with safetensors.safe_open(path, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, metadata  # noqa: SIM118 (not a dict)


@_guarded
def parse_safetensors(raw: bytes) -> dict[str, Tensor]:
    """The tensors in the bytes of a .safetensors file by name. Raises `UnsoundError`."""
    _metadata(raw, len(raw))
    return safetensors.torch.load(raw)


def _metadata(head: bytes, size: int) -> dict[str, str]:
    """The metadata in the header of a file of `size` bytes. Raises `UnsoundError` for claims that cannot be true."""
    if size < 8:
        raise UnsoundError(f"{size} bytes, but the length of the header alone takes 8; it is cut short")
    length = int.from_bytes(head[:8], "little")
    if length > size - 8:
        raise UnsoundError(f"its header is said to take {length} bytes, but only {size - 8} follow")
    if length > _MOST_HEADER:
        raise UnsoundError(f"its header takes {length} bytes; at most {_MOST_HEADER} are read")
    header = json.loads(head[8 : 8 + length].decode(), object_pairs_hook=unique)
    if not isinstance(header, dict):
        raise UnsoundError("its header is not a table of tensors")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UnsoundError("its metadata is not a table of texts")
    for name, facts in header.items():
        _check_tensor(name, facts, size - 8 - length)
    return metadata


def _check_tensor(name: str, facts: Any, room: int) -> None:
    """Raise `UnsoundError` unless a tensor is of a known type and lies, with its size, where the file has bytes."""
    if not isinstance(facts, dict) or facts.keys() != {"dtype", "shape", "data_offsets"}:
        raise UnsoundError(f"{name!r} is not described by type, shape and place")
    kind, shape, place = facts["dtype"], facts["shape"], facts["data_offsets"]
    if not isinstance(kind, str) or kind not in _SIZES:
        raise UnsoundError(f"{name!r} is of type {kind}; read are {', '.join(_SIZES)}")
    if not _counts(shape) or not _counts(place) or len(place) != 2:
        raise UnsoundError(f"{name!r} has the shape {shape} and the place {place}; expected lists of whole numbers")
    begin, end = place
    if not begin <= end <= room:
        raise UnsoundError(f"{name!r} is said to lie at {begin} to {end}, but {room} bytes are there")
    if math.prod(shape) * _SIZES[kind] != end - begin:
        raise UnsoundError(f"{name!r} of shape {shape} and type {kind} is said to take {end - begin} bytes")


def _counts(values: Any) -> bool:
    """Whether these are whole numbers, none below zero."""
    return isinstance(values, list | tuple) and all(type(value) is int and value >= 0 for value in values)


# .npz -----------------------------------------------------------------------------------------------------------------
@_guarded
def read_npz(path: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Those of the named arrays that a .npz file holds, as numbers of this machine. Raises `UnsoundError`.

    Only real numbers are read, of at most eight bytes, stored or deflated as `numpy.savez` and
    `numpy.savez_compressed` leave them.
    """
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        size = os.fstat(file.fileno()).st_size
        held: dict[str, list[zipfile.ZipInfo]] = {}
        for each in archive.infolist():
            held.setdefault(each.filename.removesuffix(".npy"), []).append(each)
        return {name: _array(name, archive, held[name], size) for name in names if name in held}


def _array(name: str, archive: zipfile.ZipFile, held: list[zipfile.ZipInfo], size: int) -> np.ndarray:
    """One array of an archive of `size` bytes."""
    if len(held) > 1:
        raise UnsoundError(f"it holds {len(held)} arrays called {name}")
    info = copy.copy(held[0])
    claimed = info.file_size
    _check_member(name, info, size)
    info.file_size += _CHUNK  # more than it says is asked for, so that more than it says shows
    with archive.open(info) as member:
        head = member.read(min(claimed, _MOST_NPY_HEADER))
        kind, shape, fortran, start = _npy_header(name, head)
        room = claimed - start
        if math.prod(shape) * kind.itemsize != room:
            raise UnsoundError(f"{name} of shape {shape} and type {kind} are said to take {room} bytes")
        _afford(room)
        content = bytearray(head[start:])
        while chunk := member.read(min(_CHUNK, room + 1 - len(content))):
            content += chunk
            if len(content) > room:
                raise UnsoundError(f"{name} unpack to more than the {claimed} bytes they are said to take")
    if len(content) != room:
        raise UnsoundError(f"{name} are cut short: {len(content)} of {room} bytes are there")
    found = np.frombuffer(content, dtype=kind).astype(kind.newbyteorder("="), copy=False)
    return found.reshape(shape[::-1]).transpose() if fortran else found.reshape(shape)


def _check_member(name: str, info: zipfile.ZipInfo, size: int) -> None:
    """Raise `UnsoundError` unless a part of an archive of `size` bytes can be read, and can be what it claims to be."""
    if info.flag_bits & 0x41:
        raise UnsoundError(f"{name} are encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UnsoundError(f"{name} are packed by method {info.compress_type}; read are stored (0) and deflated (8)")
    packed, claimed = info.compress_size, info.file_size
    if packed > size:
        raise UnsoundError(f"{name} are said to take {packed} bytes of a file of {size}")
    if info.compress_type == zipfile.ZIP_STORED and packed != claimed:
        raise UnsoundError(f"{name} are stored as they are, but said to take {packed} bytes and {claimed}")
    if claimed > max(_FREELY, _RATIO * packed):
        raise UnsoundError(
            f"{name} are said to unpack from {packed} to {claimed} bytes, more than {_RATIO} times as many; if that is "
            "meant, store them with numpy.savez, which does not pack"
        )


def _npy_header(name: str, head: bytes) -> tuple[np.dtype, tuple[int, ...], bool, int]:
    """Type, shape, whether columns come first, and where the numbers begin."""
    stream = io.BytesIO(head)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    if version not in ((1, 0), (2, 0)):
        raise UnsoundError(f"{name} are of version {version} of NumPy's format; read are 1.0 and 2.0")
    with warnings.catch_warnings():  # of headers that Python 2 wrote
        warnings.simplefilter("ignore")
        shape, fortran, kind = read(stream)
    if kind.kind not in "uif" or kind.itemsize > 8:
        raise UnsoundError(f"{name} are of type {kind}; expected numbers (uint8, float32, int64)")
    if not _counts(shape):
        raise UnsoundError(f"{name} are of shape {shape}; expected whole numbers, none below zero")
    return kind, shape, fortran, stream.tell()


def _afford(size: int) -> None:
    """Raise `UnsoundError` if this machine can never hold so many bytes."""
    names: Mapping[str, int] = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if 0 < memory < size:
            raise UnsoundError(f"it holds {size} bytes, but this machine has a memory of {memory}; take less")
