"""Augmentations by name, for configurations and the command line."""

from collections.abc import Mapping
from typing import Any

from casemate.data.augment import Affine, AlternatingFlip, Augmentation, Flip, GaussianBlur, RandomApply, Shift
from casemate.data.noise import GaussianNoise, SaltAndPepper, Speckle
from casemate.errors import SettingError
from casemate.settings import unknown_name

AUGMENTATIONS: Mapping[str, type[Augmentation]] = {
    "alternating-flip": AlternatingFlip,
    "flip": Flip,
    "shift": Shift,
    "affine": Affine,
    "gaussian-blur": GaussianBlur,
    "gaussian-noise": GaussianNoise,
    "speckle": Speckle,
    "salt-and-pepper": SaltAndPepper,
}
"""The augmentation classes by their names in configurations and on the command line."""


def make_augmentation(spec: Mapping[str, Any]) -> Augmentation:
    """Build an augmentation from a dictionary of `name`, `settings` and the `share` of images to change (default: all).

    Raises `SettingError` for an unknown name or setting.
    """
    unknown = spec.keys() - {"name", "settings", "share"}
    if unknown:
        raise SettingError(f"an augmentation with {', '.join(sorted(unknown))}; known: name, settings, share")
    name, settings = str(spec.get("name")), spec.get("settings", {})
    if name not in AUGMENTATIONS:
        raise unknown_name("augmentation", name, AUGMENTATIONS)
    try:
        change = AUGMENTATIONS[name](**settings)
        return RandomApply(change=change, share=spec["share"]) if "share" in spec else change
    except TypeError as error:
        raise SettingError(f"augmentation {name} with {dict(spec)}: {error}") from error
