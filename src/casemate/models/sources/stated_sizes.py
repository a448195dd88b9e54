"""What files state about the size of their contents, compared with the size of the files before memory is used."""

import pickletools
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from casemate.errors import ModelError
from casemate.models.sources.failures import quoted
from casemate.models.sources.hdf5_copy import RATIO, SMALL

_EXPANDED = 16_000_000
"""Largest size in bytes of a tensor whose shape states more numbers than are stored."""


def check_archive(path: Path, *, packed: bool = False) -> None:
    """Raise `ModelError` unless a file is a zip archive as PyTorch writes them, of entries that are stored as they are.

    Others can be bombs: entries that are compressed, or that share their bytes. An archive that PyTorch would find
    elsewhere in the file than Python does is refused too, since that other one would not have been checked. The
    checksums must be right, which PyTorch does not look at.

    Args:
        path: of the file.
        packed: whether entries may be compressed, as the code in TorchScript is; the ratio is limited then.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_entries(path, archive.infolist(), packed=packed)
            wrong = archive.testzip()
    except ModelError:
        raise
    except Exception as error:  # the parser may raise anything on damaged bytes
        raise ModelError(f"{path} is not a complete archive: {quoted(error)}") from error
    if wrong is not None:
        raise ModelError(f"{path} is damaged: its entry {wrong[:100]} does not have the checksum that is stated")


def _check_entries(path: Path, entries: Sequence[zipfile.ZipInfo], *, packed: bool) -> None:
    """Raise `ModelError` for entries that may be bombs, or that are not the first thing in the file."""
    for each in entries:
        stored = each.compress_type == zipfile.ZIP_STORED and each.file_size == each.compress_size
        if not (stored or (packed and each.compress_type == zipfile.ZIP_DEFLATED)):
            raise ModelError(f"{path} is not an archive by PyTorch: its entry {each.filename[:100]} is compressed")
    if not entries or min(each.header_offset for each in entries) != 0:
        raise ModelError(f"{path} is not an archive by PyTorch: it does not begin with its first entry")
    size = path.stat().st_size
    stated = sum(each.file_size for each in entries)
    if stated > (max(SMALL, RATIO * size) if packed else size):
        raise ModelError(f"{path} states that its entries have {stated} bytes in all, but the file has {size}")


def check_pickles(path: Path) -> None:
    """Raise `ModelError` if a pickle, or one in an archive, is cut or stores its objects at impossible places.

    Unpicklers reserve memory for all places up to the highest one. Nothing is unpickled.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for each in archive.namelist():
                    if each.endswith(".pkl"):
                        _check_places(archive.read(each))
        else:
            _check_places(path.read_bytes())
    except Exception as error:  # the parser may raise anything on damaged bytes
        raise ModelError(f"{path} has a damaged pickle: {quoted(error)}") from error


def _check_places(content: bytes) -> None:
    """Raise `ValueError` for a pickle that is malformed, or has a place beyond as many as it can fill."""
    for code, argument, _ in pickletools.genops(content):
        if "PUT" in code.name and isinstance(argument, int) and not 0 <= argument <= len(content):
            raise ValueError(f"an object is stored at place {argument} of a pickle of {len(content)} bytes")


def check_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise `ModelError` for tensors that are no arrays in memory, or whose shapes state far more numbers than are
    stored, which tensors with a stride of zero can.
    """
    for name, each in tensors.items():
        plain = each.layout is torch.strided and not each.is_quantized and each.device.type == "cpu"
        if not plain or type(each) not in (Tensor, torch.nn.Parameter):
            raise ModelError(f"{path}: {name} is not an ordinary tensor but sparse, quantised or without data")
        size = each.numel() * each.element_size()
        if size > max(_EXPANDED, each.untyped_storage().nbytes()):
            raise ModelError(
                f"{path}: {name} of shape {tuple(each.shape)} takes {size} bytes, of which the file has "
                f"{each.untyped_storage().nbytes()}; save a copy of the tensor: tensor.contiguous()"
            )
