"""What commands wrote: its content without times, so that two runs can be compared, and whether each file is whole."""

import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors

_TIMES = ("provenance", "finished", "started", "environment")
"""Entries of JSON that say when and where, not what."""


def without_times(value: Any) -> Any:
    """A value of JSON without what differs between two runs that found the same: times, and where they ran."""
    if isinstance(value, dict):
        return {
            name: without_times(each)
            for name, each in value.items()
            if not name.endswith("seconds") and name not in _TIMES
        }
    return [without_times(each) for each in value] if isinstance(value, list) else value


def content(path: Path) -> Any:
    """What a file says, without times: the same for two runs that found the same."""
    raw = path.read_bytes()
    if path.suffix == ".json":
        return without_times(json.loads(raw))
    if path.suffix == ".csv":
        rows = csv.DictReader(io.StringIO(raw.decode()))
        return [{name: value for name, value in row.items() if "seconds" not in str(name)} for row in rows]
    return hashlib.sha256(raw).hexdigest()


def contents(folder: Path, *patterns: str) -> dict[str, Any]:
    """The content of all files of a folder that fit one of the patterns, by their place in it."""
    found = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    return {str(path.relative_to(folder)): content(path) for path in found}


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """The entries in which two contents differ, in words."""
    said = [f"{name} is missing" for name in expected if name not in found]
    said += [f"{name} should not be there" for name in found if name not in expected]
    return said + [f"{name} differs" for name in expected if name in found and found[name] != expected[name]]


def is_temporary(path: Path) -> bool:
    """Whether a file has a temporary name, or lies in a folder that has one: nobody takes it for a finished one."""
    return any(part.startswith(".") or part == "working" for part in path.parts)


def final_files(folder: Path) -> Iterator[Path]:
    """The files below a folder that have final names."""
    for path in sorted(folder.rglob("*")):
        if not is_temporary(path.relative_to(folder)) and path.is_file():
            yield path


def broken(folder: Path) -> list[str]:
    """The files with final names below a folder that are not whole, in words."""
    return [f"{path.relative_to(folder)} is not whole: {why}" for path in final_files(folder) if (why := _fault(path))]


def _fault(path: Path) -> str:
    """Why a file is not whole, by its format; "" if it is, or has a format that does not show it."""
    raw = path.read_bytes()
    match path.suffix:
        case ".json" | ".safetensors" | ".training" | ".npz":
            try:
                _read(path, raw)
            except Exception as error:  # whatever the parser says
                return f"{type(error).__name__}: {error}"
        case ".html" if not raw.rstrip().endswith(b"</html>"):
            return "no end of the page"
        case ".svg" if not raw.rstrip().endswith(b"</svg>"):
            return "no end of the drawing"
        case ".parquet" if raw[:4] != b"PAR1" or raw[-4:] != b"PAR1":
            return "no end of the table"
        case ".png" if not raw.endswith(b"IEND\xaeB`\x82"):
            return "no end of the picture"
        case ".csv" | ".md" if not raw.endswith(b"\n"):
            return "no end of the last line"
    return ""


def _read(path: Path, raw: bytes) -> None:
    if path.suffix == ".json":
        json.loads(raw)
    elif path.suffix == ".npz":
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            assert archive.testzip() is None, "a checksum is wrong"
    else:
        safetensors.deserialize(raw)


def marks(folder: Path, *patterns: str) -> dict[str, tuple[int, int, int]]:
    """Which files fit one of the patterns: number, time and size of each. Equal marks: nobody has written it since."""
    found = {}
    for pattern in patterns:
        for path in folder.glob(pattern):
            if not is_temporary(path.relative_to(folder)):
                facts = path.stat()
                found[str(path.relative_to(folder))] = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
    return found
