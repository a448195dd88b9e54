"""What the user reads: results on stdout as tables or JSON, errors on stderr, numbers in words."""

import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Column, Table

from casemate.errors import CasemateWarning

_PIPE_WIDTH = 160
"""Columns for results that do not go to a terminal: wide enough that nothing is folded."""


class Unmet(Exception):
    """What was asked to hold does not; `main` says so on stderr and exits with 3."""


class _Console(Console):
    """A console that leaves a closed pipe to `main`."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console(*, stderr: bool) -> _Console:
    """A console on stderr or stdout as they are now; tests and shells exchange them."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS") else _PIPE_WIDTH
    return _Console(stderr=stderr, width=width, highlight=False, soft_wrap=False)


def show(*what: RenderableType) -> None:
    """Print results to stdout. Text may hold rich's markup; pass what users wrote through `rich.markup.escape`."""
    out = console(stderr=False)
    for each in what:
        out.print(each)


def show_json(content: Any) -> None:
    """Print one JSON document to stdout."""
    sys.stdout.write(json.dumps(content, indent=1, allow_nan=False) + "\n")


def complain(message: str, *, word: str = "error") -> None:
    """Print an error to stderr."""
    console(stderr=True).print(f"[bold red]{word}:[/] {escape(message)}", soft_wrap=True)


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Inside, the library's warnings are lines on stderr, each sentence once."""
    said: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("always", CasemateWarning)
        shown = warnings.showwarning

        def show_warning(message: Warning | str, category: type[Warning], *where: Any, **options: Any) -> None:
            if not issubclass(category, CasemateWarning):
                shown(message, category, *where, **options)
            elif str(message) not in said:
                said.add(str(message))
                console(stderr=True).print(f"[bold yellow]warning:[/] {escape(str(message))}", soft_wrap=True)

        warnings.showwarning = show_warning
        yield


def table(*columns: str | Column, title: str | None = None) -> Table:
    """An empty table in the common style; a column given by name is left-aligned."""
    return Table(
        *columns,
        box=box.SIMPLE_HEAD,
        title=title,
        title_justify="left",
        title_style="bold",
        pad_edge=False,
        collapse_padding=True,
    )


def right(*names: str) -> Sequence[Column]:
    """Right-aligned columns."""
    return [Column(name, justify="right") for name in names]


def percent(value: float | int, digits: int = 1) -> str:
    """A fraction as percent."""
    return f"{100 * value:.{digits}f}"


def words(value: Any) -> str:
    """Settings as one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {words(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(words, value))
    return "none" if value is None else str(value)


def notes(lines: Sequence[str]) -> list[str]:
    """What a reader of a result should know of it, a line each."""
    return [f"[yellow]Note:[/] {escape(line)}." for line in lines]


def interval(estimate: dict[str, Any], *, scale: float = 100.0, digits: int = 1) -> str:
    """A number and its 95 % interval, by default as percent."""
    value, low, high = (f"{scale * estimate[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def duration(seconds: float | int) -> str:
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
