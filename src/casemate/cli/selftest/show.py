"""What `casemate selftest` prints."""

from collections.abc import Sequence

from rich.markup import escape

from casemate.cli.shared import console
from casemate.evaluation.intervals import percent
from casemate.selftest import Outcome


def show(outcomes: Sequence[Outcome], *, as_json: bool) -> None:
    """Print a row per model, and for each verdict that is not as expected the reason; or all of it as JSON."""
    missed = [outcome for outcome in outcomes if not outcome.as_expected]
    if as_json:
        console.show_json(
            {"as_expected": not missed, "models": [outcome.as_json() for outcome in outcomes]}, "casemate/self-test/1"
        )
        return
    first = outcomes[0].evaluation
    made = console.new_table(
        "Model",
        *console.right_aligned("eps", "Clean", "Claimed", "Truth at most"),
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
            *(
                "" if each is None else percent(each.value)
                for each in (found.clean.accuracy, outcome.claim, outcome.truth)
            ),
            found.verdict.word,
            ", ".join(raised),
            "[green]as expected[/]" if outcome.as_expected else "[bold red]NOT as expected[/]",
        )
    seconds = sum(outcome.seconds for outcome in outcomes)
    console.show(
        made,
        "Claimed: accuracy under the attack that the model resists. Truth: accuracy under all attacks of the "
        "evaluation, and on images that fool the network behind the defence.",
        f"{len(outcomes) - len(missed)} of {len(outcomes)} as expected; {console.duration(seconds)}.",
        *(f"[bold red]{outcome.case.name}[/]: {escape(_why(outcome))}" for outcome in missed),
    )


def _why(outcome: Outcome) -> str:
    """A sentence that says why the verdict on a model is not as expected."""
    sentence = outcome.evaluation.verdict.sentence
    if outcome.case.honest or outcome.evaluation.verdict.favourable:
        return sentence
    return f"the attack that it should resist broke it: it hardly claims more than the truth. {sentence}"
