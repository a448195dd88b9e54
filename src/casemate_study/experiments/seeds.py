"""Descriptions of trainings that are repeated with further seeds, and of their measures.

The tasks are those of the study with another seed, under names that begin with "seed-1/", say; they share artifacts in
the store with `casemate study --seed 1`.
"""

from collections.abc import Mapping
from dataclasses import replace

from casemate.engine import Task, ordered
from casemate_study.experiments.defended import E6, SEARCH_TEMPERATURE, distilled_student, measured_teacher
from casemate_study.experiments.models import StudyModel
from casemate_study.experiments.specs import Setup
from casemate_study.experiments.undefended import E1, E11, Experiment

_MEASURES = (("clean", None), ("clean-best", None), ("fgsm", "ce"), ("ball", "ce"), ("range", "ce"), ("pgd", None))
"""The measures repeated with each seed, by name and loss ascended."""


def seed_prefix(seed: int) -> str:
    """The start of the names of all tasks of one further seed: "seed-1/" for 1."""
    return f"seed-{seed}/"


def repeated_models(experiment: str) -> list[StudyModel]:
    """The models of an experiment ("E1", ...) that are trained and attacked again with every further seed."""
    student, teacher = distilled_student("E9", SEARCH_TEMPERATURE), measured_teacher(SEARCH_TEMPERATURE)
    every = (E1, E6, student, teacher, E11)
    return [model for model in every if model.experiment == experiment]


def repeated_tasks(experiments: Mapping[str, Experiment], setup: Setup, of: str) -> list[Task]:
    """Describe the tasks of every further seed for the models of the experiment called `of`, and all that these need.

    `experiments` are all experiments by name.
    """
    models = repeated_models(of)
    found: list[Task] = []
    further = [seed for seed in setup.scale.more_seeds if seed != setup.seed]
    for seed in further if models else ():
        other = replace(setup, seed=seed)
        every = {task.name: task for experiment in experiments.values() for task in experiment.tasks(other)}
        measures = [model.artifact(measure, loss) for model in models for measure, loss in _MEASURES]
        found += [
            _renamed(task, seed_prefix(seed))
            for task in ordered(list(every.values()), [name for name in measures if name in every])
        ]
    return found


def _renamed(task: Task, prefix: str) -> Task:
    needs = {role: f"{prefix}{name}" for role, name in task.needs.items()}
    return replace(task, name=f"{prefix}{task.name}", needs=needs)
