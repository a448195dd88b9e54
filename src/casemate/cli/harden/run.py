"""What `casemate harden` does once PyTorch is loaded: load, check, estimate the time, harden, write."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from casemate import data
from casemate.cli.harden.request import HardenImages, HardenRequest
from casemate.cli.shared import console, inputs, outputs
from casemate.data import LabelledImages, subset
from casemate.defenses import AdversarialTraining, Recipe
from casemate.errors import SettingError
from casemate.hardening import (
    Hardened,
    HardeningPlan,
    hardening_recipe,
    hardening_seconds,
    plan_hardening,
    run_hardening,
)
from casemate.norms import parse_eps
from casemate.progress import Observer
from casemate.report.hardening import HARDEN
from casemate.training import TrainConfig

_STEPS = "steps"
"""Name of the folder in OUT with the finished steps, while the hardening is unfinished."""


@dataclass(frozen=True)
class HardenPlan:
    """A hardening that is ready to run, with what the command line knows of its model and images."""

    request: HardenRequest
    model: inputs.LoadedModel
    data: str
    """Name of the data set, or of the files with the images."""
    hardening: HardeningPlan

    def about(self) -> dict[str, object]:
        """All settings as JSON, for printing and for harden.json."""
        return {"model": self.model.name, "data": self.data, **self.hardening.about()}


def prepare(
    request: HardenRequest,
    images: HardenImages,
    settings: TrainConfig,
    device: str,
    observer: Observer,
) -> HardenPlan:
    """Load the model and the images, and check them with the settings; nothing is trained or attacked.

    Raises `CasemateError`.
    """
    model = inputs.load_model(request.model, device)
    train, test, name = _images(model, images, observer)
    if images.train_images is not None:
        train = subset(train, images.train_images, request.seed)
    eps, bounds = parse_eps(request.eps), model.model.bounds
    recipes = {each: _recipe(each, eps, request, bounds) for each in request.recipe}
    if len(recipes) < len(request.recipe):
        raise SettingError(f"--recipe {' '.join(request.recipe)}; expected each recipe once")
    with observer.work("Checking model and images", 0):
        plan = plan_hardening(
            model.model,
            train,
            test=test,
            eps=eps,
            norm=request.norm,
            recipe=recipes,
            settings=settings,
            budget=request.budget,
            images=images.images,
            seed=request.seed,
        )
    return HardenPlan(request, model, name, plan)


def _recipe(name: str, eps: float, request: HardenRequest, bounds: tuple[float, float]) -> Recipe:
    """The recipe called `name` with the settings of the command line. Raises `SettingError`."""
    made = hardening_recipe(name, eps, request.norm, bounds)
    if request.steps is None or not isinstance(made.objective, AdversarialTraining):
        return made
    return replace(made, objective=replace(made.objective, steps=request.steps))


def _images(
    model: inputs.LoadedModel, options: HardenImages, observer: Observer
) -> tuple[LabelledImages, LabelledImages | None, str]:
    """Images to train on, test images if there are separate ones, and the name of both. Raises `CasemateError`."""
    if options.test is not None and options.data is None:
        raise SettingError(
            "--test without --data; a data set has its own test images: leave --test out, or give --data"
        )
    found, name = inputs.load_images(model, options.data, options.dataset, options.data_dir, observer)
    if options.data is None:
        return data.load(name, options.data_dir, observer=observer).train, found, name
    if options.test is None:
        return found, None, name
    test, other = inputs.load_images(model, options.test, None, None, observer)
    return found, test, f"{name} and {other}"


def estimate_steps(plan: HardenPlan, observer: Observer) -> Mapping[str, float]:
    """Estimated seconds of each step by name, from a measured speed."""
    with observer.work("Measuring the speed", 0):
        return hardening_seconds(plan.hardening)


def run(plan: HardenPlan, out: Path, *, overwrite: bool, observer: Observer) -> Hardened:
    """Run the planned hardening, or continue it from the steps in `out`; first report the time that it takes.

    Raises `CasemateError`, as for the results of another hardening in `out`.
    """
    steps = out / _STEPS
    compared = {name: value for name, value in plan.about().items() if name != "casemate"}
    outputs.check_results(out, compared, overwrite=overwrite, observer=observer, file=HARDEN)
    if steps.exists():
        observer.message(f"Continuing from the steps in {steps}.")
    else:
        seconds = estimate_steps(plan, observer)
        parts = ", ".join(f"{name} {console.duration(each)}" for name, each in seconds.items())
        observer.message(f"About {console.duration(sum(seconds.values()))} in all ({parts}).")
    return run_hardening(plan.hardening, checkpoint=steps, device=plan.model.model.device, observer=observer)


def write(plan: HardenPlan, found: Hardened, out: Path, *, overwrite: bool, observer: Observer) -> None:
    """Write the files of the hardening, all or none, and delete its steps."""
    made = plan.model.description is None
    found.report(
        out,
        name=plan.model.name,
        data=plan.data,
        source=plan.model.name if made else None,
        metadata=plan.model.description,
        images=not plan.request.no_images,
        overwrite=overwrite,
        observer=observer,
    )
    shutil.rmtree(out / _STEPS, ignore_errors=True)
