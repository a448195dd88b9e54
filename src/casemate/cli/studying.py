"""What `casemate study` and `casemate report` do once PyTorch is loaded, and how they show it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from casemate.cli import console, summary
from casemate.cli.options import Selection
from casemate.engine import Artifact
from casemate.progress import Observer
from casemate.training.cost import StepCost, measure_step_cost
from casemate_study.run import Study, plan_study, run_study, task_seconds


@dataclass(frozen=True)
class Found:
    """What a run of the study ends with."""

    computed: int
    """Artifacts computed in this run."""
    artifacts: Mapping[str, Artifact]
    report: Path | None


def plan(selection: Selection, device: str, observer: Observer) -> Study:
    """Find out what there is to do and what is done; nothing is computed."""
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
        )


def measure(study: Study, observer: Observer) -> StepCost:
    """How fast this machine is on the study's images."""
    with observer.work("Measuring how fast this machine is", 0):
        return measure_step_cost(study.dataset.image_shape, study.device)


def compute(study: Study, selection: Selection, threads: int, out: Path | None, observer: Observer) -> Found:
    """Compute what is missing and write the report, unless `out` is None."""
    missing, total = len(study.plan.missing), len(study.plan.tasks)
    if missing:
        observer.message(f"{missing} of {total} artifacts to compute, {total - missing} finished before.")
    else:
        observer.message(f"All {total} artifacts were finished before; nothing is computed.")
    artifacts = run_study(study, threads=threads, data_dir=selection.data_dir, observer=observer)
    return Found(missing, artifacts, None if out is None else write_report(study, artifacts, out, observer))


def write_report(study: Study, artifacts: Mapping[str, Artifact], out: Path, observer: Observer) -> Path:
    """Make the report; return the path of its page."""
    with observer.work("Writing the report", 0):
        from casemate_study.report.build import build_report

        return build_report(study, dict(artifacts), out)


def _header(study: Study) -> dict[str, Any]:
    """What was asked for, as JSON."""
    return {
        "scale": study.setup.scale.name,
        "dataset": study.setup.dataset,
        "fallback_for": study.dataset.fallback_for,
        "seed": study.setup.seed,
        "device": study.device,
        "experiments": [experiment.name for experiment in study.experiments],
        "store": str(study.store.root),
    }


def identity(study: Study) -> dict[str, Any]:
    """What tells a study's report from those of others, as its summary.json says it."""
    return {"scale": study.setup.scale.name, "dataset": study.dataset.name, "seed": study.setup.seed}


def show_plan(study: Study, speed: StepCost, *, as_json: bool) -> None:
    """Print the artifacts: what is finished, and the time the rest would take."""
    planned, setup = study.plan, study.setup
    left = sum(task_seconds(task, speed) for task in planned.missing)
    if as_json:
        rows = [
            {
                "name": task.name,
                "key": planned.keys[task.name],
                "finished": task.name in planned.artifacts,
                "seconds_left": 0.0 if task.name in planned.artifacts else task_seconds(task, speed),
            }
            for task in planned.tasks
        ]
        console.show_json(_header(study) | {"artifacts": rows, "seconds_left": left})
        return
    title = f"The study at {setup.scale.name} scale on {study.dataset.title}, seed {setup.seed}, {study.device}"
    made = console.table("Artifact", "State", *console.right("Time"), title=title)
    for task in planned.tasks:
        artifact = planned.artifacts.get(task.name)
        if artifact is None:
            made.add_row(task.name, "to do", f"about {console.duration(task_seconds(task, speed))}")
        else:
            made.add_row(task.name, "finished", f"took {console.duration(artifact.facts['provenance']['seconds'])}")
    time = f"about {console.duration(left)} left on this machine" if planned.missing else "nothing left to compute"
    console.show(made, f"{len(planned.artifacts)} of {len(planned.tasks)} artifacts are finished; {time}.")


def show_results(study: Study, found: Found, *, as_json: bool) -> None:
    """Print the main results beside the paper's, and where the report is."""
    rows = summary.rows(found.artifacts)
    if as_json:
        done = {
            "computed": found.computed,
            "artifacts": {name: artifact.key for name, artifact in found.artifacts.items()},
        }
        report = None if found.report is None else str(found.report)
        results = [row.as_json() for row in rows]
        console.show_json(_header(study) | done | {"results": results, "report": report})
        return
    every = summary.every_model(study, found.artifacts)
    if every is not None:
        console.show(every)
    if rows:
        console.show(summary.render(rows, comparable=study.dataset.name == "fashion-mnist"), *summary.notes(study))
    if found.report is not None:
        console.show(f"Report: {escape(str(found.report))}")
