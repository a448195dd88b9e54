"""How `casemate selftest` shows what came out."""

from collections.abc import Sequence

from rich.markup import escape

from casemate.cli.shared import console
from casemate.evaluation.intervals import Estimate
from casemate.selftest import Outcome


def show(outcomes: Sequence[Outcome], *, as_json: bool) -> None:
    """Print a row per model, and the sentences of those that did not come out as they must."""
    missed = [outcome for outcome in outcomes if not outcome.as_expected]
    if as_json:
        console.show_json({"as_expected": not missed, "models": [outcome.as_json() for outcome in outcomes]})
        return
    first = outcomes[0].evaluation
    made = console.table(
        "Model",
        *console.right("eps", "Clean, %", "Claimed, %", "Truth at most, %"),
        "Verdict",
        "Raised (voids, weakens)",
        "",
        title=f"Self-test: n = {len(first.images):,}, budget {first.budget}, seed {first.seed}",
    )
    for outcome in outcomes:
        found = outcome.evaluation
        raised = [each.check for each in found.findings if each.severity != "note"]
        made.add_row(
            outcome.case.name,
            f"{outcome.case.eps:g}",
            _percent(found.clean.accuracy),
            _percent(outcome.claim),
            _percent(outcome.truth),
            found.verdict.word,
            ", ".join(raised),
            "[green]as expected[/]" if outcome.as_expected else "[bold red]NOT as expected[/]",
        )
    seconds = sum(outcome.seconds for outcome in outcomes)
    console.show(
        made,
        "Claimed: left by the one attack that the model fools. Truth: left by all attacks of the evaluation, and by "
        "images that fool the network without what hides it.",
        f"{len(outcomes) - len(missed)} of {len(outcomes)} as expected; {console.duration(seconds)}.",
        *(f"[bold red]{outcome.case.name}[/]: {escape(_why(outcome))}" for outcome in missed),
    )


def _percent(estimate: Estimate | None) -> str:
    return "" if estimate is None else console.percent(estimate.value)


def _why(outcome: Outcome) -> str:
    """What went wrong with a model that did not come out as it must."""
    sentence = outcome.evaluation.verdict.sentence
    if outcome.case.honest or outcome.evaluation.verdict.favourable:
        return sentence
    return f"the attack that it should fool was not fooled: it claims too little more than the truth. {sentence}"
