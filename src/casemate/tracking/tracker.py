"""What all trackers share: entries are written when they arrive, and again later if that fails; the work goes on."""

import atexit
import re
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Literal, TypeVar, final

from casemate.errors import CasemateWarning, is_interruption
from casemate.progress import Advance, Tracked, no_progress

End = Literal["FINISHED", "FAILED", "KILLED"]
"""How a run ended: MLflow's words."""
_PAUSE = 60.0
"""Seconds without an attempt after one that failed, since each may wait long for a server."""
_ATTEMPTS = 3
"""How often an entry is written at most; one that still fails is left out."""
_T = TypeVar("_T", bound="AbstractTracker")


def error_line(error: BaseException, most: int = 200) -> str:
    """An error as one line of text of `most` characters at most: type and message, of the operating system's if any.

    Passwords in addresses are left out.
    """
    below: BaseException | None = error
    while below is not None and not (isinstance(below, OSError) and below.strerror):
        below = below.__cause__ or below.__context__
    shown = below or error
    text = without_password(" ".join(f"{type(shown).__name__}: {shown}".split()))
    return text if len(text) <= most else f"{text[: most - 3]}..."


def without_password(text: str) -> str:
    """A text without the user and the password of the addresses in it."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def warn(message: str) -> None:
    """Warn of a failure of a tracker with a `CasemateWarning`."""
    warnings.warn(message, CasemateWarning, stacklevel=2)


class AbstractTracker(ABC):
    """An observer that stores a run in an experiment tracker, and a context that ends the run.

    In the context an error ends the run as failed, and Ctrl-C as killed. Without it, the run ends with the program.
    """

    def _begin(self, *, pictures: bool, on_failure: Callable[[str], None]) -> None:
        self._pictures, self._on_failure = pictures, on_failure
        self._waiting: deque[tuple[int, Tracked]] = deque()
        self._known: dict[tuple[str, int | None], float] = {}
        self._looked_up: set[str] = set()
        self._next, self._lost = 0.0, 0
        self._is_closed = self._has_failed = False
        atexit.register(self._at_exit)

    @property
    @abstractmethod
    def place(self) -> str:
        """Where the run is stored, for a message."""

    @abstractmethod
    def _write(self, entry: Tracked, new: Mapping[str, float]) -> None:
        """Store an entry; of its numbers only those in `new`. May raise anything, and is then called again."""

    @abstractmethod
    def _stored(self, part: str, name: str) -> Mapping[int | None, float]:
        """The numbers called `name` that an earlier process stored in this run, by step. May raise anything."""

    @abstractmethod
    def _end(self, status: End) -> None:
        """End the run. May raise anything."""

    @final
    def __enter__(self: _T) -> _T:
        return self

    @final
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close("FINISHED" if error is None else "KILLED" if is_interruption(error) else "FAILED")

    @final
    @contextmanager
    def work(self, title: str, total: float | int) -> Iterator[Advance]:
        """Progress is not stored."""
        del title, total
        yield no_progress

    @final
    def message(self, message: str) -> None:
        """Messages are not stored."""
        del message

    @final
    def track(self, entry: Tracked) -> None:
        """Store an entry. If that fails, a message says so once, and the entry is stored later."""
        if self._is_closed:
            return
        self._waiting.append((0, entry if self._pictures else replace(entry, pictures={})))
        if time.monotonic() >= self._next:
            self._write_waiting()

    @final
    def close(self, status: End = "FINISHED") -> None:
        """Store what waits, and end the run. Later calls do nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        atexit.unregister(self._at_exit)
        failed_before = self._has_failed
        for _ in range(_ATTEMPTS + 1):  # so that one entry that is always refused does not keep back the others
            self._write_waiting()
        lost = self._lost + len(self._waiting)
        self._waiting.clear()
        try:
            self._end(status)
        except Exception as error:
            lost += 1
            self._fail(error)
        if lost:
            self._on_failure(f"{self.place} lacks a part of this run: {lost} of its entries could not be stored.")
        elif failed_before:
            self._on_failure(f"{self.place} has the whole run now.")

    def _write_waiting(self) -> None:
        """Write the entries that wait, in order, until one fails."""
        while self._waiting:
            attempts, entry = self._waiting[0]
            try:
                new = self._new(entry)
                self._write(entry, new)
            except Exception as error:
                self._waiting.popleft()
                if attempts + 1 < _ATTEMPTS:
                    self._waiting.appendleft((attempts + 1, entry))
                else:
                    self._lost += 1
                self._next = time.monotonic() + _PAUSE
                self._fail(error)
                return
            self._known |= {self._key(entry, name): value for name, value in new.items()}
            self._waiting.popleft()

    def _fail(self, error: Exception) -> None:
        if not self._has_failed:
            self._has_failed = True
            self._on_failure(
                f"{self.place} could not be written ({error_line(error)}); the work goes on, and it is tried again."
            )

    def _new(self, entry: Tracked) -> dict[str, float]:
        """The numbers of an entry that are not stored yet with this value: a resumed training repeats its epochs."""
        found: dict[str, float] = {}
        for name, value in entry.numbers.items():
            key = self._key(entry, name)
            if key[0] not in self._looked_up:
                for step, old in self._stored(entry.part, name).items():
                    self._known.setdefault((key[0], step), old)
                self._looked_up.add(key[0])
            if key not in self._known or not _same(self._known[key], value):
                found[name] = value
        return found

    @staticmethod
    def _key(entry: Tracked, name: str) -> tuple[str, int | None]:
        return f"{entry.part}/{name}", entry.step

    def _at_exit(self) -> None:
        error = getattr(sys, "last_value", None)  # what ended the program, if anything did
        self.__exit__(None, error, None)


def _same(first: float, second: float) -> bool:
    """Whether two numbers are equal in single precision, in which TensorBoard stores them."""
    import numpy as np  # here, since the help of commands imports this module

    return bool(np.array_equal(np.float32(first), np.float32(second), equal_nan=True))
