"""Write the table of docs/attacks.md from the attack classes.

python tools/attacks_page.py
"""

import re
from pathlib import Path

from casemate.attacks.registry import library_attack_types, markdown_table

PAGE = Path(__file__).resolve().parent.parent / "docs" / "attacks.md"


def page(text: str) -> str:
    """The page with today's table in the place of the one in it."""
    return re.sub(
        r"^\| Name \|.*?\n(?!\|)", lambda _: markdown_table(library_attack_types()) + "\n", text, flags=re.M | re.S
    )


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
