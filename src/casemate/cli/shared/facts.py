"""The table of what is known of a model: how it takes its images and returns its classes, and where that is from."""

from rich.markup import escape
from rich.table import Table

from casemate.cli.shared import console
from casemate.models import ModelFacts


def facts_table(name: str, facts: ModelFacts) -> Table:
    """A row for each fact: its value, and where it is known from."""
    made = console.new_table("The model", "", "Known from", title=escape(name))
    for title, value, origin in facts.rows():
        made.add_row(title, escape(value), f"[dim]{escape(origin)}[/]")
    return made
