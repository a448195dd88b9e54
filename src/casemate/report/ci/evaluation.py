"""The checks that a continuous integration server is shown of an evaluation, from its stored result alone."""

from collections.abc import Iterator
from pathlib import Path

from casemate.evaluation import Checked, Verdict
from casemate.evaluation.findings import CHECKS
from casemate.report.ci.checks import CiCheck, CiRule, CiRun, Level, State
from casemate.report.ci.gate import Gate
from casemate.report.evaluation_result import EvaluationResult

NOT_ROBUST_ENOUGH = CiRule(
    name="not-robust-enough",
    title="The model is not robust enough",
    help=(
        "The robust accuracy, or the lower end of its 95 % interval, lies below the least one that --fail-under "
        "states. Train the model with a defence (casemate harden), evaluate it on more images if the interval is wide, "
        "or state a smaller least accuracy or eps."
    ),
)
NOT_TO_BE_TRUSTED = CiRule(
    name="not-to-be-trusted",
    title="The robust accuracy is not to be trusted",
    help=(
        "A check found that the robust accuracy says nothing about the model, for instance because the attacks did not "
        "get its gradient. The result of that check says what to do; then evaluate again."
    ),
)
CLEAN_ACCURACY = CiRule(
    name="clean-accuracy",
    title="The accuracy without an attack is not known",
    help="Share of all images that the model classifies correctly without an attack.",
)


def evaluation_run(
    result: EvaluationResult, *, file: Path | None, gate: Gate | None = None, command: str = "casemate evaluate"
) -> CiRun:
    """The run of an evaluation: clean accuracy, robust accuracy at each eps, and every check.

    A robust accuracy fails if it does not pass the gate, or is not to be trusted; a check fails if it voids the
    verdict at the largest eps. What else checks found is their message.

    Args:
        result: the evaluation.
        file: the model's file, or that of the code that builds it.
        gate: the least robust accuracy, or None.
        command: the command that evaluated it.
    """
    clean = result.verdict.number.clean
    checks = [
        CiCheck(name="clean accuracy", rule=CLEAN_ACCURACY, state="passed", message=f"{clean:n}"),
        *(_robust(result, verdict, gate) for verdict in result.verdicts),
        *_checks(result),
    ]
    falls_short = gate is not None and not gate.judge(result.verdict).passes
    return CiRun(
        command=command,
        subject=result.model,
        file=file,
        checks=tuple(checks),
        exit_code=3 if falls_short else 0,
        seconds=result.seconds,
        properties={
            "data": result.data,
            "images": str(result.images),
            "norm": result.verdict.number.norm,
            "eps": ", ".join(each.number.shown_eps for each in result.verdicts),
            "budget": result.verdict.number.budget,
            "seed": str(result.seed),
            "verdict": result.verdict.word,
            "run_seconds": f"{result.run_seconds:.3f}",
        },
    )


def _robust(result: EvaluationResult, verdict: Verdict, gate: Gate | None) -> CiCheck:
    """The check of the robust accuracy at one eps."""
    rule, passes, message = NOT_ROBUST_ENOUGH, True, f"{verdict.number.robust:n}. {verdict.sentence}"
    if not verdict.trust.trusted:
        rule, passes, message = NOT_TO_BE_TRUSTED, False, verdict.sentence
    elif gate is not None:
        passes, sentence = gate.judge(verdict)
        message = f"{sentence[0].upper()}{sentence[1:]}. {verdict.sentence}"
    return CiCheck(
        name=f"robust accuracy at eps {verdict.number.shown_eps} ({verdict.number.norm})",
        rule=rule,
        state="passed" if passes else "failed",
        message=message,
        seconds=sum(each.seconds for each in result.attempts if each.eps == verdict.eps),
        identity=f"{verdict.number.norm} {float(verdict.eps):.9g}",
    )


def _checks(result: EvaluationResult) -> Iterator[CiCheck]:
    for each in result.checks:
        state, level = _outcome(each, result.verdict)
        found = each.not_run if each.finding is None else each.finding.sentence
        yield CiCheck(name=each.check, rule=_rule(each), state=state, message=found or each.excuse or "", level=level)


def _outcome(checked: Checked, verdict: Verdict) -> tuple[State, Level | None]:
    """How a check ended, and how grave what it found is.

    What only flatters a model that fell voids nothing: the model is broken all the same.
    """
    match checked.state:
        case "not run":
            return "skipped", None
        case "voids":
            voids = checked.check not in verdict.trust.flattered_by
            return ("failed", "error") if voids else ("passed", "warning")
        case "weakens":
            return "passed", "warning"
        case "note":
            return "passed", "note"
        case _:
            return "passed", None


def _rule(checked: Checked) -> CiRule:
    """The rule of a check: that of the library's check, or the title of one of the user's own."""
    known = CHECKS.get(checked.check)
    words = f"This check passes if the following holds: {checked.title}."
    if known is not None:
        words = f"{words} It measures: {known.measures} {known.why.replace('`', '')} {known.advice}"
    return CiRule(name=checked.check, title=f"In doubt: {checked.title}", help=words)
