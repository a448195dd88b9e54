"""What `casemate harden` does once PyTorch is loaded: load, check, estimate the time, harden, write."""

import shlex
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from casemate import data
from casemate.cli.harden.recipes import read_recipe
from casemate.cli.harden.request import HardenImages, HardenRequest
from casemate.cli.shared import console, inputs, outputs
from casemate.cli.shared.facts import report_facts
from casemate.cli.shared.options import ModelOptions, Reading, words_of_options
from casemate.cli.shared.own_images import open_parts, train_and_test, unlabelled_pixels
from casemate.cli.shared.teachers import report_untrained
from casemate.data import LabelledImages, subset
from casemate.defenses import Recipe, recipe_type
from casemate.errors import SettingError
from casemate.hardening import (
    HARDENING_RECIPES,
    Hardened,
    HardeningPlan,
    hardening_recipe,
    hardening_seconds,
    plan_hardening,
    run_hardening,
)
from casemate.models import Classifier, OpenedModel
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
    model: OpenedModel
    data: str
    """Name of the data set, or of the files with the images."""
    test_words: list[str]
    """The options that name the test images, and say how they were read, as on the command line."""
    options: dict[str, Any]
    """The options of the model and of the images, see `inputs.about_options`."""
    hardening: HardeningPlan

    def about(self) -> dict[str, object]:
        """All settings as JSON, for printing and for harden.json."""
        return {"model": self.model.name, "data": self.data, **self.options, **self.hardening.about()}


def prepare(
    request: HardenRequest,
    images: HardenImages,
    reading: Reading,
    settings: TrainConfig,
    device: str,
    observer: Observer,
) -> HardenPlan:
    """Load the model and the images, and check them with the settings; nothing is trained or attacked.

    Raises `CasemateError`.
    """
    model = inputs.load_model(request.model, device, request.loading)
    train, test, name = _images(model, images, reading, request.seed, observer)
    report_facts(model, observer)
    eps, bounds = parse_eps(request.eps), model.model.bounds
    given = [read_recipe(text, request.norm) for text in request.recipe]
    teacher = _teacher(request.teacher, [name for name, _ in given], device)
    if teacher is not None:
        report_untrained(teacher, train, observer)
    recipes = {name: _recipe(name, settings, eps, request, bounds, teacher) for name, settings in given}
    if len(recipes) < len(request.recipe):
        raise SettingError(f"--recipe {' '.join(request.recipe)}; expected each recipe once")
    if request.steps is not None and not any(map(_has_steps, recipes.values())):
        raise SettingError(
            f"--steps {request.steps}: the number of steps is no setting of {', '.join(recipes)}; leave it out, or "
            "give a recipe that has it, such as adversarial-training"
        )
    others = None
    if images.unlabelled is not None:
        channels, height, width = train.pixels.shape[1:]
        others = unlabelled_pixels(images.unlabelled, reading, (channels, height, width), model, observer)
    with observer.work("Checking model and images", 0):
        plan = plan_hardening(
            model.model,
            train,
            test=test,
            unlabelled=others,
            eps=eps,
            norm=request.norm,
            recipe=recipes,
            settings=settings,
            budget=request.budget,
            images=images.images,
            seed=request.seed,
        )
    return HardenPlan(request, model, name, _test_words(images, reading), _options(request, images, reading), plan)


def _options(request: HardenRequest, images: HardenImages, reading: Reading) -> dict[str, Any]:
    """The options of the model and of the images as JSON; beside a data set those of `reading` are for the images
    without labels.
    """
    own = inputs.about_options(request.loading, reading if images.data is not None else Reading())
    if images.unlabelled is None:
        return own
    words = words_of_options(reading) if images.data is None else []
    return {**own, "unlabelled": str(images.unlabelled), **({"unlabelled_options": words} if words else {})}


def _test_words(images: HardenImages, reading: Reading) -> list[str]:
    """The options by which other commands take the test images.

    Those of `reading` are for images of the user; beside a data set they are for the images without labels alone.
    """
    how = words_of_options(reading)
    if images.test is not None:
        return ["--data", str(images.test), *how]
    if images.data is None:
        named = ["--dataset", images.dataset] if images.dataset else []
        return [*named, *(() if images.data_dir is None else ("--data-dir", str(images.data_dir)))]
    parts = train_and_test(images.data, reading)
    if parts is None:  # the test images were set aside, and the file holds those that were trained on too
        return ["--data", "TEST-IMAGES", *how]
    return ["--data", str(images.data), "--split", parts[1], *how]


def _teacher(source: str | None, recipes: Iterable[str], device: str) -> Classifier | None:
    """The model that --teacher names. Raises `CasemateError`, as where no recipe takes one, or one does without it."""
    taking = [name for name in recipes if name in HARDENING_RECIPES and recipe_type(name).teacher]
    if taking and source is None:
        raise SettingError(f"--recipe {taking[0]} without a teacher; give a robust model by --teacher MODEL")
    if source is None:
        return None
    if not taking:
        raise SettingError(f"--teacher {source}: no recipe given learns from a teacher; robust-distillation does")
    return inputs.load_model(source, device, ModelOptions()).model


def _recipe(
    name: str,
    given: Mapping[str, Any],
    eps: float,
    request: HardenRequest,
    bounds: tuple[float, float],
    teacher: Classifier | None,
) -> Recipe:
    """The recipe called `name` with the settings of the command line. Raises `SettingError`."""
    made = hardening_recipe(name, eps, request.norm, bounds, given, teacher)
    if request.steps is None or "steps" in given or not _has_steps(made):
        return made
    return replace(made, objective=replace(cast("Any", made.objective), steps=request.steps))


def _has_steps(recipe: Recipe) -> bool:
    """Whether the number of gradient steps is a setting of the recipe."""
    return hasattr(recipe.objective, "steps")


def _images(
    model: OpenedModel, options: HardenImages, reading: Reading, seed: int, observer: Observer
) -> tuple[LabelledImages, LabelledImages | None, str]:
    """Images to train on, test images if there are separate ones, and the name of both. Raises `CasemateError`."""
    if options.data is None:
        if options.test is not None:
            raise SettingError(
                "--test without --data; a data set has its own test images: leave --test out, or give --data"
            )
        given, own = (None, options.dataset, options.data_dir), reading.of_data_set(options.unlabelled)
        tested = inputs.load_images(model, *given, observer, count=options.images, reading=own)
        train = data.load(tested.name, options.data_dir, observer=observer).train
        if options.train_images is not None:
            train = subset(train, options.train_images, seed)
        return train, tested.images.read(slice(None)), tested.name
    if options.dataset is not None:
        raise SettingError("--data and --dataset both name images; give one of them")
    name = options.data.resolve().name
    with observer.work("Reading the images", 0):
        opened, test = open_parts(options.data, reading, model)
        if options.test is not None:
            test = inputs.open_for(model, options.test, reading)
            name = f"{name} and {options.test.resolve().name}"
        if options.train_images is not None:
            opened = opened.subset(options.train_images, seed)
        if test is not None:
            test = test.subset(options.images, seed)
        found = opened.read(slice(None)), None if test is None else test.read(slice(None)), name
    for note in (*opened.notes, *(() if test is None else test.notes)):
        observer.message(note)
    return found


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
    others = words_of_options(replace(plan.request.loading, weights=None))
    radius = ["--eps", plan.request.eps, *(() if plan.request.norm == "linf" else ("--norm", plan.request.norm))]
    found.report(
        out,
        name=plan.model.name,
        data=plan.data,
        source=shlex.join([plan.model.name, *others]) if made else None,
        metadata=plan.model.description,
        images=not plan.request.no_images,
        overwrite=overwrite,
        options=plan.options,
        evaluate=shlex.join([*plan.test_words, *radius, "--out", str(out / "evaluated")]),
        observer=observer,
    )
    shutil.rmtree(out / _STEPS, ignore_errors=True)
