"""The report: one HTML file that opens anywhere and asks for nothing, and its figures as files beside it."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from casemate import __version__
from casemate.engine import Piece
from casemate.files import make_folder, write_bytes, write_json, write_text
from casemate.report.charts import Figure, shown
from casemate.report.page import environment
from casemate_study.claims.verdicts import EPS
from casemate_study.experiments.catalogue import EXPERIMENTS, models_of
from casemate_study.experiments.scales import SCALES, table
from casemate_study.reference import Reference, reference_for, summarised
from casemate_study.report import comparison, markdown, paper_comparison, sentences
from casemate_study.report.figures import all_figures
from casemate_study.results import Judged
from casemate_study.run import Study

_HEADLINES = (
    ("test accuracy, E1", "E1", "clean"),
    ("test accuracy, our recipe", "E1+", "clean"),
    ("test accuracy, E11", "E11", "clean"),
    ("E1 under FGSM", "E1", "fgsm"),
    ("E1 under BIM-10, ball", "E1", "ball"),
)


def headlines(
    study: Study, pieces: Mapping[str, Piece], reference: Reference | None
) -> list[tuple[str, str, str, str]]:
    """The few numbers that come first: what, value, in which setting, and the same in the committed runs."""
    models = {model.name: Judged(model, pieces) for model in models_of(list(EXPERIMENTS.values()), study.setup)}
    found = []
    for words, name, measure in _HEADLINES:
        each = models.get(name)
        if each is None:
            continue
        attacked = measure != "clean"
        estimate = each.left(measure, EPS) if attacked else each.clean and each.clean["accuracy"]
        if estimate is None:
            continue
        interval = f"{100 * estimate['low']:.1f} to {100 * estimate['high']:.1f}, n = {int(estimate['n']):,}"
        beside = None if reference is None else reference.entry(comparison.short, "models", name, measure)
        setting = f"eps {EPS:g}: {interval}" if attacked else interval
        found.append((words, shown(estimate["value"]), setting, beside or ""))
    return found


def _experiments(study: Study, pieces: Mapping[str, Piece]) -> list[dict[str, Any]]:
    """Title, notes and state of each experiment that was asked for."""
    wanted = []
    for experiment in study.experiments:
        names = [task.name for task in experiment.tasks(study.setup)]
        done = [name for name in names if name in pieces]
        seconds = sum(pieces[name].facts["provenance"]["seconds"] for name in done)
        wanted.append(
            {
                "name": experiment.name,
                "title": experiment.title,
                "notes": experiment.notes,
                "state": "finished" if len(done) == len(names) else f"{len(done)} of {len(names)} pieces finished",
                "seconds": seconds,
            }
        )
    return wanted


def _provenance(pieces: Sequence[Piece]) -> list[tuple[str, ...]]:
    """When, how long and where every piece was made."""
    rows = []
    for piece in pieces:
        made = piece.facts["provenance"]
        rows.append(
            (
                piece.facts["name"],
                piece.key,
                f"{made['seconds']:.1f}",
                made["finished"],
                made["commit"] or "-",
                f"{made['processor']}, {made['threads']} threads, {made['device']}",
            )
        )
    return rows


def build_report(study: Study, pieces: Mapping[str, Piece], out: Path) -> Path:
    """Write report.html, the same results as Markdown and JSON, and the figures into `out`; return the report.

    Figures are SVG, PNG and CSV. Everything comes from `pieces`; what is not finished is named as such. Files are
    written whole or not at all.
    """
    make_folder(out)
    scale, seed = study.setup.scale, study.setup.seed
    models = comparison.judged_models(study.setup, pieces)
    figures = all_figures(pieces, models)
    reference = reference_for(scale, study.dataset.name)
    decides = scale.decides and not paper_comparison.other_data(study.dataset)
    claims = comparison.judged_claims(models, pieces, decides=decides)
    advices = comparison.advices(models)
    compared = paper_comparison.comparisons(pieces, scale, paper_comparison.other_data(study.dataset))
    missing = [task.name for task in study.plan.tasks if task.name not in pieces]
    recent = max(pieces.values(), key=lambda piece: piece.facts["provenance"]["finished"], default=None)
    html = (
        environment("casemate_study.report")
        .get_template("report.html.j2")
        .render(
            dataset=study.dataset.title,
            stands_in_for=study.dataset.stands_in_for,
            scale=scale,
            scale_names=list(SCALES),
            scale_table=table(),
            seed=seed,
            version=__version__,
            written=datetime.now(UTC).isoformat(timespec="minutes"),
            made=None if recent is None else recent.facts["provenance"],
            total_seconds=sum(piece.facts["provenance"]["seconds"] for piece in pieces.values()),
            experiments=_experiments(study, pieces),
            missing=missing,
            headlines=headlines(study, pieces, reference),
            compared=paper_comparison.table(compared, reference),
            reference=reference,
            claims=comparison.claims(claims, reference),
            advices=[
                (advice, reference and reference.entry(comparison.short, "models", name, "worst"))
                for name, advice in advices
            ],
            defences=comparison.defences(models, reference),
            evaluated=comparison.evaluated(models),
            diagnosis=comparison.diagnosis(models),
            divided=comparison.divided(models),
            search=comparison.search(study.setup, pieces),
            masking=sentences.masking_sentence(pieces),
            keras=sentences.keras_sentences(sentences.keras_reference()),
            figures=figures,
            provenance=_provenance([pieces[task.name] for task in study.plan.tasks if task.name in pieces]),
        )
    )
    folder = make_folder(out / "figures")
    for figure in figures:
        write_bytes(folder / f"{figure.name}.svg", figure.svg)
        write_bytes(folder / f"{figure.name}.png", figure.png)
        write_text(folder / f"{figure.name}.csv", figure.csv)
    write_text(out / "results.md", markdown.results(study, pieces, models, claims, advices))
    write_text(out / "summary.md", markdown.summary(study, pieces, models))
    about = {"scale": scale.name, "dataset": study.dataset.name, "seed": seed}
    numbers = {row.name: row.estimate for row in compared}
    write_json(out / "reference.json", summarised(models, claims, numbers, about))
    write_json(out / "summary.json", summary(study, pieces, compared, figures))
    return write_text(out / "report.html", html)


def summary(
    study: Study, pieces: Mapping[str, Piece], compared: Sequence[paper_comparison.Comparison], figures: list[Figure]
) -> dict[str, Any]:
    """The same results for a machine: every finished piece's result and provenance."""
    return {
        "casemate": __version__,
        "dataset": study.dataset.name,
        "stands_in_for": study.dataset.stands_in_for,
        "scale": study.setup.scale.name,
        "seed": study.setup.seed,
        "compared": [vars(row) for row in compared],
        "figures": [figure.name for figure in figures],
        "pieces": {
            name: {k: piece.facts[k] for k in ("key", "config", "result", "provenance")}
            for name, piece in pieces.items()
        },
    }
