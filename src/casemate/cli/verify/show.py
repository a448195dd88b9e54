"""What `casemate verify` prints."""

from dataclasses import asdict

from rich.markup import escape

from casemate.cli.shared import console
from casemate.evaluation import Verification

_OUTCOMES = {True: "[green]holds[/]", False: "[bold red]does not hold[/]", None: "[dim]not checked[/]"}


def show(found: Verification, *, as_json: bool) -> None:
    """Print what is known of the model, a row per claim of the record, and whether all that was checked holds."""
    if as_json:
        console.show_json({"holds": found.holds, **asdict(found)}, "casemate/verification/1")
        return
    made = console.new_table("Check", "", "Found", title="The record")
    for claim in found.claims:
        made.add_row(escape(claim.title), _OUTCOMES[claim.holds], escape(claim.sentence))
    last = "[green]Everything that was checked holds.[/]" if found.holds else "[bold red]Not everything holds.[/]"
    console.show(made, last)
