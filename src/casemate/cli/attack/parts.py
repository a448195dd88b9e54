"""Parts of `Transferable` as the command line writes them: `nesterov`, `variance-tuning:samples=5,beta=1.5`.

A name, and after a colon the settings that differ from its defaults.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from casemate.attacks import PARTS
from casemate.cli.shared.options import parse_number
from casemate.cli.shared.settings_text import settings_in
from casemate.errors import SettingError
from casemate.settings import unknown_name


def read_parts(texts: Sequence[str]) -> tuple[Any, ...] | None:
    """The parts that `texts` describe, in the order of `PARTS`; None if there are none. Raises as `read_part`."""
    order = list(PARTS.values())
    return tuple(sorted(map(read_part, texts), key=lambda part: order.index(type(part)))) or None


def read_part(text: str) -> Any:
    """The part that `text` describes. Raises `SettingError`, which lists the known names or settings."""
    name = text.partition(":")[0]
    if name not in PARTS:
        raise unknown_name("part", name, PARTS)
    kind: Any = PARTS[name]
    given: dict[str, float] = {}
    for setting, value in settings_in(text, {each.name: f"{each.name} ({each.default})" for each in fields(kind)}):
        number = parse_number(f"{text!r}: {setting}", value)
        given[setting] = int(number) if number == int(number) else number
    try:
        return kind(**given)
    except SettingError as error:
        raise SettingError(f"{text!r}: {error}") from error
