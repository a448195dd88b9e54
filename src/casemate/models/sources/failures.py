"""What a file or another library says, shortened for a message: exceptions and names can be of any length."""

from collections.abc import Iterable
from typing import Any

_MOST = 200
"""Largest number of characters that are quoted."""


def quoted(error: BaseException) -> str:
    """The kind of an exception and the first line of what it says, shortened; the kind alone if it says nothing."""
    first = (str(error).strip().splitlines() or [""])[0].strip()
    return f"{type(error).__name__}: {first[:_MOST]}" if first else type(error).__name__


def shortened(names: Iterable[Any]) -> list[str]:
    """The first three of some names, each with at most 80 characters."""
    return [str(each)[:80] for each in list(names)[:3]]
