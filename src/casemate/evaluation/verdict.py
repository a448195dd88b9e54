"""The verdict on a model at one eps, by stated rules from the robust accuracy and the findings.

In order: a finding that voids and does not merely flatter: not to be trusted. Fewer than half of the images that are
right without an attack stay right, or no more than guessing gets right: broken (whatever flattered the number, the
truth is lower still). Any other finding that voids: not to be trusted. Else: robust as far as tested. Checks that
failed are named with every verdict.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

from casemate.evaluation.findings import Finding, Severity
from casemate.evaluation.intervals import Estimate

BROKEN = 0.5
"""Share of the correctly classified images of which more must stay right for a model not to be broken."""

Word = Literal["robust", "broken", "not to be trusted"]


@final
@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What to think of a model at one eps."""

    eps: float
    word: Word
    robust: Estimate
    """Robust accuracy: an upper bound on the truth, as far as attacks can tell."""
    sentence: str

    def as_json(self) -> dict[str, Any]:
        """All fields, for a result file."""
        return {
            "eps": self.eps,
            "verdict": self.word,
            "robust_accuracy": self.robust.as_json(),
            "sentence": self.sentence,
        }


def verdict_on(eps: float, clean: Estimate, robust: Estimate, findings: Sequence[Finding], *, classes: int) -> Verdict:
    """Judge a model that tells so many classes apart by the rules above."""
    voids = [each for each in findings if each.severity is Severity.VOIDS]
    wrong = [each for each in voids if not each.flatters]
    failed = _failed(findings)
    left = f"{100 * robust.value:.1f} % ({100 * robust.low:.1f} to {100 * robust.high:.1f}, n = {robust.n:,})"
    if wrong:
        return Verdict(eps=eps, word="not to be trusted", robust=robust, sentence=_untrusted(wrong) + failed)
    kept = robust.value / clean.value if clean.value else 0.0
    if kept < BROKEN or robust.value <= 1 / classes:
        why = f"{100 * kept:.0f} % of those right without an attack" if kept < BROKEN else "no more than by guessing"
        return Verdict(
            eps=eps, word="broken", robust=robust, sentence=f"Broken at eps {eps:g}: {left} stay right, {why}.{failed}"
        )
    if voids:
        return Verdict(eps=eps, word="not to be trusted", robust=robust, sentence=_untrusted(voids) + failed)
    weak = [each.check for each in findings if each.severity is Severity.WEAKENS and not each.failed]
    but = f" The number may be too high: see {', '.join(weak)}." if weak else ""
    return Verdict(
        eps=eps,
        word="robust",
        robust=robust,
        sentence=f"Robust at eps {eps:g} as far as tested: {left} stay right under every attack tried.{but}{failed}",
    )


def _failed(findings: Sequence[Finding]) -> str:
    """The checks that could not be made."""
    names = [each.check for each in findings if each.failed]
    if not names:
        return ""
    return f" {len(names)} check{'s' if len(names) > 1 else ''} could not be made: {', '.join(names)}."


def _untrusted(findings: Sequence[Finding]) -> str:
    seen = "; and ".join(each.sentence.split(". ")[0] for each in findings)  # what to do is told with the findings
    return f"This evaluation is not to be trusted, because {seen}."
