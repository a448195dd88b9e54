"""Progress observers: the library reports progress, and only the command line and the web page render it.

A long loop takes an `Observer` and reports to it when work starts, advances and ends. The default, `NULL_OBSERVER`,
ignores everything. An observer may also take what a run is and finds (`TrackingObserver`): experiment trackers do.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

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


@final
@dataclass(frozen=True, kw_only=True)
class Tracked:
    """What a run passes to experiment trackers at one moment; most entries hold one or two of the fields.

    Names are words separated by underscores, with a slash after the name of a group, such as epoch/loss.
    """

    part: str = ""
    """The part of the run, such as the name of one of several models; parts of parts follow a slash. "": the whole."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings by name, as JSON: mappings and lists may be nested."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """What was measured, by name."""
    step: int | None = None
    """The place of the numbers in a series, such as the epoch, from 1; None for numbers that are measured once."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Findings in words, by name, such as the verdict."""
    pictures: Mapping[str, Any] = field(default_factory=dict)
    """Pictures by name: NumPy arrays `(height, width, 3)` of bytes."""
    files: Sequence[Path] = ()
    """Files and folders that were written."""


@runtime_checkable
class TrackingObserver(Observer, Protocol):
    """Interface of an observer that also takes settings, numbers and results, such as an experiment tracker."""

    def track(self, entry: Tracked) -> None:
        """Take an entry. Must not raise: the work goes on whatever happens to it."""
        ...


def track(observer: Observer, entry: Tracked) -> None:
    """Pass an entry to an observer if it takes entries."""
    if isinstance(observer, TrackingObserver):
        observer.track(entry)


def part_of(observer: Observer, part: str) -> Observer:
    """An observer that passes everything on to `observer`, and its entries as those of the part called `part`."""
    return _Part(observer, part) if isinstance(observer, TrackingObserver) else observer


def observers(*each: Observer) -> Observer:
    """One observer that passes everything on to several, such as progress bars and an experiment tracker."""
    return _Several(each)


@final
class _Part:
    """The observer that `part_of` returns."""

    def __init__(self, observer: TrackingObserver, part: str) -> None:
        self._observer, self._part = observer, part

    def work(self, title: str, total: int | float) -> AbstractContextManager[Advance]:
        return self._observer.work(title, total)

    def message(self, message: str) -> None:
        self._observer.message(message)

    def side_by_side(self, count: int) -> Sequence[Observer]:
        return [part_of(each, self._part) for each in side_by_side(self._observer, count)]

    def track(self, entry: Tracked) -> None:
        self._observer.track(replace(entry, part=f"{self._part}/{entry.part}" if entry.part else self._part))


@final
class _Several:
    """The observer that `observers` returns."""

    def __init__(self, each: Sequence[Observer]) -> None:
        self._each = each

    @contextmanager
    def work(self, title: str, total: int | float) -> Iterator[Advance]:
        with ExitStack() as stack:
            advances = [stack.enter_context(each.work(title, total)) for each in self._each]

            def advance(amount: float, note: str = "") -> None:
                for each in advances:
                    each(amount, note)

            yield advance

    def message(self, message: str) -> None:
        for each in self._each:
            each.message(message)

    def side_by_side(self, count: int) -> Sequence[Observer]:
        lanes = [side_by_side(each, count) for each in self._each]
        return [_Several(lane) for lane in zip(*lanes, strict=True)] or [self] * count

    def track(self, entry: Tracked) -> None:
        for each in self._each:
            track(each, entry)


class _NullObserver:
    @contextmanager
    def work(self, title: str, total: int | float):
        del title, total
        yield no_progress

    def message(self, message: str) -> None:
        del message


NULL_OBSERVER: Observer = _NullObserver()
"""The default observer, which ignores progress and messages."""
