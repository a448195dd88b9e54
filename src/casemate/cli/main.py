"""The entry point: which command, which exit code.

Exit codes: 0 fine, 1 unexpected (with a traceback), 2 something the user can mend, 3 what was asked to hold does not
hold (see `evaluate --fail-under` and `verify`), 130 stopped with Ctrl-C.

A command is a folder or a module of this package whose docstring is its help. Its options are in `options`, which is
only imported once the command is chosen: some are those of the library's own classes and need PyTorch.
"""

import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Protocol, runtime_checkable

from casemate._version import __version__
from casemate.cli.shared import console
from casemate.cli.shared.observers import watching
from casemate.cli.shared.options import load_torch
from casemate.cli.shared.parsing import choose, first_line
from casemate.cli.shared.sigint import heard, is_interruption
from casemate.errors import CasemateError
from casemate.extensions import COMMANDS, extensions

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
  casemate attack pgd model.safetensors --eps 4/255 8/255
  casemate evaluate model.safetensors --budget quick
"""

OWN = ("train", "attack", "evaluate", "verify", "selftest", "data", "store", "info")
"""The commands of this package; others are found by the entry points `casemate.commands`."""
_WITH_TORCH = ("train", "attack", "evaluate", "selftest")
"""Commands whose options are made of classes that need PyTorch, which takes a few seconds to load."""
_RESUMABLE = ("study", "train")
"""Commands that take up what they had finished."""


@runtime_checkable
class Command(Protocol):
    """A parsed command: a dataclass whose fields are its options."""

    def run(self) -> None:
        """Do it. Raises `CasemateError` for what the user can mend."""
        ...


def parse(argv: Sequence[str]) -> Command:
    """Turn arguments into a command. Leaves with 0 after showing help, with 2 on a fault that tyro finds.

    Raises `SettingError` for other faults.
    """
    modules = {name: f"casemate.cli.{name}" for name in OWN}
    modules |= {point.name: point.value for point in extensions(COMMANDS) if point.name not in modules}
    about = {name: first_line(import_module(module).__doc__) for name, module in modules.items()}
    name = choose("casemate", HELP, about, argv)
    if name in _WITH_TORCH:
        with watching() as observer:
            load_torch(observer)
    package = import_module(modules[name])
    module = import_module(f"{modules[name]}.options") if hasattr(package, "__path__") else package
    return module.parse(argv[1:])


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
    began = False
    try:
        try:
            if arguments in (["--version"], ["-V"]):
                print(f"casemate {__version__}")
            else:
                with heard(), console.warnings_as_lines():
                    command = parse(arguments)
                    began = True
                    command.run()
        finally:
            sys.stdout.flush()
    except BaseException as error:  # before what else it may look like: a model that fails, a reader that is gone
        if is_interruption(error):
            raise _StoppedError(goes_on=began and arguments[0] in _RESUMABLE) from None
        raise
