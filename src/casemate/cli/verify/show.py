"""How `casemate verify` shows what it found."""

from dataclasses import asdict

from rich.markup import escape

from casemate.cli.shared import console
from casemate.evaluation import Verification

_WORDS = {True: "[green]holds[/]", False: "[bold red]does not hold[/]", None: "[dim]only told[/]"}


def show(found: Verification, *, as_json: bool) -> None:
    """Print what was checked, claim by claim."""
    if as_json:
        console.show_json({"holds": found.holds, **asdict(found)})
        return
    made = console.table("RecordCheck", "", "Seen", title="The record")
    for claim in found.claims:
        made.add_row(escape(claim.title), _WORDS[claim.holds], escape(claim.sentence))
    last = "[green]Everything that was checked holds.[/]" if found.holds else "[bold red]Not everything holds.[/]"
    console.show(made, last)
