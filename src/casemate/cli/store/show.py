"""What `casemate store` prints: the content of the store, and what was removed."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from rich.filesize import decimal
from rich.markup import escape

from casemate.cli.shared import console


def show(found: Mapping[str, Any], *, as_json: bool) -> None:
    """Print the result of `list_store`: a row per finished artifact, and how much unfinished work there is."""
    if as_json:
        console.show_json(found)
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
        pieces = "pieces of evaluations, which the same command uses again"
        console.show(f"{len(found['evaluations'])} folders, {decimal(found['evaluations_bytes'])}, {pieces}")


def _when(text: str | None) -> str:
    return "" if text is None else datetime.fromisoformat(text).astimezone().strftime("%d %b %H:%M")


def show_cleaned(cleaned: Mapping[str, Any], *, as_json: bool) -> None:
    """Print the result of `clean_store`: what was or would be removed, what was kept and why, the bytes freed."""
    if as_json:
        console.show_json(cleaned)
        return
    for each in cleaned["removed"]:
        console.show(f"{escape(each['name'])}  {decimal(each['bytes'])}  {escape(each['path'])}")
    for why in cleaned["kept"]:
        console.show(f"[yellow]kept:[/] {escape(why)}")
    words = "would be freed" if cleaned["dry_run"] else "freed"
    console.show(f"{len(cleaned['removed'])} folders, {cleaned['bytes']:,} bytes {words}.")
