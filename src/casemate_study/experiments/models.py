"""The models of the study: their names, the trainings that make them, and the tasks that measure them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

from casemate.engine import Task
from casemate_study.experiments import specs
from casemate_study.experiments.scales import EPS_GRID
from casemate_study.experiments.specs import BIM_STEPS, LOSSES, Setup, Source

TABLE_EPS = (0.05, 0.1, 0.2)
"""Values of eps in the table of all models."""
FIGURE_EPS = (0.0, 0.025, *TABLE_EPS)
"""Values of eps under BIM for models in figures."""
SMALL_EPS = (0.01, 0.025, 0.1)
"""Values of eps under PGD for undefended models; at the first two they still withstand attacks on some images."""
EOT_DRAWS = 10
"""Draws over which the gradient of a randomised model is averaged."""


@final
@dataclass(frozen=True, kw_only=True)
class StudyModel:
    """A model of the study."""

    name: str
    """The name of its experiment, such as "E6", with a suffix where an experiment has several models."""
    title: str
    source: Source
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Measures that are tasks of another experiment: "fgsm" is "E2/fgsm"."""
    in_figures: bool = False
    """Whether a figure shows it under BIM: then BIM runs under every loss, with both clippings and at more eps."""
    pgd: tuple[float, ...] = (0.1,)
    """Values of eps under PGD."""

    @property
    def ours(self) -> bool:
        """Whether the model is our own or of the paper's further work, not one of the paper's models."""
        return self.experiment in ("E1+", "E13")

    @property
    def experiment(self) -> str:
        """The name of its experiment."""
        return self.name.split("-")[0]

    def artifact(self, measure: str, loss: str | None = None) -> str:
        """The name of the task that takes a measure: clean, fgsm, ball, range, pgd, eot, divided, evaluation."""
        place = self.aliases.get(measure, f"{self.name}/{measure}")
        return place if loss is None else f"{place}/{loss}"


def evaluation_tasks(setup: Setup, model: StudyModel) -> list[Task]:
    """The tasks that measure a model, without those that another experiment has (`StudyModel.aliases`)."""
    scale, source = setup.scale, model.source
    found = [specs.clean_task(setup, model.artifact("clean"), source)]
    bim = {"name": "bim", "eps": 0.1, "steps": BIM_STEPS, "keep": "last"}
    every = LOSSES if model.in_figures else LOSSES[:1]
    values = FIGURE_EPS if model.in_figures else (0.0, *TABLE_EPS)
    kinds = {
        "fgsm": ({"name": "fgsm", "eps": 0.1, "keep": "last"}, LOSSES, EPS_GRID, scale.fgsm_images),
        "ball": (bim | {"clip": "ball"}, every, values, scale.attacked_images),
        "range": (bim | {"clip": "range"}, every if model.in_figures else (), values, scale.attacked_images),
    }
    for measure, (attack, losses, grid, images) in kinds.items():
        if measure not in model.aliases:
            found += [
                specs.curve_task(
                    setup, model.artifact(measure, loss), source, attack | {"loss": loss}, "eps", grid, images
                )
                for loss in losses
            ]
    if source.inference is None:
        found.append(specs.worst_case_task(setup, model.artifact("pgd"), source, model.pgd))
    else:
        attack = bim | {"clip": "ball", "loss": "ce", "eot_samples": EOT_DRAWS}
        found.append(
            specs.curve_task(
                setup, model.artifact("eot"), source, attack, "eps", (0.0, 0.05, 0.1), scale.attacked_images
            )
        )
    if scale.evaluates_ours or not model.ours:
        found.append(specs.evaluation_task(setup, model.artifact("evaluation"), source, model.pgd))
    return found
