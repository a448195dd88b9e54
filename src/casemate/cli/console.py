"""What the user sees: progress and messages on stderr, results on stdout.

On a terminal progress is a live display; elsewhere it is plain lines, at most one in ten seconds per piece of work.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID
from rich.progress import Task as Row
from rich.table import Column, Table
from rich.text import Text

from casemate.progress import Advance, Observer

_PIPE_WIDTH = 160
"""Columns for results that do not go to a terminal: wide enough that nothing is folded."""
_FIRST_LINE = 2.0
"""Seconds after which a piece of work shows itself where there is no terminal."""
_NEXT_LINE = 10.0
"""Seconds between its lines."""
_AT_ONCE = 0.1
"""What is reported as done this soon after work began was not done now: it is what a resumed training found."""


class _Console(Console):
    """A console that leaves a closed pipe to `main`."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def _console(*, stderr: bool) -> _Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS") else _PIPE_WIDTH
    return _Console(stderr=stderr, width=width, highlight=False, soft_wrap=False)


def show(*what: RenderableType) -> None:
    """Print results to stdout. Text may hold rich's markup; pass what users wrote through `rich.markup.escape`."""
    console = _console(stderr=False)
    for each in what:
        console.print(each)


def show_json(content: Any) -> None:
    """Print one JSON document to stdout."""
    sys.stdout.write(json.dumps(content, indent=1, allow_nan=False) + "\n")


def complain(message: str, *, word: str = "error") -> None:
    """Print an error to stderr."""
    console = _console(stderr=True)
    console.print(f"[bold red]{word}:[/] {escape(message)}", soft_wrap=True)


def table(*columns: str | Column, title: str | None = None) -> Table:
    """An empty table in the common style; a column given by name is left-aligned."""
    return Table(*columns, box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)


def right(*names: str) -> Sequence[Column]:
    """Right-aligned columns."""
    return [Column(name, justify="right") for name in names]


def percent(value: float, digits: int = 1) -> str:
    """A fraction as percent."""
    return f"{100 * value:.{digits}f}"


def interval(estimate: dict[str, Any], *, scale: float = 100, digits: int = 1) -> str:
    """A number and its 95 % interval, by default as percent."""
    value, low, high = (f"{scale * estimate[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def duration(seconds: float) -> str:
    """A time in words, to about two figures."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def clock(seconds: float) -> str:
    """A time as on a clock: 3:05 or 1:02:03."""
    whole = int(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def size(count: float) -> str:
    """A number of bytes in words."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


@dataclass
class Work:
    """A piece of work as the observers follow it."""

    title: str
    total: float
    """Zero or less: unknown."""
    start: float = field(default_factory=time.monotonic)
    done: float = 0.0
    found_done: float = 0.0
    note: str = ""

    def advance(self, amount: float, note: str, *, at_once: bool) -> None:
        """Take in a report; `at_once` says that it came too soon to be the work of this run."""
        self.done += amount
        if at_once:
            self.found_done += amount
        self.note = note or self.note

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

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
        return max(0.0, self.total - self.done) * self.elapsed / own

    @property
    def heading(self) -> str:
        """Title and note."""
        return f"{self.title}: {self.note}" if self.note else self.title


class _Stack:
    """The pieces of work under way, outermost first."""

    def __init__(self) -> None:
        self.works: list[Work] = []
        self._opened = 0.0

    def push(self, title: str, total: float) -> Work:
        work = Work(title, total)
        self.works.append(work)
        self._opened = work.start
        return work

    @property
    def at_once(self) -> bool:
        """Whether the innermost work has only just begun."""
        return time.monotonic() - self._opened < _AT_ONCE


class _Plain:
    """Lines of text, for logs and pipes."""

    def __init__(self) -> None:
        self._stack = _Stack()

    def say(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    @contextmanager
    def work(self, title: str, total: float) -> Iterator[Advance]:
        work = self._stack.push(title, total)
        printed = work.start - _NEXT_LINE + _FIRST_LINE
        lines = 0

        def line() -> None:
            nonlocal printed, lines
            printed = time.monotonic()
            lines += 1
            facts = [] if work.part is None else [f"{percent(work.part, 0)} %"]
            if work.left is not None:
                facts.append(f"{duration(work.left)} left")
            if work.note:
                facts.append(work.note)
            self.say(f"{title}: {', '.join(facts)}" if facts else f"{title} ...")

        def advance(amount: float, note: str = "") -> None:
            work.advance(amount, note, at_once=self._stack.at_once)
            if time.monotonic() - printed >= _NEXT_LINE and work.done < work.total:
                line()

        waiting = threading.Timer(_FIRST_LINE, lambda: None if lines else line())
        waiting.daemon = True
        waiting.start()
        try:
            yield advance
            if lines and work.total > 0:
                self.say(f"{title}: done in {duration(work.elapsed)}")
        finally:
            waiting.cancel()
            self._stack.works.pop()


class _Times(ProgressColumn):
    """Percent, time elapsed and time left."""

    max_refresh = 0.5

    def render(self, task: Row) -> Text:
        work: Work = task.fields["work"]
        part = "" if work.part is None else f"{percent(work.part, 0):>3} %  "
        left = "" if work.left is None else f" ({clock(work.left)} left)"
        return Text(f"{part}{clock(work.elapsed)}{left}", no_wrap=True)


class _Heading(ProgressColumn):
    """What is being done."""

    def render(self, task: Row) -> Text:
        return Text(task.fields["work"].heading, no_wrap=True, overflow="ellipsis")


class _Live:
    """A live display: one row per level of nesting."""

    def __init__(self, console: Console) -> None:
        heading = _Heading(table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1))
        times = _Times(table_column=Column(no_wrap=True, min_width=12))
        self._progress = Progress(
            heading, BarColumn(bar_width=12), times, console=console, transient=True, expand=True, refresh_per_second=5
        )
        self._stack = _Stack()
        self._rows: list[TaskID] = []

    def close(self) -> None:
        """End the display."""
        self._progress.stop()

    def say(self, message: str) -> None:
        style = "yellow" if message.startswith("WARNING") else ""
        self._progress.console.print(Text(message, style=style))

    @contextmanager
    def work(self, title: str, total: float) -> Iterator[Advance]:
        level = len(self._stack.works)
        work = self._stack.push(title, total)
        self._drop(level)
        row = self._progress.add_task("", total=total if total > 0 else None, work=work)
        self._rows.append(row)
        if level == 0:
            self._progress.start()

        def advance(amount: float, note: str = "") -> None:
            work.advance(amount, note, at_once=self._stack.at_once)
            self._progress.update(row, completed=work.done)

        try:
            yield advance
        finally:
            self._stack.works.pop()  # its row stays until the next one takes its place, lest the display jump
            if level == 0:
                self._drop(0)
                self._progress.stop()

    def _drop(self, level: int) -> None:
        """Remove the rows from `level` downward."""
        while len(self._rows) > level:
            self._progress.remove_task(self._rows.pop())


@contextmanager
def observer() -> Iterator[Observer]:
    """The observer that fits where stderr goes."""
    console = _console(stderr=True)
    if sys.stderr.isatty() and not console.is_dumb_terminal:
        live = _Live(console)
        try:
            yield live
        finally:
            live.close()
    else:
        yield _Plain()
