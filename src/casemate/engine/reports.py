"""Progress that crosses from a worker to the process that started it."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, final

from casemate.progress import Advance, Observer, Tracked, track


@final
class Relay:
    """The observer in a worker: it sends all reports to the parent, progress at most every `every` seconds.

    `send` takes the name of a report and its content.
    """

    def __init__(self, send: Callable[..., None], every: float) -> None:
        self._send, self._every = send, every

    def message(self, message: str) -> None:
        self._send("message", message)

    def track(self, entry: Tracked) -> None:
        self._send("track", entry)

    @contextmanager
    def work(self, title: str, total: float | int) -> Iterator[Advance]:
        self._send("work", title, total)
        sent, amounts, latest = time.monotonic(), 0.0, ""

        def advance(amount: float | int, note: str = "") -> None:
            nonlocal sent, amounts, latest
            amounts, latest = amounts + amount, note or latest
            if time.monotonic() - sent >= self._every:
                self._send("advance", amounts, latest)
                sent, amounts = time.monotonic(), 0.0

        finished = False
        try:
            yield advance
            finished = True
        finally:
            if amounts:
                self._send("advance", amounts, latest)
            self._send("end", finished)


@final
class Replay:
    """Repeats what a worker's `Relay` sent, to an observer in this process."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._open: list[tuple[ExitStack, Advance]] = []

    def replay(self, name: str, *content: Any) -> None:
        """Repeat one report."""
        if name == "message":
            self._observer.message(*content)
        elif name == "track":
            track(self._observer, *content)
        elif name == "work":
            stack = ExitStack()
            self._open.append((stack, stack.enter_context(self._observer.work(*content))))
        elif name == "advance" and self._open:
            self._open[-1][1](*content)
        elif name == "end" and self._open:
            self._end(*content)

    def close(self) -> None:
        """End the work that was left open, as unfinished."""
        while self._open:
            self._end(finished=False)

    def _end(self, finished: bool) -> None:
        stack, _ = self._open.pop()
        if finished:
            stack.close()
            return
        with suppress(_UnfinishedError):  # the observer's context sees an exception, as in the worker
            stack.push(_raise_unfinished)
            stack.close()


class _UnfinishedError(Exception):
    """Raised into the context of work that did not finish."""


def _raise_unfinished(*exception: object) -> None:
    raise _UnfinishedError
