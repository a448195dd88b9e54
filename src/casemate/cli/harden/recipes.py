"""Recipes as `casemate harden` takes them: `trades`, or with settings `trades:beta=3,weight_perturbation=0.005`."""

from typing import Any

from casemate.cli.shared.settings_text import number_like, settings_in
from casemate.defenses import recipe_type
from casemate.errors import SettingError
from casemate.hardening import following_settings
from casemate.norms import Norm

_NO_TEXT = "feature_mask"
"""A setting that is a nested list, which no short text writes."""
_TRUTH = {"true": True, "false": False}


def read_recipe(text: str, norm: Norm) -> tuple[str, dict[str, Any]]:
    """The name and the settings of the recipe that `text` describes.

    Settings that follow from --eps, --norm or the model are left for `hardening_recipe` to refuse. Raises
    `SettingError` for an unknown recipe or setting, which lists those there are, and for what is no value.
    """
    name = text.partition(":")[0]
    defaults, follow = recipe_type(name).defaults, following_settings(name, norm)
    known = {key: "" if key in follow else f"{key} ({value})" for key, value in defaults.items() if key != _NO_TEXT}
    found: dict[str, Any] = {}
    for setting, value in settings_in(text, known):
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
    return number_like(default, what, value)
