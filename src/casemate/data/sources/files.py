"""Labelled picture files in a folder: a class per subfolder, or a table (CSV) of paths and labels."""

import csv
import os
import stat
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import final

import torch

from casemate.arrays import UnsoundError
from casemate.data.dataset import UNLABELLED
from casemate.data.sources.pictures import SUFFIXES, read_picture, stream_pictures
from casemate.data.sources.resizing import Resizing
from casemate.data.streamed import StreamedImages
from casemate.errors import DataError
from casemate.types import Labels

SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation", "dev")
"""Names of subfolders, arrays and files that are parts of a data set rather than classes."""
_PATHS = ("path", "file", "filename", "file_name", "image", "img", "filepath", "image_path", "id")
_LABELS = ("label", "labels", "class", "target", "category", "y")
_TABLES = ("labels.csv", "metadata.csv")
"""Names of the table in a folder of pictures, if no other one is given."""
_DEEPEST = 8
"""Most folders inside one another that are searched for pictures of a class."""
_MOST_CLASSES = 100_000


@final
class _Paths:
    """Many paths in little memory: their bytes one after the other, and where each ends."""

    def __init__(self) -> None:
        self._bytes, self._ends = bytearray(), array("I", [0])

    def append(self, path: str) -> None:
        self._bytes += os.fsencode(path)
        try:
            self._ends.append(len(self._bytes))
        except OverflowError:  # more than 4 GB of paths
            self._ends = array("Q", [*self._ends, len(self._bytes)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, place: int) -> str:
        return os.fsdecode(bytes(self._bytes[self._ends[place] : self._ends[place + 1]]))


def open_folder(folder: Path, labels: Path | None, split: str | None, resizing: Resizing) -> StreamedImages:
    """The pictures of a folder: in a subfolder for each class, or as a table says, `labels` or labels.csv inside it.

    With a `split` they are those in the subfolder of this name, or the rows of the table whose column `split` says so.
    Classes are in the order of their names, numbers by value. Raises `DataError`.
    """
    if labels is not None:
        return open_table(labels, folder, split, resizing)
    inside = {entry.name for entry in _entries(folder) if _is_folder(entry)}
    parts = sorted(name for name in inside if name.lower() in SPLITS)
    if split is not None:
        if split not in inside:
            listed = f"; it has {', '.join(parts)}" if parts else ""
            raise DataError(f"{folder} has no subfolder {split!r} (--split {split}){listed}")
        return open_folder(folder / split, None, None, resizing)
    if parts and len(parts) == len(inside):
        raise DataError(f"{folder} holds the parts {', '.join(parts)} of a data set; choose one with --split")
    table = next((folder / name for name in _TABLES if (folder / name).is_file()), None)
    if table is not None and not inside - set(parts) - {"images"}:
        return open_table(table, folder, None, resizing)
    if not inside:
        raise DataError(
            f"{folder} has no subfolders; expected one for each class, with its pictures, or a table of paths and "
            "labels: give it with --labels FILE.csv, or call it labels.csv"
        )
    return _by_class(folder, sorted(inside, key=_order), resizing)


def open_pictures(folder: Path, resizing: Resizing) -> StreamedImages:
    """All pictures in a folder and below it, labelled `UNLABELLED`, sorted by their paths. Raises `DataError`."""
    paths = _Paths()
    for path in _pictures(folder, ".", _DEEPEST):
        paths.append(path)
    if not len(paths):
        raise DataError(f"{folder} has no pictures; expected files ending in {', '.join(SUFFIXES)}")
    labels = torch.full((len(paths),), UNLABELLED)
    return _streamed(folder, Path(os.path.realpath(folder)), paths, labels, None, resizing)


def open_table(table: Path, folder: Path | None, split: str | None, resizing: Resizing) -> StreamedImages:
    """The pictures whose paths, with their labels, a CSV file lists; paths are relative to `folder`, or to the file's.

    The first row names the columns (path or file or image, and label or class); without such a row there are two.
    Labels that are whole numbers from 0 are class numbers; others are names of classes. Raises `DataError`.
    """
    root = Path(os.path.realpath(table.parent if folder is None else folder))
    paths, words = _Paths(), array("q")
    names: dict[str, int] = {}
    for path, word in _rows(table, split):
        if word not in names and len(names) == _MOST_CLASSES:
            raise DataError(f"{table}: more than {_MOST_CLASSES:,} classes; expected one label of few in each row")
        if Path(path).is_absolute() or ".." in Path(path).parts or "\0" in path:
            raise DataError(
                f"{table}: the path {path!r} in row {len(paths) + 1} leads out of {root}; expected paths relative to "
                "this folder, or to another one: --data FOLDER --labels FILE.csv"
            )
        paths.append(path)
        words.append(names.setdefault(word, len(names)))
    if not len(paths):
        raise DataError(f"{table} lists no pictures{'' if split is None else f' of the split {split!r}'}")
    seen = torch.frombuffer(words, dtype=torch.int64).clone()
    if all(word.isdecimal() and len(word) < 8 for word in names):
        return _streamed(table, root, paths, torch.tensor([int(word) for word in names])[seen], None, resizing)
    order = {word: place for place, word in enumerate(sorted(names, key=_order))}
    labels = torch.tensor([order[word] for word in names])[seen]
    return _streamed(table, root, paths, labels, tuple(order), resizing)


def _by_class(folder: Path, classes: Sequence[str], resizing: Resizing) -> StreamedImages:
    """The pictures in those subfolders of `folder` whose names are `classes`, each in the order of the file names."""
    if len(classes) > _MOST_CLASSES:
        raise DataError(f"{folder} has {len(classes):,} subfolders; expected at most {_MOST_CLASSES:,} classes")
    paths, counts = _Paths(), array("q")
    for name in classes:
        before = len(paths)
        for path in _pictures(folder, name, _DEEPEST):
            paths.append(path)
        counts.append(len(paths) - before)
    if not len(paths):
        raise DataError(f"{folder}: no pictures in its subfolders; expected files ending in {', '.join(SUFFIXES)}")
    labels = torch.repeat_interleave(torch.arange(len(classes)), torch.tensor(counts.tolist()))
    return _streamed(folder, Path(os.path.realpath(folder)), paths, labels, tuple(classes), resizing)


def _pictures(folder: Path, inside: str, depth: int) -> Iterator[str]:
    """The picture files below the subfolder `inside`, as paths relative to `folder`, sorted; links are not followed."""
    entries = sorted(_entries(folder / inside), key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.lower().endswith(SUFFIXES) and not _is_folder(entry):
            yield f"{inside}/{entry.name}"
    for entry in entries:
        if _is_folder(entry):
            if not depth:
                raise DataError(f"{folder / inside} has folders more than {_DEEPEST} deep; expected pictures")
            yield from _pictures(folder, f"{inside}/{entry.name}", depth - 1)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, without hidden files. Raises `DataError` if it cannot be read."""
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror or error}; expected a folder of pictures") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder. Raises `DataError` for a link to one, since it may lead anywhere."""
    if entry.is_symlink():
        with suppress(OSError):
            if stat.S_ISDIR(entry.stat().st_mode):
                raise DataError(f"{entry.path} is a link to a folder; only files in the folder are read: copy it there")
        return False
    return entry.is_dir(follow_symlinks=False)


def _order(name: str) -> tuple[int, int, str]:
    """The key by which classes are sorted: whole numbers by value, before all other names."""
    return (0, int(name), name) if name.isdecimal() and len(name) < 18 else (1, 0, name)


def _rows(table: Path, split: str | None) -> Iterator[tuple[str, str]]:
    """Path and label in each row of a CSV file, of the rows of one `split` or all. Raises `DataError`."""
    try:
        if not stat.S_ISREG(table.stat().st_mode):
            raise DataError(f"{table} is no file; expected a CSV file of paths and labels")
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file, strict=True)
            head = next(rows, [])
            columns = _columns(table, head, split)
            if columns is None:
                columns, rows = (0, 1, None), chain([head], rows)
            path, label, part = columns
            for number, row in enumerate(rows, start=1):
                if row and (part is None or _cell(table, row, part, number) == split):
                    yield _cell(table, row, path, number), _cell(table, row, label, number)
    except (OSError, ValueError, csv.Error) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read {table}: {why}; expected a CSV file of paths and labels") from error


def _columns(table: Path, head: Sequence[str], split: str | None) -> tuple[int, int, int | None] | None:
    """Places of the columns with paths, labels and splits; None if the first row, of two values, names no columns.

    Raises `DataError` if there are no such columns.
    """
    names = [word.strip().lower() for word in head]
    path, label = (next((names.index(name) for name in known if name in names), None) for known in (_PATHS, _LABELS))
    if split is not None and "split" not in names:
        raise DataError(f"{table} has no column `split` (--split {split}); leave --split out, or add the column")
    if path is not None and label is not None:
        return path, label, names.index("split") if split is not None else None
    if path is None and label is None and len(head) == 2:
        return None
    listed = ", ".join(head)[:200]
    raise DataError(
        f"{table} has the columns {listed or 'none'}; expected `path` and `label`, or two columns without names"
    )


def _cell(table: Path, row: Sequence[str], column: int, number: int) -> str:
    """The value of a row in a column. Raises `DataError` if there is none."""
    value = row[column].strip() if column < len(row) else ""
    if not value:
        raise DataError(
            f"{table}: no value in column {column + 1} of row {number}; expected a path and a label in each"
        )
    return value


def _streamed(
    source: Path, root: Path, paths: _Paths, labels: Labels, classes: tuple[str, ...] | None, resizing: Resizing
) -> StreamedImages:
    """The pictures at `paths` in the folder `root`, a resolved path."""

    def fetch(positions: list[int]) -> Iterator[tuple[str, bytes]]:
        for place in positions:
            path = root / paths[place]
            try:
                raw = read_picture(path, root)
            except (OSError, ValueError, UnsoundError) as error:
                raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
            yield str(path), raw

    return stream_pictures(str(source), labels, classes, fetch, resizing)
