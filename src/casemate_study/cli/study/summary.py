"""The study's main results on one screen, beside the paper's."""

from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from casemate.cli.shared import console
from casemate.evaluation import Estimate, percent
from casemate_study.experiments import paper
from casemate_study.experiments.specs import LOSSES
from casemate_study.experiments.undefended import E4_STEP_SIZES, e4_prefix
from casemate_study.report import comparison
from casemate_study.results.stored import Artifacts, StoredClean, find_point, find_result
from casemate_study.run import PlannedStudy

_FGSM_EPS = 0.1
_BIM_EPS = 0.05
_ITERATIONS = 25


@dataclass(frozen=True, kw_only=True)
class Row:
    """One accuracy of ours and, where the paper states it, the paper's."""

    experiment: str
    what: str
    accuracy: Estimate
    paper: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The row as JSON."""
        return vars(self) | {"accuracy": self.accuracy.as_json()}


def main_results(artifacts: Artifacts) -> list[Row]:
    """The main results of the finished artifacts; accuracies under attack are at the last iterate."""
    found: list[Row] = []
    for name in ("E1", "E1+", "E11"):
        clean = find_result(artifacts, f"{name}/clean", StoredClean)
        if clean is not None:
            stated = paper.TEST_ACCURACY.value if name == "E1" else None
            found.append(Row(experiment=name, what="test accuracy", accuracy=clean.accuracy, paper=stated))

    def add(name: str, what: str, value: float | int, stated: float | None) -> None:
        point = find_point(artifacts, name, value)
        if point is not None:
            found.append(Row(experiment=name.split("/")[0], what=what, accuracy=point.last, paper=stated))

    for loss in LOSSES:
        add(f"E2/fgsm/{loss}", f"FGSM, eps {_FGSM_EPS}, {loss}", _FGSM_EPS, paper.FGSM_AT_01.value)
    for clip in ("ball", "range"):
        for loss in LOSSES:
            add(f"E3/{clip}/{loss}", f"BIM {clip}, eps {_BIM_EPS}, {loss}", _BIM_EPS, None)
    for step in E4_STEP_SIZES:
        for loss in LOSSES:
            what = f"BIM, {_ITERATIONS} steps of {step}, {loss}"
            add(f"{e4_prefix(step)}/{loss}", what, _ITERATIONS, paper.BIM_AT_25.value)
    return found


def results_table(found: list[Row], *, comparable: bool) -> Table:
    """The rows as a table; the paper's numbers only where they are on the same data."""
    made = console.new_table("", "Accuracy", *console.right_aligned("Here (95 % interval)", "n", "Paper"))
    for row in found:
        stated = percent(row.paper) if comparable and row.paper is not None else ""
        made.add_row(row.experiment, row.what, f"{row.accuracy}", f"{row.accuracy.n:,}", stated)
    return made


def model_summary(study: PlannedStudy, artifacts: Artifacts) -> Table | None:
    """All models: accuracy under each attack, verdict, paired test; None if fewer than two were measured."""
    found = comparison.summary_table(comparison.measured_models(study.setup, artifacts))
    if len(found.rows) < 2:
        return None
    head = found.head
    made = console.new_table(
        head[0].capitalize(), *console.right_aligned(*head[1:-2]), *(name[0].upper() + name[1:] for name in head[-2:])
    )
    for title, *shares, verdict, against in found.rows:
        made.add_row(escape(title), *(share.split(" (")[0] for share in shares), verdict, against)
    return made


def result_notes(study: PlannedStudy) -> list[str]:
    """Notes under the table: what the numbers are, and whether they say anything about the paper's."""
    said = ["Under attack: the raw last iterate. Losses: ce stable, torch-ce F.cross_entropy, prob-ce from softmax."]
    if study.dataset.name != "fashion-mnist":
        said.append(
            f"On {study.dataset.title}: these numbers say nothing about the paper's, which are on Fashion-MNIST."
        )
    elif not study.setup.scale.decides:
        said.append(
            f"Scale {study.setup.scale.name}: {study.setup.scale.purpose}. Only full decides on the paper's numbers."
        )
    return said
