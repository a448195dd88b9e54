"""The checks that a continuous integration server is shown of a comparison: each accuracy, and if both are trusted."""

from pathlib import Path

from casemate.evaluation.comparison import Paired, Regression, worse_in_words
from casemate.report.ci.checks import CiCheck, CiRule, CiRun, State
from casemate.report.ci.evaluation import NOT_TO_BE_TRUSTED
from casemate.report.comparison import CLEAN, FinishedComparison

WORSE_THAN_BEFORE = CiRule(
    name="worse-than-before",
    title="The model is worse than the one before",
    help=(
        "On the same images an accuracy of the second model is below that of the first: beyond chance, or with "
        "--margin not shown to be less than the margin below it. Look at the images that got worse (casemate compare "
        "without --junit and --sarif lists them), keep the model before, or evaluate both on more images if the "
        "interval of the difference is wide."
    ),
)


def comparison_run(found: FinishedComparison, gate: Regression | None, *, file: Path | None) -> CiRun:
    """The run of a comparison: each accuracy that both models have, and whether the numbers can be trusted.

    An accuracy fails if the gate finds by it that B is worse, and is skipped if the gate does not judge it. All are
    skipped if a number is not to be trusted: then nothing follows, and the check of that fails, also without a gate.

    Args:
        found: the comparison of A, the model before, with B.
        gate: whether B is worse, from `FinishedComparison.regression`; None if that is not judged.
        file: the file of model B, or that of the code that builds it.
    """
    number = found.b.result.verdict.number
    identities = {CLEAN: "clean"} | {
        found.name_of(each): f"{number.norm} {float(each.eps or 0.0):.9g}" for each in found.at
    }
    trust = CiCheck(
        name="both models can be trusted",
        rule=NOT_TO_BE_TRUSTED,
        state="passed" if found.trusted else "failed",
        message=found.distrust,
        identity="comparison",
    )
    return CiRun(
        command="casemate compare",
        subject=found.b.result.model,
        file=file,
        checks=(
            *(_check(name, each, identities[name], found, gate) for name, each in found.compared().items()),
            trust,
        ),
        exit_code=3 if gate is not None and gate.worse else 0,
        properties={
            "before": found.a.result.model,
            "data": found.b.result.data,
            "images": str(found.n),
            "norm": number.norm,
            "budget": number.budget,
            "seed": str(found.b.result.seed),
        },
    )


def _check(name: str, compared: Paired, identity: str, found: FinishedComparison, gate: Regression | None) -> CiCheck:
    """The check of one accuracy."""
    words = f"{compared.drop[0].upper()}{compared.drop[1:]}"
    state: State = "passed"
    if not found.trusted:
        state, words = "skipped", f"{words}. Nothing follows, since a number is not to be trusted"
    elif gate is not None and name in gate.failing:
        state, words = "failed", f"{worse_in_words(('A', 'B'), gate.margin)}: {compared.drop}"
    elif gate is not None and name not in gate.judged:
        state, words = "skipped", f"Not judged (see --worse-in). {words}"
    return CiCheck(name=name, rule=WORSE_THAN_BEFORE, state=state, message=words, identity=identity)
