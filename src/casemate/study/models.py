"""Every model of the study that is judged: what it is called, which piece holds it, and how it is measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from casemate.engine.task import Task
from casemate.study import tasks
from casemate.study.scales import EPS_GRID
from casemate.study.tasks import BIM_STEPS, LOSSES, Setup, Source

TABLE_EPS = (0.05, 0.1, 0.2)
"""The values of eps in the table of all defences."""
PGD_EPS = (0.01, 0.025, 0.1)
"""The values at which the strongest attacks so far are run: two at which undefended models still stand."""
EOT_DRAWS = 10

Measure = Literal["fgsm", "ball", "range"]
Wide = Literal["table", "grid", "both"]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A judged model."""

    name: str
    """As in the study, such as "E6", with a suffix where an experiment has several."""
    title: str
    source: Source
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    """Measures whose curves an experiment of another name holds: "fgsm" -> "E2/fgsm"."""
    ball: tuple[float, ...] = (0.0, *TABLE_EPS)
    """Values of eps under BIM, clip ball."""
    both_clips: bool = False
    """Whether BIM with clip range is run too."""

    @property
    def experiment(self) -> str:
        """The experiment it belongs to."""
        return self.name.split("-")[0]

    def piece(self, measure: str, loss: str | None = None) -> str:
        """The name of the piece that holds a measure: clean, fgsm, ball, range, pgd, eot."""
        place = self.elsewhere.get(measure, f"{self.name}/{measure}")
        return place if loss is None else f"{place}/{loss}"


def battery(setup: Setup, model: Model) -> list[Task]:
    """Every measure of a model that no other experiment takes."""
    scale, source = setup.scale, model.source
    found = [tasks.clean(setup, model.piece("clean"), source)]
    bim = {"name": "bim", "eps": 0.1, "steps": BIM_STEPS, "track": "last"}
    kinds = {
        "fgsm": ({"name": "fgsm", "eps": 0.1, "track": "last"}, EPS_GRID, scale.fgsm_images),
        "ball": (bim | {"clip": "ball"}, model.ball, scale.judged_images),
        "range": (bim | {"clip": "range"}, model.ball, scale.judged_images),
    }
    for measure, (attack, values, images) in kinds.items():
        if measure not in model.elsewhere and (measure != "range" or model.both_clips):
            found += [
                tasks.curve(setup, model.piece(measure, loss), source, attack | {"loss": loss}, "eps", values, images)
                for loss in LOSSES
            ]
    if source.inference is None:
        found.append(tasks.worst(setup, model.piece("pgd"), source, PGD_EPS))
    else:
        attack = bim | {"clip": "ball", "loss": "ce", "draws": EOT_DRAWS}
        found.append(
            tasks.curve(setup, model.piece("eot"), source, attack, "eps", (0.0, 0.05, 0.1), scale.judged_images)
        )
    return found
