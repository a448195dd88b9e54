"""Settings after a name, as the command line writes them: `affine:rotation=90,shift=0.1`."""

from collections.abc import Mapping
from typing import Any

from casemate.cli.shared.options import parse_number
from casemate.errors import SettingError


def settings_in(text: str, known: Mapping[str, str]) -> list[tuple[str, str]]:
    """The settings of `text` and their values as texts, in the order given.

    Args:
        text: a name, and after a colon the settings, separated by commas.
        known: the settings there are by name, each as an error lists it, such as "rotation (15)"; "" to leave it out.

    Raises `SettingError` for what is no setting with a value, and for an unknown setting.
    """
    name, colon, rest = text.partition(":")
    listed = ", ".join(filter(None, known.values())) or "no settings"
    found: list[tuple[str, str]] = []
    for part in rest.split(",") if colon else ():
        setting, equals, value = part.partition("=")
        if not equals:
            raise SettingError(f"{text!r}: {part!r} is not SETTING=VALUE (no spaces); {name} has {listed}")
        if setting not in known:
            unknown = f"has no setting {setting!r}; it has {listed}" if known else "has no settings"
            raise SettingError(f"{text!r}: {name} {unknown}")
        found.append((setting, value))
    return found


def number_like(default: Any, what: str, value: str) -> float | int:
    """The number that `value` writes, whole if `default` is. Raises `SettingError`, which calls it `what`."""
    number = parse_number(what, value)
    if not isinstance(default, int):
        return number
    if number != int(number):
        raise SettingError(f"{what} = {value}; expected a whole number")
    return int(number)
