"""Planning and running the study: which experiments, at which scale, on which data, out of which store."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from casemate import data
from casemate.engine import Artifact, Context, Plan, Store, Task, make_plan, run_plan
from casemate.errors import CasemateWarning
from casemate.progress import Observer
from casemate.timing import StepCost
from casemate_study.experiments.catalogue import choose, tasks_of
from casemate_study.experiments.scales import scale_by_name
from casemate_study.experiments.specs import Setup
from casemate_study.experiments.undefended import Experiment
from casemate_study.tasks.registry import PRODUCERS


@final
@dataclass(frozen=True, kw_only=True)
class Study:
    """A planned study."""

    setup: Setup
    dataset: data.Dataset
    experiments: list[Experiment]
    plan: Plan
    store: Store
    device: str


def plan_study(
    *,
    scale: str,
    dataset: str | None,
    only: Sequence[str],
    seed: int,
    store: Path | None,
    device: str,
    data_dir: Path | None,
    observer: Observer,
) -> Study:
    """Find out what the study consists of and what of it is finished. Nothing is computed.

    Args:
        scale: smoke, quick, medium or full.
        dataset: auto, fashion-mnist or digits; None for the scale's own.
        only: names of experiments; all if empty. What they need comes with them.

    Raises:
        SettingError, DataError, StoreError: an unknown name, data that cannot be had, a store that cannot be used.
    """
    size = scale_by_name(scale)
    experiments = choose(only)
    images = data.load(dataset or size.dataset, data_dir, observer=observer)
    setup = Setup(scale=size, dataset=images.name, train_size=len(images.train), test_size=len(images.test), seed=seed)
    tasks, wanted = tasks_of(experiments, setup)
    artifacts = Store(store)
    plan = make_plan(tasks, wanted, PRODUCERS, artifacts, device)
    return Study(setup=setup, dataset=images, experiments=experiments, plan=plan, store=artifacts, device=device)


def run_study(study: Study, *, threads: int, data_dir: Path | None, observer: Observer) -> dict[str, Artifact]:
    """Compute what is missing, in order; every finished artifact is in the store at once."""
    context = Context(device=study.device, observer=observer, data_dir=data_dir)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CasemateWarning)  # what they are about is in the study's own tables
        return run_plan(study.plan, PRODUCERS, study.store, context, threads)


def task_seconds(task: Task, cost: StepCost) -> float:
    """Seconds that a task takes, roughly, at the measured cost of one step."""
    return task.work * (cost.training if task.kind in ("train", "defend") else cost.gradient)
