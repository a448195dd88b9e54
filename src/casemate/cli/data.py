"""`casemate data`: which data sets there are, getting them, looking at them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.markup import escape
from tyro.conf import arg

from casemate.cli import console
from casemate.cli.options import DataDir, DatasetName, Json, at_least_one
from casemate.errors import DataError, StoreError
from casemate.progress import Observer

if TYPE_CHECKING:
    from casemate.data import Dataset

HELP = """\
List, fetch and look at the data sets.

Examples:
  casemate data list
  casemate data fetch
  casemate data show --out samples.png
"""
_TITLES = {"fashion-mnist": "Fashion-MNIST", "digits": "scikit-learn digits"}


def find(name: str, data_dir: Path | None, observer: Observer) -> "Dataset | DataError":
    """A data set that is on this machine, verified; the reason as a value if it is not."""
    with observer.work(f"Looking for {_TITLES[name]}", 0):
        from casemate import data

        try:
            return data.load(name, data_dir, offline=True, observer=observer)
        except DataError as error:
            return error


def found_as_json(name: str, found: "Dataset | DataError") -> dict[str, Any]:
    """What was found, as JSON."""
    if isinstance(found, DataError):
        return {"name": name, "title": _TITLES[name], "found": None, "why": str(found)}
    return {
        "name": name,
        "title": found.title,
        "found": found.origin,
        "train_images": len(found.train),
        "test_images": len(found.test),
        "classes": list(found.classes),
        "shape": list(found.image_shape),
    }


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
        with console.observer() as observer:
            rows = [found_as_json(name, find(name, self.data_dir, observer)) for name in _TITLES]
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
        with console.observer() as observer:
            found = find("fashion-mnist", None, observer)
            fetched = isinstance(found, DataError)
            if isinstance(found, DataError):
                if os.environ.get("CASEMATE_DATA"):
                    raise DataError(f"{found}\nCASEMATE_DATA names this folder; unset it to fetch into the cache")
                with observer.work("Fetching Fashion-MNIST", 0):
                    from casemate import data

                    found = data.load("fashion-mnist", observer=observer)
        if self.json:
            console.show_json(found_as_json("fashion-mnist", found) | {"fetched": fetched})
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
        with console.observer() as observer:
            with observer.work("Reading the images", 0):
                from casemate import data

                dataset = data.load(self.dataset, self.data_dir, observer=observer)
            with observer.work("Drawing", 0):
                _draw(dataset, self.per_class, self.out)
        console.show(escape(str(self.out)))


def _draw(dataset: "Dataset", per_class: int, path: Path) -> None:
    """Write the contact sheet: one row per class."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import torch

    from casemate.files import writing

    rows = len(dataset.classes)
    drawing, axes = plt.subplots(rows, 1, figsize=(1.6 + 0.6 * per_class, 0.62 * rows), layout="constrained")
    for label, (name, place) in enumerate(zip(dataset.classes, axes, strict=True)):
        chosen = (dataset.train.labels == label).nonzero().squeeze(1)[:per_class]
        pixels = dataset.train.pixels[chosen, 0]
        blank = torch.zeros(per_class - len(chosen), *pixels.shape[1:], dtype=pixels.dtype)
        place.imshow(torch.cat([pixels, blank]).permute(1, 0, 2).flatten(1).numpy(), cmap="gray", vmin=0, vmax=255)
        place.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        place.set_xticks([])
        place.set_yticks([])
    with writing(path) as temporary:
        drawing.savefig(temporary, format="png", dpi=120, metadata={"Software": None})
    plt.close(drawing)


COMMANDS: Mapping[str, type[List] | type[Fetch] | type[Show]] = {"list": List, "fetch": Fetch, "show": Show}
