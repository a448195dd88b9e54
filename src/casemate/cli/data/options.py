"""The commands of `casemate data`, their options, and what they do with them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.markup import escape
from tyro.conf import arg

from casemate.cli import data
from casemate.cli.shared import console, parsing
from casemate.cli.shared.observers import watching
from casemate.cli.shared.options import DataDir, Json, at_least_one, load_torch
from casemate.errors import CasemateError, DataError, StoreError


@dataclass(frozen=True, kw_only=True)
class List:
    """List the data sets: their size, and where they are found on this machine.
    - What is found is verified by checksum; nothing is fetched.

    Examples:
      casemate data list
      casemate data list --data-dir ~/downloads/fashion --json
    """

    data_dir: DataDir = None
    json: Json = False

    def run(self) -> None:
        """Look for each and print what was found."""
        with watching() as observer:
            load_torch(observer)
            from casemate.cli.data import run, show

            found = {name: run.find(name, self.data_dir, observer) for name in run.TITLES}
            rows = [run.found_as_json(name, each) for name, each in found.items()]
        if self.json:
            console.show_json(rows)
            return
        show.show(rows, explain=self.data_dir is not None or bool(os.environ.get("CASEMATE_DATA")))


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Get Fashion-MNIST into the user's cache and verify it.
    - If a good copy is on this machine already, say where; nothing is fetched.

    Examples:
      casemate data fetch
    """

    json: Json = False

    def run(self) -> None:
        """Fetch what is missing."""
        with watching() as observer:
            load_torch(observer)
            from casemate.cli.data import run
            from casemate.data import load

            found = run.find("fashion-mnist", None, observer)
            fetched = isinstance(found, CasemateError)
            if isinstance(found, CasemateError):
                if os.environ.get("CASEMATE_DATA"):
                    raise DataError(f"{found}\nCASEMATE_DATA names this folder; unset it to fetch into the cache")
                with observer.work("Fetching Fashion-MNIST", 0):
                    found = load("fashion-mnist", observer=observer)
        if self.json:
            console.show_json(run.found_as_json("fashion-mnist", found) | {"fetched": fetched})
        else:
            words = "Fetched and verified" if fetched else "Found and verified; nothing to fetch"
            console.show(f"{words}: {escape(found.origin)}")


@dataclass(frozen=True, kw_only=True)
class Show:
    """Draw sample images of every class into one PNG file.

    Examples:
      casemate data show
      casemate data show --dataset digits --per-class 20 --out digits.png
    """

    dataset: Annotated[str, arg(metavar="NAME")] = "fashion-mnist"
    """The images."""
    per_class: Annotated[int, arg(metavar="N")] = 12
    """Images of each class, the first of the training part."""
    out: Annotated[Path, arg(metavar="FILE")] = Path("samples.png")
    """Where the picture goes."""
    data_dir: DataDir = None

    def run(self) -> None:
        """Draw and write."""
        at_least_one("per-class", self.per_class)
        if self.out.suffix != ".png":
            raise StoreError(f"{self.out}: the picture is a PNG; choose an --out ending in .png")
        with watching() as observer:
            load_torch(observer)
            from casemate.data import load
            from casemate.report.contact_sheet import draw_samples

            with observer.work("Reading the images", 0):
                dataset = load(self.dataset, self.data_dir, observer=observer)
            with observer.work("Drawing", 0):
                draw_samples(dataset, self.per_class, self.out)
        console.show(escape(str(self.out)))


COMMANDS: Mapping[str, type[List] | type[Fetch] | type[Show]] = {"list": List, "fetch": Fetch, "show": Show}


def parse(argv: Sequence[str]) -> List | Fetch | Show:
    """The command of the group that `argv` names, with its options. Raises `SettingError` for an unknown one."""
    about = {name: parsing.first_line(each.__doc__) for name, each in COMMANDS.items()}
    name = parsing.choose("casemate data", data.__doc__ or "", about, argv)
    return parsing.parse(COMMANDS[name], f"casemate data {name}", COMMANDS[name].__doc__ or "", argv[1:])
