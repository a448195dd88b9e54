"""The entry point of the command line: which command runs, and with which exit code it ends.

Exit codes: 0 success, 1 an unexpected error (with a traceback), 2 an error that the user can fix, 3 a model or a record
that falls short (see `evaluate --fail-under`, `certify --fail-under`, `compare --fail-if-worse` and `verify`) or a
certificate that is void (`certify`), 130 stopped with Ctrl-C.

A command is a module whose docstring is its help, or a package with its options in the submodule `options`. Only the
module of the chosen command is imported, since the options of some are fields of library classes that need PyTorch.
"""

import io
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Protocol, runtime_checkable

from casemate._version import __version__
from casemate.cli.shared import console
from casemate.cli.shared.observers import watching
from casemate.cli.shared.one_screen import alike_in_all, one_screen, print_once
from casemate.cli.shared.options import load_torch
from casemate.cli.shared.parsing import choose_command, first_line
from casemate.cli.shared.sigint import redeliver_interrupts
from casemate.errors import CasemateError, CasemateWarning, is_interruption
from casemate.extensions import COMMANDS, extensions, load_extension
from casemate.torchrun import mark_shared, place, refuse_several
from casemate.waiting_threads import sleep_while_waiting

HELP = """\
Train image classifiers, attack them, and say how far to trust the result.
- `casemate COMMAND --help` explains a command, `casemate --version` prints
  the version. Results go to stdout, progress and messages to stderr.
- Exit codes: 0 success, 2 an error that you can fix, 3 a model or a record
  that falls short (--fail-under of evaluate and certify, verify, compare
  --fail-if-worse) or a certificate that is void (certify), 130 stopped with
  Ctrl-C, 1 a bug in casemate.

Examples:
  casemate study --scale smoke     the whole study in small, a few minutes
  casemate train --epochs 10       train the study's network
  casemate attack pgd model.safetensors --eps 4/255 8/255
  casemate evaluate model.safetensors --budget quick
  casemate compare runs/before runs/after --fail-if-worse
"""

OWN = (
    *("train", "harden", "attack", "evaluate", "certify", "compare", "verify", "benchmark", "play", "selftest"),
    *("data", "store", "info", "schema"),
)
"""The commands of this package; other packages add commands by entry points of the group `casemate.commands`."""
_WITH_TORCH = ("train", "harden", "attack", "evaluate", "certify", "compare", "benchmark", "play", "selftest")
"""Commands whose options are fields of classes that need PyTorch, which takes a few seconds to load."""
_RESUMABLE = ("study", "train", "harden", "evaluate", "compare", "benchmark")
"""Commands that, when run again after Ctrl-C, continue from the work that was finished."""
_IN_SEVERAL_PROCESSES = ("train",)
"""Commands that share their work among processes that torchrun started."""


@runtime_checkable
class Command(Protocol):
    """A parsed command: a dataclass whose fields are its options."""

    def run(self) -> None:
        """Run the command. Raises `CasemateError` for what the user can fix."""
        ...


def parse(argv: Sequence[str]) -> Command:
    """Parse the arguments after `casemate` into a command, which is not run yet.

    Exits with 0 after showing help, and with 2 on an error that tyro finds. Raises `CasemateError` for other errors in
    the arguments, and for a command that cannot be imported.
    """
    points = {name: EntryPoint(name, f"casemate.cli.{name}", COMMANDS) for name in OWN}
    points |= {point.name: point for point in extensions(COMMANDS) if point.name not in points}
    name = choose_command("casemate", HELP, points, _summary, argv)
    if name not in _IN_SEVERAL_PROCESSES:
        refuse_several(f"casemate {name}", f"Type: casemate {shlex.join(argv)}")
    if name in _WITH_TORCH:
        with watching() as observer:
            load_torch(observer)
    module = _load(points[name])
    if hasattr(module, "__path__"):
        module = _load(points[name], ".options")
    return module.parse(argv[1:])


def _load(point: EntryPoint, submodule: str = "") -> ModuleType:
    """Import and return the module of a command, or its submodule, such as ".options".

    Raises `CasemateError` if it is another package's and cannot be imported.
    """
    module = f"{point.value}{submodule}"
    return import_module(module) if point.name in OWN else load_extension(point, module)


def _summary(point: EntryPoint) -> str | None:
    """The first line of a command's help; None, with a warning, for a module that cannot be imported."""
    try:
        return first_line(_load(point).__doc__)
    except CasemateError as error:
        warnings.warn(f"a command is left out: {error}", CasemateWarning, stacklevel=2)
        return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (`argv`, or else the program's own arguments), and return the exit code: 0, 2, 3 or 130.

    Unexpected errors are not caught, so that Python prints a traceback and exits with 1. Sets `OMP_WAIT_POLICY` for
    this process and its workers, see `sleep_while_waiting`.
    """
    sleep_while_waiting()  # first, since it has no effect once anything has imported PyTorch
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows ? instead of failing
    try:
        _run(arguments)
    except CasemateError as error:
        print_once(error, str(error))
        return 2
    except console.ThresholdNotMet as failure:
        console.print_error(str(failure), word="falls short")
        return 3
    except _StoppedError as stop:
        words = "finished work is kept; run the same command again to continue." if stop.resumable else "with Ctrl-C."
        print_once(stop, words, word="stopped", last=False)  # torchrun interrupts all processes by itself
        if place().count > 1:
            os._exit(130)  # threads of the process group that call Python while the interpreter ends would abort
        return 130
    except BrokenPipeError:  # the reader of the results needs no more of them
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


class _StoppedError(Exception):
    """A command was stopped with Ctrl-C, whatever exception that raised in the code that was running."""

    def __init__(self, *, resumable: bool) -> None:
        self.resumable = resumable
        """Whether the same command, run again, continues from the work that was finished."""


def _run(arguments: Sequence[str]) -> None:
    """Parse and run a command, and flush what it printed. Raises `_StoppedError` after Ctrl-C."""
    began = False
    try:
        try:
            if arguments in (["--version"], ["-V"]):
                with one_screen():
                    print(f"casemate {__version__}")
            else:
                with redeliver_interrupts(), console.warnings_as_lines(), one_screen():
                    with alike_in_all():
                        command = parse(arguments)
                    began = True
                    command.run()
        finally:
            sys.stdout.flush()
    except BaseException as error:  # Ctrl-C first: it may surface as a CasemateError or as a broken pipe
        if is_interruption(error):
            raise mark_shared(_StoppedError(resumable=began and arguments[0] in _RESUMABLE)) from None
        raise
