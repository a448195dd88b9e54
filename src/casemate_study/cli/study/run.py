"""The steps of `casemate study` and `casemate report` that need PyTorch."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from casemate.engine import Artifact, Engine, Processes, Store, study_of
from casemate.errors import CasemateError, StoreError, is_interruption
from casemate.files import read_json, write_json
from casemate.memory import memory_of_machine, processors
from casemate.progress import Observer, Tracked, track
from casemate.provenance import environment, processor
from casemate.timing import StepCost, TrainPrecision
from casemate.training import faster_precision, measure_step_cost
from casemate_study.cli.study.live_report import LiveReport
from casemate_study.cli.study.selection import Selection
from casemate_study.cli.study.summary import main_results
from casemate_study.run import PlannedStudy, plan_study, run_study

_WORKER_MEMORY = 2**31
"""Bytes of memory that a worker process needs, roughly: the most that was seen is 1.1 GB."""


@dataclass(frozen=True)
class StudyRun:
    """What `casemate study` computed and wrote."""

    computed: int
    """Number of artifacts computed in this run; the others were finished before."""
    artifacts: Mapping[str, Artifact]
    report: Path | None
    """Path of report.html; None if no report was written."""


def plan(selection: Selection, device: str, observer: Observer, *, to_run: bool = True) -> PlannedStudy:
    """List the tasks of the selected study and find those whose artifacts are finished; nothing is computed.

    `to_run` says whether the missing ones are to be computed.
    """
    with observer.work("Reading the images", 0):
        return plan_study(
            scale=selection.scale,
            dataset=selection.dataset,
            only=selection.only,
            seed=selection.seed,
            store=selection.store,
            device=device,
            data_dir=selection.data_dir,
            observer=observer,
            precision=_precision(selection, device),
            pieces=selection.pieces,
            to_run=to_run,
        )


def _precision(selection: Selection, device: str) -> TrainPrecision:
    """The precision of training steps that the options select.

    "auto" is that of the pieces, if there are any. Else it is measured once for each kind of processor and release of
    PyTorch, and remembered in the store, since artifacts computed in another precision have other keys.
    """
    if selection.precision != "auto":
        return selection.precision
    held = None if selection.pieces is None else study_of(selection.pieces)
    if held is not None and held.get("precision") in get_args(TrainPrecision):
        return held["precision"]
    if device != "cpu":
        return "float32"
    store = Store(selection.store)
    file = store.root / "precision.json"
    try:
        known = read_json(file, StoreError)
    except StoreError:  # there is none yet, or it is damaged
        known = {}
    known = known if isinstance(known, dict) else {}
    here = " / ".join((processor(), *environment(device).values()))
    if known.get(here) not in get_args(TrainPrecision):
        known |= {here: store.agreed(f"precision / {here}", lambda: faster_precision(device))}
        write_json(file, known)
    return known[here]


def measure(study: PlannedStudy, observer: Observer) -> StepCost:
    """Measure the seconds per image of a training step and of an attack step, on this device, with images of the
    study's size.
    """
    with observer.work("Measuring how fast this machine is", 0):
        return measure_step_cost(study.dataset.image_shape, study.device, study.setup.precision)


def default_workers(device: str, threads: int) -> int:
    """The number of worker processes if --workers is not given: as many as this process's processors and the memory
    have room for, each on `threads` threads; 1 on a GPU.
    """
    if device != "cpu":
        return 1
    return max(1, min(processors() // threads, memory_of_machine() // _WORKER_MEMORY))


def compute(
    study: PlannedStudy, selection: Selection, *, threads: int, engine: Engine, out: Path | None, observer: Observer
) -> StudyRun:
    """Compute the missing artifacts, then write the report into the folder `out`; no report if `out` is None.

    The report is also written while the study runs. Returns all artifacts, and how many of them were computed now.
    """
    missing, total = len(study.plan.missing), len(study.plan.tasks)
    if isinstance(engine, Processes):
        engine = Processes(workers=min(engine.workers, max(1, missing)))
    if missing:
        side_by_side = f", {engine.workers} at a time" if isinstance(engine, Processes) and engine.workers > 1 else ""
        observer.message(f"{missing} of {total} artifacts to compute{side_by_side}, {total - missing} finished before.")
    else:
        observer.message(f"All {total} artifacts were finished before; nothing is computed.")
    live = None if out is None else LiveReport(study, out, observer, in_thread=not engine.works_here(missing))
    try:
        with live or nullcontext():
            artifacts = run_study(
                study,
                threads=threads,
                data_dir=selection.data_dir,
                observer=observer,
                engine=engine,
                on_artifact=None if live is None else live.add,
            )
    except CasemateError as error:
        if live is not None and out is not None and not is_interruption(error):
            write_report(study, live.artifacts, out, observer)  # of all that is finished
        raise
    return StudyRun(missing, artifacts, None if out is None else write_report(study, artifacts, out, observer))


def write_report(study: PlannedStudy, artifacts: Mapping[str, Artifact], out: Path, observer: Observer) -> Path:
    """Write the report of these artifacts into the folder `out`; return the path of its report.html."""
    with observer.work("Writing the report", 0):
        from casemate_study.report.build import build_report

        return build_report(study, dict(artifacts), out)


def about(study: PlannedStudy) -> dict[str, Any]:
    """The settings of a study as JSON, for a tracker."""
    names = [each.name for each in study.experiments]
    return {**identity(study), "precision": study.setup.precision, "device": study.device, "experiments": names}


def track_results(found: StudyRun, observer: Observer) -> None:
    """Pass the main results of a study, and the folder of its report, on to experiment trackers."""
    numbers: dict[str, float] = {}
    for row in main_results(found.artifacts):
        numbers |= row.accuracy.as_numbers(f"results/{row.experiment}/{row.what.replace(', ', '_')}")
    track(observer, Tracked(numbers=numbers, files=[] if found.report is None else [found.report.parent]))


def identity(study: PlannedStudy) -> dict[str, Any]:
    """The scale, data set and seed, by which the summary.json of one study's report differs from that of another's."""
    return {"scale": study.setup.scale.name, "dataset": study.dataset.name, "seed": study.setup.seed}
