"""The files of a benchmark: its table as JSON and Markdown, and its figure."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from casemate._version import __version__
from casemate.benchmark import ENTRIES, BenchmarkPlan, BenchmarkRow, recipe_in_words
from casemate.benchmark.published import EPS, PUBLISHED
from casemate.data import NAMES
from casemate.documents import BENCHMARK, document
from casemate.evaluation.intervals import Estimate, percent
from casemate.files import make_folder, write_bytes, write_json, write_text
from casemate.norms import format_eps
from casemate.report.benchmark_figure import benchmark_figure, letter
from casemate.report.charts import Figure, styled
from casemate.timing import duration

BENCHMARK_FILE = "benchmark.json"


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
        TableColumn("Recipe", lambda row: recipe_in_words(row.entry.as_json())),
        TableColumn("Clean", lambda row: _shown([row.clean()])),
        TableColumn(f"Clean, {first}", lambda row: _shown([row.clean_of_first()])),
    ]
    for eps in plan.radii:
        columns.append(TableColumn(f"Robust {format_eps(eps)}, {first}", lambda row, e=eps: _shown(row.robust(e))))
    if plan.headline:
        words = f"Robust {format_eps(plan.eps)}, all {len(plan.dataset.test):,}"
        columns.append(TableColumn(words, lambda row: _shown(row.robust(plan.eps, whole=True), plan.seeds)))
    if any(each.certificate is not None for each in plan.entries.values()):
        columns.append(TableColumn(f"Certified {format_eps(plan.eps)}", lambda row: _certified(row, plan)))
    return [
        *columns,
        TableColumn("Verdict", lambda row: _verdict(row, plan)),
        TableColumn("Training (processor; wall-clock)", _training),
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
        figure = benchmark_figure(plan, rows, PUBLISHED if _is_comparable(plan) else ())
    write_bytes(folder / "benchmark.svg", figure.svg)
    write_text(folder / "benchmark.md", page(plan, rows, figure))
    write_json(folder / BENCHMARK_FILE, document(BENCHMARK, as_document(plan, rows)))


def page(plan: BenchmarkPlan, rows: Sequence[BenchmarkRow], figure: Figure) -> str:
    """The table in Markdown, with the figure and what others published."""
    columns = columns_of(plan)
    lines = [
        f"# Benchmark of defences: {plan.dataset.title}, Linf",
        "",
        f"{len(plan.train):,} images to train on, {len(plan.validation):,} set aside for validation. Clean: accuracy "
        f"without an attack, on all {len(plan.dataset.test):,} test images and on the first ones. Robust EPS: the "
        f"share of images that no attack of the budget `{plan.budget}` fools within EPS in Linf, for pixels in "
        "[0, 1], an upper bound of the true share. Certified EPS, where it is given: the share proven robust, a lower "
        f"bound. Verdict: of `casemate.evaluate` at {format_eps(plan.eps)}, on all test images where it ran on them, "
        "else on the first ones, with the findings at any eps that weaken or void a number. "
        "Training: processor time of all threads, which other work on the machine changes little, and wall-clock time. "
        "Several seeds are those of the attacks on one training. In brackets 95 % intervals.",
        "",
        *_command(plan),
        f"![{figure.alt}](benchmark.svg)",
        "",
        *_table([each.head for each in columns], [[each.cell(row) for each in columns] for row in rows]),
    ]
    if _is_comparable(plan):
        heads = ["Published", "Clean", "Attacked", "Attack", "Certified", "Test images", "Source"]
        cells = [
            [
                f"{letter(number)}. {each.model}",
                _share(each.clean),
                _share(each.attacked),
                each.attack,
                _share(each.certified),
                each.images,
                each.source,
            ]
            for number, each in enumerate(PUBLISHED)
        ]
        lines += ["", f"What others published for eps {EPS:g}:", "", *_table(heads, cells)]
    return "\n".join([*lines, ""])


def _command(plan: BenchmarkPlan) -> list[str]:
    """The command that makes the same table, as lines of the page; none for entries or images of the caller's own."""
    if plan.dataset.name not in NAMES or any(ENTRIES.get(name) != entry for name, entry in plan.entries.items()):
        return []
    words = ["casemate benchmark", *plan.entries]
    words += ["--dataset", plan.dataset.name, "--eps", str(plan.eps), "--others", *map(str, plan.others)]
    words += ["--images", str(plan.images), "--budget", plan.budget]
    used = len(plan.train) + len(plan.validation)
    words += ["--train-images", str(used)] if used < len(plan.dataset.train) else []
    words += ["--headline", *plan.headline] if plan.headline else []
    words += ["--seeds", str(plan.seeds)]
    return ["```", " ".join(words), "```", ""]


def _is_comparable(plan: BenchmarkPlan) -> bool:
    """Whether published numbers are about the same images and radius."""
    return plan.dataset.name == "fashion-mnist" and plan.eps == EPS


def _shown(found: Sequence[Estimate | None], seeds: int = 1) -> str:
    """One estimate with its interval; of several, by seed, the values as well; of fewer than `seeds`, how many."""
    known = [each for each in found if each is not None]
    if not known:
        return ""
    words = [str(known[0])]
    words += [f"seeds: {', '.join(percent(each.value) for each in known)}"] if len(known) > 1 else []
    words += [f"{len(known)} of {seeds} seeds"] if len(known) < seeds else []
    return "; ".join(words)


def _certified(row: BenchmarkRow, plan: BenchmarkPlan) -> str:
    """The certified accuracy at the radius of the benchmark, with its number of images; or that it is void."""
    if row.is_void():
        return "void"
    found = row.widest(plan.eps, "certified")
    return "" if found is None else f"{found:n}"


def _verdict(row: BenchmarkRow, plan: BenchmarkPlan) -> str:
    word = row.verdict(plan.eps)
    return "" if word is None else ", ".join([word, *row.findings()])


def _training(row: BenchmarkRow) -> str:
    if row.training is None:
        return ""
    threads, wall = row.training["threads"], duration(row.training["seconds"])
    words = f"{wall} on {threads} {'thread' if threads == 1 else 'threads'}"
    processor = row.training.get("processor_seconds")  # older files have none
    return words if processor is None else f"{duration(processor)}; {words}"


def _share(value: float | None) -> str:
    return "" if value is None else percent(value)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [
        f"| {' | '.join(heads)} |",
        f"| {' | '.join('---' for _ in heads)} |",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
