"""What to do after an evaluation, by fixed rules from its verdict: a sentence each, and its command if there is one."""

from typing import NamedTuple

import numpy as np

from casemate.evaluation.verdict import Grade, Verdict
from casemate.intervals import share
from casemate.report.evaluation_result import EvaluationResult

_MORE_IMAGES = 4
"""Times as many images halve the width of an interval."""
_MOST_IMAGES = 50
"""Times as many images that are still advised to decide a grade."""


class NextStep(NamedTuple):
    """One thing to do."""

    words: str
    command: str = ""
    """The command that does it; "" if there is none."""
    place: str = ""
    """The part of the report to which the words lead, such as "check-randomized"; "" if there is none."""

    @classmethod
    def by(cls, words: str, command: str) -> "NextStep":
        """A step with its command after the words, or the words alone where there is no command."""
        return cls(f"{words}:" if command else f"{words}.", command)


def steps_after(result: EvaluationResult) -> list[NextStep]:
    """What the reader of an evaluation should do, the most urgent first."""
    verdict = result.verdict
    eps = verdict.number.shown_eps
    if not verdict.trust.trusted:
        return [
            NextStep(
                "Do not use the number. See what the checks that void it advise, and correct that in the model or in "
                "the call.",
                place="checks",
            ),
            NextStep.by("Once that is corrected, evaluate again", result.evaluate_command()),
        ]
    if Grade.UNTRAINED in verdict.grades:
        return [
            NextStep(
                "Check that the weights were loaded (--weights), the labels, the range and the normalisation of the "
                "images, and the order of the classes: the model does no better than guessing, so nothing can be said "
                "of its robustness."
            )
        ]
    found: list[NextStep] = []
    for name in verdict.trust.weakened_by:
        words = f"The number may be too high: see what the check “{name}” found and advises."
        found.append(NextStep(words, place=f"check-{name}"))
    if verdict.fallen:
        found.append(NextStep(f"Do not rely on this model where somebody may alter its images by eps {eps}."))
    quick = [each for each in result.verdicts if Grade.NOT_BROKEN_QUICKLY in each.grades]
    if quick:
        where = "" if verdict in quick else f" at eps {' and '.join(each.number.shown_eps for each in quick)}"
        words = f"This was a first look{where}. Evaluate with the budget standard before you quote a number"
        found.append(NextStep.by(words, result.evaluate_command(budget="standard")))
    elif not verdict.fallen:
        words = "Quote the number with its eps, norm, budget and interval. Other attacks may fool more images."
        found.append(NextStep(words))
    if verdict.undecided:
        found.append(_more_images(result))
    if _is_robust(verdict):
        command = result.evaluate_command()
        words = f"Repeat it before each release{'; the command fails where the accuracy falls' if command else ''}"
        least = f" --fail-under {verdict.number.robust.low:.2f}"
        found.append(NextStep.by(words, f"{command}{least}" if command else ""))
    elif not verdict.mostly_robust and (command := result.harden_command()):
        found.append(NextStep("To make the model more robust, and see what that costs:", command))
    return found


def _more_images(result: EvaluationResult) -> NextStep:
    """How many images would decide the grade, if they are withstood as often as those that were attacked."""
    withstood, borders = result.verdict.number.withstood, result.verdict.borders
    times, then = _MORE_IMAGES, ""
    if withstood is not None and len(result.verdict.grades) > 1:  # else guessing decides, not the borders
        then = ", if as large a share of them withstands"
        for times in range(2, _MOST_IMAGES + 1):
            count = times * withstood.n
            interval = share(np.arange(count) < round(withstood.value * count))
            if len(borders.reached(interval.low, interval.high)) == 1:
                break
        else:
            words = "The share that withstands lies on the border of two grades: quote both, or the number alone."
            return NextStep(words)
    images = times * result.images
    return NextStep.by(f"About {images:,} images would decide the grade{then}", result.evaluate_command(images=images))


def _is_robust(verdict: Verdict) -> bool:
    return verdict.grades == (Grade.ROBUST,)
