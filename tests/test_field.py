"""docs/field.md: its tables are those of docs/field.csv, and what they say of this library holds."""

from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

import casemate
from casemate import attacks
from casemate.attacks import EOT, PARTS, Transfer
from casemate.attacks.registry import library_attack_types
from scripts import imported

ROOT = Path(__file__).resolve().parents[1]
NOT_PUBLISHED = {"momentum"}
"""Parts that are no method of their own: with momentum PGD is MI-FGSM, which has a class."""


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """`tools/field_page.py`, as a module."""
    return imported("tools/field_page.py")


def test_the_page_is_what_the_tool_writes(tool: ModuleType) -> None:
    text = tool.PAGE.read_text(encoding="utf-8")
    assert tool.page(text, tool.read()) == text, "run python tools/field_page.py"


def test_every_class_named_here_exists(tool: ModuleType) -> None:
    for row in tool.read():
        for name in tool.names_of(row, "here"):
            assert hasattr(attacks, name) or hasattr(casemate, name), f"{row['method']}: {name}"


def test_every_attack_of_this_library_is_in_the_table(tool: ModuleType) -> None:
    named = {name for row in tool.read() for name in tool.names_of(row, "here")}
    parts = {kind.__name__ for name, kind in PARTS.items() if name not in NOT_PUBLISHED}
    own = {kind.__name__ for kind in (*library_attack_types().values(), EOT, Transfer)}
    assert own | parts <= named


def test_every_row_says_where_a_method_is_or_why_it_is_not(tool: ModuleType) -> None:
    rows = tool.read()
    assert len({row["method"] for row in rows}) == len(rows)
    for row in rows:
        assert row["kind"] in tool.KINDS
        assert row["paper"]
        assert row["here"] or row["note"], row["method"]
        assert row["here"] or any(row[library] for library in tool.LIBRARIES), row["method"]


def test_every_class_of_another_library_has_one_row(tool: ModuleType) -> None:
    for library in tool.LIBRARIES:
        counts = Counter(name for row in tool.read() for name in tool.names_of(row, library))
        assert counts
        assert not {name for name, count in counts.items() if count > 1}, library


def test_names_with_braces(tool: ModuleType) -> None:
    assert list(tool.expanded("PGD")) == ["PGD"]
    assert list(tool.expanded("{L1,L2}FMN")) == ["L1FMN", "L2FMN"]
    assert list(tool.expanded("A{,B}{C,D}")) == ["AC", "AD", "ABC", "ABD"]


def test_names_that_only_one_side_has_are_found(tool: ModuleType) -> None:
    exports = tool.exported("from a.b import One, Two\nfrom c import _hidden\nclass Three: ...\nclass Attack: ...\n")
    assert exports == {"One", "Two", "Three"}
    rows = [{"art": "One {Thr,S}ee poisoning.*"}]
    assert tool.compare(rows, "art", exports) == ["missing in the table: Two", "not in the library: See"]
