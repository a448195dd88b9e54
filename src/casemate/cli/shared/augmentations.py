"""Changes to training images as the command line writes them: `affine:rotation=90,shift=0.1`, `flip:sometimes=0.5`.

A name, and after a colon whatever settings differ from its defaults. `sometimes` is no setting of a change but the
share of the images that it is made to (salt-and-pepper has a `share` of its own, of the pixels). As data a change is
what `casemate.data.named.make_augmentation` takes, with all its settings.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from casemate.cli.shared.options import parse_number
from casemate.data.named import AUGMENTATIONS, make_augmentation
from casemate.errors import SettingError

_SOMETIMES = "sometimes"


def augmentation_defaults(name: str) -> dict[str, Any]:
    """The settings of a change and their defaults."""
    kind: Any = AUGMENTATIONS[name]
    return {field.name: field.default for field in fields(kind)}


def read_change(text: str) -> dict[str, Any]:
    """The change that `text` names. Raises `SettingError` naming what is known."""
    name, colon, rest = text.partition(":")
    if name not in AUGMENTATIONS:
        make_augmentation({"name": name})  # raises, with the names there are
    defaults = augmentation_defaults(name)
    known = ", ".join([*(f"{each} ({_written(default)})" for each, default in defaults.items()), _SOMETIMES])
    given: dict[str, Any] = {}
    for part in rest.split(",") if colon else ():
        setting, equals, value = part.partition("=")
        if not equals:
            raise SettingError(f"{text!r}: {part!r} is not SETTING=VALUE (no spaces); {name} has {known}")
        if setting != _SOMETIMES and setting not in defaults:
            raise SettingError(f"{text!r}: {name} has no setting {setting!r}; it has {known}")
        given[setting] = _value(text, setting, value, whole=isinstance(defaults.get(setting), int))
    if not 0 <= given.get(_SOMETIMES, 1) <= 1:
        raise SettingError(f"{text!r}: expected {_SOMETIMES} to be a share of the images, from 0 to 1")
    spec: dict[str, Any] = {"name": name, "settings": defaults | {k: v for k, v in given.items() if k != _SOMETIMES}}
    if _SOMETIMES in given:
        spec["share"] = given[_SOMETIMES]
    try:
        make_augmentation(spec)
    except SettingError as error:
        raise SettingError(f"{text!r}: {error}") from error
    return spec


def write_change(spec: Mapping[str, Any]) -> str:
    """The text that `read_change` would read as `spec`."""
    settings = dict(spec["settings"]) | ({_SOMETIMES: spec["share"]} if "share" in spec else {})
    words = ",".join(f"{name}={_written(value)}" for name, value in settings.items())
    return f"{spec['name']}:{words}" if words else spec["name"]


def _written(value: float) -> str:
    return f"{value:g}"


def _value(text: str, setting: str, value: str, *, whole: bool) -> float | int:
    found = parse_number(f"{text!r}: {setting}", value)
    if whole and found != int(found):
        raise SettingError(f"{text!r}: {setting} = {value}; expected a whole number")
    return int(found) if whole else found
