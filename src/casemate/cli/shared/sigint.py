"""Ctrl-C, which must stop a command at whatever moment it comes.

Python raises `KeyboardInterrupt` in the code that runs at that moment. While code is being loaded, the interpreter and
libraries turn it into other errors (Python 3.11 raises `RuntimeError` if it comes while a class is created), and an
exception in Python code that C code calls is dropped (Numba's compiler makes such calls).
"""

import _thread
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from casemate.errors import is_interruption

_DELAY = 0.05
"""Seconds after which a dropped interrupt is raised again: by then the call that dropped it has returned."""


@contextmanager
def redeliver_interrupts() -> Iterator[None]:
    """A context in which a Ctrl-C is raised again a moment later if the code that it interrupted dropped it."""
    before = sys.unraisablehook
    pending: list[threading.Timer] = []

    def hook(dropped: "sys.UnraisableHookArgs") -> None:
        if not is_interruption(dropped.exc_value):
            before(dropped)
            return
        again = threading.Timer(_DELAY, _thread.interrupt_main)
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
