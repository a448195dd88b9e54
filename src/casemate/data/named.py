"""Augmentations by name, so that a configuration or a command line can say which are meant."""

import difflib
from collections.abc import Mapping
from typing import Any

from casemate.data.augment import Affine, AlternatingFlip, Augmentation, Flip, GaussianBlur, RandomApply, Shift
from casemate.data.noise import GaussianNoise, SaltAndPepper, Speckle
from casemate.errors import SettingError

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
"""Changes to training images."""


def make_augmentation(spec: Mapping[str, Any]) -> Augmentation:
    """The augmentation that `spec` describes: its name, `settings`, and, if not for every image, a `share` of them.

    Raises `SettingError` for an unknown name or setting.
    """
    unknown = spec.keys() - {"name", "settings", "share"}
    if unknown:
        raise SettingError(f"an augmentation with {', '.join(sorted(unknown))}; known: name, settings, share")
    name, settings = str(spec.get("name")), spec.get("settings", {})
    if name not in AUGMENTATIONS:
        near = difflib.get_close_matches(name, AUGMENTATIONS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise SettingError(f"unknown augmentation {name!r}; known: {', '.join(AUGMENTATIONS)}{hint}")
    try:
        change = AUGMENTATIONS[name](**settings)
        return RandomApply(change=change, share=spec["share"]) if "share" in spec else change
    except TypeError as error:
        raise SettingError(f"augmentation {name} with {dict(spec)}: {error}") from error
