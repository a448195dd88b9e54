"""The result of a check: a number, a threshold, and how much trust in the evaluation it costs.

Every check is described in `docs/findings.md` under its name.
"""

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, final


class Severity(StrEnum):
    """How much trust in the robust accuracy a finding costs, in ascending order."""

    NOTE = "note"
    """Good to know; the number stands."""
    WEAKENS = "weakens"
    """The number may be a little too high: try more."""
    VOIDS = "voids"
    """The number says nothing."""


@final
@dataclass(frozen=True, kw_only=True)
class Finding:
    """A reason not to trust the robust accuracy."""

    check: str
    severity: Severity
    value: float | None
    """The measurement; None if the check failed."""
    threshold: float | None
    """The value above which the check is raised; None if the check failed."""
    sentence: str
    """What was seen, what was expected, what to do."""
    failed: bool = False
    """The check ended in an error, so that the problem it looks for may be present."""
    flatters: bool = True
    """Whether the problem can only make the model look more robust than it is, so that a broken model is broken."""

    def as_json(self) -> dict[str, Any]:
        """All fields, for a result file."""
        return asdict(self)


@final
@dataclass(frozen=True, kw_only=True)
class Checked:
    """The result of one check of an evaluation: passed, raised, or not run."""

    check: str
    title: str
    finding: Finding | None = None
    value: float | None = None
    """The measurement; None if the check was not run or failed."""
    threshold: float | None = None
    """The value above which the check is raised."""
    excuse: str | None = None
    """Why the check was not raised although the value is above the threshold; None otherwise."""
    not_run: str | None = None
    """Why the check was not run; None if it was."""

    @property
    def state(self) -> str:
        """`not run`, `passed`, or the severity of the finding."""
        if self.not_run is not None:
            return "not run"
        return "passed" if self.finding is None else str(self.finding.severity)

    def as_json(self) -> dict[str, Any]:
        """The state and the numbers."""
        found = self.finding
        return {
            "check": self.check,
            "title": self.title,
            "state": self.state,
            "value": self.value,
            "threshold": self.threshold,
            "excuse": self.excuse,
            "not_run": self.not_run,
            "sentence": None if found is None else found.sentence,
            "flatters": None if found is None else found.flatters,
        }
