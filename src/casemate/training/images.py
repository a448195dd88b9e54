"""What a training expects of its images: that the model takes them, augmented too, and has a class for every label."""

from collections.abc import Iterable, Sequence
from typing import Any

from casemate.data import UNLABELLED, LabelledImages, to_float
from casemate.data.augment import Augmentation, takes_unit_pixels
from casemate.errors import ModelError, SettingError, ShapeError
from casemate.models import Classifier, check_part

_WITHOUT = "only objectives that learn without labels, such as VirtualAdversarial, train on such images"


def check_training_images(
    model: Classifier, images: LabelledImages, part: str, *, unlabelled: bool = False, remedy: str = _WITHOUT
) -> None:
    """Raise `ShapeError` unless the images, called `part` in errors, have the model's shape, bounds and classes.

    Args:
        model: is called once, on the first images. Raises `ModelError` if it fails.
        images: one part of those of a training.
        part: training, validation, test or unlabelled.
        unlabelled: whether images may have the label `UNLABELLED`.
        remedy: what to do with images without labels where they are not expected.
    """
    model.infer(to_float(images.pixels[:2], model.device))
    seen = tuple(images.pixels.shape[1:])
    if seen != model.input_shape:
        raise ShapeError(f"{part} images of shape {seen}, but the model expects {model.input_shape}")
    check_part(images.pixels, model.bounds, part)
    unknown = images.labels == UNLABELLED
    if unknown.any() and not unlabelled:
        raise ShapeError(f"{part} images without labels ({UNLABELLED}); expected a label for each: {remedy}")
    known, classes = images.labels[~unknown], len(model.classes)
    outside = known[(known < 0) | (known >= classes)]
    if len(outside):
        raise ShapeError(
            f"a label {int(outside[0])} in the {part} images, but the model has {classes} classes; expected labels "
            f"from 0 to {classes - 1}: number the classes as the model does, or give its last layer as many outputs as "
            "there are classes"
        )


def expect_augmentations(given: Any, name: str) -> tuple[Augmentation, ...]:
    """The augmentations that a caller gave as `name`. Raises `SettingError` for anything but a list of objects."""
    if not isinstance(given, Sequence) or not all(callable(each) and not isinstance(each, type) for each in given):
        raise SettingError(
            f"{name} = {given!r}; expected a list of augmentations, such as [casemate.data.augment.Shift()], or "
            "functions of images, index, epoch and generator"
        )
    return tuple(given)


def check_augmentations(model: Classifier, augmentations: Iterable[Augmentation]) -> None:
    """Raise `ModelError` for an augmentation that takes pixels within [0, 1] only, if the model has other bounds."""
    unlike = next((each for each in augmentations if takes_unit_pixels(each)), None)
    if unlike is not None and model.bounds != (0.0, 1.0):
        raise ModelError(
            f"the augmentation {type(unlike).__name__} for a model with bounds {model.bounds}; expected (0, 1): scale "
            "the pixels inside the Classifier (std=), or give a function of your own"
        )
