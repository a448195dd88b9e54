"""Bundles: several files in one .safetensors file, with a SHA-256 of each, to be stored as one object.

    tensors    one of bytes (U8) for each file, by its name, a relative path
    metadata   about: JSON on the content, which can be read without the rest; sha256: of the files and of `about`

A bundle that was written in part, or damaged, is recognised, and nothing in one can run code or leave the folder that
it is unpacked into.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Container, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

_CHUNK = 1 << 20
_MOST_DEPTH = 8
"""Most parts in the name of a file, which are folders inside one another but for the last."""
_MOST_BYTES = 200
"""Longest part of the name of a file, in bytes."""


def files_in(folder: Path) -> dict[str, Path]:
    """All files in a folder and its subfolders, by their names in a bundle."""
    return {each.relative_to(folder).as_posix(): each for each in sorted(folder.rglob("*")) if each.is_file()}


def pack(files: Mapping[str, Path], target: Path, about: Mapping[str, Any]) -> None:
    """Write files, by name, to the bundle `target`. `about` is JSON on the content."""
    sizes = {name: path.stat().st_size for name, path in files.items()}
    digests = {name: _sha256(path) for name, path in files.items()}
    text = json.dumps(about, sort_keys=True)
    whole = {"about": text, "files": json.dumps(digests), "sha256": _check(text, digests)}
    header: dict[str, Any] = {"__metadata__": whole}
    offset = 0
    for name in files:
        end = offset + sizes[name]
        header[name] = {"dtype": "U8", "shape": [sizes[name]], "data_offsets": [offset, end]}
        offset = end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with target.open("wb") as written:
        written.write(len(head).to_bytes(8, "little") + head)
        for path in files.values():
            with path.open("rb") as file:
                shutil.copyfileobj(file, written, _CHUNK)


def unpack(bundle: Path, folder: Path) -> dict[str, Any]:
    """Write the files of a bundle into the empty `folder`; return what the bundle says about them.

    Raises `UnsoundError` for a bundle that is damaged or truncated, and `OSError` if the files cannot be written.
    """
    from casemate.arrays import UnsoundError, guarded, open_safetensors, safetensors_metadata

    @guarded
    def parsed():  # a file of anybody's: what follows may fail in any way
        about, digests = _heading(safetensors_metadata(bundle))
        arrays = open_safetensors(bundle)
        if arrays.keys() != digests.keys():
            raise UnsoundError("its files are not those of its list")
        for name, each in arrays.items():
            _expect_inside(name, arrays)
            if each.dtype.itemsize != 1 or len(each.shape) != 1:
                raise UnsoundError(f"{name!r} is not a file")
        return about, digests, arrays

    about, digests, arrays = parsed()
    for name, array in arrays.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        digest, left, start = hashlib.sha256(), array.shape[0], array.start
        with path.open("xb") as file:
            while left:
                chunk = array.file.read(start, min(left, _CHUNK))
                digest.update(chunk)
                file.write(chunk)
                start, left = start + len(chunk), left - len(chunk)
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != digests[name]:
            raise UnsoundError(f"the checksum of {name!r} does not match")
    return about


def about_bundle(head: bytes, size: int) -> dict[str, Any] | int:
    """What a bundle of `size` bytes says about its files, from its first bytes; or how many of these are needed.

    Raises `UnsoundError` for what is no bundle.
    """
    from casemate.arrays import UnsoundError, guarded, parse_metadata

    needed = 8 + int.from_bytes(head[:8], "little")
    if len(head) < 8 or needed > size:
        raise UnsoundError("it is truncated, or no bundle")
    if needed > len(head):
        return needed
    return guarded(lambda: _heading(parse_metadata(head, size))[0])()


def _heading(metadata: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """What a bundle says about its files, and the SHA-256 of each by name."""
    from casemate.arrays import UnsoundError

    about, digests = json.loads(metadata["about"]), json.loads(metadata["files"])
    if metadata["sha256"] != _check(metadata["about"], digests) or not isinstance(about, dict):
        raise UnsoundError("the checksum of its head does not match")
    return about, digests


def _expect_inside(name: str, names: Container[str]) -> None:
    """Raise `UnsoundError` unless a file's name is a plain relative path, which cannot lead out of a folder.

    None of the folders in it may be a file among `names`.
    """
    from casemate.arrays import UnsoundError

    parts, parents = name.split("/"), PurePosixPath(name).parents
    plain = all(part not in ("", ".", "..") and part.isprintable() and "\\" not in part for part in parts)
    short = len(parts) <= _MOST_DEPTH and all(len(part.encode()) <= _MOST_BYTES for part in parts if plain)
    if not plain or not short or any(str(each) in names for each in parents):
        raise UnsoundError(f"{name[:100]!r} is no name of a file in it")


def _check(about: str, digests: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps([about, sorted(digests.items())]).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
