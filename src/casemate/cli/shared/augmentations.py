"""Augmentations as the command line writes them: `affine:rotation=90,shift=0.1`, `flip:sometimes=0.5`.

A name, and after a colon the settings that differ from its defaults. `sometimes` is no setting of the augmentation but
the share of images that it is applied to (salt-and-pepper has a setting `share`, which is one of pixels). As data, an
augmentation is a mapping with all its settings, as `casemate.data.named.make_augmentation` takes it.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from casemate.cli.shared.options import parse_number
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
    name, colon, rest = text.partition(":")
    if name not in AUGMENTATIONS:
        make_augmentation({"name": name})  # raises, and lists the known names
    defaults = augmentation_defaults(name)
    known = ", ".join([*(f"{each} ({default:g})" for each, default in defaults.items()), _PROBABILITY])
    given: dict[str, Any] = {}
    for part in rest.split(",") if colon else ():
        setting, equals, value = part.partition("=")
        if not equals:
            raise SettingError(f"{text!r}: {part!r} is not SETTING=VALUE (no spaces); {name} has {known}")
        if setting != _PROBABILITY and setting not in defaults:
            raise SettingError(f"{text!r}: {name} has no setting {setting!r}; it has {known}")
        given[setting] = _value(text, setting, value, whole=isinstance(defaults.get(setting), int))
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


def _value(text: str, setting: str, value: str, *, whole: bool) -> float | int:
    found = parse_number(f"{text!r}: {setting}", value)
    if whole and found != int(found):
        raise SettingError(f"{text!r}: {setting} = {value}; expected a whole number")
    return int(found) if whole else found
