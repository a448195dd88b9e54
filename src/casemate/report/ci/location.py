"""Where a file lies in its repository, as tools that show problems beside code expect it."""

import os
from pathlib import Path
from urllib.parse import quote_from_bytes


def repository_root() -> Path:
    """The nearest folder with `.git` in it, from the current folder upwards; the current folder if there is none."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), here)


def normalised(file: Path) -> Path:
    """The absolute path without "..", in which symbolic links stay as they are."""
    return Path(os.path.abspath(file))  # noqa: PTH100 (`Path.resolve` would follow links)


def within_repository(file: Path) -> Path | None:
    """The file's path relative to `repository_root`; None if it lies outside of it.

    A symbolic link in the repository counts as a file of the repository, wherever it leads.
    """
    root = repository_root()
    places = ((normalised(file), root), (file.resolve(), root.resolve()))
    for place, base in places:
        if place.is_relative_to(base):
            return place.relative_to(base)
    return None


def shown_file(file: Path) -> str:
    """The path for people and for JUnit: relative to the repository if the file is in it, with forward slashes."""
    inside = within_repository(file)
    return (normalised(file) if inside is None else inside).as_posix()


def as_uri(path: Path) -> str:
    """The path with forward slashes, in which all that a URI cannot contain is written as %XX."""
    return quote_from_bytes(os.fsencode(path.as_posix()))
