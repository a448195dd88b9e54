"""What `casemate data` and `casemate info` do once PyTorch is loaded: look for data sets on this machine."""

from pathlib import Path
from typing import Any

from casemate import data
from casemate.cli.shared import inputs
from casemate.cli.shared.options import Reading
from casemate.data import Dataset, LabelledImages, StreamedImages
from casemate.errors import CasemateError, DataError, MissingExtraError, SettingError
from casemate.models import numbered_classes
from casemate.progress import Observer

TITLES = {"fashion-mnist": "Fashion-MNIST", "digits": "scikit-learn digits"}


def find(name: str, data_dir: Path | None, observer: Observer) -> Dataset | DataError | MissingExtraError:
    """Load and verify a data set without downloading; if that fails, the error is returned instead of raised."""
    with observer.work(f"Looking for {TITLES[name]}", 0):
        try:
            return data.load(name, data_dir, offline=True, observer=observer)
        except (DataError, MissingExtraError) as error:
            return error


def to_show(
    file: Path | None, dataset: str | None, data_dir: Path | None, reading: Reading, observer: Observer
) -> tuple[LabelledImages | StreamedImages, tuple[str, ...]]:
    """The images to draw and the names of their classes: the user's own in `file`, or a data set's training images.

    Raises `SettingError` if both are given, `DataError` for images that cannot be loaded.
    """
    if file is None:
        found = data.load(dataset or "fashion-mnist", data_dir, observer=observer)
        return found.train, found.classes
    if dataset is not None:
        raise SettingError("--data and --dataset both name images; give one of them")
    images = inputs.open_own(file, reading)
    return images, images.classes or numbered_classes(int(images.labels.max()) + 1)


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
