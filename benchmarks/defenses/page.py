"""The page of results from the stored cells, and where these are.

`python benchmarks/defenses/page.py` writes the page again without computing anything.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from plan import PAIRS, SEEDS, TEST, TRAIN, Pair

from casemate.files import write_text

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
STEPS_FILE = HERE / "steps.json"
PAGE = HERE / "results.md"
SIDES = ("ours", "theirs")


def path_of(pair: Pair, side: str, seed: int) -> Path:
    """The file of a cell."""
    return RESULTS / f"{pair.name}-{side}-{seed}.json"


def read(pair: Pair, side: str, seed: int) -> dict[str, Any] | None:
    """A cell's results; None if there are none, or of other settings."""
    path = path_of(pair, side, seed)
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if found["spec"] == json.loads(json.dumps(pair.spec)) else None


def cells(pair: Pair) -> dict[str, list[dict[str, Any]]] | None:
    """The cells of all seeds by side; None unless all are there."""
    found = {side: [read(pair, side, seed) for seed in SEEDS] for side in SIDES}
    known = {side: [each for each in rows if each is not None] for side, rows in found.items()}
    return known if all(len(rows) == len(SEEDS) for rows in known.values()) else None


def noise(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The standard error of the difference of the two means, from the spread of both sides' seeds alone."""
    spread = [sum((each - mean(values)) ** 2 for each in values) / (len(values) - 1) for values in (ours, theirs)]
    return (sum(spread) / len(ours)) ** 0.5


T = 2.78
"""The 97.5 % quantile of Student's distribution with the four degrees of freedom of two times three seeds."""
LEAST = 0.01
"""A difference of less than this share of the test images counts as none, however small the spread was."""


def stands_out(ours: Sequence[float], theirs: Sequence[float]) -> bool:
    """Whether the means differ by more than the seeds explain: a two-sided t-test at 5 %, and a point at least."""
    apart = abs(mean(ours) - mean(theirs))
    return apart > max(T * noise(ours, theirs), LEAST)


def spread(values: Sequence[float]) -> str:
    """The mean, and the lowest and the highest, in percent."""
    return f"{100 * mean(values):.1f} ({100 * min(values):.1f} to {100 * max(values):.1f})"


def results_table() -> tuple[list[str], list[str], int]:
    """The lines of the table, the measures that stand out, and how many were compared."""
    lines, out, count = list[str](), list[str](), 0
    for pair in PAIRS:
        known = cells(pair)
        if known is None:
            lines.append(f"| {pair.name} | {pair.peer} | not run | | | | |")
            continue
        for number, name in enumerate(known["ours"][0]["measured"]):
            ours, theirs = ([each["measured"][name] for each in known[side]] for side in SIDES)
            count += 1
            mark = ""
            if stands_out(ours, theirs):
                mark = " **!**"
                out.append(f"{pair.name}, {name}")
            first = (pair.name, pair.peer) if number == 0 else ("", "")
            apart = 100 * (mean(ours) - mean(theirs))
            lines.append(
                f"| {first[0]} | {first[1]} | {name} | {spread(ours)} | {spread(theirs)} | {apart:+.1f}{mark} | "
                f"{100 * noise(ours, theirs):.1f} |"
            )
    return lines, out, count


def seconds_table() -> list[str]:
    """Seconds of training, the mean over the seeds."""
    lines = []
    for pair in PAIRS:
        known = cells(pair)
        if known is not None:
            ours, theirs = (mean(each["seconds"] for each in known[side]) for side in SIDES)
            lines.append(f"| {pair.name} | {pair.peer} | {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} |")
    return lines


def steps_table() -> list[str]:
    """The single steps."""
    if not STEPS_FILE.is_file():
        return []
    lines = []
    for each in json.loads(STEPS_FILE.read_text(encoding="utf-8"))["rows"]:
        gradient = "" if each["gradient_difference"] is None else f"{each['gradient_difference']:.0e}"
        lines.append(
            f"| {each['recipe']} | {each['what']} | `{each['original']}` | {each['difference']:.0e} | {gradient} | "
            f"{each['note']} |"
        )
    return lines


def page() -> str:
    """The page, in Markdown."""
    rows, out, count = results_table()
    verdict = (
        f"{count} measures; by more than the seeds explain differ {len(out)}{': ' if out else ''}{'; '.join(out)}."
    )
    return "\n".join(
        [
            "# Defences: casemate beside public implementations",
            "",
            "Written by `run.py` from `results/` and `steps.json`; README.md says what was run, and why values differ.",
            "",
            "## Single steps",
            "",
            "The same weights, images and random numbers in float64: the largest difference of the value (relative to",
            "the larger one or 1) and of a gradient (relative to the largest one).",
            "",
            "| recipe | what | original | value | gradient | why it is not zero |",
            "| --- | --- | --- | --- | --- | --- |",
            *steps_table(),
            "",
            "## Trainings",
            "",
            f"{TRAIN:,} training and {TEST:,} test images of Fashion-MNIST, {len(SEEDS)} seeds, the same initial",
            "weights on both sides. Percent of the test images: the mean, and the lowest and highest of the seeds;",
            "casemate less the other side; the standard error of that difference by the spread of the seeds. **!**:",
            "beyond 2.8 standard errors (a t-test at 5 %) and a point or more.",
            "",
            verdict,
            "",
            "| recipe | implementation | measure | casemate | implementation | difference | error |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            "What could not be made equal:",
            "",
            *[f"- {pair.name}: {pair.differs}." for pair in PAIRS if pair.differs],
            "",
            "## Seconds of training",
            "",
            "Of the processor, one thread, both sides in turn in one run; the mean over the seeds.",
            "",
            "| recipe | implementation | casemate | implementation | ratio |",
            "| --- | --- | --- | --- | --- |",
            *seconds_table(),
            "",
        ]
    )


def main() -> int:
    """Write the page."""
    write_text(PAGE, page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
