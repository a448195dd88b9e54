"""Parsing of arguments: a command is a dataclass, and its fields are the options (tyro)."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, Union

import tyro

from casemate.errors import SettingError
from casemate.settings import suggestion

_MARKERS = (tyro.conf.DisallowNone, tyro.conf.OmitArgPrefixes)
_HELP = ("-h", "--help")
_C = TypeVar("_C")
_T = TypeVar("_T")


@dataclass(frozen=True)
class _Listed:
    """An empty class that tyro lists as a command: the list shows its name and summary, but no options."""


def parse(command: type[_C], prog: str, words: str, argv: Sequence[str]) -> _C:
    """An instance of the dataclass `command`, its fields set by the options in `argv`.

    Exits with 2 on an error in the options, and with 0 after showing help. `prog` is the command as the help's usage
    line writes it, `words` the text of the help.
    """
    return tyro.cli(command, prog=prog, description=inspect.cleandoc(words), args=argv, config=_MARKERS)


def choose_command(
    prog: str,
    words: str,
    choices: Mapping[str, _T],
    summary: Callable[[_T], str | None],
    argv: Sequence[str],
    *,
    what: str = "command",
) -> str:
    """The first argument, if it is a name in `choices`.

    Without arguments, and for --help, it exits with 0 after printing the help: `words` and a list of the choices.

    Args:
        prog: the command so far, such as "casemate attack", for the help and for errors.
        words: the help above the list.
        choices: by name; the values are only passed to `summary`.
        summary: gives the line for a choice in the list; the list omits a choice if it returns None.
        argv: the arguments after `prog`.
        what: what the choices are, for errors.

    Raises:
        SettingError: the name is unknown; the message suggests a similar one.
    """
    if argv and argv[0] in choices:
        return argv[0]
    if argv and argv[0] not in _HELP:
        raise SettingError(
            f"{prog} {argv[0]!r}: expected {'an' if what[0] in 'aeiou' else 'a'} {what} first, one of "
            f"{', '.join(choices)}{suggestion(argv[0], choices)}"
        )
    summaries = {name: summary(each) for name, each in choices.items()}
    listed: Any = Union[  # noqa: UP007
        tuple(
            Annotated[_Listed, tyro.conf.subcommand(name, description=about)]
            for name, about in summaries.items()
            if about is not None
        )
    ]
    tyro.cli(listed, prog=prog, description=inspect.cleandoc(words), args=["--help"], config=_MARKERS)
    raise SystemExit(0)


def parse_group(prog: str, words: str, commands: Mapping[str, type[_C]], argv: Sequence[str]) -> _C:
    """Parse one of a group of commands, such as `casemate data list`: its name is the first of `argv`, then options.

    `prog` is the group's name, such as "casemate data", `words` its help. Raises `SettingError` for an unknown name.
    """
    name = choose_command(prog, words, commands, lambda each: first_line(each.__doc__), argv)
    return parse(commands[name], f"{prog} {name}", commands[name].__doc__ or "", argv[1:])


def refuse_removed(argv: Sequence[str], removed: Mapping[str, str]) -> None:
    """Raise `SettingError` if `argv` has a removed option; `removed` says for each what to write instead."""
    for word in argv:
        option = word.split("=")[0]
        if option in removed:
            raise SettingError(f"{option} is no longer an option: {removed[option]}")


def first_line(text: str | None) -> str:
    """The first line of a docstring; "" if there is none."""
    lines = inspect.cleandoc(text or "").splitlines()
    return lines[0] if lines else ""
