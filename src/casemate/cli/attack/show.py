"""What `casemate attack` prints: beforehand what would be attacked, afterwards the accuracy left at each eps."""

from rich.markup import escape
from rich.table import Table

from casemate.attacks import Passes
from casemate.cli.attack.run import AttackOutcome, AttackPlan
from casemate.cli.shared import console
from casemate.documents import ATTACK
from casemate.evaluation.intervals import percent

_SHARES = {"worst": "Worst", "last": "Last", "reached": "Target reached", "still_right": "Still correct"}


def show(plan: AttackPlan, outcome: AttackOutcome, *, as_json: bool) -> None:
    """Print one row of accuracies per eps, what the columns mean, and the passes and the time that the attack took."""
    if as_json:
        console.show_json(plan.about | outcome.as_json(), ATTACK)
        return
    console.show(
        f"[bold]{escape(plan.title)}[/]",
        _table(plan, outcome),
        escape(_words(plan, outcome)),
        f"Accuracy without an attack: {outcome.clean}.",
        f"n = {len(plan.test):,}; {outcome.passes.forward:,} forward and {outcome.passes.backward:,} backward passes; "
        f"{console.duration(outcome.seconds)} on {plan.about['device']}.",
        *(
            f"{escape(name)} as PNG files, read again: {again:,} of {fooled:,} images that fooled still do."
            for name, (fooled, again) in outcome.saved.items()
        ),
        *console.note_lines(plan.about["notes"]),
    )


def _words(plan: AttackPlan, outcome: AttackOutcome) -> str:
    """A text that explains the columns of the table of results."""
    if plan.target is not None:
        words = f"95 % intervals, over the images that are not {plan.about['target']}."
    elif "last" in outcome.points[0].measures:
        words = (
            "Accuracy left, 95 % intervals. Worst: correct at every iterate, at this and every smaller eps; last: "
            "correct at the last iterate."
        )
    else:
        words = "Accuracy left, 95 % intervals. Worst: correct without the attack, and at this and every smaller eps."
    if _has_gradient(outcome):
        return f"{words} No gradient: it was zero in every pixel at every step."
    distance = outcome.points[-1].measures.get("distance")
    return words if distance is None else f"{words} Mean distance of adversarial images: {distance.value:.4g}."


def _has_gradient(outcome: AttackOutcome) -> bool:
    """Whether the attack used gradients, and its outcome says for how many images they were always zero."""
    return "no_gradient" in outcome.points[0].measures and outcome.passes.backward > 0


def _table(plan: AttackPlan, outcome: AttackOutcome) -> Table:
    first = outcome.points[0].measures
    shares = [name for name in _SHARES if name in first]
    head = [*(_SHARES[name] for name in shares), *(["Mean loss"] if "loss" in first else [])]
    head += ["No gradient"] if _has_gradient(outcome) else []
    made = console.new_table("eps", *console.right_aligned(*head))
    for text, point in zip(plan.series.radii.values() or ("any",), outcome.points, strict=True):
        cells = [f"{point.measures[name]}" for name in shares]
        if "Mean loss" in head:
            cells.append("" if (loss := point.measures["loss"]) is None else f"{loss.value:#.4g}")
        if "No gradient" in head:
            cells.append("" if (zero := point.measures["no_gradient"]) is None else percent(zero.value))
        made.add_row(escape(text), *cells)
    return made


def show_attack_plan(plan: AttackPlan, *, as_json: bool) -> None:
    """Print the settings of a planned attack, and how many forward and backward passes it makes at most."""
    most = [each.max_passes(len(plan.model.classes)) for _, each in plan.series.attacks.values()]
    known = [each for each in most if each is not None]
    count = len(plan.test)
    passes = Passes(count * sum(each.forward for each in known), count * sum(each.backward for each in known))
    if as_json:
        unknown = len(known) < len(most)
        estimate = {"gradients": passes.backward, "forward": passes.forward}
        console.show_json(plan.about | (dict.fromkeys(estimate) if unknown else estimate), "casemate/attack-plan/1")
        return
    made = console.settings_table(plan.about, "Would be attacked")
    for way, number in (("gradients", passes.backward), ("forward passes", passes.forward)):
        made.add_row(way, f"at most {number:,}" if len(known) == len(most) else "unknown: the attack does not state it")
    console.show(made, *console.note_lines(plan.about["notes"]))
