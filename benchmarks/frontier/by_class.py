"""Which classes the benchmark's robust models lose: `python benchmarks/frontier/by_class.py` writes by-class.md.

Reads docs/benchmark/benchmark.json, where each measurement has one digit per test image, in order.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from casemate.data import load

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent.parent / "docs" / "benchmark" / "benchmark.json"
EPS = 0.1
MODELS = ("fast", "robust", "certified")


def widest(measures: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The first of the measurements at `EPS` on the most images."""
    return max((each for each in measures if EPS in each["eps"]), key=lambda each: len(each["correct"]))


def main() -> None:
    """Write the table."""
    test = load("fashion-mnist").test
    names = load("fashion-mnist").classes
    rows = {each["model"]: each for each in json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]}
    columns: dict[str, list[str]] = {}
    for model in MODELS:
        found = widest(rows[model]["measures"])
        digits = np.array(list(found["correct"]), dtype=int)
        classes = test.labels[: len(digits)].numpy()
        robust = digits > 1 + sum(eps < EPS for eps in found["eps"])
        shown = f"{model}, {'first ' if len(digits) < len(test) else ''}{len(digits):,}"
        for title, values in (
            (f"clean ({shown})", [(digits > 0)[classes == each].mean() for each in range(len(names))]),
            ("robust", [robust[classes == each].mean() for each in range(len(names))]),
            ("share of all that are lost", [(classes == each)[~robust].mean() for each in range(len(names))]),
        ):
            columns[f"{title} {len(columns)}"] = [f"{100 * value:.1f} %" for value in values]
    head = [title.rsplit(" ", 1)[0] for title in columns]
    lines = [
        "# Which classes the robust models lose",
        "",
        f"Fashion-MNIST's test images at Linf {EPS}, budget `standard`, seed 0, from"
        " [docs/benchmark/benchmark.json](../../docs/benchmark/benchmark.json). Lost: misclassified with or without an"
        " attack. `python benchmarks/frontier/by_class.py` writes this page.",
        "",
        f"| class | {' | '.join(head)} |",
        f"| --- |{' --- |' * len(head)}",
    ]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, *cells in zip(names, *columns.values(), strict=True)]
    (HERE / "by-class.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
