"""What to do after an evaluation, by fixed rules from its verdict: a sentence each, and its command if there is one."""

from typing import NamedTuple

from scipy import stats

from casemate.evaluation.verdict import Grade, Verdict
from casemate.intervals import CONFIDENCE
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
            NextStep("Once that is corrected, evaluate again:", result.evaluate_command()),
        ]
    if Grade.UNTRAINED in verdict.grades:
        return [
            NextStep(
                "Check the labels, the range and the normalisation of the images, and the order of the classes: the "
                "model does no better than guessing, so nothing can be said of its robustness."
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
        words = f"This was a first look{where}. Before you quote a number:"
        found.append(NextStep(words, result.evaluate_command(budget="standard")))
    elif not verdict.fallen:
        words = "Quote the number with its eps, norm, budget and interval. Other attacks may fool more images."
        found.append(NextStep(words))
    if verdict.undecided:
        found.append(_more_images(result))
    if _is_robust(verdict):
        words = "Repeat it before each release; the command fails where the accuracy falls:"
        least = f"--fail-under {verdict.number.robust.low:.2f}"
        found.append(NextStep(words, f"{result.evaluate_command()} {least}" if result.from_command_line else ""))
    elif not verdict.mostly_robust and (command := result.harden_command()):
        found.append(NextStep("To make the model more robust, and see what that costs:", command))
    return found


def _more_images(result: EvaluationResult) -> NextStep:
    """How many images would decide the grade, if they are withstood as often as those that were attacked."""
    withstood, borders = result.verdict.number.withstood, result.verdict.borders
    if withstood is None or len(result.verdict.grades) == 1:  # guessing decides, not the borders
        return NextStep(
            "More images would decide the grade:", result.evaluate_command(images=_MORE_IMAGES * result.images)
        )
    for times in range(2, _MOST_IMAGES + 1):
        count = times * withstood.n
        interval = stats.binomtest(round(withstood.value * count), count).proportion_ci(CONFIDENCE, method="wilson")
        if len(borders.reached(interval.low, interval.high)) == 1:
            words = "This number of images would decide the grade, if as large a share of them withstands:"
            return NextStep(words, result.evaluate_command(images=times * result.images))
    return NextStep("The share that withstands lies on the border of two grades: quote both, or the number alone.")


def _is_robust(verdict: Verdict) -> bool:
    return verdict.grades == (Grade.ROBUST,)
