"""Progress and messages on stderr: a live display on a terminal, elsewhere plain lines, at most one in ten seconds.

In both cases rich keeps count and estimates the time left. The first amount reported may be the work of an earlier
run that is being continued, so the estimate starts with the second.
"""

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from casemate.cli.shared.console import console as make_console
from casemate.cli.shared.console import duration
from casemate.progress import Advance, Observer

_FIRST_LINE = 2.0
"""Seconds from the start of a piece of work to its first line of progress where there is no terminal."""
_NEXT_LINE = 10.0
"""Seconds, at least, between lines of progress on the same piece of work."""
_TIMES_WIDTH = 29
"""Columns of "100% 12:34:56 left 65:43:21" and the gaps around it."""
_MARGIN = 3
"""Columns left free on the right, so that the ^C that a terminal prints does not wrap."""
_WHOLE_RUN = 1e9
"""Seconds of the past over which the speed is averaged: longer than any run, so the average is over all of it."""


def _now() -> float:
    return time.monotonic()


def _progress(console: Console, *columns: object, live: bool) -> Progress:
    """Rich's object that counts work and estimates the time left; it draws `columns` on the console only if `live`."""
    return Progress(
        *columns,  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        console=console,
        transient=True,
        refresh_per_second=5,
        speed_estimate_period=_WHOLE_RUN,
        get_time=lambda: _now(),  # looked up at each call, so that tests can set the clock
        disable=not live,
    )


class _Plain:
    """The observer where there is no terminal: it prints progress and messages as lines on stderr."""

    def __init__(self, console: Console) -> None:
        self._progress = _progress(console, live=False)

    def message(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    @contextmanager
    def work(self, title: str, total: float | int) -> Iterator[Advance]:
        row = self._progress.add_task(title, total=total if total > 0 else None)
        task = next(each for each in self._progress.tasks if each.id == row)
        printed, lines, latest = _now() - _NEXT_LINE + _FIRST_LINE, 0, ""

        def line() -> None:
            nonlocal printed, lines
            printed = _now()
            lines += 1
            facts = [f"{task.percentage:.0f} %"] if task.total is not None else []
            if task.time_remaining is not None:
                facts.append(f"{duration(task.time_remaining)} left")
            if latest:
                facts.append(latest)
            self.message(f"{title}: {', '.join(facts)}" if facts else f"{title} ...")

        def advance(amount: float | int, note: str = "") -> None:
            nonlocal latest
            latest = note or latest
            self._progress.update(row, advance=amount)
            if _now() - printed >= _NEXT_LINE and task.completed < total:
                line()

        waiting = threading.Timer(_FIRST_LINE, lambda: None if lines else line())
        waiting.daemon = True
        waiting.start()
        start = _now()
        try:
            yield advance
            if lines and total > 0:
                self.message(f"{title}: done in {duration(_now() - start)}")
        finally:
            waiting.cancel()
            self._progress.remove_task(row)


class _Live:
    """The observer for a terminal: a live display with one progress bar per level of nested work."""

    def __init__(self, console: Console) -> None:
        room = console.width - _TIMES_WIDTH - 2 - _MARGIN
        bar = min(20, max(5, room // 8))
        width = max(10, min(60, room - bar))
        heading = Column(no_wrap=True, overflow="ellipsis", width=width)
        self._progress = _progress(
            console,
            TextColumn("{task.description}", markup=False, table_column=heading),
            BarColumn(bar_width=bar),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", style="progress.remaining"),
            TimeRemainingColumn(),
            live=True,
        )
        self._depth = 0
        self._rows: list[TaskID] = []

    def close(self) -> None:
        """End the display."""
        self._progress.stop()

    def message(self, message: str) -> None:
        style = "yellow" if message.startswith("WARNING") else ""
        self._progress.console.print(Text(message, style=style))

    def side_by_side(self, count: int) -> Sequence[Observer]:
        rows = [self._progress.add_task("waiting", total=None, left="") for _ in range(count)]
        self._rows += rows  # they disappear with the work that is under way
        return [_Lane(self._progress, row, self) for row in rows]

    @contextmanager
    def work(self, title: str, total: float | int) -> Iterator[Advance]:
        level, self._depth = self._depth, self._depth + 1
        self._drop(level)
        known = total > 0
        row = self._progress.add_task(title, total=total if known else None, left="left" if known else "")
        self._rows.append(row)
        if level == 0:
            self._progress.start()

        def advance(amount: float | int, note: str = "") -> None:
            self._progress.update(row, advance=amount, description=f"{title}: {note}" if note else None)

        try:
            yield advance
        finally:
            self._depth = level  # its row stays until another replaces it, so that the display does not jump
            if level == 0:
                self._progress.stop()
                self._drop(0)

    def _drop(self, level: int) -> None:
        """Remove the bars of nesting level `level` and of all deeper levels."""
        while len(self._rows) > level:
            self._progress.remove_task(self._rows.pop())


class _Lane:
    """The observer of one of several pieces of work that run at the same time: a bar that stays in its place.

    It shows work that is not nested in other work; of nested work only the title.
    """

    def __init__(self, progress: Progress, row: TaskID, whole: Observer) -> None:
        self._progress, self._row, self._whole = progress, row, whole
        self._titles: list[str] = []

    def message(self, message: str) -> None:
        self._whole.message(message)

    @contextmanager
    def work(self, title: str, total: float | int) -> Iterator[Advance]:
        self._titles.append(title)
        words, outermost = ": ".join(self._titles), len(self._titles) == 1
        known = total > 0
        if outermost:
            self._show(words, total if known else None)
        else:
            self._progress.update(self._row, description=words)

        def advance(amount: float | int, note: str = "") -> None:
            if outermost:
                self._progress.update(self._row, advance=amount, description=f"{words}: {note}" if note else None)

        try:
            yield advance
        finally:
            self._titles.pop()
            if outermost:
                self._show("waiting", None)
            else:
                self._progress.update(self._row, description=": ".join(self._titles))

    def _show(self, words: str, total: float | int | None) -> None:
        """Begin the bar anew; `total` is None where the amount of work is unknown."""
        self._progress.reset(self._row, description=words, left="" if total is None else "left")
        task = next(each for each in self._progress.tasks if each.id == self._row)
        task.total = total  # `reset` keeps the old one instead of None


@contextmanager
def watching() -> Iterator[Observer]:
    """A context that yields the command line's observer, which writes to stderr: live on a terminal, else lines."""
    observer = progress_bars()
    try:
        yield observer
    finally:
        if isinstance(observer, _Live):
            observer.close()


def progress_bars() -> Observer:
    """The display of progress that the commands have, for `observer=` of the library's functions.

    It writes to stderr: progress bars on a terminal and in a notebook, elsewhere a line every ten seconds. It shows one
    call at a time, and may be used for one after the other.
    """
    console = make_console(stderr=True)
    live = sys.stderr.isatty() and not console.is_dumb_terminal
    return _Live(console) if live or console.is_jupyter else _Plain(console)
