"""Tables with polars and without: the same columns and numbers, from Parquet and from CSV."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from casemate.errors import MissingExtraError, StoreError
from casemate.tables import Table, is_missing, read_table, write_table, write_table_as

TABLE: Table = {
    "index": np.arange(4),
    "small": np.array([1, -2, 3, 4], dtype=np.int8),
    "right": np.array([True, False, True, True]),
    "loss": np.array([0.1, math.nan, math.inf, 1 / 3], dtype=np.float32),
    "eps": np.array([8 / 255, 0.0, -math.inf, 1e-300]),
    "fooled_at": np.ma.masked_array([0.1, 0.0, 9.0, 0.3], [False, False, True, False]),
    "count": np.ma.masked_array([1, 2, 3, 4], [True, False, False, False]),
    "winner": np.array(["pgd", None, 'an "odd", name', "ä"], dtype=object),
    "status": np.array(["success", "failed", "failed", "non_finite"]),
    "nothing": np.array([None] * 4, dtype=object),
}


@pytest.fixture
def _no_polars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)


def same(one: Table, other: Table) -> None:
    """The same columns, gaps and numbers; how many bits they have does not count."""
    assert list(one) == list(other)
    for name, column in one.items():
        missing = is_missing(column)
        assert missing.tolist() == is_missing(other[name]).tolist(), name
        if not missing.all():
            assert (column.dtype.kind == "f") == (other[name].dtype.kind == "f"), name
        np.testing.assert_array_equal(column[~missing], other[name][~missing], err_msg=name)


@pytest.mark.parametrize("rows", [4, 1, 0])
def test_parquet_and_csv_hold_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    table = {name: column[:rows] for name, column in TABLE.items()}
    parquet = write_table(table, tmp_path / "first" / "examples")
    assert parquet.name == "examples.parquet"
    same(table, read_table(tmp_path / "first" / "examples", StoreError))
    monkeypatch.setitem(sys.modules, "polars", None)
    text = write_table(table, tmp_path / "second" / "examples")
    assert text.name == "examples.csv"
    assert [path.name for path in text.parent.iterdir()] == ["examples.csv"]
    read = read_table(tmp_path / "second" / "examples", StoreError)
    if rows:
        same(table, read)
    else:
        assert {name: len(column) for name, column in read.items()} == dict.fromkeys(table, 0)


def test_parquet_keeps_how_many_bits_a_number_has(tmp_path: Path) -> None:
    write_table(TABLE, tmp_path / "examples")
    read = read_table(tmp_path / "examples", StoreError)
    for name in ("index", "small", "right", "loss", "eps", "fooled_at", "count"):
        assert read[name].dtype == TABLE[name].dtype, name


@pytest.mark.usefixtures("_no_polars")
def test_a_csv_can_be_read_by_other_programs(tmp_path: Path) -> None:
    path = write_table(
        {name: TABLE[name] for name in ("index", "right", "loss", "fooled_at", "winner")}, tmp_path / "t"
    )
    assert path.read_text().splitlines() == [
        "index,right,loss,fooled_at,winner",
        "0,true,0.10000000149011612,0.1,pgd",
        "1,false,NaN,0.0,",
        '2,true,inf,,"an ""odd"", name"',
        "3,true,0.3333333432674408,0.3,ä",
    ]


@pytest.mark.usefixtures("_no_polars")
def test_parquet_without_polars_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "examples.parquet").touch()
    with pytest.raises(
        MissingExtraError, match=r"reading .*examples.parquet needs .*pip install 'casemate\[tables\]'$"
    ):
        read_table(tmp_path / "examples", StoreError)
    with pytest.raises(MissingExtraError, match=r"writing Parquet needs .*pip install 'casemate\[tables\]'$"):
        write_table_as("parquet", TABLE, tmp_path / "new.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["examples.parquet"]


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n3\n", 'a\n"1', "a\n\xff\n"])
def test_a_damaged_csv_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "examples.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(StoreError, match=r"cannot read .*examples.csv as a table"):
        read_table(tmp_path / "examples", StoreError)


def test_a_table_with_columns_of_bytes_is_refused(tmp_path: Path) -> None:
    pl = pytest.importorskip("polars")
    pl.DataFrame({"index": [b"1", None]}).write_parquet(tmp_path / "t.parquet")  # what damage makes of a column
    with pytest.raises(StoreError, match=r"t\.parquet as a table"):
        read_table(tmp_path / "t", StoreError)


def test_a_missing_table_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match=r"cannot read .*examples.parquet as a table"):
        read_table(tmp_path / "examples", StoreError)
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(StoreError, match=r"cannot read .*neither it nor examples.csv exists"):
        read_table(tmp_path / "examples", StoreError)


def test_an_older_table_is_replaced_whole(tmp_path: Path) -> None:
    write_table(TABLE, tmp_path / "examples")
    write_table({name: column[:2] for name, column in TABLE.items()}, tmp_path / "examples")
    assert len(read_table(tmp_path / "examples", StoreError)["index"]) == 2
