"""Safe reading of .npz and .safetensors files from untrusted sources, whole or by rows; writing of the latter by rows.

Before anything is allocated, the types, sizes and offsets in a header are checked against the size of the file, and a
compressed array is unpacked only up to its stated size, into a temporary file. Nothing is executed: of .npz files only
the requested arrays are read, and no types that need pickle.
"""

import copy
import io
import json
import math
import os
import stat
import tempfile
import warnings
import weakref
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar, final

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from casemate.errors import CasemateError
from casemate.files import unique, writing

P = ParamSpec("P")
T = TypeVar("T")

_MOST_HEADER = 10_000_000
"""Largest header of a .safetensors file, in bytes: enough for a hundred thousand tensors."""
_MOST_NPY_HEADER = 1 << 16
"""Largest number of bytes read as the header of an array in a .npz file; NumPy itself accepts at most 10,000."""
_UNLIMITED_RATIO = 256_000_000
"""Unpacked size, in bytes, up to which a compressed array may have any compression ratio."""
_RATIO = 100
"""Largest compression ratio of an array of more than `_UNLIMITED_RATIO` bytes, since a larger one may be a zip bomb;
deflate can reach 1,032, photographs reach 3."""
_CHUNK = 1 << 20
_MOST_WORDS = 300
"""Largest number of characters of a parser's message that are shown; zipfile quotes names of any length."""
_SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4}
_SIZES |= {"U64": 8, "I64": 8, "F64": 8}
"""Bytes per number, by the type names of .safetensors."""
_TYPES = {name: f"<{name[0].lower()}{size}" for name, size in _SIZES.items()} | {"BOOL": "|b1", "BF16": "<u2"}
"""NumPy's types, by the type names of .safetensors; bfloat16 is read as uint16."""
_NAMES = {torch.float32: "F32", torch.int64: "I64"}
"""The type names of .safetensors, of the types that `writing_tensors` writes."""


class UnsoundError(CasemateError):
    """Raised for a truncated, damaged or self-contradictory file; callers convert it to an error of their own."""


def guarded(read: Callable[P, T]) -> Callable[P, T]:
    """Decorator that converts any exception to `UnsoundError`, since a parser may raise anything on hostile bytes."""

    @wraps(read)
    def caught(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(*args, **kwargs)
        except UnsoundError:
            raise
        except MemoryError as error:
            raise UnsoundError("it does not fit into the memory of this machine") from error
        except OSError as error:
            raise UnsoundError(error.strerror or str(error) or type(error).__name__) from error
        except Exception as error:
            words = str(error) if len(str(error)) <= _MOST_WORDS else f"{str(error)[:_MOST_WORDS]}..."
            raise UnsoundError(f"{words or 'it is truncated or damaged'} ({type(error).__name__})") from error

    return caught


# Rows of an array in a file -------------------------------------------------------------------------------------------
@final
class OpenFile:
    """An open file whose bytes can be read at any place; it is closed when the object is no longer used.

    Reading is by `os.pread`, and not by mapping the file into memory: a file that is cut short meanwhile is then an
    error and does not end the process, and the memory of the process holds only what is read.
    """

    def __init__(self, handle: int) -> None:
        self._handle = handle
        weakref.finalize(self, os.close, handle)
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise UnsoundError("it is not a regular file")
        self.size = status.st_size

    @classmethod
    def at(cls, path: Path) -> "OpenFile":
        """Open the file at `path`. Raises `OSError`, or `UnsoundError` for what is no regular file, such as a pipe."""
        return cls(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))  # a pipe would block without O_NONBLOCK

    @classmethod
    def unpacked(cls, content: IO[bytes]) -> "OpenFile":
        """The same file as `content`, a temporary file, which stays on the disk as long as this object is used."""
        content.flush()
        return cls(os.dup(content.fileno()))

    def read(self, start: int, count: int) -> bytes:
        """`count` bytes from the offset `start`. Raises `UnsoundError` if the file is shorter than that."""
        return bytes(self.read_writable(start, count))

    def read_writable(self, start: int, count: int) -> bytearray:
        """`count` bytes from the offset `start`, as the memory of an array that may be written to; see `read`."""
        content = bytearray(count)
        with memoryview(content) as place:
            done = 0
            while done < count:
                read = os.preadv(self._handle, [place[done : done + (1 << 30)]], start + done)
                if not read:
                    early = count - done
                    raise UnsoundError(
                        f"it ends at byte {start + done}, {early} bytes early; it has been changed or is truncated"
                    )
                done += read
        return content


@final
@dataclass(frozen=True, kw_only=True)
class StoredArray:
    """An array in an open file, in C order, of which some rows can be read without the others."""

    file: OpenFile
    start: int
    """Offset of the first row, in bytes."""
    shape: tuple[int, ...]
    dtype: np.dtype
    """Type of the numbers as they are stored."""
    stride: int | None = None
    """Bytes from the beginning of one row to that of the next; None if the rows follow one another directly."""
    is_bfloat16: bool = False
    """Whether the numbers, stored as uint16, are bfloat16, which NumPy lacks; they are read as float32."""

    def rows(self, index: np.ndarray) -> np.ndarray:
        """The rows at the positions `index`, whole numbers `(k,)`, in native byte order, `(k, *shape[1:])`.

        Rows that follow one another are read at once. Raises `UnsoundError` if the file is shorter than it was.
        """
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        stride = self.stride or size
        order = np.argsort(index, kind="stable")
        wanted = index[order]
        content = np.empty((len(index), size), dtype=np.uint8)
        ends = [*(np.flatnonzero(np.diff(wanted) != 1) + 1).tolist(), len(wanted)]
        first = 0
        for last in ends if len(wanted) else []:
            raw = self.file.read_writable(self.start + int(wanted[first]) * stride, (last - first - 1) * stride + size)
            content[order[first:last]] = np.ndarray((last - first, size), np.uint8, raw, strides=(stride, 1))
            first = last
        found = content.view(self.dtype).reshape(len(index), *self.shape[1:])
        return self._native(found)

    def whole(self) -> np.ndarray:
        """The whole array, in native byte order. Raises `UnsoundError` if it exceeds this machine's memory."""
        size = math.prod(self.shape) * self.dtype.itemsize
        _check_memory(size)
        if self.stride is not None:
            return self.rows(np.arange(self.shape[0]))
        return self._native(np.frombuffer(self.file.read_writable(self.start, size), self.dtype).reshape(self.shape))

    def _native(self, stored: np.ndarray) -> np.ndarray:
        """Numbers as they are stored, in native byte order, and bfloat16 as float32."""
        if self.is_bfloat16:
            return (stored.astype(np.uint32) << 16).view(np.float32)
        return stored.astype(self.dtype.newbyteorder("="), copy=False)


# .safetensors ---------------------------------------------------------------------------------------------------------
@guarded
def open_safetensors(path: Path) -> dict[str, StoredArray]:
    """The tensors of a .safetensors file by name, of which nothing but the header is read. Raises `UnsoundError`."""
    file = OpenFile.at(path)
    header = _header(file.read(0, min(file.size, 8 + _MOST_HEADER)), file.size)
    with safetensors.safe_open(path, framework="np"):  # checks what `_header` does not: gaps and overlaps
        pass
    start = 8 + int.from_bytes(file.read(0, 8), "little")
    return {
        name: StoredArray(
            file=file,
            start=start + entry["data_offsets"][0],
            shape=tuple(entry["shape"]),
            dtype=np.dtype(_TYPES[entry["dtype"]]),
            is_bfloat16=entry["dtype"] == "BF16",
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


@guarded
def safetensors_metadata(path: Path) -> dict[str, str]:
    """The metadata of a .safetensors file, texts by name, of which its head alone is read. Raises `UnsoundError`."""
    file = OpenFile.at(path)
    length = int.from_bytes(file.read(0, 8), "little")
    return _metadata(file.read(0, min(file.size, 8 + min(length, _MOST_HEADER))), file.size)


@guarded
def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a .safetensors file, by name, and its metadata, texts by name. Raises `UnsoundError`."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        metadata = _metadata(file.read(8 + _MOST_HEADER), size)
    _check_memory(size)
    with safetensors.safe_open(path, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, metadata  # noqa: SIM118 (not a dict)


SIGNATURE = 9
"""Number of bytes at the beginning of a file from which `is_archive` and `is_pickle` know it."""


def is_archive(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a zip archive, as torch.save writes it.

    A .safetensors file may begin with PK too, with the length of its header: of 19,280 bytes for example.
    """
    return head[:2] == b"PK" and not _is_header(head)


def is_pickle(head: bytes) -> bool:
    """Whether a file that begins with these bytes is a pickle of protocol 2 to 5.

    A .safetensors file may begin with the same two bytes: with the length of its header, of 640 or 1,408 bytes for
    example.
    """
    return head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") and not _is_header(head)


def _is_header(head: bytes) -> bool:
    """Whether a file begins as .safetensors does: with a length whose upper half is zero, and the header's brace."""
    return head[4:SIGNATURE] == b"\0\0\0\0{"


@guarded
def parse_safetensors(raw: bytes) -> dict[str, Tensor]:
    """The tensors, by name, of a .safetensors file whose whole content is `raw`. Raises `UnsoundError`."""
    _metadata(raw, len(raw))
    return safetensors.torch.load(raw)


@guarded
def parse_metadata(head: bytes, size: int) -> dict[str, str]:
    """The metadata of a .safetensors file of `size` bytes, from its first bytes. Raises `UnsoundError`."""
    return _metadata(head, size)


def _metadata(head: bytes, size: int) -> dict[str, str]:
    """The metadata in the header of a .safetensors file, texts by name. Arguments and errors are those of `_header`."""
    return _header(head, size).get("__metadata__", {})


def _header(head: bytes, size: int) -> dict[str, Any]:
    """The header of a .safetensors file: for each tensor its type, shape and offsets, and perhaps `__metadata__`.

    Raises `UnsoundError` if the header is malformed, or describes a tensor that does not fit the file.

    Args:
        head: the first bytes of the file, with all of its header.
        size: of the file, in bytes.
    """
    if size < 8:
        raise UnsoundError(f"{size} bytes, but the length of the header alone takes 8; it is truncated")
    length = int.from_bytes(head[:8], "little")
    if length > size - 8:
        raise UnsoundError(f"its header states a length of {length} bytes, but only {size - 8} follow")
    if length > _MOST_HEADER:
        raise UnsoundError(f"its header takes {length} bytes; expected at most {_MOST_HEADER}")
    header = json.loads(head[8 : 8 + length].decode(), object_pairs_hook=unique)
    if not isinstance(header, dict):
        raise UnsoundError("its header is not a JSON object")
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UnsoundError("its metadata is not a JSON object of strings")
    for name, entry in header.items():
        if name != "__metadata__":
            _check_tensor(name, entry, size - 8 - length)
    return header


def _check_tensor(name: str, entry: Any, available: int) -> None:
    """Raise `UnsoundError` unless a tensor's header entry has a known type, and a shape and offsets that fit the file.

    `available` is the number of bytes in the .safetensors file after its header.
    """
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise UnsoundError(f"{name!r} is not described by dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in _SIZES:
        raise UnsoundError(f"{name!r} is of type {kind}; supported are {', '.join(_SIZES)}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise UnsoundError(f"{name!r} has the shape {shape} and the offsets {offsets}; expected lists of whole numbers")
    begin, end = offsets
    if not begin <= end <= available:
        raise UnsoundError(f"{name!r} has the offsets {begin} to {end}, but the file has {available} bytes of data")
    if math.prod(shape) * _SIZES[kind] != end - begin:
        raise UnsoundError(f"{name!r} of shape {shape} and type {kind} has offsets for {end - begin} bytes")


def _are_counts(values: Any) -> bool:
    """Whether `values` is a list or tuple of whole numbers, zero or more."""
    return isinstance(values, list | tuple) and all(type(value) is int and value >= 0 for value in values)


@contextmanager
def writing_tensors(
    path: Path, tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
) -> Iterator[Callable[[str, int, Tensor], None]]:
    """Context that writes a .safetensors file row by row, whole or not at all, with the bytes of `safetensors` itself.

    It yields a function that writes rows of the tensor with a name, from a row on. Rows never written are zero.

    Args:
        path: of the file.
        tensors: type and shape of each tensor, by name: float32 or int64.
    """
    sizes = {name: math.prod(shape) * kind.itemsize for name, (kind, shape) in tensors.items()}
    header: dict[str, Any] = {}
    offset = 0
    for name in sorted(tensors, key=lambda name: (-tensors[name][0].itemsize, name)):
        kind, shape = tensors[name]
        header[name] = {"dtype": _NAMES[kind], "shape": shape, "data_offsets": (offset, offset + sizes[name])}
        offset += sizes[name]
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with writing(path) as temporary, temporary.open("r+b") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        begin = file.tell()
        file.truncate(begin + offset)

        def write(name: str, row: int, rows: Tensor) -> None:
            kind, shape = tensors[name]
            file.seek(begin + header[name]["data_offsets"][0] + row * math.prod(shape[1:]) * kind.itemsize)
            file.write(rows.to(kind).contiguous().numpy().data)

        yield write


def bytes_of(tensor: Tensor) -> memoryview:
    """The numbers of a tensor as bytes in C order, for a hash."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    flat = flat.as_strided(flat.shape, (1,))  # a tensor of one element or none is contiguous whatever its stride is
    return flat.view(torch.uint8).numpy().data  # bytes, since NumPy has no bfloat16


# .npz -----------------------------------------------------------------------------------------------------------------
@guarded
def open_npz(path: Path, names: Iterable[str]) -> dict[str, StoredArray]:
    """The arrays of a .npz file that are called one of `names`, by name, ready to be read by rows.

    Each is read once, to check its size and checksum: one that is compressed, or in Fortran's order, is written to a
    temporary file on the way. Names that the file does not hold are missing in the result. Only integers and floats of
    at most eight bytes are read, in files as `numpy.savez` and `numpy.savez_compressed` write them. Raises
    `UnsoundError`.
    """
    file = OpenFile.at(path)
    with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
        held: dict[str, list[zipfile.ZipInfo]] = {}
        for each in archive.infolist():
            held.setdefault(each.filename.removesuffix(".npy"), []).append(each)
        return {name: _array(name, archive, held[name], file) for name in names if name in held}


@guarded
def npz_names(path: Path) -> list[str]:
    """The names of all arrays of a .npz file, in its order. Raises `UnsoundError`."""
    OpenFile.at(path)  # refuses pipes and devices
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        return [each.filename.removesuffix(".npy") for each in archive.infolist()]


def _array(name: str, archive: zipfile.ZipFile, held: list[zipfile.ZipInfo], file: OpenFile) -> StoredArray:
    """Check the array `name` of the .npz archive `file`; `held` are the archive's entries of that name.

    Raises `UnsoundError` for several entries, an unsound header, more or less data than it states, or a wrong checksum.
    """
    if len(held) > 1:
        raise UnsoundError(f"it contains {len(held)} arrays called {name}")
    info = copy.copy(held[0])
    claimed = info.file_size
    _check_member(name, info, file.size)
    info.file_size += _CHUNK  # try to read more, to detect an array that is larger than stated
    with archive.open(info) as member, tempfile.TemporaryFile() as unpacked:
        head = member.read(min(claimed, _MOST_NPY_HEADER))
        kind, shape, fortran, start = _npy_header(name, head)
        fortran = fortran and len(shape) > 1
        expected = claimed - start
        if math.prod(shape) * kind.itemsize != expected:
            raise UnsoundError(f"{name} have shape {shape} and type {kind}, but a stated size of {expected} bytes")
        in_place = info.compress_type == zipfile.ZIP_STORED and not fortran
        chunk, present = head[start:], 0
        while chunk:
            present += len(chunk)
            if present > expected:
                raise UnsoundError(f"{name} unpack to more than their stated size of {claimed} bytes")
            if not in_place:
                unpacked.write(chunk)
            chunk = member.read(min(_CHUNK, expected + 1 - present))
        if present != expected:
            raise UnsoundError(f"{name} are truncated: {present} of {expected} bytes are present")
        if in_place:
            return StoredArray(file=file, start=_data_offset(info, file) + start, shape=shape, dtype=kind)
        if fortran:
            _reorder(unpacked, shape, kind)
        return StoredArray(file=OpenFile.unpacked(unpacked), start=0, shape=shape, dtype=kind)


def _reorder(unpacked: IO[bytes], shape: tuple[int, ...], kind: np.dtype) -> None:
    """Replace an array in Fortran's order, the content of a file, by the same array in C order."""
    _check_memory(2 * math.prod(shape) * kind.itemsize)
    unpacked.seek(0)
    array = np.frombuffer(unpacked.read(), dtype=kind).reshape(shape[::-1]).transpose()
    unpacked.seek(0)
    unpacked.write(np.ascontiguousarray(array).data)


def _data_offset(info: zipfile.ZipInfo, file: OpenFile) -> int:
    """Where the content of an entry of a zip archive begins, in bytes: behind its own header, name and extra field."""
    header = file.read(info.header_offset, 30)
    return info.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


def _check_member(name: str, info: zipfile.ZipInfo, size: int) -> None:
    """Raise `UnsoundError` unless an entry of a .npz archive can be unpacked and states plausible sizes.

    `name` is the array's name, for the error; `size` is the size of the whole archive in bytes.
    """
    if info.flag_bits & 0x41:
        raise UnsoundError(f"{name} are encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UnsoundError(f"{name} are compressed by method {info.compress_type}; expected 0 (stored) or 8 (deflated)")
    packed, claimed = info.compress_size, info.file_size
    if packed > size:
        raise UnsoundError(f"{name} have a stated size of {packed} bytes in a file of {size}")
    if info.compress_type == zipfile.ZIP_STORED and packed != claimed:
        raise UnsoundError(f"{name} are not compressed, but have stated sizes of {packed} and {claimed} bytes")
    if claimed > max(_UNLIMITED_RATIO, _RATIO * packed):
        raise UnsoundError(
            f"{name} state that {packed} bytes unpack to {claimed}, more than {_RATIO} times as many; if that is "
            "intended, store them with numpy.savez, which does not compress"
        )


def _npy_header(name: str, head: bytes) -> tuple[np.dtype, tuple[int, ...], bool, int]:
    """Type, shape, whether the order is Fortran's, and the offset of the data in bytes, from the start of a .npy file.

    Raises `UnsoundError`, with the array's `name`, for other types than integers and floats of at most eight bytes.
    """
    stream = io.BytesIO(head)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    if version not in ((1, 0), (2, 0)):
        raise UnsoundError(f"{name} are of version {version} of NumPy's format; supported are 1.0 and 2.0")
    with warnings.catch_warnings():  # about headers written by Python 2
        warnings.simplefilter("ignore")
        shape, fortran, kind = read(stream)
    if kind.kind not in "uif" or kind.itemsize > 8:
        raise UnsoundError(f"{name} are of type {kind}; expected numbers (uint8, float32, int64)")
    if not _are_counts(shape):
        raise UnsoundError(f"{name} are of shape {shape}; expected whole numbers, none below zero")
    return kind, shape, fortran, stream.tell()


def _check_memory(size: int) -> None:
    """Raise `UnsoundError` if `size` bytes exceed the memory of this machine, where that is known."""
    names: Mapping[str, int] = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if 0 < memory < size:
            raise UnsoundError(f"it contains {size} bytes, but this machine has {memory} of memory; use a smaller file")
