"""Writes the report: one HTML file that needs no other file and no network, and its figures and tables also
as files.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from casemate import __version__
from casemate.files import make_folder, write_bytes, write_json, write_text
from casemate.report import Figure, template_environment
from casemate_study.claims.verdicts import EPS
from casemate_study.experiments.scales import SCALES, scale_table
from casemate_study.reference import reference_for, reference_json
from casemate_study.report import comparison, markdown, paper_comparison, seeds, sentences, views
from casemate_study.report.figures import all_figures
from casemate_study.report.hypotheses import hypotheses_section
from casemate_study.report.recipes import recipe_table
from casemate_study.results.stored import Artifacts, Provenance
from casemate_study.run import PlannedStudy


def _experiments(study: PlannedStudy, artifacts: Artifacts) -> list[dict[str, Any]]:
    """One dictionary for each selected experiment: name, title, notes, how many artifacts are finished, and seconds
    they took.
    """
    found = []
    for experiment in study.experiments:
        names = [task.name for task in experiment.tasks(study.setup)]
        done = [Provenance.of(artifacts[name]) for name in names if name in artifacts]
        found.append(
            {
                "name": experiment.name,
                "title": experiment.title,
                "notes": experiment.notes,
                "state": "finished" if len(done) == len(names) else f"{len(done)} of {len(names)} artifacts finished",
                "seconds": sum(made.seconds for made in done),
            }
        )
    return found


def _provenance(study: PlannedStudy, artifacts: Artifacts) -> list[tuple[str, ...]]:
    """One row of texts per finished artifact of the plan: name, key, seconds, time finished, commit, and machine."""
    rows = []
    for artifact in (artifacts[task.name] for task in study.plan.tasks if task.name in artifacts):
        made = Provenance.of(artifact)
        machine = f"{made.processor}, {made.threads} threads, {made.device}"
        name = artifact.facts["name"]
        rows.append((name, artifact.key, f"{made.seconds:.1f}", made.finished, made.commit or "-", machine))
    return rows


def build_report(study: PlannedStudy, artifacts: Artifacts, out: Path) -> Path:
    """Write report.html into the folder `out`, with results as Markdown and JSON, and figures as SVG, PNG and CSV.

    Returns the path of report.html. Everything comes from `artifacts`; the report names the tasks that are not
    finished. Files are written whole or not at all.
    """
    make_folder(out)
    scale, seed = study.setup.scale, study.setup.seed
    models = comparison.measured_models(study.setup, artifacts)
    figures = all_figures(artifacts, models)
    reference = reference_for(scale, study.dataset.name)
    decides = scale.decides and not paper_comparison.other_data(study.dataset)
    claims = comparison.judged_claims(models, artifacts, decides=decides)
    advices = comparison.advices(models)
    compared = paper_comparison.comparisons(artifacts, scale, paper_comparison.other_data(study.dataset))
    missing = [task.name for task in study.plan.tasks if task.name not in artifacts]
    made = [Provenance.of(artifact) for artifact in artifacts.values()]
    html = (
        template_environment("casemate_study.report")
        .get_template("report.html.j2")
        .render(
            dataset=study.dataset.title,
            fallback_for=study.dataset.fallback_for,
            scale=scale,
            scale_names=list(SCALES),
            scale_table=scale_table(),
            seed=seed,
            machines=sorted({each.machine for each in made}),
            torch=sorted({each.libraries["torch"] for each in made}),
            total_seconds=sum(each.seconds for each in made),
            experiments=_experiments(study, artifacts),
            missing=missing,
            incomplete=dict.fromkeys(name.split("/", 1)[0] for name in missing),
            lead=views.lead(models, advices, claims),
            rows=views.model_rows(models, advices),
            shaded=views.SHADED,
            eps=EPS,
            compared=paper_comparison.comparison_table(compared, reference),
            measured=[views.Beside.of(row) for row in compared],
            hypotheses=hypotheses_section(artifacts),
            reference=reference,
            claims=comparison.claim_table(claims, reference),
            claim_words=f"{len(claims)} statements: {views.counted(claims)}",
            seeds=seeds.seeds_table(models, artifacts, seed),
            advices=[(advice, reference and reference.accuracy(name, "worst")) for name, advice in advices],
            convention=next((advice.verdict.convention for _, advice in advices if advice.verdict), ""),
            models=comparison.model_table(models, reference),
            evaluated=comparison.whole_evaluation_table(models),
            diagnosis=comparison.diagnosis_table(models),
            divided=comparison.distillation_table(models),
            recipes=recipe_table(artifacts),
            search=comparison.search_table(study.setup, artifacts),
            masking=sentences.masking_sentence(artifacts),
            keras=sentences.keras_sentences(sentences.keras_reference()),
            figures=figures,
            provenance=_provenance(study, artifacts),
        )
    )
    folder = make_folder(out / "figures")
    for figure in figures:
        write_bytes(folder / f"{figure.name}.svg", figure.svg)
        write_bytes(folder / f"{figure.name}.png", figure.png)
        write_text(folder / f"{figure.name}.csv", figure.csv)
    write_text(out / "results.md", markdown.results_markdown(study, artifacts, models, claims, advices))
    write_text(out / "summary.md", markdown.summary_markdown(study, artifacts, models))
    about = {"scale": scale.name, "dataset": study.dataset.name, "seed": seed}
    numbers = {row.name: row.estimate for row in compared}
    write_json(out / "reference.json", reference_json(models, claims, numbers, about))
    write_json(out / "summary.json", summary_json(study, artifacts, compared, figures))
    return write_text(out / "report.html", html)


def summary_json(
    study: PlannedStudy,
    artifacts: Artifacts,
    compared: Sequence[paper_comparison.Comparison],
    figures: list[Figure],
) -> dict[str, Any]:
    """The content of summary.json, for programs: the study's scale, data and seed, our numbers compared with the
    paper's, and every finished artifact's configuration, result and provenance.
    """
    return {
        "casemate": __version__,
        "dataset": study.dataset.name,
        "fallback_for": study.dataset.fallback_for,
        "scale": study.setup.scale.name,
        "seed": study.setup.seed,
        "compared": [row.as_json() for row in compared],
        "figures": [{"name": each.name, "title": each.title, "caption": each.caption} for each in figures],
        "artifacts": {
            name: {k: artifact.facts[k] for k in ("key", "config", "result", "provenance")}
            for name, artifact in artifacts.items()
        },
    }
