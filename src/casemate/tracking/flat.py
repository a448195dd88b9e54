"""Names and settings in the form that trackers store: short names, and one text or number per setting."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

_FORBIDDEN = re.compile(r"[^-/\w.]")
_LONGEST = 250
"""Characters of a name, at most: MLflow's limit."""

Plain = str | int | float | bool


def clean_name(*words: str) -> str:
    """The words that are not empty, joined by slashes, as a name that every tracker accepts."""
    parts = [part for word in words for part in word.split("/") if part.strip(".")]
    return _FORBIDDEN.sub("_", "/".join(parts))[:_LONGEST].rstrip("/")


def flat(settings: Mapping[str, Any]) -> dict[str, Plain]:
    """Nested settings in one mapping: names of inner ones follow those of outer ones and a dot.

    A list of plain values is a text, separated by commas; None is the text "none".
    """
    return dict(_flat("", settings))


def _flat(name: str, value: Any) -> Iterator[tuple[str, Plain]]:
    if isinstance(value, Mapping):
        for inner, each in value.items():
            yield from _flat(f"{name}.{inner}" if name else str(inner), each)
    elif isinstance(value, list | tuple):
        if any(isinstance(each, Mapping | list | tuple) for each in value):
            yield from _flat(name, {str(place): each for place, each in enumerate(value)})
        else:
            yield name, ", ".join(map(str, value)) or "none"
    elif isinstance(value, str | bool | int | float):
        yield name, value
    else:
        yield name, "none" if value is None else str(value)
