"""Recipes as `casemate harden` takes them: `trades`, or with settings `trades:beta=3,weight_perturbation=0.005`."""

from dataclasses import fields
from typing import Any

from casemate.cli.shared.options import parse_number
from casemate.defenses import recipe_type
from casemate.errors import SettingError

_OTHERS = {"eps": "--eps", "norm": "--norm", "clip_min": "the model", "clip_max": "the model"}
"""Settings of recipes that follow from something else, and from what."""
_WORDS = {"true": True, "false": False, "none": None}


def read_recipe(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the settings of the recipe that `text` describes.

    Raises `SettingError` for an unknown recipe or setting, which lists those there are, and for what is no value.
    """
    name, colon, rest = text.partition(":")
    kind = recipe_type(name)
    names = [each.name for each in fields(kind.objective) if each.name not in _OTHERS]
    known = ", ".join(f"{each} ({kind.defaults[each]})" for each in names if each in kind.defaults)
    found: dict[str, Any] = {}
    for part in rest.split(",") if colon else ():
        setting, equals, value = part.partition("=")
        if not equals:
            raise SettingError(f"{text!r}: {part!r} is not SETTING=VALUE (no spaces); {name} has {known}")
        if setting in _OTHERS:
            raise SettingError(f"{text!r}: {setting} follows from {_OTHERS[setting]}; leave it out")
        if setting not in names:
            raise SettingError(f"{text!r}: {name} has no setting {setting!r}; it has {known}")
        found[setting] = _value(text, setting, value, kind.defaults.get(setting))
    return name, found


def _value(text: str, setting: str, value: str, default: Any) -> Any:
    """A word, a truth value, or a number, whole if the default is one."""
    if value.lower() in _WORDS:
        return _WORDS[value.lower()]
    if isinstance(default, str):
        return value
    number = parse_number(f"{text!r}: {setting}", value)
    if not isinstance(default, int):
        return number
    if number != int(number):
        raise SettingError(f"{text!r}: {setting} = {value}; expected a whole number")
    return int(number)
