"""What `casemate store` prints: the content of the store, and what was removed."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from casemate.cli.shared import console


def show(found: Mapping[str, Any], *, as_json: bool) -> None:
    """Print the result of `list_store`: a row per finished artifact, and how much unfinished work there is."""
    if as_json:
        console.show_json(found, "casemate/store/1")
        return
    rows, unfinished = found["artifacts"], found["unfinished"]
    made = console.new_table(
        "Name", "Kind", "Key", *console.right_aligned("Size"), "Finished", *console.right_aligned("Took"), "State"
    )
    for row in rows:
        state = "current" if row["current"] else "[yellow]stale[/]"
        took = "" if row["seconds"] is None else console.duration(row["seconds"])
        size = decimal(row["bytes"])
        made.add_row(escape(row["name"]), row["kind"], row["key"][:8], size, _when(row["finished"]), took, state)
    stale = sum(not row["current"] for row in rows)
    whole = decimal(sum(row["bytes"] for row in rows))
    if rows:
        console.show(made)
    console.show(f"{len(rows)} artifacts ({stale} stale), {whole}, in {escape(found['store'])}")
    if unfinished:
        words = "unfinished or damaged; a study continues unfinished work, `casemate store clean` removes it"
        console.show(f"{len(unfinished)} folders, {decimal(found['unfinished_bytes'])}, {words}")
    if found["evaluations"]:
        console.show(_evaluations(found["evaluations"]))
        words = "pieces of evaluations, which the same command uses again unless they are stale"
        console.show(f"{len(found['evaluations'])} folders, {decimal(found['evaluations_bytes'])}, {words}")


def _evaluations(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A table with a row for each folder of pieces: the model by the SHA-256 of its weights, as in result.json."""
    made = console.new_table(
        "Weights", "Norm", *console.right_aligned("Seed", "Threads", "Pieces", "Size"), "Last used", "State"
    )
    for row in rows:
        state = "running" if row["running"] else "current" if row["current"] else "[yellow]stale[/]"
        numbers = (str(row["seed"]), str(row["threads"]), str(row["pieces"]), decimal(row["bytes"]))
        made.add_row(str(row["weights"])[:8], str(row["norm"]), *numbers, _when(row["used"]), state)
    return made


def _when(text: str | None) -> str:
    return "" if text is None else datetime.fromisoformat(text).astimezone().strftime("%d %b %H:%M")


def show_cleaned(cleaned: Mapping[str, Any], *, as_json: bool) -> None:
    """Print the result of `clean_store`: what was or would be removed, what was kept and why, the bytes freed."""
    if as_json:
        console.show_json(cleaned, "casemate/store-cleaning/1")
        return
    for each in cleaned["removed"]:
        console.show(f"{escape(each['name'])}  {decimal(each['bytes'])}  {escape(each['path'])}")
    for why in cleaned["kept"]:
        console.show(f"[yellow]kept:[/] {escape(why)}")
    words = "would be freed" if cleaned["dry_run"] else "freed"
    console.show(f"{len(cleaned['removed'])} folders, {cleaned['bytes']:,} bytes {words}.")
