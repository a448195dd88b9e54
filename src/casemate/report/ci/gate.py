"""The accuracy that a model must reach, and what is compared with it."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, final

from casemate.evaluation import Verdict
from casemate.intervals import Estimate

Compared = Literal["lower", "estimate"]


class GateResult(NamedTuple):
    """Whether a verdict passes a gate, and the sentence that says what was compared."""

    passes: bool
    sentence: str


@final
@dataclass(frozen=True, kw_only=True)
class Gate:
    """The least accuracy."""

    least: float
    """A share from 0 to 1."""
    text: str
    """The same as the user wrote it, such as "60%"."""
    compares: Compared = "lower"
    """What is compared with it: the lower end of the 95 % interval, or the estimate itself."""

    def judge(self, verdict: Verdict) -> GateResult:
        """Compare the robust accuracy at the verdict's eps; one that is not to be trusted does not pass."""
        if not verdict.trust.trusted:
            return GateResult(False, f"--fail-under {self.text}: {verdict.sentence}")
        return self.compare("robust accuracy", verdict.number.robust, verdict.number.shown_eps)

    def compare(self, name: str, number: Estimate, eps: str) -> GateResult:
        """Compare the accuracy `name` at an eps."""
        lower = self.compares == "lower"
        compared = number.low if lower else number.value
        passes = compared >= self.least
        what = f"the lower end of the 95 % interval of {name}" if lower else name
        return GateResult(
            passes,
            f"{what} at eps {eps}, {compared:.4g}, is {'at least' if passes else 'below'} "
            f"{self.text} (estimate {number.value:.4g}, n = {number.n:,})",
        )
