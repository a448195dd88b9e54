"""How `casemate attack` shows an attack: beforehand what would be attacked, afterwards what is left at each eps."""

from rich.markup import escape
from rich.table import Table

from casemate.cli import console
from casemate.cli.attacking import Found, Ready

_SHARES = {"worst": "Worst, %", "last": "Last, %", "reached": "Target reached, %", "still_right": "Still right, %"}


def show(ready: Ready, found: Found, *, as_json: bool) -> None:
    """Print one row per eps, what the columns mean, and what the attack cost."""
    if as_json:
        console.show_json(ready.about | found.as_json())
        return
    if ready.target is None:
        words = "Accuracy left, 95 % intervals. Worst: after every iterate up to this eps; last: after the last one."
    else:
        words = f"95 % intervals, of the images that are not {ready.about['target']}."
    console.show(
        _table(ready, found),
        escape(f"{words} No gradient: it was zero in every pixel at every step."),
        f"n = {len(ready.test):,}; {found.passes.forward:,} passes forward, {found.passes.backward:,} backward; "
        f"{console.duration(found.seconds)} on {ready.about['device']}.",
        *console.notes(ready.about["notes"]),
    )


def _table(ready: Ready, found: Found) -> Table:
    shown = [name for name in _SHARES if name in found.points[0]]
    columns = console.right(*(_SHARES[name] for name in shown), "Mean loss", "No gradient, %")
    made = console.table("eps", *columns, title=escape(ready.title))
    for text, point in zip((text for text, _ in ready.attacks.values()), found.points, strict=True):
        loss, still = point.get("loss"), point.get("no_gradient")
        made.add_row(
            escape(text),
            *(console.interval(point[name]) for name in shown),
            "" if loss is None else f"{loss['value']:#.4g}",
            "" if still is None else console.percent(still["value"]),
        )
    return made


def show_estimate(ready: Ready, *, as_json: bool) -> None:
    """Print what would be attacked, and the most gradients that takes."""
    loops = [each.loop() for _, each in ready.attacks.values()]
    gradients = len(ready.test) * sum(loop.steps * loop.restarts * loop.eot_samples for loop in loops)
    if as_json:
        console.show_json(ready.about | {"gradients": gradients})
        return
    made = console.table("Setting", "Value", title="Would be attacked")
    for name, value in ready.about.items():
        if name != "notes":
            made.add_row(name, escape(console.words(value)))
    made.add_row("gradients", f"at most {gradients:,}")
    console.show(made, *console.notes(ready.about["notes"]))
