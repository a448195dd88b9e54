"""The study's main results on one screen, beside the paper's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from casemate.cli.shared import console
from casemate.engine import Artifact
from casemate.evaluation import percent
from casemate_study.experiments import paper
from casemate_study.experiments.specs import LOSSES
from casemate_study.experiments.undefended import E4_STEP_SIZES, e4_prefix
from casemate_study.report import comparison
from casemate_study.results import point_at
from casemate_study.run import Study

_FGSM_EPS = 0.1
_BIM_EPS = 0.05
_ITERATIONS = 25


@dataclass(frozen=True, kw_only=True)
class Row:
    """One accuracy of ours and, where the paper states it, the paper's."""

    experiment: str
    what: str
    accuracy: dict[str, Any]
    """value, low, high, n."""
    paper: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The row as JSON."""
        return {"experiment": self.experiment, "what": self.what, "accuracy": self.accuracy, "paper": self.paper}


def rows(artifacts: Mapping[str, Artifact]) -> list[Row]:
    """The main results among the artifacts that are there; accuracies under attack are of the last iterate."""
    found: list[Row] = []
    for name in ("E1", "E1+", "E11"):
        artifact = artifacts.get(f"{name}/clean")
        if artifact is not None:
            stated = paper.TEST_ACCURACY.value if name == "E1" else None
            found.append(Row(experiment=name, what="test accuracy", accuracy=artifact.result["accuracy"], paper=stated))

    def add(name: str, what: str, axis: str, value: float | int, stated: float | None) -> None:
        artifact = artifacts.get(name)
        point = None if artifact is None else point_at(artifact, axis, value)
        if point is not None:
            found.append(Row(experiment=name.split("/")[0], what=what, accuracy=point["last"], paper=stated))

    for loss in LOSSES:
        add(f"E2/fgsm/{loss}", f"FGSM, eps {_FGSM_EPS}, {loss}", "eps", _FGSM_EPS, paper.FGSM_AT_01.value)
    for clip in ("ball", "range"):
        for loss in LOSSES:
            add(f"E3/{clip}/{loss}", f"BIM {clip}, eps {_BIM_EPS}, {loss}", "eps", _BIM_EPS, None)
    for step in E4_STEP_SIZES:
        for loss in LOSSES:
            what = f"BIM, {_ITERATIONS} steps of {step}, {loss}"
            add(f"{e4_prefix(step)}/{loss}", what, "steps", _ITERATIONS, paper.BIM_AT_25.value)
    return found


def render(found: list[Row], *, comparable: bool) -> Table:
    """The rows as a table; the paper's numbers only where they are on the same data."""
    made = console.new_table("", "Accuracy in %", *console.right_aligned("Here", "95 % interval", "n", "Paper"))
    for row in found:
        here = row.accuracy
        low, high = percent(here["low"]), percent(here["high"])
        stated = percent(row.paper) if comparable and row.paper is not None else ""
        made.add_row(row.experiment, row.what, percent(here["value"]), f"{low} to {high}", f"{here['n']:,}", stated)
    return made


def every_model(study: Study, artifacts: Mapping[str, Artifact]) -> Table | None:
    """All models: what the attacks leave of them, verdicts, paired tests; None if fewer than two were measured."""
    found = comparison.brief(comparison.judged_models(study.setup, artifacts))
    if len(found.rows) < 2:
        return None
    head = found.head
    made = console.new_table(
        head[0].capitalize(), *console.right_aligned(*head[1:-2]), *(name[0].upper() + name[1:] for name in head[-2:])
    )
    for title, *shares, verdict, against in found.rows:
        made.add_row(escape(title), *(share.split(" ")[0] for share in shares), verdict, against)
    return made


def notes(study: Study) -> list[str]:
    """What a reader must know of these numbers."""
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
