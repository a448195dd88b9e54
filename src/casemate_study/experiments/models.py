"""Descriptions of the study's models: their names, the tasks that train them, and the tasks that measure them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

from casemate.engine import Task
from casemate_study.experiments import specs
from casemate_study.experiments.scales import EPS_GRID
from casemate_study.experiments.specs import BIM_STEPS, LOSSES, Setup, Source

TABLE_EPS = (0.05, 0.1, 0.2)
"""Values of eps (Linf, pixels from 0 to 1) in the report's table of all models."""
BIM_EPS = (0.0, 0.01, 0.025, *TABLE_EPS)
"""Values of eps at which BIM attacks every model; at the small ones some images of undefended models are left."""
SMALL_EPS = (0.01, 0.025, 0.1)
"""Values of eps under PGD for models that claims compare; at the first two some images still withstand the attacks."""
EOT_DRAWS = 10
"""Random draws over which the input gradient of a randomised model is averaged (expectation over transformation)."""


@final
@dataclass(frozen=True, kw_only=True)
class StudyModel:
    """A description, without weights, of one model to measure: its name, its source (the task that trains it, and which
    of the saved weights), and how it is attacked. Several models may share one training.
    """

    name: str
    """The name of its experiment, such as "E6", with a suffix where an experiment has several models: "E6-plain"."""
    title: str
    source: Source
    aliases: Mapping[str, str] = field(default_factory=dict)
    """For measures whose tasks belong to another experiment: the start of the task's name, by measure. E1, the
    undefended network, has {"fgsm": "E2/fgsm", ...}."""
    in_figures: bool = False
    """Whether a figure shows it under BIM. If so, BIM runs ascending each of three losses, with both clippings (to the
    eps ball, or only to the pixel range); otherwise ascending one loss, with clip ball."""
    pgd: tuple[float, ...] = (0.1,)
    """Values of eps under PGD; at the quick scale those of `evaluated`."""
    evaluated: tuple[float, ...] = (0.1,)
    """Values of eps in the whole evaluation."""

    @property
    def ours(self) -> bool:
        """Whether the model is not one of the paper's: E1 with our own recipe or a falling learning rate, or E13 (the
        paper's further work).
        """
        return self.experiment in ("E1+", "E13") or self.name == "E1-falling"

    @property
    def experiment(self) -> str:
        """The name of its experiment: the model's name up to the first hyphen."""
        return self.name.split("-")[0]

    def artifact(self, measure: str, loss: str | None = None) -> str:
        """The name of the task that measures this model, such as "E6/fgsm/ce"; whether it exists is not checked.

        `measure` is clean, fgsm, ball or range (BIM with that clipping), range-4 (E1 only), pgd, eot, divided (BIM on
        divided logits) or evaluation; `loss` is the loss that the attack ascends, for fgsm, ball and range.
        """
        place = self.aliases.get(measure, f"{self.name}/{measure}")
        return place if loss is None else f"{place}/{loss}"


def evaluation_tasks(setup: Setup, model: StudyModel) -> list[Task]:
    """Describe the tasks that measure a trained model: clean measures, FGSM and BIM curves, PGD or EOT, an evaluation.

    Omitted: its training; measures that another experiment takes (`StudyModel.aliases`); the evaluation where the scale
    has it for the paper's models only.
    """
    scale, source = setup.scale, model.source
    found = [specs.clean_task(setup, model.artifact("clean"), source)]
    bim = {"name": "bim", "eps": 0.1, "steps": BIM_STEPS, "keep": "last"}
    every = LOSSES if model.in_figures else LOSSES[:1]
    kinds = {
        "fgsm": ({"name": "fgsm", "eps": 0.1, "keep": "last"}, LOSSES, EPS_GRID, scale.fgsm_images),
        "ball": (bim | {"clip": "ball"}, every, BIM_EPS, scale.attacked_images),
        "range": (bim | {"clip": "range"}, every if model.in_figures else (), BIM_EPS, scale.attacked_images),
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
        values = model.pgd if scale.beyond_claims else model.evaluated
        found.append(specs.worst_case_task(setup, model.artifact("pgd"), source, values))
    else:
        attack = bim | {"clip": "ball", "loss": "ce", "eot_samples": EOT_DRAWS}
        found.append(
            specs.curve_task(
                setup, model.artifact("eot"), source, attack, "eps", (0.0, 0.05, 0.1), scale.attacked_images
            )
        )
    if scale.evaluates_ours or not model.ours:
        found.append(specs.evaluation_task(setup, model.artifact("evaluation"), source, model.evaluated))
    return found
