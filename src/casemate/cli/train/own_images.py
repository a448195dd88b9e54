"""The user's own images for a training: training and test images from one file or folder."""

from pathlib import Path

from casemate.cli.shared.inputs import open_own
from casemate.cli.shared.options import Reading
from casemate.data import Dataset, StreamedImages, in_order_of, split, splits_of
from casemate.errors import SettingError
from casemate.models import Classifier, numbered_classes
from casemate.progress import Observer

_TRAIN = ("train", "training")
_TEST = ("test", "testing", "val", "valid", "validation", "dev")
"""Names of the parts that are used to test, the preferred first."""
_SHARE = 5
"""One image of this number is set aside for the test where the data have no such part."""
_MOST = 10_000
"""Largest number of images that are set aside for the test."""
_SEED = 0
"""The images set aside do not depend on the seed of the training, so that trainings can be compared."""


def own_dataset(file: Path, reading: Reading, base: Classifier | None, observer: Observer) -> Dataset:
    """The images in `file` as a data set in memory.

    Where the data have parts called train and test, or val, these are the two sets; otherwise a stratified fifth, of at
    most 10,000 images, is set aside for the test. Labels count the classes of `base`, the model that the training
    builds on, if there is one.

    Raises `CasemateError`.
    """
    parts = splits_of(file) if reading.split is None and reading.labels is None else ()
    train, test = (next((name for name in names if name in parts), None) for names in (_TRAIN, _TEST))
    channels = None if base is None else base.input_shape[0]
    whole = open_own(file, reading, channels=channels, split=train if test is not None else None)
    if base is not None and whole.classes is not None:
        whole = in_order_of(whole, base.classes)
    classes = whole.classes or (base.classes if base is not None else numbered_classes(int(whole.labels.max()) + 1))
    if train is not None and test is not None:
        other = open_own(file, reading, channels=channels, split=test)
        second = in_order_of(other, classes)
        _check_alike(whole, second)
        first, held_out = whole.read(slice(None)), second.read(slice(None))
        notes = (*whole.notes, *second.notes)
    else:
        if len(whole) < 2:
            raise SettingError(f"{file} has {len(whole)} image; a training needs some to train and some to test")
        images = whole.read(slice(None))
        aside = min(_MOST, max(1, len(whole) // _SHARE))
        first, held_out = split(images, aside, _SEED)
        notes = (*whole.notes, f"{file} has no test images of its own: {aside:,} of {len(whole):,} were set aside.")
    for note in notes:
        observer.message(note)
    name = file.resolve().name
    return Dataset(name=name, title=name, classes=classes, train=first, test=held_out, origin=str(file))


def _check_alike(train: StreamedImages, test: StreamedImages) -> None:
    """Raise `SettingError` unless training and test images have one shape."""
    if train.image_shape != test.image_shape:
        shapes = (" x ".join(map(str, each.image_shape)) for each in (train, test))
        raise SettingError(
            f"{train.name} has images of {next(shapes)}, but {test.name} of {next(shapes)}; resize both with --resize "
            "HEIGHT WIDTH"
        )
