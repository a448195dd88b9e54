"""Progress and messages on stderr: a live display on a terminal, elsewhere plain lines.

There is at most one line in ten seconds per piece of work.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID
from rich.progress import Task as Row
from rich.table import Column
from rich.text import Text

from casemate.cli.console import clock, duration, percent
from casemate.cli.console import console as make_console
from casemate.progress import Advance, Observer

_FIRST_LINE = 2.0
"""Seconds after which a piece of work shows itself where there is no terminal."""
_NEXT_LINE = 10.0
"""Seconds between its lines."""
_TIMES_WIDTH = 28
"""Columns of "10 % 12:34:56, 65:43:21 left"."""
_MARGIN = 3
"""Columns left free at the right: the ^C that a terminal shows would otherwise begin a new line."""
_TOO_LITTLE, _TOO_SOON = 0.02, 30.0
"""The part done and the seconds before which no time left is told: it would be hours off."""
_AT_ONCE = 0.1
"""What is reported as done this soon after work began was not done now: it is what a resumed training found."""


def _now() -> float:
    return time.monotonic()


@dataclass
class Work:
    """A piece of work as the observers follow it."""

    title: str
    total: float | int
    """Zero or less: unknown."""
    start: float = field(default_factory=lambda: _now())
    done: float = 0.0
    found_done: float = 0.0
    """How much of it an earlier run had done."""
    reported: float = 0.0
    """When it last moved on."""
    note: str = ""

    def advance(self, amount: float | int, note: str, *, at_once: bool) -> None:
        """Take in a report; `at_once` says that it came too soon to be the work of this run."""
        if amount > 0:
            self.done += amount
            self.reported = _now()
        if at_once:
            self.found_done += amount
        self.note = note or self.note

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return _now() - self.start

    @property
    def part(self) -> float | None:
        """The part that is done, from 0 to 1; None if the total is unknown."""
        return min(1.0, self.done / self.total) if self.total > 0 else None

    @property
    def left(self) -> float | None:
        """Seconds left at the speed so far; None while there is nothing to judge by."""
        own = self.done - self.found_done
        if self.total <= 0 or own <= 0 or self.elapsed < 1:
            return None
        if own < _TOO_LITTLE * self.total and self.elapsed < _TOO_SOON:
            return None
        then = (self.total - self.done) * (self.reported - self.start) / own
        return max(0.0, then - (_now() - self.reported))

    @property
    def heading(self) -> str:
        """Title and note."""
        return f"{self.title}: {self.note}" if self.note else self.title


class _Stack:
    """The pieces of work under way, outermost first."""

    def __init__(self) -> None:
        self.works: list[Work] = []
        self._opened = 0.0

    def push(self, title: str, total: float | int) -> Work:
        work = Work(title, total)
        self.works.append(work)
        self._opened = work.start
        return work

    @property
    def at_once(self) -> bool:
        """Whether the innermost work has only just begun."""
        return _now() - self._opened < _AT_ONCE


class _Plain:
    """Lines of text, for logs and pipes."""

    def __init__(self) -> None:
        self._stack = _Stack()

    def message(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    @contextmanager
    def work(self, title: str, total: float | int) -> Iterator[Advance]:
        work = self._stack.push(title, total)
        printed = work.start - _NEXT_LINE + _FIRST_LINE
        lines = 0

        def line() -> None:
            nonlocal printed, lines
            printed = _now()
            lines += 1
            facts = [] if work.part is None else [f"{percent(work.part, 0)} %"]
            if work.left is not None:
                facts.append(f"{duration(work.left)} left")
            if work.note:
                facts.append(work.note)
            self.message(f"{title}: {', '.join(facts)}" if facts else f"{title} ...")

        def advance(amount: float | int, note: str = "") -> None:
            work.advance(amount, note, at_once=self._stack.at_once)
            if _now() - printed >= _NEXT_LINE and work.done < work.total:
                line()

        waiting = threading.Timer(_FIRST_LINE, lambda: None if lines else line())
        waiting.daemon = True
        waiting.start()
        try:
            yield advance
            if lines and work.total > 0:
                self.message(f"{title}: done in {duration(work.elapsed)}")
        finally:
            waiting.cancel()
            self._stack.works.pop()


class _Times(ProgressColumn):
    """Percent, time elapsed and time left."""

    max_refresh = 0.5

    def render(self, task: Row) -> Text:
        work: Work = task.fields["work"]
        part = "" if work.part is None else f"{percent(work.part, 0):>3} % "
        left = "" if work.left is None else f", {clock(work.left)} left"
        return Text(f"{part}{clock(work.elapsed)}{left}", no_wrap=True)


class _Heading(ProgressColumn):
    """What is being done."""

    def render(self, task: Row) -> Text:
        return Text(task.fields["work"].heading, no_wrap=True, overflow="ellipsis")


class _Live:
    """A live display: one row per level of nesting."""

    def __init__(self, console: Console) -> None:
        room = console.width - _TIMES_WIDTH - 2 - _MARGIN  # two gaps between three columns
        bar = min(20, max(5, room // 8))
        heading = _Heading(table_column=Column(no_wrap=True, overflow="ellipsis", width=max(10, min(60, room - bar))))
        times = _Times(table_column=Column(no_wrap=True, width=_TIMES_WIDTH))
        self._progress = Progress(
            heading, BarColumn(bar_width=bar), times, console=console, transient=True, refresh_per_second=5
        )
        self._stack = _Stack()
        self._rows: list[TaskID] = []

    def close(self) -> None:
        """End the display."""
        self._progress.stop()

    def message(self, message: str) -> None:
        style = "yellow" if message.startswith("WARNING") else ""
        self._progress.console.print(Text(message, style=style))

    @contextmanager
    def work(self, title: str, total: float | int) -> Iterator[Advance]:
        level = len(self._stack.works)
        work = self._stack.push(title, total)
        self._drop(level)
        row = self._progress.add_task("", total=total if total > 0 else None, work=work)
        self._rows.append(row)
        if level == 0:
            self._progress.start()

        def advance(amount: float | int, note: str = "") -> None:
            work.advance(amount, note, at_once=self._stack.at_once)
            self._progress.update(row, completed=work.done)

        try:
            yield advance
        finally:
            self._stack.works.pop()  # its row stays until the next one takes its place, lest the display jump
            if level == 0:
                self._progress.stop()
                self._drop(0)

    def _drop(self, level: int) -> None:
        """Remove the rows from `level` downward."""
        while len(self._rows) > level:
            self._progress.remove_task(self._rows.pop())


@contextmanager
def watching() -> Iterator[Observer]:
    """The observer that fits where stderr goes."""
    console = make_console(stderr=True)
    if sys.stderr.isatty() and not console.is_dumb_terminal:
        live = _Live(console)
        try:
            yield live
        finally:
            live.close()
    else:
        yield _Plain()
