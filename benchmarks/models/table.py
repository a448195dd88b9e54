"""Write the table of models in docs/models.md from `result.json` beside this file.

python benchmarks/models/table.py
"""

import json
import re
from pathlib import Path
from typing import Any

from run import SUBJECTS

from casemate.evaluation import Estimate

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "models.md"
MARKS = re.compile(r"(<!-- seven models -->\n).*?(<!-- end of seven models -->)", re.DOTALL)


def table(found: dict[str, Any]) -> str:
    """The table in Markdown, and under it where its numbers come from."""
    lines = [
        "| model | command | without an attack | under attack | n | verdict | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in found.values():
        clean, robust = (Estimate.from_json(row[name]) for name in ("clean", "robust"))
        lines.append(
            f"| {row['about']} | `{row['command']}` | {clean} | {robust} | {row['n']} | {row['verdict']} "
            f"| {row['cpu_seconds']:.0f} |"
        )
    rows = found.values()
    options = sorted({re.sub(r"^--images \d+ ", "", row["options"]) for row in rows})
    around = [row["surroundings"] for row in rows]
    processors, threads, commits = (
        ", ".join(sorted({str(each[name]) for each in around})) for name in ("processor", "threads", "commit")
    )
    versions = ", ".join(f"{name} {version}" for name, version in next(iter(rows))["versions"].items())
    return "\n".join(
        [
            *lines,
            "",
            f"Each command goes on with `{' '.join(options)}` and `--images n`. Seed 0; 95 % intervals. Seconds are "
            f"those of the processor ({processors}, threads: {threads}), the start of the program included. Commit "
            f"{commits}; PyTorch {around[0]['libraries']['torch']}, {versions} "
            "([`benchmarks/models`](../benchmarks/models/README.md)).",
        ]
    )


def page(text: str, found: dict[str, Any]) -> str:
    """The page with the table of these results."""
    return MARKS.sub(lambda marks: f"{marks[1]}{table(found)}\n{marks[2]}", text)


if __name__ == "__main__":
    rows = json.loads((HERE / "result.json").read_text(encoding="utf-8"))
    result = {name: rows[name] for name in SUBJECTS if name in rows}
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), result), encoding="utf-8")
