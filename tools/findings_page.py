"""Write the section of docs/findings.md on each check from the checks' declarations.

    python tools/findings_page.py

What stands before the marker is written by hand and stays; a test fails when the rest is not what this writes.
"""

import textwrap
from pathlib import Path

from casemate.evaluation.findings import CHECKS
from casemate.evaluation.findings.check import Check

PAGE = Path(__file__).parent.parent / "docs" / "findings.md"
MARKER = "<!-- Below this line: python tools/findings_page.py -->"
LINES = {"Measures": "measures", "Raised if": "raised_if", "Why": "why", "What to do": "advice"}
"""The lines on each check, and the attributes of `Check` that they are taken from."""


def section(check: Check) -> str:
    """The Markdown of one check: its name, what holds if it passes, and the four lines."""
    lines = [_wrapped(f"- *{label}*: {getattr(check, attribute)}") for label, attribute in LINES.items()]
    return "\n".join([f"## {check.name}", f"{check.title}.{_when(check)}", "", *lines]) + "\n"


def _when(check: Check) -> str:
    """Sentences on when the check runs, to follow its title."""
    if check.thorough:
        return " Only with `--thorough`: it takes minutes."
    before = {"inputs": " Before the attacks.", "both": " Before the attacks, and again after them.", "attacks": ""}
    return before[check.reads] + (" Left out once the model has fallen." if check.only_flattery else "")


def _wrapped(line: str) -> str:
    return textwrap.fill(line, 138, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def page(text: str) -> str:
    """The page with everything after the marker written anew."""
    by_hand, marker, _ = text.partition(MARKER)
    return "\n".join([by_hand + (marker or MARKER), "", *map(section, CHECKS.values())])


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
