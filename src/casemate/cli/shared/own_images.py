"""The user's own images for a training: training and test images from one file or folder."""

from dataclasses import replace
from pathlib import Path

from casemate.cli.shared.inputs import open_for, open_own
from casemate.cli.shared.options import Reading
from casemate.data import Dataset, StreamedImages, in_order_of, split, splits_of
from casemate.errors import SettingError
from casemate.models import OpenedModel, numbered_classes
from casemate.progress import Observer
from casemate.types import Images, Pixels

_TRAIN = ("train", "training")
_TEST = ("test", "testing", "val", "valid", "validation", "dev")
"""Names of the parts that are used to test, the preferred first."""
_SHARE = 5
"""One image of this number is set aside for the test where the data have no such part."""
_MOST = 10_000
"""Largest number of images that are set aside for the test."""
_SEED = 0
"""The images set aside do not depend on the seed of the training, so that trainings can be compared."""


def own_dataset(file: Path, reading: Reading, base: OpenedModel | None, observer: Observer) -> Dataset:
    """The images in `file` as a data set in memory.

    Where the data have no parts to train on and to test on, a stratified fifth, of at most 10,000 images, is set aside
    for the test. Labels count the classes of `base`, the model that the training builds on, if there is one.

    Raises `CasemateError`.
    """
    whole, other = open_parts(file, reading, base)
    if other is not None:
        first, held_out = whole.read(slice(None)), other.read(slice(None))
        notes = (*whole.notes, *other.notes)
    else:
        if len(whole) < 2:
            raise SettingError(f"{file} has {len(whole)} image; a training needs some to train and some to test")
        images = whole.read(slice(None))
        aside = min(_MOST, max(1, len(whole) // _SHARE))
        first, held_out = split(images, aside, _SEED)
        notes = (*whole.notes, f"{file} has no test images of its own: {aside:,} of {len(whole):,} were set aside.")
    for note in notes:
        observer.message(note)
    name, classes = file.resolve().name, whole.classes or numbered_classes(int(whole.labels.max()) + 1)
    return Dataset(name=name, title=name, classes=classes, train=first, test=held_out, origin=str(file))


def unlabelled_pixels(
    file: Path, reading: Reading, shape: tuple[int, int, int], base: OpenedModel | None, observer: Observer
) -> Pixels | Images:
    """The images in `file`, brought to the `shape` of those with labels; labels there are not used.

    They are read as `reading` says, or else as the configuration of `base`, the model that the training builds on.
    Raises `CasemateError`.
    """
    with observer.work("Reading the images without labels", 0):
        if base is None:
            found = open_own(file, reading, channels=shape[0], labelled=False)
        else:
            found = open_for(base, file, reading, labelled=False)
        if found.image_shape != shape:
            colour = "" if shape[0] == found.image_shape[0] or shape[0] not in (1, 3) else f" --channels {shape[0]}"
            raise SettingError(
                f"--unlabelled {file} has images of shape {found.image_shape}, but the labelled ones have {shape}; "
                f"bring them to it with --resize {shape[1]} {shape[2]}{colour}"
            )
        pixels = found.read(slice(None)).pixels
    for note in found.notes:
        observer.message(note)
    return pixels


def train_and_test(file: Path, reading: Reading) -> tuple[str, str] | None:
    """Names of the parts of a user's images to train and to test on; None unless it has both, and none is named."""
    parts = splits_of(file) if reading.split is None and reading.labels is None else ()
    train, test = (next((name for name in names if name in parts), None) for names in (_TRAIN, _TEST))
    return None if train is None or test is None else (train, test)


def open_parts(file: Path, reading: Reading, base: OpenedModel | None) -> tuple[StreamedImages, StreamedImages | None]:
    """Open the images in `file`, of which only the labels are read: those to train on, and those to test on.

    They are the parts called train and test, or val; without such parts all images, and None. Labels count the classes
    of `base`, or else those that the images name. Raises `CasemateError`.
    """

    def opened(part: str | None) -> StreamedImages:
        if base is not None:
            found = open_for(base, file, reading, split=part)
            return found if found.classes is not None else replace(found, classes=base.model.classes)
        return open_own(file, reading, split=part)

    parts = train_and_test(file, reading)
    if parts is None:
        return opened(None), None
    whole, other = map(opened, parts)
    if whole.classes is not None:
        other = in_order_of(other, whole.classes)
    _check_alike(whole, other)
    return whole, other


def _check_alike(train: StreamedImages, test: StreamedImages) -> None:
    """Raise `SettingError` unless training and test images have one shape."""
    if train.image_shape != test.image_shape:
        shapes = (" x ".join(map(str, each.image_shape)) for each in (train, test))
        raise SettingError(
            f"{train.name} has images of {next(shapes)}, but {test.name} of {next(shapes)}; resize both with --resize "
            "HEIGHT WIDTH"
        )
