"""How long a benchmark takes, or what is left of it, estimated before it runs."""

from pathlib import Path

from casemate.benchmark.folder import BenchmarkFolder
from casemate.benchmark.plan import BenchmarkPlan
from casemate.benchmark.table import benchmark_rows
from casemate.rng import torch_forked
from casemate.training import training_seconds

MEASURING_AT_MOST = (
    "Measuring is timed as if no image were fooled or proven robust; where many are, it takes a small part of that"
)


def benchmark_seconds(plan: BenchmarkPlan, out: Path | None = None) -> dict[str, float]:
    """Estimated seconds by step: trainings from a timed step, measurements at most (`MEASURING_AT_MOST`).

    Args:
        plan: of the benchmark.
        out: its folder; steps whose results are there are left out. None: all steps.

    Raises:
        SettingError, StoreError: as `run_benchmark`, for a folder with other models or a damaged file.
    """
    rows = [] if out is None else benchmark_rows(plan, BenchmarkFolder(out, plan.data()))
    trained = {row.name for row in rows if row.training is not None}
    measured = {row.name: row.results.keys() for row in rows}
    found: dict[str, float] = {}
    shape, classes = plan.dataset.image_shape, plan.dataset.classes
    with torch_forked():
        for name, entry in plan.entries.items():
            left = [each for each in plan.measures(name) if each not in measured.get(name, ())]
            if not left:
                continue
            model, config = entry.make_model(shape, classes), entry.config()
            if name not in trained:
                teacher = None if entry.teacher is None else plan.entries[entry.teacher].make_model(shape, classes)
                objective = entry.make_recipe(teacher).objective
                found[f"training {name}"] = training_seconds(
                    model, objective, config, plan.train, plan.validation, copies=len(entry.extra)
                )
            test = plan.dataset.test
            found[f"measuring {name}"] = sum(each.seconds_at_most(model.eval(), test) for each in left)
    return found
