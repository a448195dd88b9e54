"""What `casemate verify` does once PyTorch is loaded: read, and check."""

from pathlib import Path

from casemate import data
from casemate.cli.shared import inputs
from casemate.data import LabelledImages, read_images
from casemate.errors import DataError
from casemate.evaluation import Record, Verification, read_record, verify_record
from casemate.progress import Observer


def verify(
    path: Path,
    model: str,
    *,
    file: Path | None,
    data_dir: Path | None,
    seed: int,
    device: str,
    observer: Observer,
) -> Verification:
    """Read record, model and, where they can be had, the images that the record is about; check. Raises errors."""
    record = read_record(path)
    held = inputs.load_model(model, device)
    images = read_images(file) if file is not None else _images_of(record, data_dir, observer)
    return verify_record(record, held.model, images=images, seed=seed, observer=observer)


def _images_of(record: Record, data_dir: Path | None, observer: Observer) -> LabelledImages | None:
    """The test images that a record is about, if this machine has them."""
    if record.data not in data.NAMES:
        return None
    try:
        with observer.work("Reading the images", 0):
            return data.load(record.data, data_dir, offline=True, observer=observer).test
    except DataError:
        if data_dir is not None:
            raise
        return None
