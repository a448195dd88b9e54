"""Prints the plan and the results of `casemate study` on the terminal."""

from typing import Any

from rich.markup import escape

from casemate.cli.shared import console
from casemate.timing import StepCost
from casemate_study.cli.study import summary
from casemate_study.cli.study.run import StudyRun
from casemate_study.results.stored import Provenance
from casemate_study.run import PlannedStudy, seconds_left, task_seconds


def _header(study: PlannedStudy) -> dict[str, Any]:
    """The study that the options select (scale, data set, seed, device, experiments, store), as the start of --json's
    output.
    """
    return {
        "scale": study.setup.scale.name,
        "dataset": study.setup.dataset,
        "fallback_for": study.dataset.fallback_for,
        "seed": study.setup.seed,
        "precision": study.setup.precision,
        "device": study.device,
        "experiments": [experiment.name for experiment in study.experiments],
        "store": str(study.store.location),
    }


def show_plan(study: PlannedStudy, speed: StepCost, workers: int, *, as_json: bool) -> None:
    """Print each task as finished or to do, and an estimate of the time that those to do would take if `workers`
    processes compute side by side; as JSON if `as_json`.
    """
    planned, setup = study.plan, study.setup
    left = seconds_left(planned, speed, workers)
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
        console.show_json(_header(study) | {"artifacts": rows, "seconds_left": left}, "casemate-study/study-plan/1")
        return
    title = f"The study at {setup.scale.name} scale on {study.dataset.title}, seed {setup.seed}, {study.device}"
    made = console.new_table("Artifact", "State", *console.right_aligned("Time"), title=title)
    for task in planned.tasks:
        artifact = planned.artifacts.get(task.name)
        if artifact is None:
            made.add_row(task.name, "to do", f"about {console.duration(task_seconds(task, speed))}")
        else:
            made.add_row(task.name, "finished", f"took {console.duration(Provenance.of(artifact).seconds)}")
    time = (
        f"about {console.duration(left)} left on this machine, {workers} at a time"
        if planned.missing
        else "nothing left to compute"
    )
    console.show(made, f"{len(planned.artifacts)} of {len(planned.tasks)} artifacts are finished; {time}.")


def show_results(study: PlannedStudy, found: StudyRun, *, as_json: bool) -> None:
    """Print the table of models, the main results beside the paper's, and the path of the report.

    With `as_json`, print one JSON document instead: the study's settings, the keys of its artifacts, the main results
    and that path, without the table of models.
    """
    rows = summary.main_results(found.artifacts)
    if as_json:
        done = {
            "computed": found.computed,
            "artifacts": {name: artifact.key for name, artifact in found.artifacts.items()},
        }
        report = None if found.report is None else str(found.report)
        results = [row.as_json() for row in rows]
        console.show_json(_header(study) | done | {"results": results, "report": report}, "casemate-study/study/1")
        return
    every = summary.model_summary(study, found.artifacts)
    if every is not None:
        console.show(every)
    if rows:
        console.show(
            summary.results_table(rows, comparable=study.dataset.name == "fashion-mnist"), *summary.result_notes(study)
        )
    if found.report is not None:
        console.show(f"Report: {escape(str(found.report))}")
