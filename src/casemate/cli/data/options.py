"""The commands of `casemate data`: their options, and how they run."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from rich.markup import escape
from tyro.conf import arg

from casemate.cli import data
from casemate.cli.shared import console, parsing
from casemate.cli.shared.observers import watching
from casemate.cli.shared.options import DataDir, DataFile, Json, Reading, at_least_one, load_torch
from casemate.errors import CasemateError, DataError, StoreError


@dataclass(frozen=True, kw_only=True)
class ListData:
    """List the data sets: their sizes, and where they are on this machine.
    - Files are verified by checksum; nothing is downloaded.

    Examples:
      casemate data list
      casemate data list --data-dir ~/downloads/fashion --json
    """

    data_dir: DataDir = None
    json: Json = False

    def run(self) -> None:
        """Search this machine for each data set, and print where it is and its sizes."""
        with watching() as observer:
            load_torch(observer)
            from casemate.cli.data import run, show

            found = {name: run.find(name, self.data_dir, observer) for name in run.TITLES}
            rows = [run.found_as_json(name, each) for name, each in found.items()]
        if self.json:
            console.show_json({"data_sets": rows}, "casemate/data-sets/1")
            return
        show.show(rows, explain=self.data_dir is not None or bool(os.environ.get("CASEMATE_DATA")))


@dataclass(frozen=True, kw_only=True)
class FetchData:
    """Download Fashion-MNIST into the user's cache and verify it.
    - Where a valid copy is on this machine already, nothing is downloaded.

    Examples:
      casemate data fetch
    """

    json: Json = False

    def run(self) -> None:
        """Download Fashion-MNIST unless this machine has a valid copy; print where it is."""
        with watching() as observer:
            load_torch(observer)
            from casemate.cli.data import run
            from casemate.data import load

            found = run.find("fashion-mnist", None, observer)
            fetched = isinstance(found, CasemateError)
            if isinstance(found, CasemateError):
                if os.environ.get("CASEMATE_DATA"):
                    raise DataError(f"{found}\nCASEMATE_DATA names this folder; unset it to download into the cache")
                with observer.work("Downloading Fashion-MNIST", 0):
                    found = load("fashion-mnist", observer=observer)
        if self.json:
            console.show_json(run.found_as_json("fashion-mnist", found) | {"fetched": fetched}, "casemate/data-set/1")
        else:
            words = "Downloaded and verified" if fetched else "Found and verified; nothing to download"
            console.show(f"{words}: {escape(found.origin)}")


@dataclass(frozen=True, kw_only=True)
class ShowData:
    """Draw sample images of every class into one PNG file.
    - With --data, your own images, resized and cropped as the options say.

    Examples:
      casemate data show
      casemate data show --data photos/ --resize 256 --crop 224
      casemate data show --dataset digits --per-class 20 --out digits.png
    """

    dataset: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: fashion-mnist)")] = None
    """The data set, one of `casemate data list`."""
    data: DataFile = None
    per_class: Annotated[int, arg(metavar="N")] = 12
    """Number of images of each class, the first ones, of a data set those of the training images."""
    out: Annotated[Path, arg(metavar="FILE")] = Path("samples.png")
    """The file to write."""
    data_dir: DataDir = None
    reading: Reading = field(default_factory=Reading)

    def run(self) -> None:
        """Draw the images and write the file."""
        at_least_one("per-class", self.per_class)
        if self.out.suffix != ".png":
            raise StoreError(f"{self.out}: the picture is a PNG; choose an --out ending in .png")
        with watching() as observer:
            load_torch(observer)
            from casemate.cli.data import run
            from casemate.report.contact_sheet import draw_samples

            with observer.work("Reading the images", 0):
                images, classes = run.to_show(self.data, self.dataset, self.data_dir, self.reading, observer)
            with observer.work("Drawing", 0):
                draw_samples(images, classes, self.per_class, self.out)
            for note in getattr(images, "notes", ()):
                observer.message(note)
        console.show(escape(str(self.out)))


COMMANDS: Mapping[str, type[ListData | FetchData | ShowData]] = {"list": ListData, "fetch": FetchData, "show": ShowData}


def parse(argv: Sequence[str]) -> ListData | FetchData | ShowData:
    """The command of `casemate data` that `argv` names, with its options. Raises `SettingError` for an unknown one."""
    return parsing.parse_group("casemate data", data.__doc__ or "", COMMANDS, argv)
