"""The images of a hardening in three disjoint parts: to train on, to choose the epoch by, and to test on.

Images without labels are a further part, for recipes that learn without labels.
"""

import hashlib
from dataclasses import dataclass
from typing import final

import torch

from casemate.data import (
    UNLABELLED,
    Array,
    ImageSource,
    LabelledImages,
    StreamedImages,
    as_labelled,
    as_tensor,
    keep_labels,
    split,
    subset,
)
from casemate.errors import SettingError
from casemate.rng import derive
from casemate.settings import at_least
from casemate.training import Objective, takes_unlabelled

_LEAST = 10
"""Fewest images that choose an epoch, or that a model is tested on."""
_MOST_VALIDATION = 1000
_MOST_TEST = 2000
_BATCH = 500
_SHARE = 5
"""One in this number of images is set aside, for validation as well as for the test, up to the limits above."""


@final
@dataclass(frozen=True, kw_only=True)
class Parts:
    """The images of a hardening by their use, with remarks for the reader of the result."""

    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages
    unlabelled: LabelledImages | None = None
    """Further images to train on, all labelled `UNLABELLED`."""
    notes: tuple[str, ...] = ()

    @property
    def by_use(self) -> dict[str, LabelledImages]:
        """All parts by the words for their use."""
        found = {"training": self.train, "validation": self.validation, "test": self.test}
        return found if self.unlabelled is None else found | {"unlabelled": self.unlabelled}

    def train_of(self, objective: Objective) -> LabelledImages:
        """The images that a training by `objective` takes: those without labels too, if it learns from them.

        Those with labels are then repeated, as `casemate.data.keep_labels` does it.
        """
        if self.unlabelled is None or not takes_unlabelled(objective):
            return self.train
        return keep_labels(self.train, len(self.train), 0, self.unlabelled.pixels)


def make_parts(
    train: ImageSource,
    validation: ImageSource | None,
    test: ImageSource | None,
    unlabelled: Array | LabelledImages | StreamedImages | None,
    images: int | None,
    seed: int,
) -> Parts:
    """Read the images; set some of the training images aside, stratified by class, for the parts that are not given.

    Args:
        train: images to train on.
        validation: images that choose the epoch; None for a fifth of `train`, at most 1,000.
        test: images to evaluate on; None for a fifth of `train`, at most 2,000.
        unlabelled: further images to train on without labels; labels that they have are not used.
        images: number of test images to use, a stratified sample; None for all.
        seed: of the random choice.

    Raises `SettingError` if there are too few images; `DataError` for images that are not understood.
    """
    rest, notes = as_labelled(train), []
    whole = len(rest)
    if images is not None:
        images = at_least(_LEAST, "to test on").check(images, "images")
    if test is None:
        rest, tested = _set_aside(rest, whole, "test", min(_MOST_TEST, images or _MOST_TEST), derive(seed, "test"))
        notes.append(
            f"the {len(tested):,} test images were set aside from the images given: if the model was trained on them, "
            "its own accuracies (before) are too high, and so is what hardening seems to cost"
        )
    else:
        tested = as_labelled(test)
        tested = tested if images is None else subset(tested, images, derive(seed, "test"))
        _expect_enough(len(tested), "test")
    if validation is None:
        rest, chosen = _set_aside(rest, whole, "validation", _MOST_VALIDATION, derive(seed, "validation"))
    else:
        chosen = as_labelled(validation)
        _expect_enough(len(chosen), "validation")
    if len(rest) < _LEAST:
        raise SettingError(f"{len(rest)} images to train on; expected at least {_LEAST}: give more")
    others = None if unlabelled is None else _without_labels(unlabelled)
    known = _hashes(rest) | _hashes(chosen) | (set() if others is None else _hashes(others))
    shared = sum(each in known for each in _hashes_in_order(tested))
    if shared:
        notes.append(
            f"{shared:,} of the {len(tested):,} test images are also among the images to train on or to choose the "
            "epoch by, pixel for pixel: the accuracies after training are too high. Remove them from one of the two"
        )
    return Parts(train=rest, validation=chosen, test=tested, unlabelled=others, notes=tuple(notes))


def _without_labels(given: Array | LabelledImages | StreamedImages) -> LabelledImages:
    """The images, all labelled `UNLABELLED`. Raises `DataError` for what is no images, `SettingError` for none."""
    if isinstance(given, LabelledImages | StreamedImages):
        pixels = given.read(slice(None)).pixels
    else:
        pixels = as_tensor(given, "unlabelled images")
    found = LabelledImages(pixels=pixels, labels=torch.full(pixels.shape[:1] or (1,), UNLABELLED))
    if not len(found):
        raise SettingError("no images without labels; expected some, or None instead")
    return found


def _set_aside(
    images: LabelledImages, whole: int, use: str, most: int, seed: int
) -> tuple[LabelledImages, LabelledImages]:
    """Split `images` at random into those that stay and those set aside; raises `SettingError` if these are too few."""
    count = min(most, whole // _SHARE)
    if count < _LEAST:
        raise SettingError(
            f"{whole} images, of which one in {_SHARE}, {count}, would be set aside as {use} images; expected at least "
            f"{_LEAST}: give at least {_LEAST * _SHARE} images, or {use} images of their own"
        )
    return split(images, count, seed)


def _expect_enough(count: int, use: str) -> None:
    if count < _LEAST:
        raise SettingError(f"{count} {use} images; expected at least {_LEAST}: give more")


def _hashes(images: LabelledImages) -> set[bytes]:
    return set(_hashes_in_order(images))


def _hashes_in_order(images: LabelledImages) -> list[bytes]:
    """A hash of each image's pixels, the same for bytes and floating-point numbers."""
    return [
        hashlib.blake2b(each.contiguous().numpy().tobytes(), digest_size=16).digest()
        for pixels, _ in images.batches(_BATCH)
        for each in pixels
    ]
