"""The table of what is known of a model: how it takes its images and returns its classes, and where that is from."""

from rich.markup import escape

from casemate.cli.shared import console
from casemate.models import OpenedModel
from casemate.progress import Observer


def report_facts(model: OpenedModel, observer: Observer) -> None:
    """Send the table as a message, before the work begins, so that a fact found out wrongly is seen in time."""
    made = console.new_table("The model", "", "Known from", title=escape(model.name))
    for title, value, origin in model.facts.rows():
        made.add_row(title, escape(value), escape(origin))
    observer.message(console.as_text(made))
