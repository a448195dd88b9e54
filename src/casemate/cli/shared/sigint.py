"""Ctrl-C, which must stop a command wherever it comes.

It is raised in whatever code runs just then. The interpreter and libraries make other errors of it while they load code
(Python 3.11 makes a `RuntimeError` of one that comes while a class is made), and drop what comes up while C calls
Python (Numba has the compiler call it so).
"""

import _thread
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_AGAIN = 0.05
"""Seconds after which one that was dropped comes again: by then the call that dropped it is over."""


def is_interruption(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error: as itself, or as another that was raised because of it."""
    seen: list[BaseException] = []  # an error can be its own cause
    while error is not None and error not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def heard() -> Iterator[None]:
    """Inside, a Ctrl-C that was dropped comes again."""
    before = sys.unraisablehook
    pending: list[threading.Timer] = []

    def hook(dropped: "sys.UnraisableHookArgs") -> None:
        if not is_interruption(dropped.exc_value):
            before(dropped)
            return
        again = threading.Timer(_AGAIN, _thread.interrupt_main)
        again.daemon = True
        pending.append(again)
        again.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
        for again in pending:
            again.cancel()
