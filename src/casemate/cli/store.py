"""`casemate store`: what is in the store of finished artifacts, and removing what is no longer of use."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.markup import escape

from casemate.cli import console
from casemate.cli.observers import watching
from casemate.cli.options import Flag, Json, StoreFolder
from casemate.engine import Artifact, Store, is_current
from casemate.engine.store import size_of
from casemate.errors import StoreError
from casemate_study.tasks.registry import PRODUCERS

HELP = """\
List and clean the store of finished artifacts.

Examples:
  casemate store list
  casemate store clean --dry-run
"""


def _row(artifact: Artifact) -> dict[str, Any]:
    """An artifact as JSON."""
    made = artifact.facts["provenance"]
    return {
        "name": artifact.facts["name"],
        "kind": artifact.facts["kind"],
        "key": artifact.key,
        "bytes": artifact.size,
        "finished": made.get("finished"),
        "seconds": made.get("seconds"),
        "current": is_current(artifact, PRODUCERS),
        "dataset": artifact.facts["config"].get("dataset"),
        "folder": str(artifact.folder),
    }


def _when(text: str | None) -> str:
    return "" if text is None else datetime.fromisoformat(text).astimezone().strftime("%d %b %H:%M")


@dataclass(frozen=True, kw_only=True)
class List:
    """List the finished artifacts, oldest first.
    - A stale artifact was made by other code than today's: no study finds it again.

    Examples:
      casemate store list
      casemate store list --json
    """

    store: StoreFolder = None
    json: Json = False

    def run(self) -> None:
        """Print the table."""
        with watching() as observer, observer.work("Looking through the store", 0):
            store = Store(self.store)
            rows = [_row(artifact) for artifact in store.artifacts()]
            unfinished = store.unfinished()
            left_over = sum(size_of(path) for path in unfinished)
        if self.json:
            rest = [str(path) for path in unfinished]
            console.show_json(
                {"store": str(store.root), "artifacts": rows, "unfinished": rest, "unfinished_bytes": left_over}
            )
            return
        made = console.table("Name", "Kind", "Key", *console.right("Size"), "Finished", *console.right("Took"), "State")
        for row in rows:
            state = "current" if row["current"] else "[yellow]stale[/]"
            took = "" if row["seconds"] is None else console.clock(row["seconds"])
            size = console.size(row["bytes"])
            made.add_row(escape(row["name"]), row["kind"], row["key"][:8], size, _when(row["finished"]), took, state)
        stale = sum(not row["current"] for row in rows)
        whole = console.size(sum(row["bytes"] for row in rows))
        if rows:
            console.show(made)
        console.show(f"{len(rows)} artifacts ({stale} stale), {whole}, in {escape(str(store.root))}")
        if unfinished:
            words = "unfinished or damaged; a study goes on from what is unfinished, `casemate store clean` removes it"
            console.show(f"{len(unfinished)} folders, {console.size(left_over)}, {words}")


@dataclass(frozen=True, kw_only=True)
class Clean:
    """Remove stale artifacts, and what was left unfinished.
    - What another process is working on is left alone.
    - A stopped training is unfinished: after this it starts from its first epoch.

    Examples:
      casemate store clean --dry-run   what would be removed?
      casemate store clean
      casemate store clean --all       finished, current artifacts too
    """

    all: Flag = False
    """Remove current artifacts as well."""
    dry_run: Flag = False
    """Remove nothing: say what would be removed."""
    store: StoreFolder = None
    json: Json = False

    def run(self) -> None:
        """Remove and tell how many bytes that freed."""
        removed: list[dict[str, Any]] = []
        kept: list[str] = []
        with watching() as observer, observer.work("Cleaning the store", 0):
            store = Store(self.store)
            for artifact in store.artifacts():
                if self.all or not is_current(artifact, PRODUCERS):
                    what = {"name": artifact.facts["name"], "path": str(artifact.folder)}
                    try:
                        removed.append(what | {"bytes": artifact.size if self.dry_run else store.remove(artifact)})
                    except StoreError as error:
                        kept.append(str(error))
            for path in store.unfinished():
                what = {"name": "unfinished", "path": str(path)}
                try:
                    removed.append(what | {"bytes": size_of(path) if self.dry_run else store.discard(path)})
                except StoreError as error:
                    kept.append(str(error))
        freed = sum(each["bytes"] for each in removed)
        if self.json:
            console.show_json({"removed": removed, "kept": kept, "bytes": freed, "dry_run": self.dry_run})
            return
        for each in removed:
            console.show(f"{escape(each['name'])}  {console.size(each['bytes'])}  {escape(each['path'])}")
        for why in kept:
            console.show(f"[yellow]kept:[/] {escape(why)}")
        words = "would be freed" if self.dry_run else "freed"
        console.show(f"{len(removed)} folders, {freed:,} bytes {words}.")


COMMANDS: Mapping[str, type[List] | type[Clean]] = {"list": List, "clean": Clean}
