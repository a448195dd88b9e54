"""Ctrl-C, which must stop a command at whatever moment it comes.

Python raises `KeyboardInterrupt` in the code that runs at that moment, which may drop it: an exception in Python code
that C code calls (a callback, a destructor, a comparison), and one that surfaces as another error while a module is
loaded (Python 3.11 raises `RuntimeError` if it comes while a class is created), where a library catches any error.
"""

import _thread
import signal
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import final

from casemate.errors import is_interruption

_DELAY = 0.05
"""Seconds after which a dropped interrupt is raised again: by then the call that dropped it has returned."""


@final
class _Interrupt(KeyboardInterrupt):
    """A `KeyboardInterrupt` that weak references can point to."""


@contextmanager
def redeliver_interrupts() -> Iterator[None]:
    """A context in which a Ctrl-C is raised again a moment later if the code that it interrupted dropped it.

    An interrupt has been dropped if its exception is deleted before it leaves this context. Where another handler of
    the signal is in place, or in another thread than the main one, nothing changes.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    hook_before = sys.unraisablehook
    alive: list[weakref.ref[_Interrupt]] = []
    pending: list[threading.Timer] = []
    has_left, was_dropped = threading.Event(), threading.Event()

    def again(dropped: object) -> None:
        del dropped
        if not (has_left.is_set() or was_dropped.is_set()):
            was_dropped.set()
            timer = threading.Timer(_DELAY, _thread.interrupt_main)
            timer.daemon = True
            pending.append(timer)
            timer.start()

    def watched() -> _Interrupt:  # if `handle` had it in a variable, its traceback would keep it alive
        error = _Interrupt()
        alive.append(weakref.ref(error, again))
        return error

    def handle(number: int, frame: FrameType | None) -> None:
        del number, frame
        was_dropped.clear()
        raise watched()

    def hook(dropped: "sys.UnraisableHookArgs") -> None:
        if is_interruption(dropped.exc_value):
            again(dropped)  # of an interrupt that another handler raised nothing else tells
        else:
            hook_before(dropped)

    sys.unraisablehook = hook
    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        has_left.set()
        for timer in pending:
            timer.cancel()
        sys.unraisablehook = hook_before
        if signal.getsignal(signal.SIGINT) is handle:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if was_dropped.is_set():  # the context was left before the interrupt came again
            raise KeyboardInterrupt
