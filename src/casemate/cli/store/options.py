"""The commands of `casemate store`, their options, and what they do with them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from casemate.cli import store
from casemate.cli.shared import parsing
from casemate.cli.shared.observers import watching
from casemate.cli.shared.options import Flag, Json, StoreFolder
from casemate.cli.store import run, show


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
            found = run.look(self.store)
        show.show(found, as_json=self.json)


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
        with watching() as observer, observer.work("Cleaning the store", 0):
            cleaned = run.clean(self.store, everything=self.all, dry_run=self.dry_run)
        show.show_cleaned(cleaned, as_json=self.json)


COMMANDS: Mapping[str, type[List] | type[Clean]] = {"list": List, "clean": Clean}


def parse(argv: Sequence[str]) -> List | Clean:
    """The command of the group that `argv` names, with its options. Raises `SettingError` for an unknown one."""
    about = {name: parsing.first_line(each.__doc__) for name, each in COMMANDS.items()}
    name = parsing.choose("casemate store", store.__doc__ or "", about, argv)
    return parsing.parse(COMMANDS[name], f"casemate store {name}", COMMANDS[name].__doc__ or "", argv[1:])
