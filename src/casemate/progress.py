"""Progress observers: the library reports progress, and only the command line and the web page render it.

A long loop takes an `Observer` and reports to it when work starts, advances and ends. The default, `NULL_OBSERVER`,
ignores everything.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

Advance = Callable[[float, str], None]
"""Called with the amount of work done since the last call, and a short note on its state."""


def no_progress(amount: float, note: str = "") -> None:
    """An `Advance` that does nothing."""
    del amount, note


@runtime_checkable
class Observer(Protocol):
    """Interface of an object that receives the progress and messages of long work, such as a progress bar."""

    def work(self, title: str, total: int | float) -> AbstractContextManager[Advance]:
        """Context of a piece of work of size `total`, in any unit; yields the function that reports its advance."""
        ...

    def message(self, message: str) -> None:
        """Receive one line for the user (a warning, a result)."""
        ...


@runtime_checkable
class ParallelObserver(Observer, Protocol):
    """Interface of an observer that can show several pieces of work at the same time."""

    def side_by_side(self, count: int) -> Sequence[Observer]:
        """Observers for `count` pieces of work that run at the same time, each of which shows one after the other."""
        ...


def side_by_side(observer: Observer, count: int) -> list[Observer]:
    """Observers for `count` pieces of work that run at the same time; `observer` itself, if it cannot split."""
    return list(observer.side_by_side(count)) if isinstance(observer, ParallelObserver) else [observer] * count


class _NullObserver:
    @contextmanager
    def work(self, title: str, total: int | float):
        del title, total
        yield no_progress

    def message(self, message: str) -> None:
        del message


NULL_OBSERVER: Observer = _NullObserver()
"""The default observer, which ignores progress and messages."""
