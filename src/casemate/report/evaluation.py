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
from casemate.evaluation.verdict import UNTRUSTED, Grade, Verdict
from casemate.files import read_json, write_text
from casemate.provenance import machine_in_words
from casemate.report import evaluation_figures
from casemate.report.advice import steps_after
from casemate.report.charts import Figure, styled
from casemate.report.evaluation_result import ATTEMPT_COLUMNS, EvaluationResult
from casemate.report.filing import filing
from casemate.report.page import template_environment
from casemate.report.undefended import undefended_for
from casemate.tables import read_table

_CHANGES = {
    "linf": "may change each pixel by at most {eps}",
    "l2": "may change the image by a Euclidean distance of at most {eps}",
    "l1": "may change the pixels by at most {eps} in sum",
    "l0": "may change at most {eps} values of the image",
}
"""What an attacker may do, by norm, as part of a sentence."""
_SAID = {UNTRUSTED: "No verdict: the result cannot be trusted"}
"""What the headline says of a word of the verdict, if that alone might be misread as said of the model."""
_RAISED = {"voids": "voiding", "weakens": "weakening", "note": "noted"}
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
            sentences=_sentences(result),
            todo=steps_after(result),
            filing=filing(result),
            command=result.evaluate_command(),
            about=_about(result),
            check_words=_check_words(result),
            class_words=_class_words(result),
            attack_words=f"{len(result.attacks)}, with {result.passes.forward + result.passes.backward:,} passes",
            attempts={"head": ATTEMPT_COLUMNS, "rows": result.attempt_rows()},
            attacks=[(each.name, each.words, str(each.first_to_fool)) for each in result.attacks],
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
    found: dict[str, list[str]] = {}
    for each in reversed(result.verdicts):
        found.setdefault(each.word, []).append(each.number.shown_eps)
    words = "; ".join(f"{_SAID.get(word, word)} at eps {_listed(values[::-1])}" for word, values in found.items())
    return words[0].upper() + words[1:]


def _listed(values: Sequence[str]) -> str:
    *first, last = values
    return f"{', '.join(first)} and {last}" if first else last


def _sentences(result: EvaluationResult) -> list[str]:
    """What a reader has to know, in the order of importance: a number that cannot be trusted comes last."""
    verdict = result.verdict
    if not verdict.trust.trusted:
        return [_trust(verdict), _outcome(result)]
    return [_outcome(result), _meaning(verdict), _trust(verdict)]


def _outcome(result: EvaluationResult) -> str:
    """One sentence for a reader who knows nothing: how many images, without an attack and under attack."""
    number = result.verdict.number
    robust, clean = number.robust, number.clean
    changed = _CHANGES[number.norm].format(eps=number.shown_eps)
    unused = "" if result.verdict.trust.trusted else " This number is not to be used."
    return (
        f"The model classifies {round(clean.value * clean.n):,} of {clean.n:,} test images correctly "
        f"({percent(clean.value)}). Where an attacker {changed}, it still classifies "
        f"{round(robust.value * robust.n):,} correctly ({percent(robust.value)}; 95 % interval "
        f"{percent(robust.low)} to {percent(robust.high)}).{unused}"
    )


def _meaning(verdict: Verdict) -> str:
    """One sentence that says what the grade means, for a reader who does not know casemate's grades."""
    borders = verdict.borders
    broken, weak, robust = (f"{100 * each:g} %" for each in (borders.broken, borders.weak, borders.robust))
    match verdict.grades:
        case (Grade.UNTRAINED,):
            return "That is no better than guessing, so the model is untrained, or the labels or images do not fit it."
        case (Grade.BROKEN,):
            return f"Broken means: fewer than {broken} of the images it gets right withstand, or as few as by guessing."
        case (Grade.WEAK,):
            return f"Weak means: of the images that it gets right, fewer than {weak} withstand."
        case (Grade.PARTLY_ROBUST,):
            return f"Partly robust means: of the images that it gets right, {weak} to {robust} withstand."
        case (Grade.ROBUST,):
            return f"Robust means: of the images that it gets right, {robust} or more withstand what was tried."
        case (Grade.NOT_BROKEN_QUICKLY | Grade.NOT_BROKEN_BY_THESE,):
            return "So few attacks can show that a model is broken, but not that it is robust."
        case _:
            return "Too few images were attacked to decide between these grades."


def _trust(verdict: Verdict) -> str:
    """The sentence on trust as an answer that needs no question before it."""
    answer, _, rest = verdict.trust.sentence.partition(": ")
    return {"Yes": f"The number can be trusted: {rest}", "No": f"The number is {rest}"}.get(
        answer, verdict.trust.sentence
    )


def _check_words(result: EvaluationResult) -> str:
    """How many checks were raised, by what that means, and how many passed, in short."""
    states = Counter(each.state for each in result.checks)
    raised = [f"{states[state]} {words}" for state, words in _RAISED.items() if states[state]]
    return ", ".join([*raised, result.check_counts])


def _class_words(result: EvaluationResult) -> str:
    """The least and the most robust class."""
    worst, best = result.per_class[0], result.per_class[-1]
    return (
        f"from {percent(worst.robust.value)} ({worst.name}) to {percent(best.robust.value)} ({best.name}) under attack"
    )
