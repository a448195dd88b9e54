"""Atomic writes: a reader sees the old file or the new one, never a partial one.

Every file is written under a temporary name in the same folder, flushed to disk, and then renamed.
"""

import errno
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import platformdirs

from casemate.errors import CasemateError, SettingError, StoreError, kind_of


def cache_folder() -> Path:
    """The user's cache directory for casemate: $CASEMATE_CACHE, or the platform's (on Linux ~/.cache/casemate)."""
    from_environment = os.environ.get("CASEMATE_CACHE")
    return Path(from_environment) if from_environment else Path(platformdirs.user_cache_dir("casemate"))


def as_path(given: Path | str, name: str = "path") -> Path:
    """A path that a caller gave as the argument `name`. Raises `SettingError` for what is neither a text nor a path."""
    if not isinstance(given, str | os.PathLike):
        raise SettingError(f"{name} is {kind_of(given)}; expected a path: a text or a pathlib.Path")
    return Path(given)


@contextmanager
def _as_store_error(path: Path) -> Iterator[None]:
    """Context that converts an `OSError` inside it to a `StoreError` which says that `path` cannot be written."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror or error}. No partial file is left; "
            f"{_advice(error)}, then run the same command again."
        ) from error


def _advice(error: OSError) -> str:
    """What to do about an error of writing."""
    stated = re.search(r"\(os error (\d+)\)", str(error))  # by libraries written in Rust, such as safetensors
    if (int(stated[1]) if stated else error.errno) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "free some space or choose another place"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "make the place writable for you or choose another one"
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP):
        return "correct the path"
    return "choose another place"


def make_folder(path: Path) -> Path:
    """Create the folder `path` and its parents if missing; return `path`. Raises `StoreError`, also if it is a file."""
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path} is a file, but a folder is expected there: choose another path or move the file")
    with _as_store_error(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Context that yields a temporary file beside `path`: renamed to `path` on success, deleted on any failure.

    Raises `StoreError`.
    """
    path = Path(path)
    make_folder(path.parent)
    if path.is_dir():
        raise StoreError(f"{path} is a folder, but a file is to be written there: choose another path")
    with _as_store_error(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
    temporary = Path(name)
    try:
        with _as_store_error(path):
            yield temporary
            _flush(temporary)
            temporary.chmod(0o666 & ~_UMASK)
            temporary.replace(path)
            _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> Path:
    """Write `content` to `path`, whole or not at all, and return `path`. Raises `StoreError`."""
    with writing(path) as temporary:
        temporary.write_bytes(content)
    return path


def write_text(path: Path, content: str) -> Path:
    """Write `content` to `path` as UTF-8, whole or not at all, and return `path`. Raises `StoreError`."""
    return write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> Path:
    """Write `content` as indented JSON with sorted keys, whole or not at all, and return `path`.

    Raises `StoreError`, or `ValueError` for NaN and infinity, which JSON lacks.
    """
    return write_text(path, json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path, error: type[CasemateError]) -> Any:
    """Read and parse a JSON file; raises an error of the class `error` if it is missing or malformed.

    NaN, infinity, numbers too large for a float, and duplicate names count as malformed.
    """
    try:
        return json.loads(
            path.read_bytes().decode(), parse_constant=_finite, parse_float=_finite, object_pairs_hook=unique
        )
    except RecursionError as cause:
        raise error(f"cannot read {path} as JSON: it is nested too deeply") from cause
    except FileNotFoundError as cause:
        raise error(f"{path} does not exist") from cause
    except OSError as cause:
        raise error(f"cannot read {path}: {cause.strerror or cause}") from cause
    except (ValueError, MemoryError) as cause:
        raise error(f"cannot read {path} as JSON: {cause or type(cause).__name__}") from cause


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The dictionary of a JSON object's pairs, for `json.loads`. Raises `ValueError` for a name that occurs twice."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} occurs twice")
        found[name] = value
    return found


def _finite(text: str) -> float:
    """The number that a text in JSON states. Raises `ValueError` if it is NaN or infinite."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value


def read_file(path: Path, error: type[CasemateError], expected: str) -> bytes:
    """The bytes of a file; raises `error` if it cannot be read, with a message that says what is `expected` there."""
    try:
        if not path.is_file():
            raise error(f"{path} does not exist; expected {expected}")
        return path.read_bytes()
    except OSError as cause:
        raise error(f"cannot read {path}: {cause.strerror or cause}; expected {expected}") from cause
    except MemoryError as cause:
        raise error(f"cannot read {path}: it does not fit into the memory of this machine") from cause


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """Context that yields a temporary folder beside `path`: replaces `path` on success, deleted on any failure.

    Raises `StoreError`.
    """
    path = Path(path)
    make_folder(path.parent)
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path} is a file, but a folder is to be written there: choose another path or move the file")
    with _as_store_error(path):
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    before = temporary.with_suffix(".old")
    try:
        with _as_store_error(path):
            yield temporary
            for file in temporary.rglob("*"):
                _flush(file)
            temporary.chmod(0o777 & ~_UMASK)
            if path.exists():  # moved aside, since a kill during its deletion would leave a part of it
                path.replace(before)
            temporary.replace(path)
            _flush(path.parent)
    finally:
        if before.exists() and not path.exists():
            before.replace(path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


@contextmanager
def filling(path: Path, names: Sequence[str], last: str) -> Iterator[Path]:
    """Context that yields a temporary folder: on success its files are moved into `path`, on any failure none is.

    Other files in `path` stay, except those called one of `names`, which an earlier run may have left. The old file
    called `last` is deleted first and the new one moved last: if it exists, even after a kill, all others belong to
    the same run. Raises `StoreError`.
    """
    path = Path(path)
    new = [each for each in (path, *path.parents) if not each.exists()]
    make_folder(path.parent if path in new else path)
    with _as_store_error(path):
        home = path.parent if path in new else path  # on the same file system as the target
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=home))
    try:
        with _as_store_error(path):
            yield temporary
            files = sorted(temporary.iterdir(), key=lambda file: (file.name == last, file.name))
            for file in files:
                _flush(file)
            if not path.exists():
                temporary.chmod(0o777 & ~_UMASK)
                temporary.replace(path)
            else:
                for name in (last, *names):
                    (path / name).unlink(missing_ok=True)
                for file in files:
                    file.replace(path / file.name)
                _flush(path)
            _flush(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for each in new:
            with suppress(OSError):  # not empty
                each.rmdir()


def _flush(path: Path) -> None:
    """Flush a file or folder to disk, so that a power failure after the rename loses nothing."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _read_umask()
"""Read once: reading it sets it for a moment, for all threads."""
