"""What `casemate data` and `casemate info` do once PyTorch is loaded: look for data sets, and draw them."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch

from casemate import data
from casemate.data import Dataset
from casemate.errors import CasemateError, DataError, MissingExtraError
from casemate.files import writing
from casemate.progress import Observer

TITLES = {"fashion-mnist": "Fashion-MNIST", "digits": "scikit-learn digits"}


def find(name: str, data_dir: Path | None, observer: Observer) -> Dataset | DataError | MissingExtraError:
    """A data set that is on this machine, verified; the reason as a value if it is not."""
    with observer.work(f"Looking for {TITLES[name]}", 0):
        try:
            return data.load(name, data_dir, offline=True, observer=observer)
        except (DataError, MissingExtraError) as error:
            return error


def found_as_json(name: str, found: Dataset | DataError | MissingExtraError) -> dict[str, Any]:
    """What was found, as JSON."""
    if isinstance(found, CasemateError):
        return {"name": name, "title": TITLES[name], "found": None, "why": str(found)}
    return {
        "name": name,
        "title": found.title,
        "found": found.origin,
        "train_images": len(found.train),
        "test_images": len(found.test),
        "classes": list(found.classes),
        "shape": list(found.image_shape),
    }


def draw(dataset: Dataset, per_class: int, path: Path) -> None:
    """Write the contact sheet: one row per class."""
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
