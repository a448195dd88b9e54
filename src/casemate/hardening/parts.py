"""The images of a hardening in three disjoint parts: to train on, to choose the epoch by, and to test on."""

import hashlib
from dataclasses import dataclass
from typing import final

from casemate.data import ImageSource, LabelledImages, as_labelled, split, subset
from casemate.errors import SettingError
from casemate.rng import derive
from casemate.settings import at_least

_LEAST = 10
"""Fewest images that choose an epoch, or that a model is tested on."""
_MOST_VALIDATION = 1000
_MOST_TEST = 2000
_SHARE = 5
"""One in this number of images is set aside, for validation as well as for the test, up to the limits above."""


@final
@dataclass(frozen=True, kw_only=True)
class Parts:
    """The images of a hardening by their use, with remarks for the reader of the result."""

    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages
    notes: tuple[str, ...] = ()

    @property
    def by_use(self) -> dict[str, LabelledImages]:
        """The three parts by the words for their use."""
        return {"training": self.train, "validation": self.validation, "test": self.test}


def make_parts(
    train: ImageSource, validation: ImageSource | None, test: ImageSource | None, images: int | None, seed: int
) -> Parts:
    """Read the images; set some of the training images aside, stratified by class, for the parts that are not given.

    Args:
        train: images to train on.
        validation: images that choose the epoch; None for a fifth of `train`, at most 1,000.
        test: images to evaluate on; None for a fifth of `train`, at most 2,000.
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
    known = _hashes(rest) | _hashes(chosen)
    shared = sum(each in known for each in _hashes_in_order(tested))
    if shared:
        notes.append(
            f"{shared:,} of the {len(tested):,} test images are also among the images to train on or to choose the "
            "epoch by, pixel for pixel: the accuracies after training are too high. Remove them from one of the two"
        )
    return Parts(train=rest, validation=chosen, test=tested, notes=tuple(notes))


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
    """A hash of each image's pixels as they are stored."""
    pixels = images.pixels.cpu().contiguous().numpy()
    return [hashlib.blake2b(each.tobytes(), digest_size=16).digest() for each in pixels]
