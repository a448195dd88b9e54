"""`casemate data`: which data sets there are, getting them, looking at them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.markup import escape
from tyro.conf import arg

from casemate.cli import console
from casemate.cli.observers import watching
from casemate.cli.options import DataDir, DatasetName, Json, at_least_one, load_torch
from casemate.errors import CasemateError, DataError, StoreError

HELP = """\
List, fetch and look at the data sets.

Examples:
  casemate data list
  casemate data fetch
  casemate data show --out samples.png
"""


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
            from casemate.cli import datasets

            found = {name: datasets.find(name, self.data_dir, observer) for name in datasets.TITLES}
            rows = [datasets.found_as_json(name, each) for name, each in found.items()]
        if self.json:
            console.show_json(rows)
            return
        made = console.table("Name", *console.right("Train", "Test", "Classes"), "Images", "Found in")
        for row in rows:
            if row["found"] is None:
                made.add_row(row["name"], "", "", "", "", "[yellow]not found[/]; `casemate data fetch` gets it")
            else:
                shape = " x ".join(map(str, row["shape"]))
                counts = (f"{row['train_images']:,}", f"{row['test_images']:,}", str(len(row["classes"])))
                made.add_row(row["name"], *counts, shape, escape(row["found"]))
        console.show(made)
        for row in rows:
            if row["found"] is None and (self.data_dir is not None or os.environ.get("CASEMATE_DATA")):
                console.show(escape(row["why"]))


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
            from casemate import data
            from casemate.cli import datasets

            found = datasets.find("fashion-mnist", None, observer)
            fetched = isinstance(found, CasemateError)
            if isinstance(found, CasemateError):
                if os.environ.get("CASEMATE_DATA"):
                    raise DataError(f"{found}\nCASEMATE_DATA names this folder; unset it to fetch into the cache")
                with observer.work("Fetching Fashion-MNIST", 0):
                    found = data.load("fashion-mnist", observer=observer)
        if self.json:
            console.show_json(datasets.found_as_json("fashion-mnist", found) | {"fetched": fetched})
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

    dataset: DatasetName = "fashion-mnist"
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
            from casemate import data
            from casemate.cli import datasets

            with observer.work("Reading the images", 0):
                dataset = data.load(self.dataset, self.data_dir, observer=observer)
            with observer.work("Drawing", 0):
                datasets.draw(dataset, self.per_class, self.out)
        console.show(escape(str(self.out)))


COMMANDS: Mapping[str, type[List] | type[Fetch] | type[Show]] = {"list": List, "fetch": Fetch, "show": Show}
