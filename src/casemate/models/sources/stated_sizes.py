"""What files state about the size of their contents, compared with the size of the files before memory is used."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from casemate.errors import ModelError
from casemate.models.sources.failures import quoted

SMALL = 256_000_000
"""Size in bytes up to which data may take any multiple of their file's size."""
RATIO = 100
"""Largest ratio of the size of more data than that to their file's size."""
_EXPANDED = 16_000_000
"""Largest size in bytes of a tensor whose shape states more numbers than are stored."""


def check_archive(path: Path, *, packed: bool = False) -> None:
    """Raise `ModelError` unless a file is a zip archive as PyTorch writes them, of entries that are stored as they are.

    Others can be bombs: entries that are compressed, or that share their bytes. An archive that PyTorch would find
    elsewhere in the file than Python does is refused too, since that other one would not have been checked.

    Args:
        path: of the file.
        packed: whether entries may be compressed, as the code in TorchScript is; the ratio is limited then.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # the parser may raise anything on damaged bytes
        raise ModelError(f"{path} is not a complete archive: {quoted(error)}") from error
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
