"""A parser for the IDX format of the MNIST family, which checks every header field.

An IDX file is big-endian: two zero bytes, a type code (0x08 = unsigned byte), the number of dimensions, one
32-bit size per dimension, then the values. Only unsigned bytes occur here.
Source: the format's description by Y. LeCun, C. Cortes and C. Burges, "The MNIST database".
"""

import math
import struct

import torch

from casemate.errors import DataError
from casemate.types import Labels, Pixels

_UNSIGNED_BYTE = 0x08


def _parse(raw: bytes, dimensions: int, what: str) -> torch.Tensor:
    """The array in `raw`, the bytes of a decompressed IDX file with `dimensions` dimensions, as uint8.

    Raises `DataError`, beginning with `what`, the name of the content, for any other content.
    """
    header = 4 + 4 * dimensions
    if len(raw) < header:
        raise DataError(f"{what}: {len(raw)} bytes, but an IDX header alone takes {header}; the file is truncated")
    expected = bytes([0, 0, _UNSIGNED_BYTE, dimensions])
    if raw[:4] != expected:
        raise DataError(
            f"{what}: wrong magic number {raw[:4].hex()}, expected {expected.hex()} "
            f"(IDX, unsigned bytes, {dimensions} dimensions); this is another kind of file"
        )
    shape = struct.unpack(f">{dimensions}I", raw[4:header])
    count = math.prod(shape)
    if count == 0:
        raise DataError(f"{what}: the header states the shape {shape}, which is empty")
    if len(raw) - header != count:
        raise DataError(
            f"{what}: the header states {count} values of shape {shape}, but {len(raw) - header} follow; "
            "the file is truncated or has extra bytes"
        )
    return torch.frombuffer(bytearray(raw[header:]), dtype=torch.uint8).view(shape)


def parse_images(raw: bytes, what: str = "images") -> Pixels:
    """Parse decompressed IDX images into uint8 `(n, 1, height, width)`. Raises `DataError` on any fault."""
    return _parse(raw, 3, what).unsqueeze(1)


def parse_labels(raw: bytes, classes: int = 10, what: str = "labels") -> Labels:
    """Parse decompressed IDX labels into int64 `(n,)`. Raises `DataError` on a fault or a label >= `classes`."""
    labels = _parse(raw, 1, what).long()
    largest = int(labels.max())
    if largest >= classes:
        position = int(labels.argmax())
        raise DataError(
            f"{what}: label {largest} at position {position}, but with {classes} classes labels run from 0 to "
            f"{classes - 1}"
        )
    return labels
