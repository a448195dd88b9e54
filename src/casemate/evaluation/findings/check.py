"""How a check is written: a function from the evidence to a measurement, under a name."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from casemate.evaluation.findings.context import CheckContext
from casemate.evaluation.findings.finding import Checked, Finding, Severity


@final
@dataclass(frozen=True)
class Measured:
    """What a check measured, and how bad that is."""

    value: float
    threshold: float
    severity: Severity | None
    """None: nothing to be said."""
    sentence: str
    """What was seen, what was expected, what to do; used only if there is a severity."""
    flatters: bool = True
    """See `Finding.flatters`."""
    excuse: str = "within chance, by the paired test"
    """Why nothing is to be said although the value is above the threshold, where that is so."""


@final
@dataclass(frozen=True)
class NotRun:
    """Why a check has nothing to measure."""

    why: str


@final
@dataclass(frozen=True)
class Check:
    """A named check."""

    name: str
    title: str
    """What holds if it passes."""
    measure: Callable[[CheckContext], Measured | NotRun]
    thorough: bool
    """Takes minutes, and is run only where asked for."""

    @property
    def about(self) -> str:
        """Why it matters, in a sentence."""
        return inspect.cleandoc(self.measure.__doc__ or "")

    def __call__(self, context: CheckContext) -> Checked:
        """Measure, and judge by the threshold."""
        try:
            found = self.measure(context)
        except Exception as error:  # hours of attacks are not lost to a model that one check cannot handle
            return self.failed(f"it failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        if isinstance(found, NotRun):
            return self.skipped(found.why)
        if not math.isfinite(found.value):
            return self.failed("what it measures is not a number here")
        finding = None
        if found.severity is not None:
            finding = Finding(
                check=self.name,
                severity=found.severity,
                value=found.value,
                threshold=found.threshold,
                sentence=found.sentence,
                flatters=found.flatters,
            )
        return Checked(
            check=self.name,
            title=self.title,
            finding=finding,
            value=found.value,
            threshold=found.threshold,
            excuse=found.excuse if finding is None and found.value > found.threshold else None,
        )

    def skipped(self, why: str) -> Checked:
        """What is said of it if there is nothing for it to measure, or nobody asked for it."""
        return Checked(check=self.name, title=self.title, not_run=why)

    def failed(self, why: str) -> Checked:
        """What is said of it if it ends in an error: a finding, since no model must get round a check by failing."""
        finding = Finding(
            check=self.name,
            severity=Severity.WEAKENS,
            value=None,
            threshold=None,
            sentence=f"this check could not be made: {why}. What it looks for may be there all the same",
            failed=True,
        )
        return Checked(check=self.name, title=self.title, finding=finding)


def check(
    name: str, title: str, *, thorough: bool = False
) -> Callable[[Callable[[CheckContext], Measured | NotRun]], Check]:
    """Make a check of a function that measures."""
    return lambda measure: Check(name, title, measure, thorough)
