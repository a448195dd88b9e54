"""What `casemate data` and `casemate info` do once PyTorch is loaded: look for data sets on this machine."""

from pathlib import Path
from typing import Any

from casemate import data
from casemate.data import Dataset
from casemate.errors import CasemateError, DataError, MissingExtraError
from casemate.progress import Observer

TITLES = {"fashion-mnist": "Fashion-MNIST", "digits": "scikit-learn digits"}


def find(name: str, data_dir: Path | None, observer: Observer) -> Dataset | DataError | MissingExtraError:
    """Load and verify a data set without downloading; if that fails, the error is returned instead of raised."""
    with observer.work(f"Looking for {TITLES[name]}", 0):
        try:
            return data.load(name, data_dir, offline=True, observer=observer)
        except (DataError, MissingExtraError) as error:
            return error


def found_as_json(name: str, found: Dataset | DataError | MissingExtraError) -> dict[str, Any]:
    """The result of `find` as JSON: where the data set is and its sizes, or why it was not found."""
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
