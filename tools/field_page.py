"""Write the tables of docs/field.md from docs/field.csv, which has one row for each method.

    python tools/field_page.py
    python tools/field_page.py --compare LIBRARY FILE ...

What stands before the marker is written by hand and stays; a test fails when the rest is not what this writes. In the
file, names of a library are separated by spaces, and `{L1,L2}FMNAttack` stands for two of them. With `--compare` the
names of LIBRARY (a column of the file) are compared with those that its Python files import or define as classes; what
only one of both has is printed, and the exit code is 1 if there is any.
"""

import argparse
import ast
import csv
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
ROWS = DOCS / "field.csv"
PAGE = DOCS / "field.md"
MARKER = "<!-- Below this line: python tools/field_page.py -->"
LIBRARIES = {
    "art": "ART",
    "foolbox": "Foolbox",
    "torchattacks": "torchattacks",
    "autoattack": "AutoAttack",
    "adv-lib": "adv-lib",
}
"""The columns of the file with classes of other libraries, and their headings."""
KINDS = {
    "ball": "Within a ball, by gradients",
    "minimum": "Nearest images, by gradients",
    "l0": "Few values",
    "queries": "Without gradients",
    "transfer": "Transfer",
    "other": "Rotations, colours and other changes",
    "outside": "Outside the purpose",
}
"""The sections by their names in the file, in order."""
NOT_METHODS = {"Attack", "FABAttack"}
"""Names that libraries export and that are no method: the bases of Foolbox's attacks and of AutoAttack's FAB."""

Row = Mapping[str, str]


def read(path: Path = ROWS) -> list[Row]:
    """The rows of the file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def expanded(name: str) -> Iterator[str]:
    """The names that `{a,b}c` stands for: ac and bc."""
    found = re.search(r"\{([^{}]*)\}", name)
    if found is None:
        yield name
        return
    for choice in found[1].split(","):
        yield from expanded(name[: found.start()] + choice + name[found.end() :])


def names_of(row: Row, column: str) -> list[str]:
    """The names in one cell, expanded."""
    return [each for name in row[column].split() for each in expanded(name)]


def table(rows: list[Row]) -> str:
    """A table in Markdown, without the columns of libraries that have none of the methods."""
    columns = [column for column in LIBRARIES if any(row[column] for row in rows)]
    lines = [["Method", "Here", *(LIBRARIES[column] for column in columns), "Paper"]]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        lines.append([row["method"], _here(row), *(_code(row[column]) for column in columns), row["paper"]])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _here(row: Row) -> str:
    """The class here and what else there is to say, or why there is none."""
    if not row["here"]:
        return f"no: {row['note']}"
    return "; ".join(part for part in (_code(row["here"]), row["note"]) if part)


def _code(names: str) -> str:
    return ", ".join(f"`{name}`" for name in names.split())


def page(text: str, rows: Iterable[Row]) -> str:
    """The page with everything after the marker written anew."""
    by_hand, marker, _ = text.partition(MARKER)
    sections = [f"## {KINDS[kind]}\n\n{table(list(part))}" for kind, part in groupby(rows, key=lambda row: row["kind"])]
    return "\n".join([by_hand + (marker or MARKER), "", *sections])


def exported(source: str) -> set[str]:
    """The public names that a module imports from others, or defines as classes."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ClassDef):
            found.add(node.name)
    return {name for name in found if not name.startswith("_")} - NOT_METHODS


def compare(rows: Iterable[Row], library: str, exports: set[str]) -> list[str]:
    """One line for each name that only the table or only the library has."""
    stated = {name.rpartition(".")[2] for row in rows for name in names_of(row, library)} - {"*"}
    lines = [f"missing in the table: {name}" for name in sorted(exports - stated)]
    return lines + [f"not in the library: {name}" for name in sorted(stated - exports)]


def main() -> int:
    """Write the page, or compare; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", nargs="+", metavar=("LIBRARY", "FILE"))
    options = parser.parse_args()
    rows = read()
    if options.compare is None:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), rows), encoding="utf-8")
        return 0
    library, *files = options.compare
    found = compare(rows, library, set().union(*(exported(Path(file).read_text(encoding="utf-8")) for file in files)))
    print("\n".join(found) or "the same names")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
