"""The main tables as Markdown, written as results.md and summary.md, for reading in a repository."""

from collections.abc import Iterable, Mapping, Sequence

from casemate.evaluation import percent
from casemate.losses import TITLES
from casemate_study.claims import Judgement
from casemate_study.claims.verdicts import Advice
from casemate_study.experiments.catalogue import EXPERIMENTS
from casemate_study.experiments.specs import LOSSES
from casemate_study.report import comparison, paper_comparison, seeds
from casemate_study.results.models import ModelResults
from casemate_study.results.stored import Artifacts, Provenance, StoredCheckpoint, find_result
from casemate_study.run import PlannedStudy


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in GitHub's Markdown, from its column headings and its rows of cells."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _table(table: comparison.Table) -> str:
    return "\n\n".join(part for part in (grid(table.head, table.rows), table.note) if part)


def _made_by(study: PlannedStudy, artifacts: Artifacts) -> str:
    """A paragraph on how the artifacts were made: command, data set, seed, hardware, PyTorch version, seconds and
    commits.
    """
    made = [Provenance.of(artifact) for artifact in artifacts.values()]
    machines = sorted({each.machine for each in made})
    commits = sorted({str(each.commit) for each in made})
    torch = sorted({each.libraries["torch"] for each in made})
    whole = [e.name for e in study.experiments if all(task.name in artifacts for task in e.tasks(study.setup))]
    only = f" --only {' '.join(whole)}" if len(whole) < len(EXPERIMENTS) else ""
    begun = {name.split("/")[0].split("-")[0] for name in artifacts}
    partly = [e.name for e in study.experiments if e.name in begun and e.name not in whole]
    besides = f" and some pieces of {', '.join(partly)}" if partly else ""
    seconds = sum(each.seconds for each in made)
    command = f"casemate study --scale {study.setup.scale.name}{only}"
    return (
        f"`{command}`{besides}, {study.dataset.title}, seed {study.setup.seed}, {'; '.join(machines)}, PyTorch "
        f"{', '.join(torch)}, {seconds:,.0f} s in all, commits {', '.join(commits)}."
    )


def _checkpoints(artifacts: Artifacts) -> str | None:
    """A Markdown table of E1, the undefended network, after several numbers of epochs: accuracy without an attack, and
    under each attack for each loss that it ascends. None if nothing is finished.
    """
    names = sorted(name for name in artifacts if name.startswith("E1/epoch-"))
    found = {name: each for name in names if (each := find_result(artifacts, name, StoredCheckpoint))}
    if not found:
        return None
    first = found[names[0]]
    head = ["E1 after epoch", "test accuracy", *first.attacks, "zero gradient"]
    rows = [
        [
            str(int(name.rsplit("-", 1)[1])),
            percent(each.accuracy.value),
            *(" / ".join(percent(each.attacks[a][loss].last.value) for loss in LOSSES) for a in first.attacks),
            " / ".join(percent(each.zero_gradients[loss].value) for loss in LOSSES),
        ]
        for name, each in found.items()
    ]
    words, n = ", ".join(TITLES[loss] for loss in LOSSES), first.zero_gradients["ce"].n
    return f"Accuracy left by each attack (last iterate, n = {n:,}) when it ascends: {words}.\n\n{grid(head, rows)}"


def summary_markdown(study: PlannedStudy, artifacts: Artifacts, models: Mapping[str, ModelResults]) -> str:
    """The content of summary.md: the models in one short table with the verdict on each, and how the
    results were made.
    """
    parts = [
        _table(comparison.summary_table(models)) if models else None,
        _made_by(study, artifacts) if artifacts else None,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def results_markdown(
    study: PlannedStudy,
    artifacts: Artifacts,
    models: Mapping[str, ModelResults],
    claims: Sequence[Judgement],
    advices: Sequence[tuple[str, Advice]],
) -> str:
    """The content of results.md: the tables of the models, the advice on each defence, the paper's claims, its numbers
    beside ours, and how ours were made. Tables without results are omitted.
    """
    known = [each for each in claims if each.verdict != "not measured"]
    searched, divided = comparison.search_table(study.setup, artifacts), comparison.distillation_table(models)
    compared = paper_comparison.comparisons(artifacts, study.setup.scale, paper_comparison.other_data(study.dataset))
    evaluated = comparison.whole_evaluation_table(models)
    repeated = seeds.seeds_table(models, artifacts, study.setup.seed)
    parts = [
        _table(comparison.model_table(models, None)) if models else None,
        _table(evaluated) if evaluated is not None else None,
        "\n".join(f"- {advice.sentence}" for _, advice in advices) or None,
        _table(comparison.claim_table(known, None)) if known else None,
        _table(repeated) if repeated is not None else None,
        _table(paper_comparison.comparison_table(compared, None)) if compared else None,
        _table(comparison.diagnosis_table(models)) if models else None,
        _table(divided) if divided is not None else None,
        _table(searched) if searched is not None else None,
        _checkpoints(artifacts),
        _made_by(study, artifacts) if artifacts else None,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
