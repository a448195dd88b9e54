"""Augmentations as the command line writes them: `affine:rotation=90,shift=0.1`, `flip:sometimes=0.5`.

A name, and after a colon the settings that differ from its defaults. `sometimes` is no setting of the augmentation but
the share of images that it is applied to (salt-and-pepper has a setting `share`, which is one of pixels). As data, an
augmentation is a mapping with all its settings, as `casemate.data.named.make_augmentation` takes it.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from casemate.cli.shared.settings_text import number_like, settings_in
from casemate.data.named import AUGMENTATIONS, make_augmentation
from casemate.errors import SettingError

_PROBABILITY = "sometimes"


def augmentation_defaults(name: str) -> dict[str, Any]:
    """The default of each setting of an augmentation, by the setting's name."""
    kind: Any = AUGMENTATIONS[name]
    return {field.name: field.default for field in fields(kind)}


def read_augmentation(text: str) -> dict[str, Any]:
    """The augmentation that `text` describes, such as "affine:rotation=90,sometimes=0.5", as data.

    That is a mapping with its name, all its settings, and `share` if `sometimes` is given. Raises `SettingError`, which
    lists the known names or settings.
    """
    name = text.partition(":")[0]
    if name not in AUGMENTATIONS:
        make_augmentation({"name": name})  # raises, and lists the known names
    defaults = augmentation_defaults(name)
    known = {each: f"{each} ({default:g})" for each, default in defaults.items()} | {_PROBABILITY: _PROBABILITY}
    given = {
        setting: number_like(defaults.get(setting), f"{text!r}: {setting}", value)
        for setting, value in settings_in(text, known)
    }
    if not 0 <= given.get(_PROBABILITY, 1) <= 1:
        raise SettingError(f"{text!r}: expected {_PROBABILITY} to be a fraction of the images, from 0 to 1")
    spec: dict[str, Any] = {"name": name, "settings": defaults | {k: v for k, v in given.items() if k != _PROBABILITY}}
    if _PROBABILITY in given:
        spec["share"] = given[_PROBABILITY]
    try:
        make_augmentation(spec)
    except SettingError as error:
        raise SettingError(f"{text!r}: {error}") from error
    return spec


def write_augmentation(spec: Mapping[str, Any]) -> str:
    """The text from which `read_augmentation` makes the mapping `spec`; it gives all settings, defaults included."""
    settings = dict(spec["settings"]) | ({_PROBABILITY: spec["share"]} if "share" in spec else {})
    words = ",".join(f"{name}={value:g}" for name, value in settings.items())
    return f"{spec['name']}:{words}" if words else spec["name"]
