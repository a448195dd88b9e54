"""How `casemate attack` shows an attack: beforehand what would be attacked, afterwards what is left at each eps."""

from rich.markup import escape
from rich.table import Table

from casemate.attacks import Passes
from casemate.cli.attack.run import AttackOutcome, AttackPlan
from casemate.cli.shared import console

_SHARES = {"worst": "Worst, %", "last": "Last, %", "reached": "Target reached, %", "still_right": "Still right, %"}


def show(plan: AttackPlan, found: AttackOutcome, *, as_json: bool) -> None:
    """Print one row per eps, what the columns mean, and what the attack cost."""
    if as_json:
        console.show_json(plan.about | found.as_json())
        return
    console.show(
        f"[bold]{escape(plan.title)}[/]",
        _table(plan, found),
        escape(_words(plan, found)),
        f"n = {len(plan.test):,}; {found.passes.forward:,} passes forward, {found.passes.backward:,} backward; "
        f"{console.duration(found.seconds)} on {plan.about['device']}.",
        *console.note_lines(plan.about["notes"]),
    )


def _words(plan: AttackPlan, found: AttackOutcome) -> str:
    """What the columns mean."""
    if plan.target is not None:
        words = f"95 % intervals, of the images that are not {plan.about['target']}."
    elif "last" in found.points[0]:
        words = "Accuracy left, 95 % intervals. Worst: after every iterate up to this eps; last: after the last one."
    else:
        words = "Accuracy left, 95 % intervals. Worst: right without the attack, and at this and every smaller eps."
    if _has_gradient(found):
        return f"{words} No gradient: it was zero in every pixel at every step."
    distance = found.points[-1].get("distance")
    return words if distance is None else f"{words} Mean distance of what fools: {distance['value']:.4g}."


def _has_gradient(found: AttackOutcome) -> bool:
    """Whether the attack follows gradients, and says where there were none."""
    return "no_gradient" in found.points[0] and found.passes.backward > 0


def _table(plan: AttackPlan, found: AttackOutcome) -> Table:
    point = found.points[0]
    shown = [name for name in _SHARES if name in point]
    rest = ["Mean loss"] if "loss" in point else []
    rest += ["No gradient, %"] if _has_gradient(found) else []
    made = console.new_table("eps", *console.right_aligned(*(_SHARES[name] for name in shown), *rest))
    for text, point in zip(plan.series.radii.values() or ("any",), found.points, strict=True):
        cells = [console.interval(point[name]) for name in shown]
        if "Mean loss" in rest:
            cells.append("" if point["loss"] is None else f"{point['loss']['value']:#.4g}")
        if "No gradient, %" in rest:
            cells.append("" if (still := point.get("no_gradient")) is None else console.percent(still["value"]))
        made.add_row(escape(text), *cells)
    return made


def show_attack_plan(plan: AttackPlan, *, as_json: bool) -> None:
    """Print what would be attacked, and the most passes that takes."""
    most = [each.max_passes(len(plan.model.classes)) for _, each in plan.series.attacks.values()]
    known = [each for each in most if each is not None]
    count = len(plan.test)
    passes = Passes(count * sum(each.forward for each in known), count * sum(each.backward for each in known))
    if as_json:
        unknown = len(known) < len(most)
        estimate = {"gradients": passes.backward, "forward": passes.forward}
        console.show_json(plan.about | (dict.fromkeys(estimate) if unknown else estimate))
        return
    made = console.new_table("Setting", "Value", title="Would be attacked")
    for name, value in plan.about.items():
        if name != "notes":
            made.add_row(name, escape(console.words(value)))
    for way, number in (("gradients", passes.backward), ("passes forward", passes.forward)):
        made.add_row(way, f"at most {number:,}" if len(known) == len(most) else "unknown: the attack does not say")
    console.show(made, *console.note_lines(plan.about["notes"]))
