"""Writes the table of recipes into docs/defenses.md, from the recipes themselves."""

import re
from pathlib import Path
from typing import Any

from casemate.attacks.registry import summary_of
from casemate.defenses import RECIPES
from casemate.files import write_text
from casemate.training import takes_unlabelled

PAGE = Path(__file__).resolve().parents[1] / "docs" / "defenses.md"


def recipes_table() -> str:
    """A table in Markdown with one row per recipe, for the documentation.

    Columns: name on the command line, class, summary, what it trains for, settings with their defaults, whether it
    learns from images without labels.
    """
    head = ("Name", "Class", "Minimises", "Kind", "Settings", "Without labels")
    rows = [head, ("---",) * len(head)]
    for name, each in RECIPES.items():
        settings = ", ".join(f"{key} {_shown(value)}" for key, value in each.defaults.items())
        without = "yes" if takes_unlabelled(each.objective) else "no"
        summary = summary_of(each.objective).split(": ", 1)[-1]
        rows.append((f"`{name}`", f"`{each.objective.__name__}`", summary, each.kind, settings, without))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def page(text: str) -> str:
    """The page with the table as it is now."""
    start, end = "<!-- recipes -->\n", "<!-- end of recipes -->"
    return re.sub(f"{start}.*?{end}", lambda _: start + recipes_table() + end, text, flags=re.S)


if __name__ == "__main__":
    write_text(PAGE, page(PAGE.read_text(encoding="utf-8")))
