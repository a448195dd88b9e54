"""What `casemate selftest` does once PyTorch is loaded: tell the time, run, and show what came out."""

from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

from casemate import data
from casemate.cli import console
from casemate.evaluation.budgets import Budget
from casemate.evaluation.intervals import Estimate
from casemate.progress import Observer
from casemate.selftest import ModelFactory, Outcome, Sizes, choose, seconds_at_most, self_test


def run(
    only: Sequence[str],
    *,
    budget: Budget,
    images: int,
    dataset: str,
    data_dir: Path | None,
    device: str,
    seed: int,
    observer: Observer,
) -> list[Outcome]:
    """Run the self-test. Raises `CasemateError`."""
    cases = choose(only)
    with observer.work("Reading the images", 0):
        whole = data.load(dataset, data_dir, observer=observer)
    factory = ModelFactory(whole, Sizes(test=images), device=device, seed=seed, observer=observer)
    with observer.work("Measuring the speed", 0):
        seconds = seconds_at_most(factory, cases, budget)
    observer.message(
        f"{len(cases)} models, budget {budget}: at most about {console.duration(seconds)} here; less where attacks "
        "succeed."
    )
    return list(self_test(factory, cases, budget=budget, seed=seed, observer=observer))


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
