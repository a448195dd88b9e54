"""Tables of results, one row per image: Parquet files, or CSV files if polars is not installed.

Both contain the same columns and numbers. Only this module imports polars (the extra `tables`).
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from casemate.errors import CasemateError, missing_extra
from casemate.files import writing

Table = Mapping[str, np.ndarray]
"""Columns by name, `(rows,)` each: numbers, booleans or text. Missing numbers are masked (`numpy.ma`), missing texts
are None in an array of objects."""

FORMATS = ("parquet", "csv")


def is_missing(column: np.ndarray) -> np.ndarray:
    """Whether the value in each row of a column is missing, booleans `(rows,)`."""
    if column.dtype == object:
        return np.array([value is None for value in column], dtype=bool)
    return np.ma.getmaskarray(column)


def write_table(table: Table, path: Path) -> Path:
    """Write a table whole or not at all, as Parquet if polars is installed, else as CSV.

    `path` has no suffix; returned is the path written, with .parquet or .csv. Raises `StoreError`.
    """
    suffix = "csv" if find_polars() is None else "parquet"
    return write_table_as(suffix, table, path.with_name(f"{path.name}.{suffix}"))


def write_table_as(suffix: str, table: Table, path: Path) -> Path:
    """Write a table to `path`, whole or not at all, in the format `suffix` (see `FORMATS`); return `path`.

    Raises `StoreError`, or `MissingExtraError` for Parquet without polars.
    """
    check_format(suffix)
    with writing(path) as temporary:
        if suffix == "parquet":
            _frame(table).write_parquet(temporary)
        else:
            with temporary.open("w", newline="", encoding="utf-8") as file:
                rows = csv.writer(file, lineterminator="\n")
                rows.writerow(table)
                rows.writerows(zip(*map(_as_text, table.values()), strict=True))
    return path


def check_format(suffix: str) -> None:
    """Raise `MissingExtraError` if `suffix` is "parquet" and polars, which writes it, is not installed."""
    if suffix == "parquet" and find_polars() is None:
        raise missing_extra("writing Parquet", "tables")


def read_table(path: Path, error: type[CasemateError]) -> Table:
    """Read a table that `write_table` wrote, from Parquet if there is such a file, else from CSV; `path` has no suffix.

    Raises `error` if the table is missing or damaged, and `MissingExtraError` for Parquet without polars.
    """
    parquet, text = (path.with_name(f"{path.name}.{suffix}") for suffix in FORMATS)
    return _read_csv(text, error) if text.exists() and not parquet.exists() else _read_parquet(parquet, error)


def find_polars() -> Any:
    """The polars module; None if it is not installed."""
    try:
        import polars
    except ImportError:
        return None
    return polars


def _frame(table: Table) -> Any:
    """The table as a polars data frame."""
    pl = find_polars()
    columns = {}
    for name, column in table.items():
        if column.dtype == object:
            columns[name] = pl.Series(column.tolist(), dtype=pl.String)
        elif isinstance(column, np.ma.MaskedArray):
            known = pl.Series(column.data)
            none = pl.Series([None] * len(column), dtype=known.dtype)
            columns[name] = known.zip_with(pl.Series(~is_missing(column)), none)
        else:
            columns[name] = column
    return pl.DataFrame(columns)


def _read_parquet(path: Path, error: type[CasemateError]) -> Table:
    pl = find_polars()
    if pl is None:
        if path.exists():
            raise missing_extra(f"reading {path}", "tables")
        raise error(f"cannot read {path} as a table: neither it nor {path.with_suffix('.csv').name} exists")
    try:
        return _columns(pl.read_parquet(path))
    except (OSError, MemoryError, ValueError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as cause:
        raise error(f"cannot read {path} as a table: {cause}") from cause


def _columns(frame: Any) -> Table:
    """The table of a polars data frame. Raises `PolarsError` for columns that `write_table` never writes."""
    pl, found = find_polars(), {}
    for series in frame:
        if series.dtype in (pl.String, pl.Null):
            found[series.name] = np.array(series.to_list(), dtype=object)
        elif series.null_count():
            found[series.name] = np.ma.masked_array(series.fill_null(0).to_numpy(), series.is_null().to_numpy())
        else:
            found[series.name] = series.to_numpy()
    return found


def _as_text(column: np.ndarray) -> Sequence[str]:
    """The texts that a CSV file holds for a column: numbers exactly, as Python writes them; "" if missing."""
    missing = is_missing(column)
    if column.dtype == bool:
        words = ["true" if value else "false" for value in column]
    elif np.issubdtype(column.dtype, np.floating):
        words = ["NaN" if np.isnan(value) else repr(float(value)) for value in np.ma.getdata(column)]
    else:
        words = [str(value) for value in np.ma.getdata(column)]
    return ["" if absent else word for absent, word in zip(missing, words, strict=True)]


def _read_csv(path: Path, error: type[CasemateError]) -> Table:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            names, *rows = csv.reader(file, strict=True)
        ragged = next((number for number, row in enumerate(rows, start=2) if len(row) != len(names)), None)
        if ragged is not None:
            raise ValueError(f"line {ragged} does not have {len(names)} columns")
    except (OSError, MemoryError, ValueError, csv.Error) as cause:
        raise error(f"cannot read {path} as a table: {cause}") from cause
    return {name: _from_text([row[place] for row in rows]) for place, name in enumerate(names)}


def _from_text(words: Sequence[str]) -> np.ndarray:
    """A CSV column as booleans, integers, floats or text: the first of these that fits all of its words."""
    missing = np.array([word == "" for word in words], dtype=bool)
    present = {word for word in words if word}
    if present and present <= {"true", "false"} and not missing.any():
        return np.array([word == "true" for word in words])
    for kind in (np.int64, np.float64):
        try:
            values = np.array([word or "0" for word in words], dtype=object).astype(kind)
        except (ValueError, OverflowError):
            continue
        return np.ma.masked_array(values, missing) if missing.any() else values
    return np.array([word or None for word in words], dtype=object)
