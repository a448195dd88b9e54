"""Which classes the benchmark's robust models lose: `python benchmarks/frontier/by_class.py` writes by-class.md.

Reads docs/benchmark/benchmark.json, where each measurement has one digit per test image, in order.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from casemate.data import load
from casemate.files import write_text

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent.parent / "docs" / "benchmark" / "benchmark.json"
EPS = 0.1
MODELS = ("fast", "robust", "certified")


def widest(measures: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The first of the measurements at `EPS` on the most images."""
    return max((each for each in measures if EPS in each["eps"]), key=lambda each: len(each["correct"]))


def columns_of(row: Mapping[str, Any], labels: np.ndarray, classes: int) -> dict[str, list[float]]:
    """Shares by class, under the heads of their columns."""
    found = widest(row["measures"])
    digits = np.array(list(found["correct"]), dtype=int)
    robust = digits > 1 + found["eps"].index(EPS)
    members = [labels[: len(digits)] == each for each in range(classes)]
    images = f"{'first ' if len(digits) < len(labels) else ''}{len(digits):,}"
    return {
        f"clean ({row['model']}, {images})": [(digits[each] > 0).mean() for each in members],
        "robust": [robust[each].mean() for each in members],
        "share of all that are lost": [each[~robust].mean() for each in members],
    }


def main() -> None:
    """Write the table."""
    data = load("fashion-mnist")
    rows = {each["model"]: each for each in json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]}
    columns = [
        column
        for model in MODELS
        for column in columns_of(rows[model], data.test.labels.numpy(), len(data.classes)).items()
    ]
    lines = [
        "# Which classes the robust models lose",
        "",
        f"Fashion-MNIST's test images at Linf {EPS}, budget `standard`, seed 0, from"
        " [docs/benchmark/benchmark.json](../../docs/benchmark/benchmark.json). Lost: misclassified with or without an"
        " attack. `python benchmarks/frontier/by_class.py` writes this page.",
        "",
        f"| class | {' | '.join(head for head, _ in columns)} |",
        f"| --- |{' --- |' * len(columns)}",
    ]
    for number, name in enumerate(data.classes):
        lines.append(f"| {name} | {' | '.join(f'{100 * values[number]:.1f} %' for _, values in columns)} |")
    write_text(HERE / "by-class.md", "\n".join([*lines, ""]))


if __name__ == "__main__":
    main()
