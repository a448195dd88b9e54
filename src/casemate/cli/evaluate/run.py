"""What `casemate evaluate` does once PyTorch is loaded: load, estimate the time, evaluate, write."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from casemate.attacks import AbstractAttack, HopSkipJump, SparseRS, Square
from casemate.cli.evaluate.request import IMAGES, EvaluateRequest
from casemate.cli.shared import inputs
from casemate.cli.shared.ci import model_file
from casemate.cli.shared.facts import report_facts
from casemate.data import ReadableImages
from casemate.engine import Engine, default_store
from casemate.errors import CasemateWarning, SettingError
from casemate.evaluation import Evaluation, evaluate, seconds_at_most
from casemate.evaluation.budgets import Budget
from casemate.evaluation.cost import attack_passes
from casemate.evaluation.fingerprints import fingerprint, fingerprint_of_images
from casemate.evaluation.verdict import Borders
from casemate.models import Classifier, OpenedModel
from casemate.norms import Ball, format_eps, parse_eps
from casemate.progress import Observer
from casemate.report.ci.checks import CiRun
from casemate.report.ci.evaluation import evaluation_run
from casemate.report.ci.gate import Gate
from casemate.report.evaluation_files import write_files
from casemate.report.evaluation_result import EvaluationResult
from casemate.report.folder import RESULT
from casemate.units import EpsIssueKind, find_eps_issue


@dataclass(frozen=True)
class EvaluatePlan:
    """An evaluation that is ready to run: settings, loaded models and images, and estimated times."""

    request: EvaluateRequest
    model: OpenedModel
    data: str
    """Name of the data set, or of the file with the images."""
    test: ReadableImages
    """The images to evaluate on: `request.images` of the data."""
    chosen: str
    """Which images of the data they are: "first", "all", or "stratified, seed 0"."""
    values: tuple[float, ...]
    """The values of eps, ascending."""
    substitute: Classifier | None
    seconds: dict[Budget, float]
    """By budget, the estimated longest time that the evaluation takes, in seconds; empty if it was not measured."""
    device: str
    hashes: dict[str, str | None]
    """SHA-256 of the model's weights, the images and the substitute's weights (or None), as named in result.json."""
    borders: Borders
    """Borders between the grades of the verdict."""

    @property
    def most_queries(self) -> int | None:
        """For a black box: the largest number of images that the attacks would call it with; None for other models."""
        attacks = _black_box_attacks(self.request, self.values[0])
        if attacks is None:
            return None
        count = attack_passes(attacks, len(self.model.model.classes), len(self.test), len(self.values)).forward
        return min(count, self.request.loading.queries or count)

    def about(self) -> dict[str, Any]:
        """All settings of the evaluation as JSON, for result.json."""
        return {
            "model": self.model.name,
            "data": self.data,
            **({} if self.request.data is None else {"data_path": str(self.request.data)}),
            "images": len(self.test),
            "classes": list(self.model.model.classes),
            "norm": self.request.norm,
            "eps": list(self.values),
            "eps_text": [format_eps(each) for each in self.values],
            "budget": self.request.budget,
            "thorough": self.request.thorough or self.request.budget == "thorough",
            "substitute": self.request.substitute,
            "precision": self.request.precision,
            "seed": self.request.seed,
            "borders": asdict(self.borders),
            "device": self.device,
            **({"seconds_at_most": self.seconds} if self.seconds else {}),
            **inputs.about_options(self.request.loading, self.request.reading, self.chosen),
            **self.hashes,
        }


def prepare(request: EvaluateRequest, device: str, observer: Observer, *, timed: bool = False) -> EvaluatePlan:
    """Load the models and the images; nothing is attacked.

    If `timed`, the longest time of each budget is estimated too, by timing the model. An evaluation that runs estimates
    the time by a part of its first attack.

    Warns of an eps that is obviously in the wrong unit. Raises `CasemateError`.
    """
    values = tuple(sorted({parse_eps(text) for text in request.radii}))
    borders = request.grade_borders()
    model = inputs.load_model(request.model, device, request.loading)
    substitute = None if request.substitute is None else inputs.load_model(request.substitute, device).model
    images = inputs.load_images(
        model,
        request.data,
        request.dataset,
        request.data_dir,
        observer,
        count=request.images,
        subset=request.subset,
        reading=request.reading,
    )
    report_facts(model, observer)
    test, data = images.images, images.name
    if len(test) < request.images != IMAGES:
        observer.message(f"--images {request.images:,}: there are only {len(test):,} images; all of them are used.")
    doubt = find_eps_issue(Ball(eps=values[-1], norm=request.norm), model.model.bounds, prod(model.model.input_shape))
    if doubt is not None and doubt.is_obvious and (timed or request.force or doubt.kind is EpsIssueKind.OTHER):
        # now, and not after hours of attacks as a finding; what voids the result stops an evaluation that is not forced
        warnings.warn(doubt.message, CasemateWarning, stacklevel=2)
    seconds: dict[Budget, float] = {}
    if timed and not request.loading.black_box:  # whose calls may be counted, or cost money
        with observer.work("Measuring the speed", 0):
            seconds = seconds_at_most(model.model, test, values, norm=request.norm, thorough=request.thorough)
    hashes = {
        "fingerprint": fingerprint(model.model),
        "images_sha256": fingerprint_of_images(test),
        "substitute_fingerprint": None if substitute is None else fingerprint(substitute),
    }
    return EvaluatePlan(request, model, data, test, images.chosen, values, substitute, seconds, device, hashes, borders)


def run(
    plan: EvaluatePlan,
    observer: Observer,
    *,
    engine: Engine | None = None,
    store: Path | str | None = None,
    fresh: bool = False,
) -> Evaluation:
    """Run the planned evaluation.

    Args:
        plan: the evaluation.
        observer: is informed of the progress.
        engine: whose workers attack parts of the images side by side; None: this process.
        store: the folder, or the URL, of the store that keeps the pieces; None: the default one.
        fresh: use no pieces of earlier evaluations.
    """
    request = plan.request
    inputs.expect_queries(plan.model, request.loading, plan.most_queries or 0)
    if request.loading.black_box and engine is not None and not engine.works_here(2):
        raise SettingError("a black box counts its calls in one process; leave --engine and --workers out")
    return evaluate(
        plan.model.model,
        plan.test,
        eps=plan.values,
        norm=request.norm,
        budget=request.budget,
        attacks=_black_box_attacks(request, plan.values[0]),
        thorough=request.thorough or None,
        force=request.force,
        substitute=plan.substitute,
        precision=request.precision,
        seed=request.seed,
        borders=plan.borders,
        store=store or default_store(),
        fresh=fresh,
        engine=engine,
        observer=observer,
    )


def _black_box_attacks(request: EvaluateRequest, eps: float) -> Mapping[str, AbstractAttack] | None:
    """For a black box: attacks that need no gradient, with as many queries as the budget's Square; else None."""
    if not request.loading.black_box:
        return None
    quick = request.budget == "quick"
    n_queries = 500 if quick else 5000
    if request.norm == "l0":
        return {"sparse-rs": SparseRS(eps=eps, n_queries=n_queries)}
    square = Square(eps=eps, norm=request.norm, n_queries=n_queries, rescale_schedule=quick)
    walk = {"hop-skip-jump": HopSkipJump(norm=request.norm, n_queries=n_queries)}
    return {"square": square} | (walk if request.norm != "l1" else {})


def write(folder: Path, plan: EvaluatePlan, found: Evaluation, threads: int, observer: Observer) -> dict[str, Any]:
    """Write record, result.json, table of examples and report.html, all or none; return the content of result.json."""
    images = not plan.request.no_images
    about = plan.about() | {"model_facts": plan.model.facts.as_json()}
    number = found.verdict.number
    if (doubt := plan.model.doubt(number.clean.value, number.clean.low, number.guessing)) is not None:
        observer.message(doubt)
    if (queries := plan.model.queries) is not None:
        about["queries"] = queries
        observer.message(f"The black box was called with {queries:,} images.")
    return write_files(folder, found, about, images=images, threads=threads, observer=observer)


def ci_run(found: Mapping[str, Any], folder: Path, request: EvaluateRequest, gate: Gate | None) -> CiRun:
    """The evaluation as a continuous integration server is shown it; `found` is the content of the result.json."""
    result = EvaluationResult.from_json(found, str(folder / RESULT))
    return evaluation_run(result, file=model_file(request.model, request.loading.weights), gate=gate)
