"""Recipes as `casemate harden` takes them: `trades`, or with settings `trades:beta=3,weight_perturbation=0.005`."""

from typing import Any

from casemate.cli.shared.options import parse_number
from casemate.defenses import recipe_type
from casemate.errors import SettingError

_FOLLOW = {"eps", "norm", "clip_min", "clip_max"}
"""Settings that `hardening_recipe` refuses, since they follow from --eps, --norm and the model."""
_TRUTH = {"true": True, "false": False}


def read_recipe(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the settings of the recipe that `text` describes.

    Raises `SettingError` for an unknown recipe or setting, which lists those there are, and for what is no value.
    """
    name, colon, rest = text.partition(":")
    defaults = {key: value for key, value in recipe_type(name).defaults.items() if key != "feature_mask"}
    known = ", ".join(f"{key} ({value})" for key, value in defaults.items() if key not in _FOLLOW)
    found: dict[str, Any] = {}
    for part in rest.split(",") if colon else ():
        setting, equals, value = part.partition("=")
        if not equals:
            raise SettingError(f"{text!r}: {part!r} is not SETTING=VALUE (no spaces); {name} has {known}")
        if setting not in defaults:
            raise SettingError(f"{text!r}: {name} has no setting {setting!r}; it has {known}")
        if setting in found:
            raise SettingError(f"{text!r}: {setting} twice; expected each setting once")
        found[setting] = _value(f"{text!r}: {setting}", value, defaults[setting])
    return name, found


def _value(what: str, value: str, default: Any) -> Any:
    """A value of the kind that the default is: a truth value, a word, or a number, whole if the default is.

    Where the default is None it may be none too.
    """
    if isinstance(default, bool):
        if value.lower() not in _TRUTH:
            raise SettingError(f"{what} = {value}; expected true or false")
        return _TRUTH[value.lower()]
    if isinstance(default, str):
        return value
    if default is None and value.lower() == "none":
        return None
    number = parse_number(what, value)
    if not isinstance(default, int):
        return number
    if number != int(number):
        raise SettingError(f"{what} = {value}; expected a whole number")
    return int(number)
