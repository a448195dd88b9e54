"""What a check says: a number, a threshold, and whether the evaluation can still be trusted.

Every check is described in `docs/findings.md` under its name: what it means, and what to do.
"""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, final


class Severity(StrEnum):
    """How much a finding takes from the robust accuracy."""

    NOTE = "note"
    """Good to know; the number stands."""
    WEAKENS = "weakens"
    """The number may be too high by a little: try more."""
    VOIDS = "voids"
    """The number says nothing."""


@final
@dataclass(frozen=True, kw_only=True)
class Finding:
    """A reason not to take the robust accuracy as it stands."""

    check: str
    severity: Severity
    value: float | None
    """What was measured; None if the check failed."""
    threshold: float | None
    """Above which it is raised; None if the check failed."""
    sentence: str
    """What was seen, what was expected, what to do."""
    failed: bool = False
    """The check itself failed, so that what it looks for may be there."""
    flatters: bool = True
    """It can only make the model look more robust than it is, so a model that fell all the same is broken for sure."""

    def as_json(self) -> dict[str, Any]:
        """All fields, for a result file."""
        return asdict(self)


@final
@dataclass(frozen=True, kw_only=True)
class Checked:
    """One check of an evaluation: passed, raised, or not run and why."""

    check: str
    title: str
    finding: Finding | None = None
    value: float | None = None
    """What was measured, where it was raised or not; None if it was not run or failed."""
    threshold: float | None = None
    """Above which it is raised."""
    excuse: str | None = None
    """Why it was not, although the value is above."""
    not_run: str | None = None
    """Why not, if it was not."""

    @property
    def state(self) -> str:
        """`not run`, `passed`, or the severity of what was found."""
        if self.not_run is not None:
            return "not run"
        return "passed" if self.finding is None else str(self.finding.severity)

    def as_json(self) -> dict[str, Any]:
        """The state and the numbers."""
        facts: dict[str, Any] = {"check": self.check, "title": self.title, "state": self.state}
        facts |= {"value": self.value, "threshold": self.threshold, "excuse": self.excuse, "not_run": self.not_run}
        found = self.finding
        facts |= {"sentence": None if found is None else found.sentence}
        return facts | {"flatters": None if found is None else found.flatters}
