"""What `casemate data list` prints."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape

from casemate.cli.shared import console


def show(rows: Sequence[Mapping[str, Any]], *, explain: bool) -> None:
    """Print a row per data set, from `found_as_json` of each; with `explain` also why one was not found."""
    made = console.new_table("Name", *console.right_aligned("Train", "Test", "Classes"), "Images", "Found in")
    for row in rows:
        if row["found"] is None:
            how = "`casemate data fetch` downloads it" if row["name"] == "fashion-mnist" else escape(row["why"])
            made.add_row(row["name"], "", "", "", "", f"[yellow]not found[/]; {how}")
        else:
            shape = " x ".join(map(str, row["shape"]))
            counts = (f"{row['train_images']:,}", f"{row['test_images']:,}", str(len(row["classes"])))
            made.add_row(row["name"], *counts, shape, escape(row["found"]))
    console.show(made)
    for row in rows:
        if row["found"] is None and explain:
            console.show(escape(row["why"]))
