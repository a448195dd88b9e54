"""The report on one model: one HTML file, from the files that `casemate evaluate` wrote, and from nothing else."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from casemate.arrays import UnsoundError, open_safetensors
from casemate.errors import RecordError
from casemate.evaluation.budgets import BUDGETS_IN_WORDS
from casemate.evaluation.intervals import percent
from casemate.evaluation.run_time import seconds_in_words
from casemate.evaluation.verdict import UNTRUSTED, Grade, Number, Verdict
from casemate.files import read_json, write_text
from casemate.provenance import machine_in_words
from casemate.report import evaluation_figures
from casemate.report.advice import steps_after
from casemate.report.charts import Figure, styled
from casemate.report.evaluation_result import ATTEMPT_COLUMNS, EvaluationResult
from casemate.report.filing import filing
from casemate.report.page import template_environment
from casemate.report.undefended import undefended_for
from casemate.tables import Table, is_missing, read_table

_CHANGES = {
    "linf": "may change each pixel by at most eps = {eps}",
    "l2": "may change the image by a Euclidean distance of at most eps = {eps}",
    "l1": "may change the pixels by at most eps = {eps} in sum",
    "l0": "may change at most eps = {eps} values of the image",
}
"""What an attacker may do, by norm, as part of a sentence."""
_SCALE = " on a scale from 0 (black) to 1 (white)"
_NO_VERDICT = "No verdict: the result cannot be trusted"
"""The headline without a grade; the verdict's own words might be taken as said of the model."""
_RAISED = {
    "voids": ("finding voids the number", "findings void the number"),
    "weakens": ("finding weakens it", "findings weaken it"),
    "note": ("note", "notes"),
}
"""What one finding, and several, do to the number."""
_SAME = 0.01
"""Difference of two accuracies of one model below which both need not be stated."""
_PRECISION = {"float32": "float32", "bfloat16": "bfloat16 for gradients, float32 to decide what fools the model"}


def build_evaluation(folder: Path) -> Path:
    """Write report.html into `folder`, from the files there that `casemate evaluate` wrote; return its path.

    These are result.json, the table of examples and, unless the evaluation was written without images,
    adversarial.safetensors. Raises `RecordError` if one of them cannot
    be read, or was written by an incompatible version.
    """
    path = folder / "result.json"
    result = EvaluationResult.from_json(read_json(path, RecordError), str(path))
    table = read_table(folder / "examples", RecordError)
    beside = undefended_for(result.data, result.verdict.number.norm, result.model)
    with styled():
        figures: list[Figure | None] = [evaluation_figures.accuracy_over_eps(result, beside)]
        if result.holds_images:
            figures.append(evaluation_figures.adversarial_examples(result, table, partial(_image, folder)))
    html = (
        template_environment()
        .get_template("evaluation.html.j2")
        .render(
            result=result,
            headline=_headline(result),
            sentences=_sentences(result, table),
            todo=steps_after(result),
            filing=filing(result),
            command=result.evaluate_command(),
            about=_about(result),
            check_words=_check_words(result),
            class_words=_class_words(result),
            attack_words=", ".join(each.name for each in result.attacks),
            colour=result.verdict.colour if result.verdict.grades else "unknown",
            fooled=_fooled(result, table),
            nothing_to_show=_nothing_to_show(result),
            worst_class=_worst_class(result),
            attempts={"head": ATTEMPT_COLUMNS, "rows": result.attempt_rows()},
            record_words=_record_words(result),
            budget_words={**BUDGETS_IN_WORDS, "own": "attacks chosen by the caller"}[result.verdict.number.budget],
            allowed=", ".join(
                f"{percent(accuracy)} at eps {each.number.shown_eps}"
                for accuracy, each in zip(result.proven_accuracy, result.verdicts, strict=True)
            ),
            figures=[figure for figure in figures if figure is not None],
        )
    )
    return write_text(folder / "report.html", html)


def _image(folder: Path, name: str, place: int) -> np.ndarray:
    """The image of the record in `folder` at a position, "clean" or "adversarial". Raises `RecordError`."""
    try:
        return open_safetensors(folder / "adversarial.safetensors")[name].rows(np.array([place]))[0]
    except (UnsoundError, OSError, LookupError) as error:
        raise RecordError(f"cannot read {folder / 'adversarial.safetensors'}: {error}") from error


def _about(result: EvaluationResult) -> list[tuple[str, str]]:
    """The rows (name, value) of the report's table of what was evaluated, with which settings, on which machine."""
    made, number = result.provenance, result.verdict.number
    which = "the first" if result.chosen == "first" else f"{result.chosen}:"
    return [
        ("model", result.model),
        ("SHA-256 of its weights", result.fingerprint),
        ("images", f"{result.data}, {which} {result.images:,}"),
        ("norm and eps", f"{number.norm}, {', '.join(each.number.shown_eps for each in result.verdicts)}"),
        ("budget", number.budget),
        ("randomised", f"yes; the mean of {result.draws} outputs was evaluated" if result.randomised else "no"),
        ("substitute", result.substitute or "none"),
        ("seed", str(result.seed)),
        ("precision", _PRECISION[result.precision]),
        ("passes", f"{result.passes.forward:,} forward, {result.passes.backward:,} backward"),
        ("time", seconds_in_words(result.seconds, result.run_seconds)),
        ("machine", machine_in_words(made)),
        ("software", f"casemate {made['casemate']}, PyTorch {made['libraries']['torch']}, Python {made['python']}"),
    ]


def _headline(result: EvaluationResult) -> str:
    """The grade at the largest eps, then those at smaller ones where they are others."""
    found: dict[tuple[Grade, ...], list[str]] = {}
    for each in reversed(result.verdicts):
        found.setdefault(each.grades, []).append(each.number.shown_eps)
    return ". ".join(_graded(grades, _listed(values[::-1])) for grades, values in found.items())


def _graded(grades: tuple[Grade, ...], eps: str) -> str:
    """The grade at these eps, or the grades between which nothing is decided."""
    match grades:
        case ():
            return _NO_VERDICT
        case (grade,):
            return f"{grade[0].upper()}{grade[1:]} at eps {eps}"
        case _:
            return f"Not decided at eps {eps}: {' or '.join(grades)}"


def _listed(values: Sequence[str]) -> str:
    *first, last = values
    return f"{', '.join(first)} and {last}" if first else last


def _sentences(result: EvaluationResult, table: Table) -> list[str]:
    """What a reader has to know, in the order of importance; no number that cannot be trusted."""
    verdict = result.verdict
    if not verdict.trust.trusted:
        which = "its numbers under attack say" if result.clean_trusted else "its numbers, also without an attack, say"
        return [
            f"The model could not be measured: {which} nothing. Treat it as unprotected until they do.",
            *_singly(result),
            *(f"{each[0].upper()}{each[1:]}." for each in verdict.trust.because),
            *([verdict.trust.unmade.strip()] if verdict.trust.unmade else []),
        ]
    half = _half(result, table) if verdict.fallen else ""
    return [_outcome(result), f"{_meaning(verdict)}{half}", _trust(result)]


def _singly(result: EvaluationResult) -> list[str]:
    """The accuracy without an attack in batches and image by image, where the model is not the same in both."""
    alone, clean = result.clean_singly, result.verdict.number.clean.value
    if result.clean_trusted or alone is None or abs(alone - clean) < _SAME:
        return []
    return [f"In batches it classifies {percent(clean)} of the images correctly, one at a time {percent(alone)}."]


def _outcome(result: EvaluationResult) -> str:
    """One sentence for a reader who knows nothing: how many images, without an attack and under attack."""
    number = result.verdict.number
    robust, clean = number.robust, number.clean
    changed = _CHANGES[number.norm].format(eps=number.shown_eps)
    scale = _SCALE if number.bounds == (0.0, 1.0) and number.norm == "linf" else ""
    return (
        f"The model classifies {round(clean.value * clean.n):,} of {clean.n:,} test images correctly "
        f"({percent(clean.value)}). Where an attacker {changed}{scale}, it still classifies "
        f"{round(robust.value * robust.n):,} correctly ({percent(robust.value)}; 95 % interval "
        f"{percent(robust.low)} to {percent(robust.high)})."
    )


def _meaning(verdict: Verdict) -> str:
    """One sentence that says what the grade means, for a reader who does not know casemate's grades."""
    borders, withstood = verdict.borders, verdict.number.withstood
    broken, weak, robust = (f"{100 * each:g} %" for each in (borders.broken, borders.weak, borders.robust))
    match verdict.grades:
        case (Grade.UNTRAINED,):
            return "That is no better than guessing, so the model is untrained, or the labels or images do not fit it."
        case (Grade.BROKEN,) if withstood is not None and withstood.high < borders.broken:
            return f"Broken: of the images that it gets right, fewer than {broken} withstand the attacks."
        case (Grade.BROKEN,):
            return "Broken: under attack it does no better than guessing."
        case (Grade.WEAK,):
            return f"Weak: of the images that it gets right, fewer than {weak} withstand the attacks."
        case (Grade.PARTLY_ROBUST,):
            return f"Partly robust: of the images that it gets right, {weak} to {robust} withstand the attacks."
        case (Grade.ROBUST,):
            return f"Robust as far as tested: of the images that it gets right, {robust} or more withstand the attacks."
        case (Grade.NOT_BROKEN_QUICKLY | Grade.NOT_BROKEN_BY_THESE,):
            return "So few attacks can show that a model is broken, but not that it is robust."
        case _:
            return _undecided(verdict)


def _undecided(verdict: Verdict) -> str:
    """Which border of the grades the interval crosses."""
    withstood = verdict.number.withstood
    sentence = "Too few images were attacked to decide between these grades"
    if withstood is None or not verdict.crossed:
        return f"{sentence}."
    border = _listed([f"{100 * each:g} %" for each in verdict.crossed])
    return (
        f"{sentence}: of the images that it gets right, {percent(withstood.low)} to {percent(withstood.high)} "
        f"withstand the attacks (95 % interval), and the border lies at {border}."
    )


def _trust(result: EvaluationResult) -> str:
    """Whether the number can be trusted, with what the checks found that makes it less certain."""
    trust = result.verdict.trust
    doubts = [each.finding for each in result.checks if each.check in trust.weakened_by and each.finding is not None]
    if not doubts:
        answer, _, rest = trust.sentence.partition(": ")
        return f"The number can be trusted: {rest}" if answer == "Yes" else trust.sentence
    found = "; ".join(each.sentence.split(". ")[0].rstrip(".").replace("`", "") for each in doubts)  # without advice
    return f"The number may be too high: {found}.{trust.unmade}"


def _record_words(result: EvaluationResult) -> str:
    """How many adversarial examples others can check."""
    if not result.proven:
        return "no adversarial example that anybody can verify"
    return f"{result.proven:,} adversarial example{'s' * (result.proven > 1)} that anybody can verify"


def _check_words(result: EvaluationResult) -> str:
    """How many checks were raised, by what that means, and how many passed, in short."""
    states = Counter(each.state for each in result.checks)
    raised = [f"{states[each]} {words[states[each] > 1]}" for each, words in _RAISED.items() if states[each]]
    return ", ".join([*raised, result.check_counts])


def _fooled(result: EvaluationResult, table: Table) -> str:
    """On how many of the images that the model gets right an attack fooled it; nothing if that is not to be trusted."""
    number = result.verdict.number
    right, left = (round(each.value * each.n) for each in (number.clean, number.robust))
    if not result.verdict.trust.trusted:
        return ""
    return (
        f"Attacks up to eps {number.shown_eps} made the model wrong on {right - left:,} of the {right:,} images that "
        f"it gets right.{_half(result, table)}"
    )


def _half(result: EvaluationResult, table: Table) -> str:
    """The change that was enough for half of the fooled images, as a sentence that follows another one; or "".

    Attacks within eps alone go as far as they may, and say nothing about smaller changes.
    """
    distances = np.asarray(table["distance"][~is_missing(table["first_success"])], dtype=float)
    if not len(distances) or not any(each.unlimited for each in result.attempts):
        return ""
    median = _in_levels(float(np.median(distances)), result.verdict.number)
    return f" For half of the fooled images a change of {median} was enough."


def _in_levels(radius: float, number: Number) -> str:
    """A radius, for pixels in [0, 1] and Linf also in the grey levels of an image file."""
    if number.norm != "linf" or number.bounds != (0.0, 1.0):
        return f"{radius:.2g} ({number.norm})"
    return f"{radius:.2g} a pixel ({255 * radius:.2g} of 255 grey levels)"


def _nothing_to_show(result: EvaluationResult) -> str:
    """Why there are no pictures of adversarial images."""
    number = result.verdict.number
    if not result.holds_images:
        return "This evaluation was written without images."
    if number.robust.value < number.clean.value:
        return "The model's answers changed with no change of the image, so no picture shows what fooled it."
    return "No image was fooled."


def _worst_class(result: EvaluationResult) -> str:
    """The class that withstands least; nothing where all are alike, or where the numbers are not to be trusted."""
    worst, best = result.per_class[0], result.per_class[-1]
    if not result.verdict.trust.trusted or worst.robust.value == best.robust.value:
        return ""
    eps = result.verdict.number.shown_eps
    return f"Least robust class: {worst.name}, {worst.robust:n} under attack at eps {eps}."


def _class_words(result: EvaluationResult) -> str:
    """The least and the most robust class."""
    if not result.verdict.trust.trusted:
        return UNTRUSTED
    worst, best = result.per_class[0], result.per_class[-1]
    if worst.robust.value == best.robust.value:
        return f"{percent(worst.robust.value)} in every class under attack"
    return (
        f"from {percent(worst.robust.value)} ({worst.name}) to {percent(best.robust.value)} ({best.name}) under attack"
    )
