"""What `casemate harden` prints: beforehand the settings and the time, afterwards whether it helped."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from casemate.cli.harden.run import HardenPlan
from casemate.cli.shared import console
from casemate.documents import HARDENING
from casemate.errors import StoreError
from casemate.files import read_json
from casemate.hardening import Hardened
from casemate.report.hardening import HARDEN

_LEFT_OUT = ("eps", "classes")


def show_harden_plan(plan: HardenPlan, seconds: Mapping[str, float], *, as_json: bool) -> None:
    """Print the settings of a planned hardening, and about how many seconds each of its steps would take."""
    about = plan.about()
    if as_json:
        console.show_json(
            {**about, "seconds": dict(seconds), "notes": list(plan.hardening.parts.notes)}, "casemate/hardening-plan/1"
        )
        return
    shown = {name: value for name, value in about.items() if name not in _LEFT_OUT}
    times = console.seconds_table(seconds, "About")
    notes = console.note_lines(plan.hardening.parts.notes)
    console.show(console.settings_table(shown, "Would be hardened"), times, *notes)


def show(found: Hardened, plan: HardenPlan, folder: Path, *, as_json: bool) -> None:
    """Print a finished hardening: whether it helped, the models, the differences, the price, how to use it."""
    result: dict[str, Any] = read_json(folder / HARDEN, StoreError)
    if as_json:
        console.show_json({**result, "folder": str(folder)}, HARDENING)
        return
    helped = list(found.helped.values())
    colour = "green" if all(helped) else "yellow" if any(helped) else "red"
    console.show(
        *(f"[bold {colour}]{escape(each)}[/]" for each in found.conclusions),
        f"[bold]{escape(plan.model.name)}[/] ({escape(plan.data)}, {len(found.test):,} test images, eps "
        f"{escape(result['eps_text'][0])}, {found.norm}, budget {found.budget}, seed {found.seed})",
        _models(found),
        "[bold]Differences on the same images[/], in points",
        _differences(found),
        *console.note_lines([*found.notes, found.seed_note]),
    )
    for line in result["load"]:
        console.show_line(f"Use it: {escape(line)}")
    console.show_line(f"Report: [bold]{escape(str(folder / 'report.html'))}[/]")


def _models(found: Hardened) -> Table:
    """A table with a row per model: accuracies, verdict, and the price of its training."""
    made = console.new_table(
        "", *console.right_aligned("Clean accuracy", "Robust accuracy"), "Verdict", *console.right_aligned("Training")
    )
    for each in found.models.values():
        how = each.training
        price = "" if how is None else f"{console.duration(how.seconds)}, epoch {how.epoch} of {len(how.history)}"
        made.add_row(each.name, f"{each.clean}", f"{each.robust}", escape(each.verdict.word), price)
    return made


def _differences(found: Hardened) -> Table:
    """A table with a row per pair of models."""
    made = console.new_table("", "Robust accuracy", "Clean accuracy")
    for each in found.comparisons:
        clean = "" if each.clean is None else each.clean.words
        made.add_row(f"{each.names[1]} minus {each.names[0]}", each.robust.words, clean)
    return made
