"""The files of a benchmark: its table as JSON and Markdown, and a figure of clean against robust accuracy."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from casemate._version import __version__
from casemate.benchmark import BenchmarkPlan, BenchmarkRow
from casemate.benchmark.published import EPS, PUBLISHED
from casemate.documents import BENCHMARK, document
from casemate.evaluation.intervals import Estimate, percent
from casemate.files import make_folder, write_bytes, write_json, write_text
from casemate.norms import format_eps
from casemate.report.charts import Figure, canvas, finished, legend_below, styled
from casemate.timing import duration

BENCHMARK_FILE = "benchmark.json"
_KINDS = {
    "ordinary": ("#8a8a8a", "o"),
    "adversarial": ("#0072B2", "o"),
    "distilled": ("#CC79A7", "s"),
    "certified": ("#009E73", "D"),
    "smoothed": ("#E69F00", "^"),
    "unlabelled": ("#56B4E9", "v"),
}
"""Colour and marker of each kind of recipe."""


@final
@dataclass(frozen=True)
class TableColumn:
    """A column of the table: its heading, and the text of a row's cell."""

    head: str
    cell: Callable[[BenchmarkRow], str]


def columns_of(plan: BenchmarkPlan) -> list[TableColumn]:
    """The columns of the table of a plan, the model's name first."""
    first = f"first {min(plan.images, len(plan.dataset.test)):,}"
    columns = [
        TableColumn("Model", lambda row: row.name),
        TableColumn("Recipe", lambda row: row.entry.recipe),
        TableColumn("Clean", lambda row: _shown([row.clean()])),
    ]
    for eps in plan.radii:
        columns.append(TableColumn(f"Robust {format_eps(eps)}, {first}", lambda row, e=eps: _shown(row.robust(e))))
    if plan.headline:
        words = f"Robust {format_eps(plan.eps)}, all {len(plan.dataset.test):,}"
        columns.append(TableColumn(words, lambda row: _shown(row.robust(plan.eps, whole=True))))
    if any(each.certificate is not None for each in plan.entries.values()):
        columns.append(TableColumn(f"Certified {format_eps(plan.eps)}", lambda row: _certified(row, plan)))
    return [
        *columns,
        TableColumn("Verdict", lambda row: _verdict(row, plan)),
        TableColumn("Training", _training),
        TableColumn("Parameters", lambda row: "" if row.training is None else f"{row.training['parameters']:,}"),
        TableColumn("Commit", lambda row: "" if row.training is None else str(row.training["provenance"]["commit"])),
    ]


def as_document(plan: BenchmarkPlan, rows: Sequence[BenchmarkRow]) -> dict[str, Any]:
    """The content of benchmark.json."""
    return {
        **plan.about(),
        "casemate": __version__,
        "rows": [row.as_json() for row in rows],
        "published": [asdict(each) for each in PUBLISHED] if _is_comparable(plan) else [],
    }


def write_benchmark(folder: Path, plan: BenchmarkPlan, rows: Sequence[BenchmarkRow]) -> None:
    """Write the table, as far as it is known, as benchmark.json and benchmark.md, with the figure benchmark.svg."""
    make_folder(folder)
    with styled():
        figure = frontier(plan, rows)
    write_bytes(folder / "benchmark.svg", figure.svg)
    write_text(folder / "benchmark.md", page(plan, rows, figure))
    write_json(folder / BENCHMARK_FILE, document(BENCHMARK, as_document(plan, rows)))


def page(plan: BenchmarkPlan, rows: Sequence[BenchmarkRow], figure: Figure) -> str:
    """The table in Markdown, with the figure and what others published."""
    columns = columns_of(plan)
    lines = [
        f"# Benchmark of defences: {plan.dataset.title}, Linf",
        "",
        f"{len(plan.train):,} images to train on, {len(plan.validation):,} set aside for validation; clean accuracy on "
        f"all {len(plan.dataset.test):,} test images. Robust EPS: the share of images that no attack "
        f"of the budget `{plan.budget}` fools within EPS in Linf, for pixels in [0, 1], an upper bound of the true "
        "share. Certified EPS, where it is given: the share proven robust, a lower bound. Verdict: at "
        f"{format_eps(plan.eps)}. Training: wall-clock time. In brackets 95 % intervals.",
        "",
        f"![{figure.alt}](benchmark.svg)",
        "",
        *_table([each.head for each in columns], [[each.cell(row) for each in columns] for row in rows]),
    ]
    if _is_comparable(plan):
        heads = ["Published", "Clean", "Attacked", "Attack", "Certified", "Test images", "Source"]
        cells = [
            [
                f"{number}. {each.model}",
                _share(each.clean),
                _share(each.attacked),
                each.attack,
                _share(each.certified),
                each.images,
                each.source,
            ]
            for number, each in enumerate(PUBLISHED, 1)
        ]
        lines += ["", f"What others published for eps {EPS:g}:", "", *_table(heads, cells)]
    return "\n".join([*lines, ""])


def frontier(plan: BenchmarkPlan, rows: Sequence[BenchmarkRow]) -> Figure:
    """A chart of robust and certified against clean accuracy at the radius of the benchmark, one point per model."""
    drawing, axes = canvas(1, 1, 7.2, 4.6)
    place = axes[0, 0]
    numbers: list[tuple[Any, ...]] = []
    labelled: set[str] = set()
    for row in rows:
        clean, robust, certified = row.clean(), row.widest(plan.eps, "robust"), row.widest(plan.eps, "certified")
        if clean is None or robust is None:
            continue
        colour, marker = _KINDS[row.entry.kind]
        label = None if row.entry.kind in labelled else row.entry.kind
        labelled.add(row.entry.kind)
        _mark(place, clean, robust, color=colour, marker=marker, label=label)
        point = (100 * clean.value, 100 * robust.value)
        place.annotate(row.name, point, (7, 4), textcoords="offset points", fontsize=8)
        numbers.append((row.name, "robust", clean.value, robust.value, robust.low, robust.high))
        if certified is not None and not row.is_void():
            _mark(place, clean, certified, color=colour, marker=marker, label=None, hollow=True)
            numbers.append((row.name, "certified", clean.value, certified.value, certified.low, certified.high))
    if _is_comparable(plan):
        for number, each in enumerate(PUBLISHED, 1):
            if each.clean is not None and each.attacked is not None:
                label = None if "published" in labelled else "published, by number"
                labelled.add("published")
                point = (100 * each.clean, 100 * each.attacked)
                place.plot(*([value] for value in point), "x", color="#444444", markersize=6, label=label)
                place.annotate(str(number), point, (4, 3), textcoords="offset points", fontsize=7, color="#444444")
                numbers.append((each.model, f"published ({each.attack})", each.clean, each.attacked, None, None))
    place.margins(0.1)
    place.set_xlabel("clean accuracy, %")
    place.set_ylabel(f"accuracy at eps {format_eps(plan.eps)}, %\nattacked (filled), certified (hollow)")
    if labelled:
        legend_below(place, pad=5, ncols=4)
    shown = "; ".join(f"{name}: {percent(x)} clean, {percent(y)} {what}" for name, what, x, y, *_ in numbers)
    return finished(
        drawing,
        "benchmark",
        title="Clean and robust accuracy",
        caption=f"Accuracy under all attacks of the budget {plan.budget} at eps {format_eps(plan.eps)} in Linf, and "
        "certified accuracy, against accuracy without an attack, with 95 % intervals.",
        alt=f"{shown}." if shown else "No model is measured yet.",
        columns=("model", "what", "clean", "value", "low", "high"),
        rows=numbers,
    )


def _mark(
    place: Any, clean: Estimate, found: Estimate, *, color: str, marker: str, label: str | None, hollow: bool = False
) -> None:
    """A point with the interval of its accuracy under attack, in percent."""
    x = 100 * clean.value
    place.plot([x, x], [100 * found.low, 100 * found.high], color=color, linewidth=1.4, alpha=0.7)
    face = "white" if hollow else color
    place.plot([x], [100 * found.value], marker, color=color, markerfacecolor=face, markersize=7, label=label)


def _is_comparable(plan: BenchmarkPlan) -> bool:
    """Whether published numbers are about the same images and radius."""
    return plan.dataset.name == "fashion-mnist" and plan.eps == EPS


def _shown(found: Sequence[Estimate | None]) -> str:
    """One estimate with its interval; of several, by seed, the values as well."""
    known = [each for each in found if each is not None]
    if not known:
        return ""
    if len(known) == 1:
        return str(known[0])
    return f"{known[0]}; seeds: {', '.join(percent(each.value) for each in known)}"


def _certified(row: BenchmarkRow, plan: BenchmarkPlan) -> str:
    """The certified accuracy at the radius of the benchmark, with its number of images; or that it is void."""
    if row.is_void():
        return "void"
    found = row.widest(plan.eps, "certified")
    return "" if found is None else f"{found:n}"


def _verdict(row: BenchmarkRow, plan: BenchmarkPlan) -> str:
    verdicts = row.verdicts()
    if not verdicts:
        return ""
    word = verdicts[plan.radii.index(plan.eps)]
    return ", ".join([word, *row.findings()])


def _training(row: BenchmarkRow) -> str:
    if row.training is None:
        return ""
    threads = row.training["threads"]
    return f"{duration(row.training['seconds'])}, {threads} {'thread' if threads == 1 else 'threads'}"


def _share(value: float | None) -> str:
    return "" if value is None else percent(value)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [
        f"| {' | '.join(heads)} |",
        f"| {' | '.join('---' for _ in heads)} |",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
