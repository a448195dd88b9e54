"""What to do after an evaluation, by fixed rules from its verdict: a sentence each, and its command if there is one."""

from typing import NamedTuple

from casemate.evaluation.verdict import Grade, Verdict
from casemate.report.evaluation_result import EvaluationResult

_MORE_IMAGES = 4
"""Times as many images halve the width of an interval."""


class NextStep(NamedTuple):
    """One thing to do."""

    words: str
    command: str = ""
    """The command that does it; "" if there is none."""


def steps_after(result: EvaluationResult) -> list[NextStep]:
    """What the reader of an evaluation should do, the most urgent first."""
    verdict = result.verdict
    eps = verdict.number.shown_eps
    if not verdict.trust.trusted:
        return [
            NextStep(
                "Do not use the number. “Can the number be trusted?” below says what to correct in the model or in the "
                "call; once that is done, evaluate again:",
                result.evaluate_command(),
            )
        ]
    if Grade.UNTRAINED in verdict.grades:
        return [
            NextStep(
                "Check the labels, the range and the normalisation of the images, and the order of the classes: the "
                "model does no better than guessing, so nothing can be said of its robustness."
            )
        ]
    found: list[NextStep] = []
    if checks := ", ".join(verdict.trust.weakened_by):
        found.append(
            NextStep(
                f"See “{checks}” among the checks below, and do what is advised there: the number may be too high."
            )
        )
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
        count = _MORE_IMAGES * result.images
        found.append(NextStep("More images would decide the grade:", result.evaluate_command(images=count)))
    if _is_robust(verdict):
        words = "Repeat it before each release; the command fails where the accuracy falls:"
        least = f"--fail-under {verdict.number.robust.low:.2f}"
        found.append(NextStep(words, f"{result.evaluate_command()} {least}" if result.from_command_line else ""))
    elif not verdict.mostly_robust and (command := result.harden_command()):
        found.append(NextStep("To make the model more robust, and see what that costs:", command))
    return found


def _is_robust(verdict: Verdict) -> bool:
    return verdict.grades == (Grade.ROBUST,)
