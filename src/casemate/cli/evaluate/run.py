"""What `casemate evaluate` does once PyTorch is loaded: load, tell the time, evaluate, write."""

import warnings
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from casemate.cli.evaluate.request import EvaluateRequest
from casemate.cli.shared import inputs, outputs
from casemate.data import LabelledImages
from casemate.errors import CasemateWarning
from casemate.evaluation import Evaluation, evaluate, make_record, seconds_at_most, write_record
from casemate.evaluation.budgets import Budget
from casemate.evaluation.examples import evaluation_table
from casemate.evaluation.record import fingerprint, fingerprint_of_images
from casemate.evaluation.verdict import Borders
from casemate.files import filling, write_json
from casemate.models import Classifier
from casemate.norms import Ball, parse_eps
from casemate.progress import Observer
from casemate.provenance import surroundings
from casemate.report.evaluation import build_evaluation
from casemate.tables import write_table
from casemate.units import find_eps_issue


@dataclass(frozen=True)
class Ready:
    """An evaluation about to begin."""

    request: EvaluateRequest
    model: inputs.Model
    images: inputs.Images
    test: LabelledImages
    """Those of the images that are taken."""
    values: tuple[float, ...]
    """Of eps, ascending."""
    substitute: Classifier | None
    seconds: dict[Budget, float]
    """That each budget takes at most."""
    device: str
    hashes: dict[str, str | None]
    """What tells the model's weights, the images and the substitute's weights from all others."""
    borders: Borders
    """Between the grades of the verdict."""

    def about(self) -> dict[str, Any]:
        """What it is, as JSON."""
        return {
            "model": self.model.name,
            "data": self.images.name,
            "images": len(self.test),
            "classes": list(self.model.model.classes),
            "norm": self.request.norm,
            "eps": list(self.values),
            "budget": self.request.budget,
            "thorough": self.request.thorough or self.request.budget == "thorough",
            "substitute": self.request.substitute,
            "precision": self.request.precision,
            "seed": self.request.seed,
            "borders": asdict(self.borders),
            "device": self.device,
            "seconds_at_most": self.seconds,
            **self.hashes,
        }


def prepare(request: EvaluateRequest, device: str, observer: Observer) -> Ready:
    """Load model and images, try the one on the other, measure the speed. Raises `CasemateError`."""
    values = tuple(sorted({parse_eps(text) for text in request.radii}))
    borders = request.grade_borders()
    model = inputs.load_model(request.model, device)
    substitute = None if request.substitute is None else inputs.load_model(request.substitute, device).model
    images = inputs.load_images(model, request.data, request.dataset, request.data_dir, observer)
    test = images.images[: request.images]
    doubt = find_eps_issue(Ball(eps=values[-1], norm=request.norm), model.model.bounds, prod(model.model.input_shape))
    if doubt is not None and doubt.is_obvious:
        warnings.warn(doubt.message, CasemateWarning, stacklevel=2)  # before hours of attacks, which end in a finding
    with observer.work("Measuring the speed", 0):
        seconds = seconds_at_most(model.model, test, values, norm=request.norm, thorough=request.thorough)
    hashes = {
        "fingerprint": fingerprint(model.model),
        "images_sha256": fingerprint_of_images(test),
        "substitute_fingerprint": None if substitute is None else fingerprint(substitute),
    }
    return Ready(request, model, images, test, values, substitute, seconds, device, hashes, borders)


def run(ready: Ready, observer: Observer) -> Evaluation:
    """Evaluate; if that does not come to its end, say that nothing is kept."""
    request = ready.request
    try:
        return evaluate(
            ready.model.model,
            ready.test,
            eps=ready.values,
            norm=request.norm,
            budget=request.budget,
            thorough=request.thorough or None,
            substitute=ready.substitute,
            precision=request.precision,
            seed=request.seed,
            borders=ready.borders,
            observer=observer,
        )
    except BaseException:
        observer.message("Nothing of this evaluation is kept: it has no result before its end.")
        raise


def write(folder: Path, ready: Ready, found: Evaluation, threads: int, observer: Observer) -> dict[str, Any]:
    """Write record, result.json, table of examples and report.html, all or none; return what is in result.json."""
    record, adversarial_prediction = make_record(
        found, ready.model.model, name=ready.model.name, data=ready.images.name, observer=observer
    )
    result = ready.about() | found.as_json()
    result["fingerprint"] = record.fingerprint
    result["record"] = {
        "examples": int((record.first_success >= 0).sum()),
        "unproven": int((found.cascade.first_success >= 0).sum()) - int((record.first_success >= 0).sum()),
        "robust_accuracy": list(record.robust_accuracy),
    }
    result["provenance"] = surroundings(ready.device, threads)
    with observer.work("Writing the report", 0), filling(folder, outputs.FILES, outputs.RESULT) as temporary:
        write_record(record, temporary)
        write_table(evaluation_table(found, adversarial_prediction.numpy()), temporary / "examples")
        write_json(temporary / outputs.RESULT, result)
        build_evaluation(temporary)
    return result
