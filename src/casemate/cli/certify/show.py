"""What `casemate certify` prints: beforehand what it will do, afterwards what is proven and what the attacks left."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.constrain import Constrain
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from casemate.cli.certify.run import CertifyPlan
from casemate.cli.shared import console
from casemate.documents import CERTIFICATION, SMOOTHING
from casemate.evaluation.certified import CertifiedEvaluation
from casemate.evaluation.smoothed import SmoothedEvaluation
from casemate.norms import format_eps
from casemate.report.certification_figures import NAME
from casemate.timing import duration

_BOX_WIDTH = 110
"""Columns of the box with the conclusion, at most: longer lines are hard to read."""

_STEPS = {"certificates": "Certificates", "attacks": "Attacks, if no image is certified or fooled"}
"""What is computed, in words."""


def show_certify_plan(plan: CertifyPlan, *, as_json: bool) -> None:
    """Print the settings of a planned certification and its estimated time; as JSON if `as_json`."""
    about = plan.about()
    if as_json:
        timed = {"seconds": plan.seconds} if plan.seconds else {}
        queries = {} if plan.most_queries is None else {"queries": plan.most_queries}
        console.show_json({**about, **timed, **queries}, "casemate/certification-plan/1")
        return
    times = console.seconds_table({_STEPS[name]: seconds for name, seconds in plan.seconds.items()}, "About")
    shown = {name: value for name, value in about.items() if name != "eps_text"} | {"eps": about["eps_text"]}
    console.show(console.settings_table(shown, "Would be certified"), *([times] if plan.seconds else []))
    if plan.most_queries is not None:
        console.show(f"The model would be called with at most {plan.most_queries:,} images.")


def show_certified(found: CertifiedEvaluation, result: Mapping[str, Any], folder: Path, *, as_json: bool) -> None:
    """Print certified and attacked accuracy; `result` is the content of certification.json in `folder`."""
    if as_json:
        console.show_json({**result, "folder": str(folder)}, CERTIFICATION)
        return
    title, colour = ("VOID", "bold red") if found.is_void else (f"Certified at {_largest(found)}", "bold green")
    attacks = f", budget {found.budget}" if found.has_attacks else ""
    console.show(
        _box(found, title, colour),
        f"[bold]{escape(result['model'])}[/] ({escape(result['data'])}, {len(found.images):,} images, {found.norm}, "
        f"{found.method}{attacks}, seed {found.seed}); 95 % intervals",
        _table(found),
    )
    if found.is_void:
        for place, attack in found.fooled_certified.items():
            console.show(f"[bold red]fooled although certified[/]: image {place}, by {escape(attack)}")
    if found.has_attacks:
        fooled = [f"{escape(name)} {count:,}" for name, count in found.successes_by_attack.items() if count]
        console.show(f"First to fool, over all eps: {', '.join(fooled) or 'none'}.")
    console.show(found.time_sentence)
    _files(folder)


def show_smoothed(found: SmoothedEvaluation, result: Mapping[str, Any], folder: Path, *, as_json: bool) -> None:
    """Print the certificates of a smoothed model; `result` is the content of certification.json in `folder`."""
    if as_json:
        console.show_json({**result, "folder": str(folder)}, SMOOTHING)
        return
    chosen = found.smoothing
    console.show(
        _box(found, f"The smoothed model, certified at {_largest(found)}", "bold green"),
        f"[bold]{escape(result['model'])}, smoothed[/] ({escape(result['data'])}, {len(found.images):,} images, sigma "
        f"{chosen.sigma:g}, {chosen.n0:,} and {chosen.n:,} draws, alpha {chosen.alpha:g}, seed "
        f"{found.certificate.seed}); 95 % intervals",
        _table(found),
        f"It took {duration(found.seconds)}.",
    )
    _files(folder)


def _largest(found: CertifiedEvaluation | SmoothedEvaluation) -> str:
    """The largest eps, and the certified accuracy there."""
    return escape(f"eps {format_eps(found.values[-1])}: {found.certified_accuracy[-1]}")


def _box(found: CertifiedEvaluation | SmoothedEvaluation, title: str, colour: str) -> Constrain:
    """A box with the conclusion and what a reader of the numbers has to know. It is readable without colour."""
    text = "\n".join([f"[bold]{escape(found.conclusion)}[/]", *map(escape, found.notes)])
    panel = Panel(text, title=f"[{colour}]{title}[/]", title_align="left", border_style=colour, padding=(0, 1))
    return Constrain(panel, _BOX_WIDTH)


def _table(found: CertifiedEvaluation | SmoothedEvaluation) -> Table:
    """A table with a row without an attack, and one for each eps."""
    first, *others = found.head
    made = console.new_table(first, *console.right_aligned(*others))
    for row in found.rows():
        made.add_row(*map(escape, row))
    return made


def _files(folder: Path) -> None:
    console.show_line(f"Picture: [bold]{escape(str(folder / NAME))}.svg[/]")
    console.show_line(f"Report: [bold]{escape(str(folder / 'report.html'))}[/]")
