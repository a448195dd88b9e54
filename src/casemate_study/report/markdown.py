"""The main tables as Markdown, for pages that are read in a repository."""

from collections.abc import Iterable, Mapping, Sequence

from casemate.engine import Artifact
from casemate.losses import TITLES
from casemate.report import shown
from casemate_study.claims import Judgement
from casemate_study.claims.verdicts import Advice
from casemate_study.experiments.catalogue import EXPERIMENTS
from casemate_study.experiments.specs import LOSSES
from casemate_study.report import comparison, paper_comparison
from casemate_study.results import ModelResults
from casemate_study.run import Study


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in GitHub's Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _table(table: comparison.Table) -> str:
    return "\n\n".join(part for part in (grid(table.head, table.rows), table.note) if part)


def _made_by(study: Study, artifacts: Mapping[str, Artifact]) -> str:
    """Command, seed, hardware and commits of the artifacts, in one paragraph."""
    made = [artifact.facts["provenance"] for artifact in artifacts.values()]
    machines = sorted({f"{each['processor']}, {each['threads']} of {each['cores']} cores" for each in made})
    commits = sorted({str(each["commit"]) for each in made})
    torch = sorted({each["libraries"]["torch"] for each in made})
    whole = [e.name for e in study.experiments if all(task.name in artifacts for task in e.tasks(study.setup))]
    only = f" --only {' '.join(whole)}" if len(whole) < len(EXPERIMENTS) else ""
    begun = {name.split("/")[0].split("-")[0] for name in artifacts}
    partly = [e.name for e in study.experiments if e.name in begun and e.name not in whole]
    besides = f" and some pieces of {', '.join(partly)}" if partly else ""
    seconds = sum(each["seconds"] for each in made)
    command = f"casemate study --scale {study.setup.scale.name}{only}"
    return (
        f"`{command}`{besides}, {study.dataset.title}, seed {study.setup.seed}, {'; '.join(machines)}, PyTorch "
        f"{', '.join(torch)}, {seconds:,.0f} s in all, commits {', '.join(commits)}."
    )


def _on_the_way(artifacts: Mapping[str, Artifact]) -> str | None:
    """E1 after more and more epochs: accuracy, and the accuracy that each loss's attack leaves."""
    found = {name: artifact.result for name, artifact in sorted(artifacts.items()) if name.startswith("E1/epoch-")}
    if not found:
        return None
    attacks = list(next(iter(found.values()))["attacks"])
    n = next(iter(found.values()))["zero_gradients"]["ce"]["n"]
    head = ["E1 after epoch", "test accuracy", *attacks, "zero gradient"]
    rows = [
        [
            str(int(name.rsplit("-", 1)[1])),
            shown(result["accuracy"]["value"]),
            *(" / ".join(shown(result["attacks"][a][loss]["last"]["value"]) for loss in LOSSES) for a in attacks),
            " / ".join(shown(result["zero_gradients"][loss]["value"]) for loss in LOSSES),
        ]
        for name, result in found.items()
    ]
    words = ", ".join(TITLES[loss] for loss in LOSSES)
    return f"Accuracy left by each attack (last iterate, n = {n:,}) when it ascends: {words}.\n\n{grid(head, rows)}"


def summary(study: Study, artifacts: Mapping[str, Artifact], models: Mapping[str, ModelResults]) -> str:
    """The models in one short table, with the verdict on each, and how it was made."""
    parts = [_table(comparison.brief(models)) if models else None, _made_by(study, artifacts) if artifacts else None]
    return "\n\n".join(part for part in parts if part) + "\n"


def results(
    study: Study,
    artifacts: Mapping[str, Artifact],
    models: Mapping[str, ModelResults],
    claims: Sequence[Judgement],
    advices: Sequence[tuple[str, Advice]],
) -> str:
    """The models, the verdicts, the paper's claims and numbers beside ours, with how they were made."""
    known = [each for each in claims if each.verdict != "not measured"]
    searched, divided = comparison.search(study.setup, artifacts), comparison.temperature_scaled(models)
    compared = paper_comparison.comparisons(artifacts, study.setup.scale, paper_comparison.other_data(study.dataset))
    evaluated = comparison.evaluated(models)
    parts = [
        _table(comparison.defences(models, None)) if models else None,
        _table(evaluated) if evaluated is not None else None,
        "\n".join(f"- {advice.sentence}" for _, advice in advices) or None,
        _table(comparison.claims(known, None)) if known else None,
        _table(paper_comparison.table(compared, None)) if compared else None,
        _table(comparison.diagnosis(models)) if models else None,
        _table(divided) if divided is not None else None,
        _table(searched) if searched is not None else None,
        _on_the_way(artifacts),
        _made_by(study, artifacts) if artifacts else None,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
