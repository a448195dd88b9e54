"""Data sets as tensors, their verified sources, and augmentation."""

from dataclasses import replace
from pathlib import Path

from casemate.data import digits, fashion_mnist
from casemate.data.dataset import UNLABELLED as UNLABELLED
from casemate.data.dataset import Array as Array
from casemate.data.dataset import Dataset as Dataset
from casemate.data.dataset import LabelledImages as LabelledImages
from casemate.data.dataset import as_labels as as_labels
from casemate.data.dataset import as_tensor as as_tensor
from casemate.data.dataset import dimensions_remedy as dimensions_remedy
from casemate.data.dataset import hash_of_images as hash_of_images
from casemate.data.dataset import keep_labels as keep_labels
from casemate.data.dataset import split as split
from casemate.data.dataset import subset as subset
from casemate.data.dataset import to_float as to_float
from casemate.data.fashion_mnist import first_test_images as first_test_images
from casemate.data.given import ImageSource as ImageSource
from casemate.data.given import as_labelled as as_labelled
from casemate.data.image_file import read_images as read_images
from casemate.data.named import make_augmentation as make_augmentation
from casemate.data.readable import MOST_NUMBERS as MOST_NUMBERS
from casemate.data.readable import ReadableImages as ReadableImages
from casemate.data.readable import as_readable as as_readable
from casemate.data.readable import first_of as first_of
from casemate.data.sources import Interpolation as Interpolation
from casemate.data.sources import Resizing as Resizing
from casemate.data.sources import StreamedImages as StreamedImages
from casemate.data.sources import in_order_of as in_order_of
from casemate.data.sources import open_images as open_images
from casemate.data.sources import splits_of as splits_of
from casemate.errors import DataError, MissingExtraError, SettingError
from casemate.files import as_path, cache_folder
from casemate.progress import NULL_OBSERVER, Observer

NAMES = ("fashion-mnist", "digits")
"""The data sets that `load` accepts, besides "auto"."""


def load(
    name: str = "auto", data_dir: Path | str | None = None, *, offline: bool = False, observer: Observer = NULL_OBSERVER
) -> Dataset:
    """Return the data set `name`: "fashion-mnist", "digits", or "auto".

    "auto" is Fashion-MNIST or, if that is not available, the digits, with `fallback_for` set and a message to the
    observer. It does not fall back from a folder that the user named (`data_dir` or CASEMATE_DATA). With `offline`
    nothing is downloaded. Raises `DataError`, `SettingError`, or `MissingExtraError` without scikit-learn.
    """
    folder = None if data_dir is None else as_path(data_dir, "data_dir")
    if name == "digits":
        return digits.load()
    if name not in ("auto", "fashion-mnist"):
        raise SettingError(f"unknown data set {name!r}; known: auto, {', '.join(NAMES)}")
    try:
        return fashion_mnist.load(folder, cache_folder() / "data", offline=offline, observer=observer)
    except DataError as error:
        if name != "auto" or fashion_mnist.named_folder(folder) is not None:
            raise
        try:
            found = digits.load()
        except MissingExtraError as missing:
            raise MissingExtraError(f"{error} To run on the digits instead: {missing}") from error
        observer.message(f"WARNING: using scikit-learn's digits instead, which say nothing about the study. {error}")
        return replace(found, fallback_for="Fashion-MNIST")
