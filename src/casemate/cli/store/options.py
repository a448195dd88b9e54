"""The commands of `casemate store`: their options, and how they run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from casemate.cli import store
from casemate.cli.shared import parsing
from casemate.cli.shared.observers import watching
from casemate.cli.shared.options import Flag, Json, StoreFolder
from casemate.cli.store import run, show


@dataclass(frozen=True, kw_only=True)
class ListStore:
    """List the finished artifacts, oldest first.
    - Stale artifacts were made by code that has changed since; the present
      code never uses them.
    - Of shared storage, what is on it; unfinished work is this machine's.

    Examples:
      casemate store list
      casemate store list --json
    """

    store: StoreFolder = None
    json: Json = False

    def run(self) -> None:
        """Print the finished artifacts, and how much unfinished work there is."""
        with watching() as observer, observer.work("Looking through the store", 0):
            found = run.list_store(self.store, observer)
        show.show(found, as_json=self.json)


@dataclass(frozen=True, kw_only=True)
class CleanStore:
    """Remove stale artifacts, and unfinished work.
    - Work of a process that is still running is kept.
    - A training that was stopped counts as unfinished: it will start over.
      Pieces of an evaluation stay while their code is current.
    - On shared storage it is removed for all machines, and nothing there says
      whether one of them is using it; what one lacks it computes again.

    Examples:
      casemate store clean --dry-run   what would be removed?
      casemate store clean
      casemate store clean --all       finished, current artifacts too
    """

    all: Flag = False
    """Remove current artifacts as well."""
    dry_run: Flag = False
    """Remove nothing; list what would be removed."""
    store: StoreFolder = None
    json: Json = False

    def run(self) -> None:
        """Remove stale artifacts (or all) and unfinished work; print what was removed and how many bytes that freed."""
        with watching() as observer, observer.work("Cleaning the store", 0):
            cleaned = run.clean_store(self.store, everything=self.all, dry_run=self.dry_run, observer=observer)
        show.show_cleaned(cleaned, as_json=self.json)


COMMANDS: Mapping[str, type[ListStore | CleanStore]] = {"list": ListStore, "clean": CleanStore}


def parse(argv: Sequence[str]) -> ListStore | CleanStore:
    """The command of `casemate store` that `argv` names, with its options. Raises `SettingError` for an unknown one."""
    return parsing.parse_group("casemate store", store.__doc__ or "", COMMANDS, argv)
