"""The format of a model's file, from its first bytes and the names of an archive's entries; nothing is loaded."""

import zipfile
from pathlib import Path
from typing import Literal

from casemate.arrays import SIGNATURE, is_archive, is_pickle
from casemate.errors import ModelError
from casemate.models.sources.source_files import head_of

Format = Literal["safetensors", "pickle", "exported", "torchscript", "onnx", "keras", "hdf5", "hugging-face"]


def format_of(path: Path) -> Format:
    """The format of an existing file or folder, by its content; by its name only for ONNX, which has no signature.

    Raises `ModelError` for a folder without a model, and for a file that cannot be read.
    """
    if path.is_dir():
        if (path / "config.json").is_file():
            return "hugging-face"
        raise ModelError(f"{path} is a folder without a config.json; expected a model's file, or a Hugging Face folder")
    head = head_of(path, SIGNATURE)
    names = _entries(path) if is_archive(head) else []
    if head[:8] == b"\x89HDF\r\n\x1a\n":
        return "hdf5"
    if path.suffix == ".keras" or {"config.json", "model.weights.h5"} <= set(names):
        return "keras"
    if path.suffix == ".pt2" or any(name.endswith(_EXPORTED) for name in names):
        return "exported"
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        return "torchscript"
    if is_archive(head) or is_pickle(head):
        return "pickle"
    return "onnx" if path.suffix == ".onnx" else "safetensors"


_EXPORTED = ("serialized_exported_program.json", "models/model.json")
"""Ends of the names of the entry that only archives by torch.export have, in its older and its newer format."""


def _entries(path: Path) -> list[str]:
    """The names of the entries of a zip archive; empty if it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except Exception:  # the parser may raise anything on damaged bytes
        return []
