"""Merge results of other runs into the table of docs/benchmark, and write its page and figure again.

    python tools/merge_benchmark.py [FILE...]

FILE is benchmark.json of a `casemate benchmark` with other models, or benchmarks/pretrained/whole.json. Every model is
either new to the table, or has the same weights there; its measurements are added, or replace those of the same name.
Models of which nothing is measured yet, in a benchmark that still runs, are left out.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from casemate import data
from casemate.benchmark import ENTRIES, BenchmarkPlan, BenchmarkRow, plan_benchmark
from casemate.errors import CasemateError, StoreError
from casemate.files import read_json
from casemate.report.benchmark import BENCHMARK_FILE, write_benchmark

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "benchmark"
_OF_ALL_IMAGES = "-all-"
"""In the name of a measurement on all test images."""

Rows = dict[str, dict[str, Any]]
"""Rows of benchmark.json by model."""


def merged(rows: Rows, other: Mapping[str, Any]) -> Rows:
    """The rows with those of another table. Exits if a model there has other weights."""
    found = dict(rows)
    for row in other["rows"]:
        if not row["measures"]:
            continue
        name, weights = row["model"], row["training"]["fingerprint"]
        held = found.get(name)
        if held is None:
            found[name] = row
        elif held["training"]["fingerprint"] != weights:
            sys.exit(f"{name} has the weights {weights} there, and {held['training']['fingerprint']} in {FOLDER}")
        else:
            measures = {each["measure"]: each for each in [*held["measures"], *row["measures"]]}
            found[name] = {**held, "measures": list(measures.values())}
    return found


def plan_of(table: Mapping[str, Any], rows: Rows) -> BenchmarkPlan:
    """The plan of the merged table: the models in the order of the entries."""
    names = [name for name in ENTRIES if name in rows]
    headline = [name for name in names if any(_OF_ALL_IMAGES in each["measure"] for each in rows[name]["measures"])]
    return plan_benchmark(
        data.load(table["dataset"]),
        names,
        eps=table["eps"],
        others=table["other_eps"],
        images=table["images"],
        headline=headline,
        seeds=table["seeds"],
        budget=table["budget"],
    )


def as_row(row: Mapping[str, Any], plan: BenchmarkPlan) -> BenchmarkRow:
    """A row as the benchmark has it. Exits if it was measured of another entry than there is now."""
    name = row["model"]
    entry = plan.entries[name]
    if row["entry"] != json.loads(json.dumps(entry.as_json())):
        sys.exit(f"{name} was trained by another entry than casemate has now")
    held = {each["measure"]: each for each in row["measures"]}
    results = {
        measure: {key: value for key, value in held[measure.name].items() if key not in measure.as_json()}
        for measure in plan.measures(name)
        if measure.name in held
    }
    return BenchmarkRow(name=name, entry=entry, training=row["training"], results=results)


def main(arguments: list[str]) -> None:
    """Merge the files, and write the table."""
    try:
        table = read_json(FOLDER / BENCHMARK_FILE, StoreError)
        rows: Rows = {row["model"]: row for row in table["rows"]}
        for path in arguments:
            rows = merged(rows, read_json(Path(path), StoreError))
        plan = plan_of(table, rows)
        write_benchmark(FOLDER, plan, [as_row(rows[name], plan) for name in plan.entries])
    except CasemateError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
