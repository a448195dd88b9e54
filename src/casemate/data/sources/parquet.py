"""Pictures in Parquet files, in the layout of Hugging Face's data sets: columns `image` and `label` (extra `tables`).

A column of images holds the bytes of picture files, alone or in a structure with the fields `bytes` and `path`. The
names of the classes are in the file's metadata, under "huggingface".
"""

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from casemate.arrays import OpenFile, UnsoundError
from casemate.data.sources.pictures import stream_pictures
from casemate.data.sources.resizing import Resizing
from casemate.data.streamed import StreamedImages
from casemate.errors import CasemateError, DataError, missing_extra
from casemate.tables import find_polars
from casemate.types import Labels

_IMAGES = ("image", "img", "images", "picture")
_LABELS = ("label", "labels", "fine_label", "target", "class", "y")
_WINDOW_BYTES = 1 << 25
"""About how many bytes of pictures are read from a file at a time."""
_MOST_ROWS_PER_BYTE = 8
"""A picture takes some bytes; the rows that a file may state are limited by its size times this."""


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files in a folder, or in its subfolder `data`, sorted by name."""
    return sorted(folder.glob("*.parquet")) or sorted((folder / "data").glob("*.parquet"))


def split_of(file: Path) -> str:
    """The split that a file's name begins with, such as "train" of train-00000-of-00002.parquet."""
    return file.name.removesuffix(".parquet").split("-")[0]


def open_parquet(path: Path, split: str | None, resizing: Resizing) -> StreamedImages:
    """The pictures in a Parquet file, or in the files of a folder whose names begin with `split`, such as "train-".

    Raises `DataError`, or `MissingExtraError` without polars.
    """
    files = [path]
    if path.is_dir():
        files = parquet_files(path)
        splits = sorted({split_of(file) for file in files})
        if split is None and len(splits) > 1:
            raise DataError(f"{path} holds the parts {', '.join(splits)} of a data set; choose one with --split")
        files = [file for file in files if split in (None, split_of(file))]
        if not files:
            raise DataError(f"{path} has no files of the split {split!r}; it has {', '.join(splits)}")
    elif split is not None:
        raise DataError(f"{path} is one file, which has no splits; leave --split {split} out, or name its folder")
    columns = _columns(files[0])
    labels = [_labels(file, columns[1]) for file in files]
    counts = [len(each) for each in labels]

    def fetch(positions: list[int]) -> Iterator[tuple[str, bytes]]:
        for position in positions:
            place, number = 0, position
            while number >= counts[place]:
                number -= counts[place]
                place += 1
            yield f"{files[place]}, row {number}", windows[place][number]

    windows = [_Window(file, columns[0], count) for file, count in zip(files, counts, strict=True)]
    return stream_pictures(str(path), torch.cat(labels), _class_names(files[0], columns[1]), fetch, resizing)


class _Window:
    """The pictures of one Parquet file by row, read some rows at a time; the last rows read are kept."""

    def __init__(self, path: Path, column: str, count: int) -> None:
        self.path, self.column, self.count = path, column, count
        self.rows = max(1, min(1024, _WINDOW_BYTES * count // max(1, path.stat().st_size)))
        self.start, self.found = 0, list[Any]()

    def __getitem__(self, number: int) -> bytes:
        if not self.start <= number < self.start + len(self.found):
            self.start = number - number % self.rows
            self.found = self._read(self.start, min(self.rows, self.count - self.start))
        raw = self.found[number - self.start]
        if not isinstance(raw, bytes):
            raise DataError(
                f"{self.path}, row {number}: no bytes of a picture in the column {self.column}; expected the pictures "
                "in the file itself, and not only their paths"
            )
        return raw

    def _read(self, start: int, count: int) -> list[Any]:
        with _polars(self.path) as pl:
            frame = pl.scan_parquet(self.path, glob=False).select(self.column).slice(start, count).collect()
            column = frame[self.column]
            if isinstance(column.dtype, pl.Struct):
                column = column.struct.field("bytes")
            found = column.to_list()
        if len(found) != count:
            raise DataError(f"cannot read {self.path}: {len(found)} of {count} rows from row {start}; it is damaged")
        return found


@contextmanager
def _polars(path: Path) -> Iterator[Any]:
    """Context that yields polars; in it whatever fails in reading the file `path` becomes a `DataError`."""
    polars = find_polars()
    if polars is None:
        raise missing_extra(f"reading {path}", "tables")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield polars
    except CasemateError:
        raise
    except (Exception, polars.exceptions.PanicException) as error:
        why = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise DataError(f"cannot read {path}: {why}; expected a Parquet file of images and labels") from error


def _columns(path: Path) -> tuple[str, str]:
    """The names of the columns with images and with labels. Raises `DataError` if there are none."""
    try:
        OpenFile.at(path)  # refuses pipes and devices
    except (OSError, UnsoundError) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    with _polars(path) as pl:
        schema = pl.read_parquet_schema(path)
        image = next((name for name in _IMAGES if name in schema), None)
        label = next((name for name in _LABELS if name in schema), None)
        listed = ", ".join(list(schema)[:8])
        if image is None or label is None:
            raise DataError(f"{path} has the columns {listed}; expected `image` and `label`")
        kind = schema[image]
        if isinstance(kind, pl.Struct):
            kind = {each.name: each.dtype for each in kind.fields}.get("bytes")
        if kind != pl.Binary:
            raise DataError(f"{path}: the column {image} is of type {schema[image]}; expected bytes of pictures")
        if not schema[label].is_integer():
            raise DataError(f"{path}: the column {label} is of type {schema[label]}; expected whole numbers from 0")
    return image, label


def _labels(path: Path, column: str) -> Labels:
    """The labels in a Parquet file, int64 `(n,)`. Raises `DataError` for missing ones and those below 0."""
    with _polars(path) as pl:
        count = pl.scan_parquet(path, glob=False).select(pl.len()).collect().item()
        if count > _MOST_ROWS_PER_BYTE * (size := path.stat().st_size):
            raise DataError(f"cannot read {path}: it states {count} rows in {size} bytes")
        found = pl.read_parquet(path, columns=[column], glob=False)[column]
        if len(found) != count or found.null_count():
            raise DataError(f"{path}: {found.null_count()} of {count} labels are missing; expected one in each row")
        labels = torch.from_numpy(found.cast(pl.Int64).to_numpy().copy())
    if len(labels) and int(labels.min()) < 0:
        place = int(labels.argmin())
        raise DataError(f"{path}: label {int(labels[place])} in row {place}; labels count classes from 0")
    return labels


def _class_names(path: Path, column: str) -> tuple[str, ...] | None:
    """The names of the classes, if the metadata of a Parquet file has them."""
    with _polars(path) as pl:
        text = pl.read_parquet_metadata(path).get("huggingface", "{}")
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        names: Sequence[Any] = json.loads(text)["info"]["features"][column]["names"]
        if len(names) and all(isinstance(name, str) for name in names) and len(set(names)) == len(names):
            return tuple(names)
    return None
