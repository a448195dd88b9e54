"""The tables that `casemate study` prints: the main results beside the paper's numbers, and all models."""

from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from casemate.cli.shared import console
from casemate.evaluation import Estimate, percent
from casemate_study.experiments import paper
from casemate_study.experiments.scales import SCALES
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
    """One accuracy that we measured and, where the paper states it, the paper's as a fraction (otherwise None)."""

    experiment: str
    what: str
    accuracy: Estimate
    paper: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON, with `accuracy` as a dictionary (value, low, high, n)."""
        return vars(self) | {"accuracy": self.accuracy.as_json()}


def main_results(artifacts: Artifacts) -> list[Row]:
    """The main accuracies among the finished artifacts: clean (E1, E1+, E11), and of E1 under FGSM (E2) and BIM (E3,
    E4).

    Under attack they are those of the last iterate, once for each loss that the attack ascends.
    """
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
    """The rows as a table for the terminal; the paper's numbers are left empty unless `comparable` (our data are the
    paper's).
    """
    made = console.new_table("", "Accuracy", *console.right_aligned("Here (95 % interval)", "n", "Paper"))
    for row in found:
        stated = percent(row.paper) if comparable and row.paper is not None else ""
        made.add_row(row.experiment, row.what, f"{row.accuracy}", f"{row.accuracy.n:,}", stated)
    return made


def model_summary(study: PlannedStudy, artifacts: Artifacts) -> Table | None:
    """All models with clean measures as a table for the terminal; None if fewer than two.

    Columns: accuracy without an attack, under FGSM, under BIM, in the worst case and in the whole evaluation (eps 0.1);
    the verdict; and whether more images withstand the study's attacks than on E1, the undefended network (McNemar).
    """
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
    """Sentences to print under the table of results: of which iterate and losses the accuracies are; and, on another
    data set or at another scale than the paper's, that they do not decide about the paper's numbers.
    """
    said = ["Under attack: the raw last iterate. Losses: ce stable, torch-ce F.cross_entropy, prob-ce from softmax."]
    if study.dataset.name != "fashion-mnist":
        said.append(
            f"On {study.dataset.title}: these numbers say nothing about the paper's, which are on Fashion-MNIST."
        )
    elif not study.setup.scale.decides:
        deciding = " and ".join(name for name, scale in SCALES.items() if scale.decides)
        said.append(
            f"Scale {study.setup.scale.name}: {study.setup.scale.purpose}. Only the scales {deciding} decide on the "
            "paper's numbers."
        )
    return said
