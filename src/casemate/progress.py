"""Progress as an observer: the library reports, only the command line and the web page render.

A long loop takes an `Observer` and tells it when work starts, advances and ends. The default, `NULL_OBSERVER`,
hears nothing, so library code needs no special case.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

Advance = Callable[[float, str], None]
"""Called with the amount of work done since the last call, and a short note on how it is going."""


def no_progress(amount: float, note: str = "") -> None:
    """Advances nothing."""
    del amount, note


@runtime_checkable
class Observer(Protocol):
    """What a renderer of progress must offer."""

    def work(self, title: str, total: int | float) -> AbstractContextManager[Advance]:
        """Announce a piece of work of size `total` (any unit) and yield the function that advances it."""
        ...

    def message(self, message: str) -> None:
        """Pass on one line meant for the user (a warning, a result)."""
        ...


class _NullObserver:
    @contextmanager
    def work(self, title: str, total: int | float):
        del title, total
        yield no_progress

    def message(self, message: str) -> None:
        del message


NULL_OBSERVER: Observer = _NullObserver()
"""The observer that hears nothing."""
