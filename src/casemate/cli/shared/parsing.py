"""From words to a command: one dataclass a command, its fields the options (tyro)."""

import difflib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, Union

import tyro

from casemate.errors import SettingError

_MARKERS = (tyro.conf.DisallowNone, tyro.conf.OmitArgPrefixes)
_HELP = ("-h", "--help")
C = TypeVar("C")


@dataclass(frozen=True)
class _Listed:
    """Stands in a list of commands for one that is parsed on its own."""


def parse(command: type[C], prog: str, words: str, argv: Sequence[str]) -> C:
    """The command that `argv` gives the options of. Leaves with 2 on a fault in them, with 0 after showing help."""
    return tyro.cli(command, prog=prog, description=inspect.cleandoc(words), args=argv, config=_MARKERS)


def choose(prog: str, words: str, choices: Mapping[str, str], argv: Sequence[str], *, what: str = "command") -> str:
    """The first of `argv`, one of `choices`, whose values are shown in a list.

    Leaves with 0 after showing that list. Raises `SettingError` for a name that is none of them, with the nearest one.
    """
    if argv and argv[0] in choices:
        return argv[0]
    if argv and argv[0] not in _HELP:
        near = difflib.get_close_matches(argv[0].lower(), choices, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise SettingError(
            f"{prog} {argv[0]!r}: expected {'an' if what[0] in 'aeiou' else 'a'} {what} first, one of "
            f"{', '.join(choices)}{hint}"
        )
    listed: Any = Union[  # noqa: UP007
        tuple(Annotated[_Listed, tyro.conf.subcommand(name, description=about)] for name, about in choices.items())
    ]
    tyro.cli(listed, prog=prog, description=inspect.cleandoc(words), args=["--help"], config=_MARKERS)
    raise SystemExit(0)


def refuse_removed(argv: Sequence[str], removed: Mapping[str, str]) -> None:
    """Raise `SettingError` for an option of earlier versions, with what to write now."""
    for word in argv:
        option = word.split("=")[0]
        if option in removed:
            raise SettingError(f"{option} is no longer an option: {removed[option]}")


def first_line(text: str | None) -> str:
    """What a docstring says in its first line."""
    lines = inspect.cleandoc(text or "").splitlines()
    return lines[0] if lines else ""
