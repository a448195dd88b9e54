"""What `casemate benchmark` prints: its models, the time beforehand, and the table."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.markup import escape

from casemate.benchmark import MEASURING_AT_MOST, BenchmarkPlan, BenchmarkRow, Entry
from casemate.cli.shared import console
from casemate.documents import BENCHMARK
from casemate.report.benchmark import as_document, columns_of

_MODELS = "casemate/benchmark-models/1"


def show_entries(entries: Mapping[str, Entry], *, as_json: bool) -> None:
    """Print the models of the benchmark: network, recipe and settings."""
    if as_json:
        console.show_json({"models": {name: each.as_json() for name, each in entries.items()}}, _MODELS)
        return
    made = console.new_table("Model", "Recipe", "Network", "Settings", "Training", "Certificate")
    for name, each in entries.items():
        settings = _settings(each.settings), _settings(each.training)
        made.add_row(name, each.recipe, each.network, *settings, each.certificate or "")
    console.show(made)


def show_benchmark_plan(plan: BenchmarkPlan, seconds: Mapping[str, float], *, as_json: bool) -> None:
    """Print the settings of a planned benchmark, and about how long its steps take."""
    if as_json:
        console.show_json({**plan.about(), "seconds": dict(seconds)}, "casemate/benchmark-plan/1")
        return
    times = console.seconds_table(seconds, "About")
    console.show(console.settings_table(plan.about(), "Would be trained and measured"), times)
    console.show_line(f"{MEASURING_AT_MOST}.")


def show(plan: BenchmarkPlan, rows: Sequence[BenchmarkRow], folder: Path, *, as_json: bool) -> None:
    """Print the table of a finished benchmark."""
    if as_json:
        console.show_json({**as_document(plan, rows), "folder": str(folder)}, BENCHMARK)
        return
    heads = columns_of(plan)
    made = console.new_table(heads[0].head, *console.right_aligned(*(each.head for each in heads[1:])))
    for row in rows:
        made.add_row(*(escape(each.cell(row)) for each in heads))
    console.show(made)
    console.show_line(f"Table and figure: [bold]{escape(str(folder / 'benchmark.md'))}[/]")


def _settings(given: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in given.items())
