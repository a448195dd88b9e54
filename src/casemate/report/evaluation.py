"""The report on one model: one HTML file, from the files that `casemate evaluate` wrote, and from nothing else."""

from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np

from casemate._version import __version__
from casemate.arrays import UnsoundError, open_safetensors
from casemate.errors import RecordError
from casemate.evaluation.budgets import BUDGETS_IN_WORDS
from casemate.evaluation.intervals import percent
from casemate.evaluation.run_time import seconds_in_words
from casemate.evaluation.verdict import UNTRUSTED
from casemate.files import read_json, write_text
from casemate.provenance import machine_in_words
from casemate.report import evaluation_figures
from casemate.report.charts import Figure, styled
from casemate.report.evaluation_result import ATTEMPT_COLUMNS, CLASS_COLUMNS, EvaluationResult
from casemate.report.page import template_environment
from casemate.tables import read_table

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
    with styled():
        figures: list[Figure | None] = [
            evaluation_figures.accuracy_over_eps(result),
            evaluation_figures.accuracy_per_class(result),
        ]
        if result.holds_images:
            figures.append(evaluation_figures.adversarial_examples(result, table, partial(_image, folder)))
    html = (
        template_environment()
        .get_template("evaluation.html.j2")
        .render(
            result=result,
            about=_about(result),
            cards=_cards(result),
            classes={"head": CLASS_COLUMNS, "rows": result.class_rows()},
            attempts={"head": ATTEMPT_COLUMNS, "rows": result.attempt_rows()},
            attacks=[(each.name, each.words, str(each.first_to_fool)) for each in result.attacks],
            budget_words={**BUDGETS_IN_WORDS, "own": "attacks chosen by the caller"}[result.verdict.number.budget],
            allowed=", ".join(
                f"{percent(accuracy)} at eps {each.number.shown_eps}"
                for accuracy, each in zip(result.proven_accuracy, result.verdicts, strict=True)
            ),
            figures=[figure for figure in figures if figure is not None],
            version=__version__,
            written=datetime.now(UTC).isoformat(timespec="minutes"),
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


def _cards(result: EvaluationResult) -> list[tuple[str, str, str]]:
    """The accuracies at the top of the page, clean and at each eps, as texts: (what it is, value, interval)."""
    found = [("accuracy without an attack", result.verdict.number.clean)]
    for each in result.verdicts:
        doubt = "" if each.trust.trusted else f" ({UNTRUSTED})"
        found.append((f"robust accuracy, eps {each.number.shown_eps}{doubt}", each.number.robust))
    return [
        (words, percent(each.value), f"95 % interval {percent(each.low)} to {percent(each.high)}, n = {each.n:,}")
        for words, each in found
    ]
