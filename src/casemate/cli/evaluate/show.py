"""How `casemate evaluate` shows what it will do and what it found: the verdict first, then the numbers, then doubts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.constrain import Constrain
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from casemate.cli.evaluate.run import Ready
from casemate.cli.shared import console
from casemate.evaluation.budgets import BUDGETS_IN_WORDS
from casemate.evaluation.verdict import Verdict, read_verdicts
from casemate.norms import format_eps

_COLOURS = {"green": "bold green", "yellow": "bold yellow", "red": "bold red"}
_LOUDNESS = {"voids": "bold red", "weakens": "yellow", "note": "cyan"}
_WIDTH = 110
"""Of the box, at most: longer lines are hard to read."""
_FEW = 20
"""Up to so many classes are all shown."""


def announced(ready: Ready) -> str:
    """What each budget takes at most, the chosen one first."""
    chosen = ready.request.budget
    rest = [f"{name} {console.duration(each)}" for name, each in ready.seconds.items() if name != chosen]
    return (
        f"Budget {chosen} takes at most about {console.duration(ready.seconds[chosen])} here ({', '.join(rest)}); "
        "less where attacks succeed."
    )


def show_times(ready: Ready, *, as_json: bool) -> None:
    """Print what would be evaluated, and the time of each budget."""
    about = ready.about()
    if as_json:
        console.show_json(about)
        return
    made = console.table("Setting", "Value", title="Would be evaluated")
    for name, value in about.items():
        if name != "seconds_at_most":
            made.add_row(name, escape(console.words(value)))
    times = console.table("Budget", "At most about", "What is tried", title="Time")
    for name, seconds in ready.seconds.items():
        times.add_row(name, console.duration(seconds), BUDGETS_IN_WORDS[name])
    console.show(made, times)


def show(result: Mapping[str, Any], folder: Path, *, as_json: bool) -> None:
    """Print a finished evaluation from what is in its result.json."""
    if as_json:
        console.show_json({**result, "folder": str(folder)})
        return
    verdicts = read_verdicts(result, str(folder / "result.json"))
    console.show(
        box(verdicts),
        f"[bold]{escape(_title(result))}[/]",
        _accuracies(result, verdicts),
        "[bold]Attacks[/], each on what those before it left; passes per image",
        _attacks(result),
        *_winners(result),
        _classes(result),
        *_checks(result["checks"]),
        f"\n{console.duration(result['seconds'])} on {result['device']}, {result['precision']}; attacks took "
        f"{result['passes']['forward']:,} passes forward, {result['passes']['backward']:,} backward"
        f"{', each of ' + str(result['draws']) + ' answers' if result['randomised'] else ''}.",
        *_record(result, folder),
        f"Report: [bold]{escape(str(folder / 'report.html'))}[/]",
    )


def _title(result: Mapping[str, Any]) -> str:
    return (
        f"{result['model']} ({result['data']}, first {result['images']:,} images, {result['norm']}, "
        f"budget {result['budget']}, seed {result['seed']})"
    )


def box(verdicts: Sequence[Verdict]) -> Constrain:
    """The three parts of the verdict at the largest eps, and a line for each smaller one; it reads without colour."""
    *smaller, verdict = verdicts
    colour = _COLOURS[verdict.colour]
    parts = Table.grid(padding=(0, 2))
    parts.add_column(style="bold", no_wrap=True)
    parts.add_column()
    parts.add_row("To be trusted?", escape(verdict.trust.sentence))
    parts.add_row("The number", escape(verdict.number_sentence))
    parts.add_row("The grade", f"[{colour}]{escape(verdict.grade_sentence)}[/]")
    if verdict.grades:
        parts.add_row("", f"[dim]{escape(verdict.convention)}[/]")
    for each in reversed(smaller):
        parts.add_row(f"At eps {format_eps(each.eps)}", escape(each.grade_sentence))
    title = f"[{colour}]Verdict at eps {format_eps(verdict.eps)}: {escape(verdict.word.upper())}[/]"
    return Constrain(Panel(parts, title=title, title_align="left", border_style=colour, padding=(0, 1)), _WIDTH)


def _accuracies(result: Mapping[str, Any], verdicts: Sequence[Verdict]) -> Table:
    """One row per eps, and one without an attack."""
    made = console.table("eps", *console.right("Robust accuracy, %"), "Verdict")
    made.add_row("0", console.interval(result["clean_accuracy"]), "[dim]without an attack[/]")
    for each in verdicts:
        shown = f"[{_COLOURS[each.colour]}]{escape(each.word)}[/]"
        made.add_row(format_eps(each.eps), console.interval(each.number.robust.as_json()), shown)
    return made


def _attacks(result: Mapping[str, Any]) -> Table:
    """One row per attack and eps."""
    columns = ("Attacked", "Fooled", "Left", "Seconds", "Forward", "Backward")
    made = console.table("eps", "Attack", *console.right(*columns))
    before = None
    for attempt in result["attempts"]:
        tried, passes = attempt["tried"], attempt["passes"]
        made.add_row(
            "" if attempt["eps"] == before else f"{attempt['eps']:g}",
            attempt["attack"],
            str(tried),
            str(attempt["fooled"]),
            str(tried - attempt["fooled"]),
            f"{attempt['seconds']:.1f}",
            f"{passes['forward'] / tried:,.0f}",
            f"{passes['backward'] / tried:,.0f}",
        )
        before = attempt["eps"]
    return made


def _winners(result: Mapping[str, Any]) -> list[str]:
    """Which attack fooled how many first; with one eps the table above says it already."""
    if len(result["eps"]) == 1:
        return []
    found = [f"{each['attack']} {each['first_to_fool']}" for each in result["attacks"] if each["first_to_fool"]]
    return [f"First to fool, over all eps: {', '.join(found) or 'none'}."]


def _classes(result: Mapping[str, Any]) -> str:
    """Robust of clean accuracy within each class, or of many classes within the worst."""
    rows = sorted(result["per_class"], key=lambda each: each["robust_accuracy"]["value"])
    shown = rows if len(rows) <= _FEW else rows[: _FEW // 2]
    words = ", ".join(
        f"{escape(each['class'])} {console.percent(each['robust_accuracy']['value'], 0)} of "
        f"{console.percent(each['clean_accuracy']['value'], 0)}"
        for each in shown
    )
    which = "" if shown is rows else f", the worst {len(shown)} of {len(rows)}"
    return f"Right under attack of right without, by class at eps {result['eps'][-1]:g}, in %{which}: {words}."


def _checks(checks: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was raised in full, what passed in a line, what was not run by its reason."""
    raised = [each for each in checks if each["state"] in _LOUDNESS]
    raised.sort(key=lambda each: list(_LOUDNESS).index(each["state"]))
    passed = [each for each in checks if each["state"] == "passed"]
    reasons: dict[str, list[str]] = {}
    for each in checks:
        if each["state"] == "not run":
            reasons.setdefault(each["not_run"], []).append(each["check"])
    skipped = len(checks) - len(raised) - len(passed)
    lines = [f"\n[bold]Checks[/]: {len(raised)} raised, {len(passed)} passed, {skipped} not run"]
    for each in raised:
        lines.append(
            f"[{_LOUDNESS[each['state']]}]{each['state']}[/] [bold]{each['check']}[/] "
            f"{_measured(each)}: {escape(each['sentence'])}."
        )
    if passed:
        lines.append(f"[green]passed[/] {', '.join(map(_passed, passed))}.")
    for why, names in reasons.items():
        lines.append(f"[dim]not run[/] {', '.join(names)}: {escape(why)}.")
    return lines


def _measured(check: Mapping[str, Any]) -> str:
    """Its number and threshold; of a check that failed there are none."""
    return "" if check["value"] is None else f"({check['value']:.3g}, threshold {check['threshold']:g})"


def _passed(check: Mapping[str, Any]) -> str:
    """Its name and number, and why a number above the threshold is none to speak of."""
    why = f" (above {check['threshold']:g}, but {check['excuse']})" if check["excuse"] else ""
    return f"{check['check']} {check['value']:.2g}{escape(why)}"


def _record(result: Mapping[str, Any], folder: Path) -> list[str]:
    """How others can check."""
    record = result["record"]
    lines = [f"For others to check: casemate verify {folder / 'record.json'} MODEL ({record['examples']:,} examples)"]
    if record["unproven"]:
        lines.append(
            f"{record['unproven']} more fooled the model in a batch, but not surely alone: the record leaves them out."
        )
    return [escape(line) for line in lines]
