"""What `casemate evaluate` prints: beforehand what it will do, afterwards the verdict, the numbers and the checks."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.constrain import Constrain
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from casemate.cli.evaluate.run import EvaluatePlan
from casemate.cli.shared import console
from casemate.documents import EVALUATION
from casemate.evaluation.budgets import BUDGETS_IN_WORDS
from casemate.evaluation.run_time import seconds_in_words
from casemate.evaluation.verdict import Verdict
from casemate.report.evaluation_result import ATTEMPT_COLUMNS, CLASS_COLUMNS, EvaluationResult

_COLOURS = {"green": "bold green", "yellow": "bold yellow", "red": "bold red"}
_STATE_COLOURS = {"voids": "bold red", "weakens": "yellow", "note": "cyan"}
_BOX_WIDTH = 110
"""Columns of the box with the verdict, at most: longer lines are hard to read."""
_ALL_CLASSES = 20
"""Up to this number of classes, all are listed; of more classes, only the ten least robust."""


def show_evaluate_plan(plan: EvaluatePlan, *, as_json: bool) -> None:
    """Print the settings of a planned evaluation, and the longest time that each budget is estimated to take.

    As JSON if `as_json`.
    """
    about = plan.about()
    if as_json:
        console.show_json(about, "casemate/evaluation-plan/1")
        return
    times = console.new_table("Budget", "At most about", "Attacks", title="Time")
    for name, seconds in plan.seconds.items():
        times.add_row(name, console.duration(seconds), BUDGETS_IN_WORDS[name])
    shown = {name: value for name, value in about.items() if name != "eps_text"} | {"eps": about["eps_text"]}
    console.show(console.settings_table(shown, "Would be evaluated"), *([times] if plan.seconds else []))
    if (queries := plan.most_queries) is not None:
        console.show(f"The attacks would call the black box with at most {queries:,} images, checks with some more.")


def show(
    found: Mapping[str, Any],
    folder: Path,
    *,
    as_json: bool,
    verbose: bool = False,
) -> None:
    """Print a finished evaluation.

    Args:
        found: the content of its result.json.
        folder: where its files are.
        as_json: print `found` instead of tables.
        verbose: also print what every check measured.
    """
    if as_json:
        console.show_json({**found, "folder": str(folder)}, EVALUATION)
        return
    result = EvaluationResult.from_json(found, str(folder / "result.json"))
    attempts = console.new_table(*ATTEMPT_COLUMNS[:2], *console.right_aligned(*ATTEMPT_COLUMNS[2:]))
    for row in result.attempt_rows():
        attempts.add_row(*row)
    draws = f", each of {result.draws} outputs" if result.randomised else ""
    console.show(
        verdict_box(result.verdicts),
        f"[bold]{escape(f'{result.model} ({result.conditions})')}[/]",
        _accuracies(result),
        "[bold]Attacks[/], each on the images that the ones before it had not fooled; passes per image",
        attempts,
        *_first_successes(result),
        *_classes(result),
        *_checks(result, verbose=verbose),
        f"\n{seconds_in_words(result.seconds, result.run_seconds)}, on {result.device}, {result.precision}; "
        f"attacks took {result.passes.forward:,} forward and {result.passes.backward:,} backward passes{draws}.",
    )
    for line in (*_record(result, folder), f"Report: [bold]{escape(str(folder / 'report.html'))}[/]"):
        console.show_line(line)


def verdict_box(verdicts: Sequence[Verdict]) -> Constrain:
    """A box for the terminal with trust, number and grade at the largest eps, and the grade at each smaller eps.

    `verdicts` ascend in eps. The box is readable without colour.
    """
    *smaller, verdict = verdicts
    colour = _COLOURS[verdict.colour]
    parts = Table.grid(padding=(0, 2))
    parts.add_column(style="bold", no_wrap=True)
    parts.add_column()
    parts.add_row("Can it be trusted?", escape(verdict.trust.sentence))
    parts.add_row("The number", escape(verdict.number_sentence))
    parts.add_row("The grade", f"[{colour}]{escape(verdict.grade_sentence)}[/]")
    if verdict.grades:
        parts.add_row("", f"[dim]{escape(verdict.convention)}[/]")
    for each in reversed(smaller):
        parts.add_row(f"At eps {escape(each.number.shown_eps)}", escape(each.grade_sentence))
    title = f"[{colour}]Verdict at eps {escape(verdict.number.shown_eps)}: {escape(verdict.word.upper())}[/]"
    return Constrain(Panel(parts, title=title, title_align="left", border_style=colour, padding=(0, 1)), _BOX_WIDTH)


def _accuracies(result: EvaluationResult) -> Table:
    """A table of robust accuracy and verdict: first the accuracy without an attack, then a row per eps."""
    made = console.new_table("eps", *console.right_aligned("Robust accuracy"), "Verdict")
    made.add_row("0", f"{result.verdict.number.clean}", "[dim]without an attack[/]")
    for each in result.verdicts:
        made.add_row(
            escape(each.number.shown_eps), f"{each.number.robust}", f"[{_COLOURS[each.colour]}]{escape(each.word)}[/]"
        )
    return made


def _first_successes(result: EvaluationResult) -> list[str]:
    """A line with the number of images that each attack was the first to fool.

    The list is empty for a single eps, for which the table of attacks says so already.
    """
    if len(result.verdicts) == 1:
        return []
    found = [f"{each.name} {each.first_to_fool}" for each in result.attacks if each.first_to_fool]
    return [f"First to fool, over all eps: {', '.join(found) or 'none'}."]


def _classes(result: EvaluationResult) -> list[Table | str]:
    """A title and a table of the classes that have images; of many classes only the ten least robust."""
    rows, all_classes = result.class_rows(_ALL_CLASSES), len(result.per_class)
    which = "" if len(rows) == all_classes else f", the {len(rows)} least robust of {all_classes}"
    made = console.new_table(CLASS_COLUMNS[0], *console.right_aligned(*CLASS_COLUMNS[1:]))
    for name, *cells in rows:
        made.add_row(escape(name), *cells)
    return [f"[bold]Accuracy by class[/] at eps {escape(result.verdict.number.shown_eps)}{which}", made]


def _checks(result: EvaluationResult, *, verbose: bool) -> list[Table | str]:
    """Lines about the checks: one for each that was raised, one for all that passed, one per reason for not running
    some; a table of the latter two if `verbose`.
    """
    rows = result.check_rows()
    raised = [each for each in rows if each.state in _STATE_COLOURS]
    rest = [each for each in rows if each.state not in _STATE_COLOURS]
    hint = "" if verbose else "; -v shows what each of them measured"
    lines: list[Table | str] = [f"[bold]Checks[/]: {len(raised)} raised"]
    for each in raised:
        measured = f" ({each.measured}, threshold {each.threshold})" if each.measured else ""
        colour = _STATE_COLOURS[each.state]
        lines.append(f"[{colour}]{each.state}[/] [bold]{escape(each.name)}[/]{measured}: {escape(each.seen)}.")
    passed = sum(each.state == "passed" for each in rest)
    lines.append(f"[green]{passed} check{'' if passed == 1 else 's'} passed[/]{hint}.")
    reasons = Counter(each.seen for each in rest if each.state == "not run")
    lines += [f"[dim]{count} not run[/]: {escape(why)}." for why, count in reasons.items()]
    if verbose:
        made = console.new_table("check", *console.right_aligned("measured", "raised above"), "")
        for each in rest:
            made.add_row(escape(each.name), each.measured, each.threshold, escape(each.seen))
        lines.append(made)
    return lines


def _record(result: EvaluationResult, folder: Path) -> list[str]:
    """Lines with the command by which others can check the result, and how many fooled images its record lacks."""
    held = f"{result.proven:,} examples" if result.holds_images else "hashes only, without images"
    lines = [f"For others to check: {result.verify_command(folder / 'record.json')} ({held})"]
    if result.unproven:
        lines.append(
            f"{result.unproven} more images fooled the model in a batch, but not reliably one at a time: the record "
            "leaves them out."
        )
    return [escape(line) for line in lines]
