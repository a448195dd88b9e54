"""Output for the user: results on stdout as tables or JSON, errors and warnings on stderr."""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from casemate.documents import document
from casemate.errors import CasemateWarning
from casemate.timing import duration as duration

_PIPE_WIDTH = 160
"""Columns of output that does not go to a terminal: wide enough that no table wraps."""


class ThresholdNotMet(Exception):
    """A model misses --fail-under (or its number is not to be trusted), or a claim of a record does not hold.

    `main` prints the message and exits with 3.
    """


class _Console(Console):
    """A console that raises `BrokenPipeError` when its reader is gone, for `main` to handle."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console(*, stderr: bool) -> _Console:
    """A console that writes to the present `sys.stderr` or `sys.stdout`, looked up in every call: tests replace it."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS") else _PIPE_WIDTH
    return _Console(stderr=stderr, width=width, highlight=False, soft_wrap=False, emoji=False)


def show(*what: RenderableType) -> None:
    """Print results to stdout. Strings are read as rich markup: escape what users wrote with `rich.markup.escape`."""
    out = console(stderr=False)
    for each in what:
        out.print(each)


def as_text(what: RenderableType) -> str:
    """What `show` would print, as text without colours, for a message; blanks at the ends of lines are left out."""
    made = console(stderr=True)
    with made.capture() as captured:
        made.print(what)
    lines = [line.rstrip() for line in Text.from_ansi(captured.get()).plain.splitlines()]
    return "\n".join(lines).strip("\n")


def show_line(text: str) -> None:
    """Print a line of rich markup to stdout that is not broken, however long: one with a command to be copied."""
    console(stderr=False).print(text, soft_wrap=True)


def show_json(content: Mapping[str, Any], schema: str) -> None:
    """Print one JSON document to stdout that names its schema, such as "casemate/info/1"."""
    sys.stdout.write(json.dumps(document(schema, content), indent=1, allow_nan=False) + "\n")


def print_error(message: str, *, word: str = "error") -> None:
    """Print a message to stderr, after `word` in red and a colon."""
    console(stderr=True).print(f"[bold red]{word}:[/] {escape(message)}", soft_wrap=True)


def print_message(message: str, *, word: str) -> None:
    """Print a message to stderr, after `word` in green and a colon."""
    console(stderr=True).print(f"[bold green]{word}:[/] {escape(message)}", soft_wrap=True)


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """A context in which each `CasemateWarning` is printed as a line on stderr; equal messages are printed once."""
    said: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("always", CasemateWarning)
        warnings.filterwarnings("ignore", "Using a non-tuple sequence")  # by PyTorch about the code of onnx2torch
        shown = warnings.showwarning

        def show_warning(message: Warning | str, category: type[Warning], *where: Any, **options: Any) -> None:
            if not issubclass(category, CasemateWarning):
                shown(message, category, *where, **options)
            elif str(message) not in said:
                said.add(str(message))
                console(stderr=True).print(f"[bold yellow]warning:[/] {escape(str(message))}", soft_wrap=True)

        warnings.showwarning = show_warning
        yield


def new_table(*columns: str | Column, title: str | None = None) -> Table:
    """A table without rows, in the style that all tables share; columns given by name are left-aligned."""
    return Table(
        *columns,
        box=box.SIMPLE_HEAD,
        title=title,
        title_justify="left",
        title_style="bold",
        pad_edge=False,
        collapse_padding=True,
    )


def right_aligned(*names: str) -> Sequence[Column]:
    """Right-aligned columns with these headings, for `new_table`."""
    return [Column(name, justify="right") for name in names]


def seconds_table(seconds: Mapping[str, float], heading: str) -> Table:
    """A table of the time that each step takes, and all together."""
    made = new_table("Step", *right_aligned(heading), title="Time")
    for name, each in seconds.items():
        made.add_row(name, duration(each))
    made.add_row("all", duration(sum(seconds.values())))
    return made


def settings_table(about: Mapping[str, Any], title: str, words_of: Callable[[str, Any], str] | None = None) -> Table:
    """A table of a planned run's settings `about`, a row for each that is neither None nor an empty list.

    The notes and the time estimates of the plan are not shown. `words_of` makes a text of a setting's name and value;
    by default it is `words` of the value. Those called ..._options are words of a command line.
    """
    made = new_table("Setting", "Value", title=title)
    for name, value in about.items():
        if name not in ("notes", "seconds_at_most") and value not in (None, []):
            shown = " ".join(value) if name.endswith("_options") else None
            shown = shown or (words(value) if words_of is None else words_of(name, value))
            made.add_row(name.replace("_", " "), escape(shown))
    return made


def words(value: Any) -> str:
    """A value as one line of text; entries of a list or a mapping are separated by commas, and None is "none"."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {words(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(words, value))
    return "none" if value is None else str(value)


def note_lines(lines: Sequence[str]) -> list[str]:
    """Each note as a line of rich markup that begins with "Note:" and ends with a full stop."""
    return [f"[yellow]Note:[/] {escape(line)}." for line in lines]
