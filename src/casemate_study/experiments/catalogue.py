"""All experiments of the study (E1 to E13) in the paper's order, and the choice among them."""

from collections.abc import Sequence

from casemate.engine import Task
from casemate.settings import unknown_name
from casemate_study.experiments.defended import DEFENDED
from casemate_study.experiments.models import StudyModel
from casemate_study.experiments.seeds import repeated_tasks
from casemate_study.experiments.specs import Setup
from casemate_study.experiments.undefended import UNDEFENDED, Experiment


def _place(experiment: Experiment) -> tuple[int, str]:
    return int(experiment.name[1:].rstrip("+")), experiment.name


EXPERIMENTS = {each.name: each for each in sorted((*UNDEFENDED, *DEFENDED), key=_place)}


def choose_experiments(names: Sequence[str]) -> list[Experiment]:
    """The experiments called `names` ("E1", ...), in the paper's order; all if `names` is empty.

    Raises `SettingError` for an unknown name.
    """
    for name in names:
        if name not in EXPERIMENTS:
            raise unknown_name("experiment", name, EXPERIMENTS)
    return [EXPERIMENTS[name] for name in EXPERIMENTS if not names or name in names]


def tasks_of(experiments: Sequence[Experiment], setup: Setup) -> tuple[list[Task], list[str]]:
    """Describe all tasks of the whole study, since any may be a dependency. Nothing is run.

    Returns the tasks of all experiments, and the names of those that belong to `experiments`, in the order in which
    they should run: those that the paper's claims need first, one model after the other.
    """
    every: dict[str, Task] = {}
    wanted: list[str] = []
    for name, experiment in EXPERIMENTS.items():
        found = [*experiment.tasks(setup), *repeated_tasks(EXPERIMENTS, setup, name)]
        every |= {task.name: task for task in found}
        wanted += [task.name for task in found if experiment in experiments]
    return list(every.values()), sorted(dict.fromkeys(wanted), key=_rank)


_FIRST = ("data/", "E1/", "E2/", "E3/", "E4/", "E11/")
"""Starts of the names of tasks that need the undefended network and no other; they run first."""
_LATER = (
    "E12-",
    "E13-regularised",
    "E13-early",
    "E6-stopped",
    "E13-resnet",
    "E1-",
    "seed-",
    "E1+",
    "E5-",
    "E6-",
    "E13-",
    "E13/search",
    "E13/found",
)
"""Starts of the names of tasks that decide few or none of the paper's claims; they run after all others, in this
order.
"""


def _rank(name: str) -> int:
    """The place of a task's group in the order of tasks: 0 for those that decide the paper's claims by other models."""
    if name.startswith(_FIRST):
        return -1
    return next((place for place, start in enumerate(_LATER, start=1) if name.startswith(start)), 0)


def models_of(experiments: Sequence[Experiment], setup: Setup) -> list[StudyModel]:
    """Descriptions of the models that these experiments add to the comparison, in the order of the experiments."""
    return [model for experiment in experiments for model in experiment.models(setup)]
