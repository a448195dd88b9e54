"""What `casemate study` and `casemate report` do once PyTorch is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casemate.engine import Artifact
from casemate.progress import Observer
from casemate.timing import StepCost
from casemate.training import measure_step_cost
from casemate_study.cli.study.selection import Selection
from casemate_study.run import Study, plan_study, run_study


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


def identity(study: Study) -> dict[str, Any]:
    """What tells a study's report from those of others, as its summary.json says it."""
    return {"scale": study.setup.scale.name, "dataset": study.dataset.name, "seed": study.setup.seed}
