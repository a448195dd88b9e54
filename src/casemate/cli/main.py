"""The entry point: which command, which exit code.

Exit codes: 0 fine, 1 unexpected (with a traceback), 2 something the user can mend, 3 what was asked to hold does not
hold (see `evaluate --fail-under` and `verify`), 130 stopped with Ctrl-C.
"""

import inspect
import io
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, Union, runtime_checkable

import tyro

from casemate._version import __version__
from casemate.cli import console, data, store
from casemate.cli.attack import Attack
from casemate.cli.evaluate import Evaluate
from casemate.cli.info import Info
from casemate.cli.interruption import heard, is_interruption
from casemate.cli.report import Report
from casemate.cli.selftest import SelfTest
from casemate.cli.study import Study
from casemate.cli.train import Train
from casemate.cli.verify import Verify
from casemate.errors import CasemateError

HELP = """\
Train image classifiers, attack them, and say how far to trust the result.
- `casemate COMMAND --help` explains a command, `casemate --version` tells the
  version. Results go to stdout, progress and messages to stderr.
- Exit codes: 0 fine, 2 something you can mend, 3 a model or a record that
  does not hold (evaluate --fail-under, verify), 130 stopped with Ctrl-C,
  1 a fault of casemate's own.

Examples:
  casemate study --scale smoke     the whole study in small, a few minutes
  casemate train --epochs 10       train the study's network
  casemate attack model.safetensors --attack pgd --eps 4/255 8/255
  casemate evaluate model.safetensors --budget quick
"""


@runtime_checkable
class Command(Protocol):
    """A parsed command: a dataclass whose docstring is its help and whose fields are its options."""

    def run(self) -> None:
        """Do it. Raises `CasemateError` for what the user can mend."""
        ...


@dataclass(frozen=True)
class _InGroup:
    """Stands in the list of commands for a group, which is parsed on its own."""

    def run(self) -> None: ...


_COMMANDS: Mapping[str, type[Command]] = {
    "study": Study,
    "report": Report,
    "train": Train,
    "attack": Attack,
    "evaluate": Evaluate,
    "verify": Verify,
    "selftest": SelfTest,
    "info": Info,
}
_GROUPS: Mapping[str, tuple[str, Mapping[str, type[Command]]]] = {
    "data": (data.HELP, data.COMMANDS),
    "store": (store.HELP, store.COMMANDS),
}
_MARKERS = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone, tyro.conf.OmitArgPrefixes)


def parse(argv: Sequence[str]) -> Command:
    """Turn arguments into a command. Leaves with 2 on a fault in them, with 0 after showing help."""
    if argv and argv[0] in _GROUPS:
        words, commands = _GROUPS[argv[0]]
        return _choose(f"casemate {argv[0]}", words, commands, {}, argv[1:])
    return _choose("casemate", HELP, _COMMANDS, {name: words for name, (words, _) in _GROUPS.items()}, argv)


def _choose(
    prog: str, words: str, commands: Mapping[str, type[Command]], groups: Mapping[str, str], argv: Sequence[str]
) -> Command:
    """Parse `argv` as one of `commands`; in a list of them each has its first line, in its own help all of it."""
    chosen = argv[0] if argv else None
    choices: list[Any] = []
    for name, command in commands.items():
        text = inspect.cleandoc(command.__doc__ or "")
        about = text if name == chosen else text.splitlines()[0]
        choices.append(Annotated[command, tyro.conf.subcommand(name, description=about)])
    for name, text in groups.items():
        choices.append(Annotated[_InGroup, tyro.conf.subcommand(name, description=text.splitlines()[0])])
    union: Any = Union[tuple(choices)]  # noqa: UP007
    return tyro.cli(union, prog=prog, description=words, args=argv, config=_MARKERS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows ? instead of failing
    try:
        _run(arguments)
    except CasemateError as error:
        console.complain(str(error))
        return 2
    except console.Unmet as failure:
        console.complain(str(failure), word="does not hold")
        return 3
    except _StoppedError as stop:
        words = "what is finished is kept; the same command goes on from there." if stop.goes_on else "with Ctrl-C."
        console.complain(words, word="stopped")
        return 130
    except BrokenPipeError:  # the reader of our results has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


class _StoppedError(Exception):
    """Ctrl-C, in whatever form it came."""

    def __init__(self, *, goes_on: bool) -> None:
        self.goes_on = goes_on
        """The same command takes up what was finished."""


def _run(arguments: Sequence[str]) -> None:
    """Run a command, and write out what it printed."""
    command: Command | None = None
    try:
        try:
            if arguments in (["--version"], ["-V"]):
                print(f"casemate {__version__}")
            else:
                command = parse(arguments or ["--help"])
                with heard(), console.warnings_as_lines():
                    command.run()
        finally:
            sys.stdout.flush()
    except BaseException as error:  # before what else it may look like: a model that fails, a reader that is gone
        if is_interruption(error):
            raise _StoppedError(goes_on=isinstance(command, Study | Train)) from None
        raise
