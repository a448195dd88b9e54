"""The robust accuracy that a model must reach, and what is compared with it."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, final

from casemate.evaluation import Verdict

Compared = Literal["lower", "estimate"]


class GateResult(NamedTuple):
    """Whether a verdict passes a gate, and the sentence that says what was compared."""

    passes: bool
    sentence: str


@final
@dataclass(frozen=True, kw_only=True)
class Gate:
    """The least robust accuracy."""

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
        robust, lower = verdict.number.robust, self.compares == "lower"
        compared = robust.low if lower else robust.value
        passes = compared >= self.least
        what = "the lower end of the 95 % interval of robust accuracy" if lower else "robust accuracy"
        return GateResult(
            passes,
            f"{what} at eps {verdict.number.shown_eps}, {compared:.4g}, is {'at least' if passes else 'below'} "
            f"{self.text} (estimate {robust.value:.4g}, n = {robust.n:,})",
        )
