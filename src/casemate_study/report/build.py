"""The report: one HTML file that opens anywhere and asks for nothing, and its figures as files beside it."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from casemate import __version__
from casemate.engine import Artifact
from casemate.files import make_folder, write_bytes, write_json, write_text
from casemate.report import Figure, shown, template_environment
from casemate_study.claims.verdicts import EPS
from casemate_study.experiments.catalogue import EXPERIMENTS, models_of
from casemate_study.experiments.scales import SCALES, table
from casemate_study.reference import Reference, reference_for, summarised
from casemate_study.report import comparison, markdown, paper_comparison, sentences
from casemate_study.report.figures import all_figures
from casemate_study.results import ModelResults
from casemate_study.run import Study

_HEADLINES = (
    ("test accuracy, E1", "E1", "clean"),
    ("test accuracy, our recipe", "E1+", "clean"),
    ("test accuracy, E11", "E11", "clean"),
    ("E1 under FGSM", "E1", "fgsm"),
    ("E1 under BIM-10, ball", "E1", "ball"),
)


def headlines(
    study: Study, artifacts: Mapping[str, Artifact], reference: Reference | None
) -> list[tuple[str, str, str, str]]:
    """The few numbers that come first: what, value, in which setting, and the same in the committed runs."""
    models = {
        model.name: ModelResults(model, artifacts) for model in models_of(list(EXPERIMENTS.values()), study.setup)
    }
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


def _experiments(study: Study, artifacts: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """Title, notes and state of each experiment that was asked for."""
    wanted = []
    for experiment in study.experiments:
        names = [task.name for task in experiment.tasks(study.setup)]
        done = [name for name in names if name in artifacts]
        seconds = sum(artifacts[name].facts["provenance"]["seconds"] for name in done)
        wanted.append(
            {
                "name": experiment.name,
                "title": experiment.title,
                "notes": experiment.notes,
                "state": "finished" if len(done) == len(names) else f"{len(done)} of {len(names)} artifacts finished",
                "seconds": seconds,
            }
        )
    return wanted


def _provenance(artifacts: Sequence[Artifact]) -> list[tuple[str, ...]]:
    """When, how long and where every artifact was made."""
    rows = []
    for artifact in artifacts:
        made = artifact.facts["provenance"]
        rows.append(
            (
                artifact.facts["name"],
                artifact.key,
                f"{made['seconds']:.1f}",
                made["finished"],
                made["commit"] or "-",
                f"{made['processor']}, {made['threads']} threads, {made['device']}",
            )
        )
    return rows


def build_report(study: Study, artifacts: Mapping[str, Artifact], out: Path) -> Path:
    """Write report.html, the same results as Markdown and JSON, and the figures into `out`; return the report.

    Figures are SVG, PNG and CSV. Everything comes from `artifacts`; what is not finished is named as such. Files are
    written whole or not at all.
    """
    make_folder(out)
    scale, seed = study.setup.scale, study.setup.seed
    models = comparison.judged_models(study.setup, artifacts)
    figures = all_figures(artifacts, models)
    reference = reference_for(scale, study.dataset.name)
    decides = scale.decides and not paper_comparison.other_data(study.dataset)
    claims = comparison.judged_claims(models, artifacts, decides=decides)
    advices = comparison.advices(models)
    compared = paper_comparison.comparisons(artifacts, scale, paper_comparison.other_data(study.dataset))
    missing = [task.name for task in study.plan.tasks if task.name not in artifacts]
    recent = max(artifacts.values(), key=lambda artifact: artifact.facts["provenance"]["finished"], default=None)
    html = (
        template_environment("casemate_study.report")
        .get_template("report.html.j2")
        .render(
            dataset=study.dataset.title,
            fallback_for=study.dataset.fallback_for,
            scale=scale,
            scale_names=list(SCALES),
            scale_table=table(),
            seed=seed,
            version=__version__,
            written=datetime.now(UTC).isoformat(timespec="minutes"),
            made=None if recent is None else recent.facts["provenance"],
            total_seconds=sum(artifact.facts["provenance"]["seconds"] for artifact in artifacts.values()),
            experiments=_experiments(study, artifacts),
            missing=missing,
            headlines=headlines(study, artifacts, reference),
            compared=paper_comparison.table(compared, reference),
            reference=reference,
            claims=comparison.claims(claims, reference),
            advices=[
                (advice, reference and reference.entry(comparison.short, "models", name, "worst"))
                for name, advice in advices
            ],
            convention=next((advice.verdict.convention for _, advice in advices if advice.verdict), ""),
            defences=comparison.defences(models, reference),
            evaluated=comparison.evaluated(models),
            diagnosis=comparison.diagnosis(models),
            divided=comparison.temperature_scaled(models),
            search=comparison.search(study.setup, artifacts),
            masking=sentences.masking_sentence(artifacts),
            keras=sentences.keras_sentences(sentences.keras_reference()),
            figures=figures,
            provenance=_provenance([artifacts[task.name] for task in study.plan.tasks if task.name in artifacts]),
        )
    )
    folder = make_folder(out / "figures")
    for figure in figures:
        write_bytes(folder / f"{figure.name}.svg", figure.svg)
        write_bytes(folder / f"{figure.name}.png", figure.png)
        write_text(folder / f"{figure.name}.csv", figure.csv)
    write_text(out / "results.md", markdown.results(study, artifacts, models, claims, advices))
    write_text(out / "summary.md", markdown.summary(study, artifacts, models))
    about = {"scale": scale.name, "dataset": study.dataset.name, "seed": seed}
    numbers = {row.name: row.estimate for row in compared}
    write_json(out / "reference.json", summarised(models, claims, numbers, about))
    write_json(out / "summary.json", summary(study, artifacts, compared, figures))
    return write_text(out / "report.html", html)


def summary(
    study: Study,
    artifacts: Mapping[str, Artifact],
    compared: Sequence[paper_comparison.Comparison],
    figures: list[Figure],
) -> dict[str, Any]:
    """The same results for a machine: every finished artifact's result and provenance."""
    return {
        "casemate": __version__,
        "dataset": study.dataset.name,
        "fallback_for": study.dataset.fallback_for,
        "scale": study.setup.scale.name,
        "seed": study.setup.seed,
        "compared": [vars(row) for row in compared],
        "figures": [figure.name for figure in figures],
        "artifacts": {
            name: {k: artifact.facts[k] for k in ("key", "config", "result", "provenance")}
            for name, artifact in artifacts.items()
        },
    }
