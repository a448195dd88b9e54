"""Images and labels in two IDX files, gzipped or not, as MNIST and its relatives are published."""

import gzip
import math
import struct
import tempfile
import zlib
from pathlib import Path

import torch

from casemate.arrays import OpenFile, StoredArray, UnsoundError, guarded
from casemate.data.sources.arrays import read_rows
from casemate.data.sources.resizing import Resizing
from casemate.data.streamed import StreamedImages
from casemate.errors import DataError

_UNSIGNED_BYTE = 0x08
_RATIO = 100
"""Largest ratio by which a gzipped file of more than `_UNLIMITED` bytes may unpack; photographs reach 3."""
_UNLIMITED = 256_000_000
_CHUNK = 1 << 20
_PARTS = {"train": "train", "test": "t10k"}
"""The beginnings of the names of the files of a split."""


def is_idx(path: Path) -> bool:
    """Whether a file's name ends as those of IDX files do: "ubyte" or ".idx", perhaps with "1" or "3", and ".gz"."""
    name = path.name.lower().removesuffix(".gz")
    return name.endswith(("ubyte", ".idx", ".idx1", ".idx3"))


def open_idx(path: Path, labels: Path | None, split: str | None, resizing: Resizing) -> StreamedImages:
    """The images in the IDX file `path`, or in a folder of four files as MNIST's, and their labels.

    Without `labels` these are in the file that has "labels" and "1" in its name where the images have "images" and "3".
    Of a folder the `split` is read, "test" if none is given. Raises `DataError`.
    """
    remarks: tuple[str, ...] = ()
    if path.is_dir():
        part = _PARTS.get(split or "test")
        found = sorted(each for each in path.glob(f"{part}*") if "images" in each.name and is_idx(each))
        if part is None or not found:
            raise DataError(f"{path} has no IDX files of the split {split or 'test'!r}; choose --split train or test")
        if split is None:
            remarks = ("used the test images; --split train reads the others",)
        path = found[0]
    elif split is not None:
        raise DataError(f"{path} is one IDX file, which has no splits; leave --split {split} out, or name its folder")
    beside = labels or path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    if beside == path or not beside.exists():
        named = "" if labels is None and beside == path else f"; {beside} does not exist"
        raise DataError(f"{path} holds images without labels{named}; give the IDX file of labels with --labels FILE")
    images, classes = _open(path, 3), _open(beside, 1)
    if images.shape[0] != classes.shape[0]:
        raise DataError(f"{path} holds {images.shape[0]} images, but {beside} {classes.shape[0]} labels")
    shape = (1, images.shape[1], images.shape[2])
    streamed = StreamedImages(
        name=str(path),
        labels=torch.from_numpy(classes.whole()).long(),
        image_shape=shape,
        reader=lambda positions: read_rows(images, positions, shape, path),
        remarks=remarks,
    )
    return resizing.applied(streamed)


def _open(path: Path, dimensions: int) -> StoredArray:
    """The array of unsigned bytes in an IDX file, of which the header alone is read. Raises `DataError`."""
    try:
        return _located(path, dimensions)
    except UnsoundError as error:
        raise DataError(
            f"cannot read {path}: {error}; expected an IDX file of {'images' if dimensions == 3 else 'labels'}"
        ) from error


@guarded
def _located(path: Path, dimensions: int) -> StoredArray:
    file = OpenFile.at(path)
    packed = file.read(0, min(2, file.size)) == b"\x1f\x8b"
    start = 4 + 4 * dimensions
    if packed:
        with path.open("rb") as raw, gzip.GzipFile(fileobj=raw) as stream:
            shape = _shape(_read(stream, start), dimensions)
    else:
        shape = _shape(file.read(0, min(start, file.size)), dimensions)
    count = math.prod(shape)
    if packed:
        file = _unpacked(path, start + count, file.size)
    if file.size != start + count:
        raise UnsoundError(
            f"the header states {count} values of shape {shape}, but {file.size - start} follow; it is truncated or "
            "has extra bytes"
        )
    return StoredArray(file=file, start=start, shape=shape, dtype=torch.zeros(0, dtype=torch.uint8).numpy().dtype)


def _shape(head: bytes, dimensions: int) -> tuple[int, ...]:
    """The shape that the header of an IDX file states. Raises `UnsoundError` for another type, or an empty array."""
    if len(head) < 4 + 4 * dimensions:
        raise UnsoundError(f"{len(head)} bytes, but an IDX header alone takes {4 + 4 * dimensions}; it is truncated")
    expected = bytes([0, 0, _UNSIGNED_BYTE, dimensions])
    if head[:4] != expected:
        raise UnsoundError(
            f"wrong magic number {head[:4].hex()}, expected {expected.hex()} (unsigned bytes, {dimensions} dimensions)"
        )
    shape = struct.unpack(f">{dimensions}I", head[4:])
    if not math.prod(shape):
        raise UnsoundError(f"the header states the shape {shape}, which is empty")
    return shape


def _read(stream: gzip.GzipFile, count: int) -> bytes:
    """The first bytes of a gzipped file. Raises `UnsoundError` if it cannot be unpacked."""
    try:
        return stream.read(count)
    except (EOFError, zlib.error) as error:
        raise UnsoundError(f"it cannot be unpacked ({error}); it is truncated or damaged") from error


def _unpacked(path: Path, size: int, packed: int) -> OpenFile:
    """A gzipped file, unpacked into a temporary one. Raises `UnsoundError` unless it has `size` bytes."""
    if size > max(_UNLIMITED, _RATIO * packed):
        raise UnsoundError(f"{packed} bytes, whose header states that they unpack to {size}, too many times as many")
    with path.open("rb") as raw, gzip.GzipFile(fileobj=raw) as stream, tempfile.TemporaryFile() as unpacked:
        left = size + 1
        while left and (chunk := _read(stream, min(_CHUNK, left))):
            unpacked.write(chunk)
            left -= len(chunk)
        return OpenFile.unpacked(unpacked)
