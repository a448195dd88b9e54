"""What several processes of one command, started by torchrun, print: the first one everything, the others no results.

An error that all of them raise is printed by one process of each machine, since each machine has a screen of its own.
"""

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path

from casemate.cli.shared import console
from casemate.errors import CasemateError, CasemateWarning
from casemate.torchrun import is_shared, mark_shared, place

_LEAVES_AFTER = 10.0
"""Seconds that a failed process which prints nothing leaves to the one that prints."""


@contextmanager
def one_screen() -> Iterator[None]:
    """A context in which only the first process prints results and warnings. Raises `SettingError`, see `place`."""
    if place().is_first:
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore", CasemateWarning)
        yield


@contextmanager
def alike_in_all() -> Iterator[None]:
    """A context of what all processes do alike before they meet: messages and errors are printed once a machine."""
    with Path(os.devnull).open("w") as nowhere, nullcontext() if place().shows_errors else redirect_stderr(nowhere):
        try:
            yield
        except CasemateError as error:
            mark_shared(error)
            raise


def print_once(error: Exception, message: str, *, word: str = "error", last: bool = True) -> None:
    """Print the message of an error that ends the command, after `word`, in one process of each machine.

    With `last`, the processes that print nothing leave after it: torchrun ends all processes as soon as one fails.
    """
    if not is_shared(error) or place().shows_errors:
        console.print_error(message, word=word)
    elif last:
        time.sleep(_LEAVES_AFTER)
