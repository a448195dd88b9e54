"""Write the README's table of agreement with the original AutoAttack, from `result.json` beside this file.

python benchmarks/autoattack/table.py
"""

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
README = HERE.parents[1] / "README.md"
MARKS = re.compile(r"(<!-- agreement -->\n).*?(<!-- end of agreement -->)", re.DOTALL)


def table(found: dict[str, Any]) -> str:
    """The table in Markdown, and under it where its numbers come from."""
    lines = [
        "| network | eps (Linf) | casemate leaves, % | the original leaves, % | images with the same outcome |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in found["rows"]:
        seed = f", seed {row['seed']}" if row["seed"] else ""
        lines.append(
            f"| {row['model']}{seed} | {row['eps']:g} | {100 * row['ours']:.1f} | {100 * row['original']:.1f} "
            f"| {row['agree']} of {row['n']} |"
        )
    commits = ", ".join(sorted({row["surroundings"]["commit"] for row in found["rows"]}))
    original = ", ".join(sorted({row["original_commit"][:12] for row in found["rows"]}))
    processors = ", ".join(sorted({row["surroundings"]["processor"] for row in found["rows"]}))
    return "\n".join(
        [
            *lines,
            "",
            f"AutoAttack `standard` on the first Fashion-MNIST test images, seed 0 unless said otherwise, "
            f"{processors}; casemate at commits {commits}, the original at {original} "
            "([`benchmarks/autoattack`](benchmarks/autoattack/README.md)).",
        ]
    )


def page(readme: str, found: dict[str, Any]) -> str:
    """The README with the table of these results."""
    return MARKS.sub(lambda marks: f"{marks[1]}{table(found)}\n{marks[2]}", readme)


if __name__ == "__main__":
    result = json.loads((HERE / "result.json").read_text(encoding="utf-8"))
    README.write_text(page(README.read_text(encoding="utf-8"), result), encoding="utf-8")
