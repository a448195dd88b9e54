"""Writes the table of recipes into docs/defenses.md, from the recipes themselves."""

import re
from pathlib import Path

from casemate.defenses.registry import recipes_table
from casemate.files import write_text

PAGE = Path(__file__).resolve().parents[1] / "docs" / "defenses.md"


def page(text: str) -> str:
    """The page with the table as it is now."""
    start, end = "<!-- recipes -->\n", "<!-- end of recipes -->"
    return re.sub(f"{start}.*?{end}", lambda _: start + recipes_table() + end, text, flags=re.S)


if __name__ == "__main__":
    write_text(PAGE, page(PAGE.read_text(encoding="utf-8")))
