"""Where assertions find the options of a running pytest and leave their results; without pytest nothing is kept.

This module imports nothing heavy, since the plugin imports it at every start of pytest.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable


@final
@dataclass(frozen=True, kw_only=True)
class Call:
    """The result of one assertion."""

    line: str
    """The result in a line."""
    facts: Mapping[str, str]
    """Its numbers and settings by name, for a report in XML."""


@runtime_checkable
class RunningTest(Protocol):
    """A running test."""

    budget: str | None
    """The budget of the assertions that name none; None if there is no such option."""

    def record(self, call: Call) -> None:
        """Keep the result of an assertion in the report on the test."""
        ...


_active: list[RunningTest] = []
"""The running tests, the innermost last: a test of tests may run others."""


@contextmanager
def running(test: RunningTest) -> Iterator[None]:
    """A context in which assertions belong to this test."""
    _active.append(test)
    try:
        yield
    finally:
        _active.pop()


def active() -> RunningTest | None:
    """The running test; None outside of one."""
    return _active[-1] if _active else None
