"""What `casemate compare` does once PyTorch is loaded: read two evaluations, or evaluate two models, and compare."""

from itertools import pairwise
from pathlib import Path

from casemate.cli.compare.request import CompareRequest
from casemate.cli.evaluate import run as evaluating
from casemate.cli.evaluate.run import EvaluatePlan
from casemate.cli.shared import outputs
from casemate.cli.shared.ci import model_file
from casemate.engine import Engine
from casemate.errors import SettingError
from casemate.evaluation.comparison import Regression, expect_enough_images
from casemate.progress import Observer
from casemate.report.ci.checks import CiRun
from casemate.report.ci.comparison import comparison_run
from casemate.report.comparison import FinishedComparison, compare_finished
from casemate.report.finished_evaluation import read_finished

_FOLDERS = ("a", "b")
"""Names of the folders with the evaluations of A and B."""


def compare_folders(a: Path, b: Path) -> FinishedComparison:
    """Compare two finished evaluations. Raises `RecordError`, or `SettingError` if they cannot be compared."""
    return compare_finished(read_finished(a), read_finished(b))


def prepare(
    request: CompareRequest, a: str, b: str, device: str, observer: Observer, *, margin: float | None
) -> tuple[EvaluatePlan, EvaluatePlan]:
    """Load two models and the images of each; nothing is attacked.

    Raises `SettingError` if the models do not take the same images with the same labels, or the images are too few for
    the margin.
    """
    plans = (
        evaluating.prepare(request.of(a), device, observer),
        evaluating.prepare(request.of(b, second=True), device, observer),
    )
    classes = [plan.model.model.classes for plan in plans]
    if plans[0].hashes["images_sha256"] != plans[1].hashes["images_sha256"]:
        why = "they name other classes, or in another order" if classes[0] != classes[1] else "they want another size"
        raise SettingError(f"{a} and {b} take the images or the labels differently ({why}): they cannot be compared")
    if margin is not None:
        expect_enough_images(len(plans[0].test), margin)
    return plans


def run(
    plans: tuple[EvaluatePlan, EvaluatePlan],
    out: Path,
    observer: Observer,
    *,
    engine: Engine,
    store: Path | str | None,
    fresh: bool,
    overwrite: bool,
    threads: int,
) -> FinishedComparison:
    """Evaluate both models, write the evaluations into folders of `out`, and compare them."""
    folders = [out / name for name in _FOLDERS]
    for folder, plan in zip(folders, plans, strict=True):
        outputs.check_results(folder, plan.about(), overwrite=overwrite, observer=observer)
    for name, folder, plan in zip("AB", folders, plans, strict=True):
        observer.message(f"{name}: {plan.model.name}")
        found = evaluating.run(plan, observer, engine=engine, store=store, fresh=fresh)
        evaluating.write(folder, plan, found, threads, observer)
    return compare_folders(folders[0], folders[1])


def ci_run_of(found: FinishedComparison, gate: Regression | None) -> CiRun:
    """The comparison as a continuous integration server is shown it, at the file that says what B is."""
    model, options = found.b.result.model, found.b.result.model_options
    weights = next((Path(value) for name, value in pairwise(options) if name == "--weights"), None)
    return comparison_run(found, gate, file=model_file(model, weights))
