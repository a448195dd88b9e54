"""What `casemate verify` does once PyTorch is loaded: read the record, and check it."""

from pathlib import Path

from casemate import data
from casemate.cli.shared import inputs
from casemate.cli.shared.facts import report_facts
from casemate.cli.shared.options import ModelOptions, Reading
from casemate.data import LabelledImages, to_float
from casemate.errors import DataError, MissingExtraError
from casemate.evaluation import (
    HashedRecord,
    Record,
    Verification,
    read_hashed_record,
    read_record,
    verify_hashes,
    verify_record,
)
from casemate.evaluation.record import is_hashed
from casemate.progress import Observer


def run(
    path: Path,
    model: str,
    *,
    loading: ModelOptions,
    file: Path | None,
    subset: str | None,
    reading: Reading,
    data_dir: Path | None,
    seed: int,
    device: str,
    observer: Observer,
) -> Verification:
    """Read the record, the model and, where available, the original images, and check every claim of the record.

    `loading` are the options of the model. The images come from `file`, of which as many
    are read as the record needs, or from the record's data set. A claim that does not hold is part of the result; only
    what cannot be read raises, a `CasemateError`.
    """
    record = read_hashed_record(path) if is_hashed(path) else read_record(path)
    loaded = inputs.load_model(model, device, loading)
    if file is None:
        images = _images_of(record, data_dir, observer)
        if images is not None:
            loaded.check(to_float(images.pixels[:8]))
    else:
        count = record.images if isinstance(record, HashedRecord) else _last(record) + 1
        chosen = inputs.read_own(loaded, file, count=count, subset=subset, reading=reading, observer=observer)
        images = chosen.images.read(slice(None))
    report_facts(loaded, observer)
    if isinstance(record, HashedRecord):
        observer.message(f"{path} holds hashes in the place of images: it can only be checked by hash.")
        return verify_hashes(record, loaded.model, images=images, seed=seed, observer=observer)
    return verify_record(record, loaded.model, images=images, seed=seed, observer=observer)


def _last(record: Record) -> int:
    """The largest index of an image in the record; 0 if it has none."""
    return int(record.index.max()) if len(record) else 0


def _images_of(record: Record | HashedRecord, data_dir: Path | None, observer: Observer) -> LabelledImages | None:
    """The test images of the data set that a record names; None if it names none, or this machine does not have it.

    Raises `DataError` if a folder `data_dir` is given and the images are not in it.
    """
    if record.data not in data.NAMES:
        return None
    try:
        with observer.work("Reading the images", 0):
            return data.load(record.data, data_dir, offline=True, observer=observer).test
    except (DataError, MissingExtraError):
        if data_dir is not None:
            raise
        return None
