"""Plans and runs the study: which experiments, at which scale, on which data, with which store of artifacts."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from casemate import data
from casemate.engine import (
    Artifact,
    Context,
    Engine,
    OnArtifact,
    Pieces,
    Plan,
    Processes,
    Store,
    Task,
    make_plan,
    run_plan,
)
from casemate.errors import CasemateWarning, StoreError
from casemate.progress import Observer
from casemate.provenance import machine_in_words, surroundings
from casemate.timing import GRADIENT_COST, StepCost, TrainPrecision
from casemate_study.experiments.catalogue import choose_experiments, tasks_of
from casemate_study.experiments.scales import scale_by_name
from casemate_study.experiments.specs import Setup
from casemate_study.experiments.undefended import Experiment
from casemate_study.tasks.registry import PRODUCERS
from casemate_study.tasks.training import FINGERPRINTS


@final
@dataclass(frozen=True, kw_only=True)
class PlannedStudy:
    """A study ready to run: its setup, data, selected experiments, plan (tasks in order, finished artifacts), store."""

    setup: Setup
    dataset: data.Dataset
    experiments: list[Experiment]
    plan: Plan
    store: Store
    device: str
    pieces: Pieces | None
    """The artifacts without weights that count as finished, and to which finished ones are added; None for none."""


def plan_study(
    *,
    scale: str,
    dataset: str | None,
    only: Sequence[str],
    seed: int,
    store: Path | str | None,
    device: str,
    data_dir: Path | None,
    observer: Observer,
    precision: TrainPrecision = "float32",
    pieces: Path | None = None,
    to_run: bool = True,
) -> PlannedStudy:
    """List the study's tasks and find those whose artifacts are in the store. The images are read; nothing is computed.

    Args:
        scale: smoke, quick, medium, paper or full.
        dataset: auto, fashion-mnist or digits; None for the scale's own.
        only: names of experiments; tasks of others are added where these need them; all experiments if empty.
        store: folder or URL of the store; None for the default one.
        device: the device that tasks will run on; it is part of their keys.
        data_dir: folder of the data files; None for the default places, or a download.
        precision: precision of the training steps (`TrainConfig.precision`).
        pieces: folder of artifacts without weights, which count as finished if the store lacks them; None for none.
        to_run: whether the missing tasks are to be computed, and not only what is finished reported.

    Raises:
        SettingError, DataError, StoreError: an unknown name, data that are not available, an unusable store.
    """
    size = scale_by_name(scale)
    experiments = choose_experiments(only)
    images = data.load(dataset or size.dataset, data_dir, observer=observer)
    setup = Setup(
        scale=size,
        dataset=images.name,
        train_size=len(images.train),
        test_size=len(images.test),
        seed=seed,
        precision=precision,
    )
    tasks, wanted = tasks_of(experiments, setup)
    artifacts = Store(store, observer=observer)
    identity = {"scale": size.name, "dataset": images.name, "seed": seed, "precision": precision}
    kept = None if pieces is None else Pieces(pieces, identity, is_kept)
    plan = make_plan(tasks, wanted, PRODUCERS, artifacts, device, kept, to_run=to_run)
    return PlannedStudy(
        setup=setup,
        dataset=images,
        experiments=experiments,
        plan=plan,
        store=artifacts,
        device=device,
        pieces=kept,
    )


_NOT_IN_PIECES = ("samples", "augmented")
"""Kinds of tasks whose artifacts are nothing but training images: computed anew in a moment."""


def is_kept(kind: str, file: str) -> bool:
    """Whether pieces include this file of an artifact of this kind of task: tables of examples, and the pixels of
    pictures of a few attacked test images; no weights.
    """
    return file.startswith("examples.") or (kind in ("pictures", "neighbours") and file == "images.safetensors")


def run_study(
    study: PlannedStudy,
    *,
    threads: int,
    data_dir: Path | None,
    observer: Observer,
    engine: Engine | None = None,
    on_artifact: OnArtifact | None = None,
) -> dict[str, Artifact]:
    """Compute the missing artifacts and return all of the plan, old and new, by the name of their tasks.

    Each is stored as soon as it is finished, added to the study's pieces, and passed to `on_artifact`. The workers of
    `engine` compute side by side, each on `threads` threads; without one, or if it has one worker on this machine, this
    process computes on the threads that it has. Warnings of casemate are silenced; results report what they are about.

    Raises `StoreError` if a model whose pieces are there must be trained again, since missing measurements need its
    weights, and has other weights then; at once, if this machine rounds differently from the one that trained it.
    """
    if engine is None or isinstance(engine, Processes):  # those of a cluster are not known
        _check_machine(study, threads)

    def keep(name: str, artifact: Artifact) -> None:
        if study.pieces is None or artifact.facts["kind"] in _NOT_IN_PIECES:
            return
        old = study.pieces.find(name) if FINGERPRINTS in artifact.result else None
        if old is None or FINGERPRINTS not in old.result:
            study.pieces.add(name, artifact)
        elif old.result[FINGERPRINTS] != artifact.result[FINGERPRINTS]:
            raise StoreError(_other_weights(name, old, study.pieces.root))

    def finished(name: str, artifact: Artifact) -> None:
        keep(name, artifact)
        if on_artifact is not None:
            on_artifact(name, artifact)

    for name, artifact in study.plan.artifacts.items():
        keep(name, artifact)
    context = Context(device=study.device, observer=observer, data_dir=data_dir, threads=threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CasemateWarning)  # the study's tables report what they warn of
        return run_plan(study.plan, PRODUCERS, study.store, context, engine=engine, on_artifact=finished)


def _check_machine(study: PlannedStudy, threads: int) -> None:
    """Raise the error about other weights before hours of training, where they are certain enough."""
    if study.pieces is None:
        return
    here = surroundings(study.device, threads)
    for task in study.plan.missing:
        old = study.pieces.find(task.name)
        if old is not None and FINGERPRINTS in old.result and _rounding(old.facts["provenance"]) != _rounding(here):
            raise StoreError(
                f"{task.name} would have to be trained again, since missing measurements need its weights, and would "
                f"have {_not_those_of(old, study.pieces.root)}. Here: {_machine(here)}"
            )


def _rounding(made: Mapping[str, Any]) -> list[Any]:
    """What decides how a training rounds its numbers, from the provenance of its artifact."""
    names = ("processor", "instruction_set", "threads", "device", "gpu", "tf32")
    return [made["libraries"]["torch"], *(made.get(name) for name in names)]


def _machine(made: Mapping[str, Any]) -> str:
    return f"PyTorch {made['libraries']['torch']} on {machine_in_words(made)}"


def _other_weights(name: str, old: Artifact, pieces: Path) -> str:
    """The error about a model that was trained again and has other weights than those that pieces were measured on."""
    found = _not_those_of(old, pieces)
    return f"{name} was trained again, since missing measurements need its weights, and it has {found}"


def _not_those_of(old: Artifact, pieces: Path) -> str:
    made = old.facts["provenance"]
    return (
        f"other weights than the one that the pieces in {pieces} were measured on. That was trained at commit "
        f"{made['commit']} by {_machine(made)}. Train it there, or delete the pieces of this model and of those "
        "trained from it, to measure them again"
    )


def task_seconds(task: Task, cost: StepCost) -> float:
    """A rough estimate of a task's seconds, from its work (in training steps on one image) and the measured costs.

    The work of an attack counts `GRADIENT_COST` for each input gradient, so it is scaled back to gradients.
    """
    return task.work * (cost.training if task.kind in ("train", "defend") else cost.gradient / GRADIENT_COST)


def seconds_left(plan: Plan, cost: StepCost, workers: int) -> float:
    """A rough estimate of the seconds that the plan's missing tasks take, if `workers` processes compute side by side.

    It is at least the time of the longest chain of tasks of which each needs the one before. Trainings that stop early
    take less.
    """
    chains: dict[str, float] = {}
    for task in plan.missing:
        chains[task.name] = task_seconds(task, cost) + max(
            (chains.get(each, 0.0) for each in task.needs.values()), default=0.0
        )
    total = sum(task_seconds(task, cost) for task in plan.missing)
    return max([total / workers, *chains.values()])
