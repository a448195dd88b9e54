"""What `casemate certify` does once PyTorch is loaded: load, certify, attack, write."""

import warnings
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from casemate.certification import Smoothing
from casemate.cli.certify.request import DEFAULTS, CertifyRequest
from casemate.cli.evaluate.request import IMAGES
from casemate.cli.shared import inputs, outputs
from casemate.cli.shared.facts import report_facts
from casemate.data import ReadableImages
from casemate.engine import default_store
from casemate.errors import CasemateWarning, SettingError
from casemate.evaluation.certificates import certificate_seconds
from casemate.evaluation.certified import CertifiedEvaluation, evaluate_certified
from casemate.evaluation.cost import seconds_at_most
from casemate.evaluation.fingerprints import fingerprint, fingerprint_of_images
from casemate.evaluation.smoothed import (
    SmoothedEvaluation,
    evaluate_smoothed,
    smoothed_queries,
    smoothed_seconds,
    smoothing_settings,
)
from casemate.models import OpenedModel
from casemate.norms import Ball, Norm, format_eps, parse_eps
from casemate.progress import Observer
from casemate.report.certification import CERTIFICATION_FILE, write_certification_files
from casemate.units import find_eps_issue


@dataclass(frozen=True)
class CertifyPlan:
    """A certification that is ready to run: settings, loaded model and images."""

    request: CertifyRequest
    model: OpenedModel
    data: str
    """Name of the data set, or of the file with the images."""
    test: ReadableImages
    chosen: str
    """Which images of the data they are: "first", "all", or "stratified, seed 0"."""
    values: tuple[float, ...]
    """The values of eps, ascending."""
    smoothing: Smoothing | None
    """The settings of randomised smoothing; None: bounds of the model itself."""
    device: str
    hashes: dict[str, str]
    """Of the weights and the images."""
    seconds: dict[str, float]
    """Estimated seconds of `certificates`, and at most of `attacks`; empty if they were not measured."""

    @property
    def most_queries(self) -> int | None:
        """The most images that a smoothed model is called with; None without smoothing."""
        return None if self.smoothing is None else smoothed_queries(len(self.test), self.smoothing)

    def about(self) -> dict[str, Any]:
        """All settings as JSON, for certification.json."""
        request = self.request
        if self.smoothing is None:
            how = {
                "method": request.method or DEFAULTS["method"],
                "budget": (request.budget or DEFAULTS["budget"]) if request.attack else None,
                "sample": DEFAULTS["sample"] if request.sample is None else request.sample,
            }
        else:
            how = smoothing_settings(self.smoothing)
        return {
            "model": self.model.name,
            "data": self.data,
            "images": len(self.test),
            "classes": list(self.model.model.classes),
            "norm": request.measured_in,
            "eps": list(self.values),
            "eps_text": [format_eps(each) for each in self.values],
            **how,
            "seed": request.seed,
            "device": self.device,
            **inputs.about_options(request.loading, request.reading, self.chosen),
            **self.hashes,
        }


def prepare(request: CertifyRequest, device: str, observer: Observer, *, timed: bool = False) -> CertifyPlan:
    """Load the model and the images; nothing is certified.

    If `timed`, the time is estimated too, by certifying and attacking a few images.

    Warns of an eps that is obviously in the wrong unit. Raises `CasemateError`.
    """
    smoothing = request.smoothed.settings()
    values = tuple(sorted({parse_eps(text) for text in request.radii}))
    if values[0] <= 0:
        raise SettingError(f"eps = {', '.join(request.radii)}; expected one or more, all above zero")
    model = inputs.load_model(request.model, device, request.loading)
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
    if len(images.images) < request.images != IMAGES:
        observer.message(
            f"--images {request.images:,}: there are only {len(images.images):,} images; all of them are used."
        )
    ball = Ball(eps=values[-1], norm=request.measured_in)
    doubt = find_eps_issue(ball, model.model.bounds, prod(model.model.input_shape))
    if doubt is not None and doubt.is_obvious:
        warnings.warn(doubt.message, CasemateWarning, stacklevel=2)
    hashes = {
        "fingerprint": fingerprint(model.model),
        "images_sha256": fingerprint_of_images(images.images),
    }
    plan = CertifyPlan(request, model, images.name, images.images, images.chosen, values, smoothing, device, hashes, {})
    if not timed or request.loading.black_box:  # whose calls may be counted, or cost money
        return plan
    with observer.work("Measuring the speed", 0):
        return replace(plan, seconds=_seconds(plan))


def _seconds(plan: CertifyPlan) -> dict[str, float]:
    """The estimated seconds of a plan, by what is computed."""
    model, about = plan.model.model, plan.about()
    if plan.smoothing is not None:
        return {"certificates": smoothed_seconds(model, plan.test, plan.smoothing)}
    norm: Norm = plan.request.measured_in
    found = {"certificates": certificate_seconds(model, plan.test, plan.values, norm=norm, method=about["method"])}
    if about["budget"] is not None:
        found["attacks"] = seconds_at_most(model, plan.test, plan.values, norm=norm, checks=False)[about["budget"]]
    return found


def expect_replaceable(plan: CertifyPlan, folder: Path, *, overwrite: bool, observer: Observer) -> None:
    """Raise `SettingError` if the results of another run in `folder` would be replaced."""
    outputs.check_results(folder, plan.about(), overwrite=overwrite, observer=observer, file=CERTIFICATION_FILE)


def run(
    plan: CertifyPlan, observer: Observer, *, store: str | None = None, fresh: bool = False
) -> CertifiedEvaluation | SmoothedEvaluation:
    """Certify, and attack what is not certified; or certify the smoothed model.

    Args:
        plan: what to do.
        observer: receives the progress.
        store: the folder, or the URL, of the store that keeps finished parts of bounds and attacks; None: the default.
        fresh: use nothing that an earlier run left there.
    """
    model, about = plan.model.model, plan.about()
    if plan.smoothing is not None:
        inputs.expect_queries(plan.model, plan.request.loading, smoothed_queries(len(plan.test), plan.smoothing))
        return evaluate_smoothed(
            model,
            plan.test,
            eps=plan.values,
            smoothing=plan.smoothing,
            seed=plan.request.seed,
            store=store or default_store(),
            fresh=fresh,
            observer=observer,
        )
    return evaluate_certified(
        model,
        plan.test,
        eps=plan.values,
        norm=about["norm"],
        method=about["method"],
        budget=about["budget"],
        sample=about["sample"],
        seed=plan.request.seed,
        store=store or default_store(),
        fresh=fresh,
        observer=observer,
    )


def write(
    folder: Path,
    plan: CertifyPlan,
    found: CertifiedEvaluation | SmoothedEvaluation,
    threads: int,
    observer: Observer,
) -> dict[str, Any]:
    """Write the files, all or none; return the content of certification.json."""
    number = found.clean_accuracy
    if (doubt := plan.model.doubt(number.value, number.low, 1 / len(plan.model.model.classes))) is not None:
        observer.message(doubt)
    about = plan.about() | {"model_facts": plan.model.facts.as_json()}
    return write_certification_files(folder, found, about, threads=threads, observer=observer)
