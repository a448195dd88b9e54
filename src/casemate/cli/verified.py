"""What `casemate verify` does once PyTorch is loaded, and how it shows what it found."""

from dataclasses import asdict
from pathlib import Path

from rich.markup import escape

from casemate import data
from casemate.cli import console, given
from casemate.data import LabelledImages, read_images
from casemate.errors import DataError
from casemate.evaluation import Record, Verification, read_record, verify_record
from casemate.progress import Observer

_WORDS = {True: "[green]holds[/]", False: "[bold red]does not hold[/]", None: "[dim]only told[/]"}


def verify(
    path: Path,
    model: Path | None,
    model_from: str | None,
    *,
    file: Path | None,
    data_dir: Path | None,
    seed: int,
    device: str,
    observer: Observer,
) -> Verification:
    """Read record, model and, where they can be had, the images that the record is about; check. Raises errors."""
    record = read_record(path)
    held = given.load_model(model, model_from, device)
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


def show(found: Verification, *, as_json: bool) -> None:
    """Print what was checked, claim by claim."""
    if as_json:
        console.show_json({"holds": found.holds, **asdict(found)})
        return
    made = console.table("RecordCheck", "", "Seen", title="The record")
    for claim in found.claims:
        made.add_row(escape(claim.title), _WORDS[claim.holds], escape(claim.sentence))
    last = "[green]Everything that was checked holds.[/]" if found.holds else "[bold red]Not everything holds.[/]"
    console.show(made, last)
