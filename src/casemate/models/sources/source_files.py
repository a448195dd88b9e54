"""The files that a model is opened from: that they are files, and the SHA-256 of each, so that a result says which."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from casemate.errors import ModelError


def require_file(path: Path) -> None:
    """Raise `ModelError` for a pipe or a device, of which the end might never come."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ModelError(f"{path} is a pipe or a device; expected a file, or a folder")


def head_of(path: Path, count: int) -> bytes:
    """The first `count` bytes of a file. Raises `ModelError` if it cannot be read or does not exist."""
    require_file(path)
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error


def hashes_of(paths: Iterable[Path]) -> dict[str, str]:
    """The SHA-256, hexadecimal, of each of the files, by its name; of files of one name, by their paths.

    Raises `ModelError` if one cannot be read.
    """
    found = dict.fromkeys(paths)
    names = [path.name for path in found]
    return {path.name if names.count(path.name) == 1 else str(path): _hash_of(path) for path in found}


def _hash_of(path: Path) -> str:
    require_file(path)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
