"""The result of a check: a number, a threshold, and how much trust in the evaluation it costs.

Every check is described in `docs/findings.md` under its name.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, final


class Severity(StrEnum):
    """How much a finding lowers the trust in the robust accuracy, in ascending order."""

    NOTE = "note"
    """The finding is good to know; the robust accuracy can be trusted."""
    WEAKENS = "weakens"
    """The robust accuracy may be a little too high: more or other attacks should be tried."""
    VOIDS = "voids"
    """The robust accuracy says nothing about the model."""


@final
@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check found when it was raised: a reason not to trust the robust accuracy, or to know about it."""

    check: str
    severity: Severity
    value: float | None
    """The value that the check measured; None if the check failed."""
    threshold: float | None
    """The lowest value above which the check is raised; None if the check failed."""
    sentence: str
    """Sentences that say what was seen, what was expected and what to do."""
    failed: bool = False
    """Whether the check ended in an error, so that the problem it looks for may be present."""
    flatters: bool = True
    """Whether the problem can only make the model look more robust than it is; if so, one that looks broken is
    broken."""

    def __str__(self) -> str:
        return f"{self.severity} {self.check}: {self.sentence.removesuffix('.')}."

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
    """The value that the check measured; None if the check was not run or failed."""
    threshold: float | None = None
    """The lowest value above which the check is raised; None if the check was not run or failed."""
    excuse: str | None = None
    """Why the check was not raised although the value is above the threshold; None otherwise."""
    not_run: str | None = None
    """Why the check was not run; None if it was."""

    @property
    def state(self) -> str:
        """The outcome: "not run", "passed", or the severity of its finding ("note", "weakens", "voids")."""
        if self.not_run is not None:
            return "not run"
        return "passed" if self.finding is None else str(self.finding.severity)

    def as_json(self) -> dict[str, Any]:
        """The state, the numbers and the sentence, for a result file."""
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

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Checked":
        """The check whose `as_json` returned `found`. Raises `KeyError`, `TypeError` or `ValueError` for other JSON."""
        numbers = {name: found[name] for name in ("check", "value", "threshold")}
        finding = None
        if found["sentence"] is not None:
            finding = Finding(
                **numbers,
                severity=Severity(found["state"]),
                sentence=found["sentence"],
                failed=found["value"] is None,
                flatters=found["flatters"],
            )
        return cls(**numbers, title=found["title"], finding=finding, excuse=found["excuse"], not_run=found["not_run"])
