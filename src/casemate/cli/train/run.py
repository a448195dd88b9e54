"""What `casemate train` does once PyTorch is loaded: build the recipe, train, test, save."""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from casemate import data
from casemate.cli.shared.augmentations import read_augmentation
from casemate.cli.shared.facts import report_facts
from casemate.cli.shared.options import ModelOptions, Reading, words_of_options
from casemate.cli.shared.own_images import own_dataset, unlabelled_pixels
from casemate.cli.shared.teachers import report_untrained
from casemate.cli.train.base_models import BaseModel, start_model, teacher_model, trained_at
from casemate.data import Dataset, LabelledImages
from casemate.data.named import make_augmentation
from casemate.defenses import Recipe, make_objective, recipe_type
from casemate.errors import SettingError
from casemate.evaluation import CleanResult, evaluate_clean
from casemate.models import Classifier, ModelMetadata, OpenedModel, create, save, user_call
from casemate.progress import Observer, Tracked, track
from casemate.provenance import surroundings
from casemate.rng import all_seeded, derive, torch_forked
from casemate.settings import unknown_name
from casemate.tables import write_table_as
from casemate.torchrun import place
from casemate.training import TrainConfig, TrainResult, takes_unlabelled, training_seconds
from casemate.training.objective import ball_of

_VALIDATION = 6000


@dataclass(frozen=True)
class TrainPlan:
    """A training that is ready to run: settings, images, and the network with its initial weights."""

    about: dict[str, Any]
    """The settings as JSON, for printing; `notes` are remarks for the user."""
    description: ModelMetadata
    """The metadata to be saved with the model, still without the measured metrics."""
    settings: TrainConfig
    recipe: Recipe
    dataset: Dataset
    train: LabelledImages
    validation: LabelledImages
    model: Classifier
    start: OpenedModel | None
    """The model that the training starts from; None for fresh weights."""
    out: Path
    device: str
    threads: int
    processes: int


@dataclass(frozen=True)
class TrainOutcome:
    """A finished training and its test result."""

    trained: TrainResult
    found: CleanResult
    """Accuracy and loss on the test images."""
    history: Path
    """Path of the file with one row of numbers per epoch."""


def prepare(
    settings: TrainConfig,
    objective: dict[str, Any],
    options: Mapping[str, Any],
    *,
    architecture: str | None,
    start: str | None,
    loading: ModelOptions,
    teacher: str | None,
    out: Path,
    device: str,
    threads: int,
    processes: int,
    observer: Observer,
) -> TrainPlan:
    """Check the settings, read the images, set some aside for validation, create the network; nothing is trained.

    Args:
        settings: of the training.
        objective: name and settings of the objective, as JSON; a temperature of None is replaced in place by the
            teacher's.
        options: the values of the fields of `TrainImages`, by name, and `reading`, how to read the user's own images.
        architecture: a registered network; None for that of `start`, or else paper-cnn.
        start: the model whose weights the training starts from: a file, or another source of a model.
        loading: the options of that model, or of the teacher if there is no `start`.
        teacher: file or function of the teacher of a distillation.
        out: the file for the model.
        device: where to train.
        threads: the number of CPU threads in use; only recorded.
        processes: the number of processes that share the training; only recorded.
        observer: receives progress.

    Raises `CasemateError`.
    """
    seed = settings.seed
    augment, extra = ([read_augmentation(text) for text in options[name]] for name in ("augment", "extra"))
    if start is None and teacher is None and (words := words_of_options(loading)):
        raise SettingError(f"{words[0]} is about a model of your own; give it with --start MODEL")
    with all_seeded(torch.device("cpu"), derive(seed, "start")):  # for a network of the user's without weights
        opened_start = start_model(start, architecture, loading)
    roles = {
        "start": opened_start,
        "teacher": teacher_model(teacher, loading if start is None else ModelOptions()),
    }
    bases = {role: each for role, each in roles.items() if each is not None}
    notes = _set_temperature(objective, bases["teacher"]) if "teacher" in bases else []
    recipe = Recipe(
        objective=make_objective(objective, bases["teacher"].model.to(device) if "teacher" in bases else None),
        extra=tuple(map(make_augmentation, extra)),
        augment=tuple(map(make_augmentation, augment)),
    )
    if options["data"] is None:
        reading = options["reading"].of_data_set(options["unlabelled"])
        images = _read(options["dataset"], reading, bases, options["data_dir"], observer)
    else:
        images = _read_own(options["data"], options["dataset"], options["reading"], bases, observer)
    for each in bases.values():
        report_facts(each.opened, observer)
    train, validation = _parts(images, options["train_images"], options["validation_images"], seed)
    if "teacher" in bases:
        report_untrained(bases["teacher"].model, validation, observer)
    base = next((each.opened for each in bases.values()), None)
    labelled = options["labelled_images"] or (None if options["unlabelled"] is None else len(train))
    if labelled is not None and not takes_unlabelled(recipe.objective):
        option = "--unlabelled" if options["labelled_images"] is None else "--labelled-images"
        raise SettingError(
            f"{option} with the recipe {objective['name']}, which learns from labels only; expected a recipe that does "
            "not, such as virtual-adversarial"
        )
    train = _without_labels(train, options, images.image_shape, base, seed, observer)
    if "start" in bases:
        architecture, model = bases["start"].architecture or bases["start"].source, bases["start"].model
    else:
        architecture = architecture or "paper-cnn"
        model = create(architecture, input_shape=images.image_shape, classes=images.classes, seed=seed)
        recipe_type(objective["name"]).initialize(model, seed)
    models = {role: bases[role].as_json() if role in bases else None for role in roles}
    defended = {"objective": objective, "augment": augment, "extra": extra, **models}
    about: dict[str, Any] = {
        "architecture": architecture,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dataset": images.name,
        **({} if options["data"] is None else {"data": images.origin}),
        "train_images": len(train),
        **({} if labelled is None else {"labelled_images": labelled}),
        **({} if options["unlabelled"] is None else {"unlabelled": str(options["unlabelled"])}),
        "validation_images": len(validation),
        "test_images": len(images.test),
        "epochs": settings.epochs,
        **defended,
        "seed": seed,
        "device": device,
        "threads": threads,
        "processes": processes,
        "out": str(out),
        "notes": notes,
    }
    own = {name: value for name, value in asdict(settings).items() if name != "seed"}  # a field of its own
    own |= {name: options[name] for name in ("train_images", "validation_images")}
    own |= {name: about[name] for name in ("labelled_images", "unlabelled") if name in about}
    description = ModelMetadata(architecture=str(architecture), dataset=images.name, recipe=own | defended, seed=seed)
    started = bases["start"].opened if "start" in bases else None
    parts, networks = (images, train, validation), (model, started)
    return TrainPlan(about, description, settings, recipe, *parts, *networks, out, device, threads, processes)


def _set_temperature(objective: dict[str, Any], teacher: BaseModel) -> list[str]:
    """Set a temperature of None in `objective`, if it has one, to the teacher's.

    Returns a list of notes for the user: one if a temperature other than the teacher's was given, otherwise none.
    """
    settings, own = objective["settings"], trained_at(teacher.description)
    if "temperature" not in settings:  # a robust teacher is distilled at 1
        return []
    if settings["temperature"] is None:
        settings["temperature"] = own
    if settings["temperature"] == own:
        return []
    return [
        f"{Path(teacher.source).name} was trained at temperature {own:g}, but its soft labels are at "
        f"{settings['temperature']:g}; distillation is meant to use the same for both"
    ]


def _read_own(
    file: Path, dataset: str | None, reading: Reading, bases: Mapping[str, BaseModel], observer: Observer
) -> Dataset:
    """The user's own images in `file` as a data set that fits the models in `bases`. Raises `CasemateError`."""
    if dataset is not None:
        raise SettingError("--data and --dataset both name images; give one of them")
    base = next((each.opened for each in bases.values()), None)
    with observer.work("Reading the images", 0):
        images = own_dataset(file, reading, base, observer)
    for each in bases.values():
        each.check(images)
    return images


def _read(
    dataset: str | None,
    reading: Reading,
    bases: Mapping[str, BaseModel],
    data_dir: Path | None,
    observer: Observer,
) -> Dataset:
    """Load `dataset`, or else the data set that a model in `bases` was trained on, or else Fashion-MNIST.

    Raises `CasemateError`, also if a model in `bases` takes other images or has other classes.
    """
    if words := words_of_options(reading):
        raise SettingError(f"{words[0]} is about images of your own; give them with --data PATH")
    named = dataset or next((each.dataset for each in bases.values() if each.dataset is not None), "fashion-mnist")
    if dataset is not None and dataset not in data.NAMES:
        raise unknown_name("data set", dataset, data.NAMES)
    if named not in data.NAMES:
        raise SettingError(
            f"the saved model was trained on {named!r}; give --dataset, one of {', '.join(data.NAMES)}, or your own "
            "images with --data PATH"
        )
    with observer.work("Reading the images", 0):
        images = data.load(named, data_dir, observer=observer)
    for each in bases.values():
        each.check(images)
    return images


def _parts(dataset: Dataset, wanted: int | None, aside: int | None, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """Disjoint training and validation images, drawn from the training images of the data set.

    `wanted` is the number of the former (None: all that are left), `aside` that of the latter (None: a fifth of all
    that are used, at most 6,000). Raises `SettingError` if there are not enough.
    """
    there = len(dataset.train)
    if aside is None:
        aside = min(_VALIDATION, there // 5 if wanted is None else max(1, wanted // 4))
    if wanted is not None and wanted + aside > there:
        raise SettingError(f"{wanted} training and {aside} validation images, but {dataset.title} has {there}")
    pool = dataset.train if wanted is None else data.subset(dataset.train, wanted + aside, seed)
    return data.split(pool, aside, seed)


def _without_labels(
    train: LabelledImages,
    options: Mapping[str, Any],
    shape: tuple[int, int, int],
    base: OpenedModel | None,
    seed: int,
    observer: Observer,
) -> LabelledImages:
    """The training images as --labelled-images and --unlabelled say. Raises `CasemateError`."""
    count, file = options["labelled_images"], options["unlabelled"]
    if count is not None and count > len(train):
        raise SettingError(
            f"--labelled-images {count:,}, but there are {len(train):,} images to train on; expected at most that many"
        )
    if file is None:
        return train if count is None else data.keep_labels(train, count, seed)
    others = unlabelled_pixels(file, options["reading"], shape, base, observer)
    return data.keep_labels(train, len(train) if count is None else count, seed, others)


def estimate(plan: TrainPlan, observer: Observer) -> float:
    """Estimated seconds of the training, from steps on a few images; the model changes, so it is for a plan alone."""
    model, recipe = plan.model.to(plan.device), plan.recipe
    with (
        observer.work("Measuring how fast this machine is", 0),
        torch_forked(model.device),
        user_call(model, ball_of(recipe.objective), teachers=()),  # warns as the training would
    ):
        seconds = training_seconds(
            model, recipe.objective, plan.settings, plan.train, plan.validation, copies=len(recipe.extra)
        )
    return seconds / plan.processes


def run(plan: TrainPlan, checkpoint: Path, history: str, observer: Observer) -> TrainOutcome | None:
    """Train, or continue from the checkpoint; measure the test accuracy; write model, metadata and history.

    `history` is the format of the history, csv or parquet. At the end the checkpoint is deleted. Processes that
    torchrun started train together; all but the first are then done, and return None.
    """
    trained = plan.recipe.fit(
        plan.model,
        plan.train,
        plan.validation,
        plan.settings,
        checkpoint=checkpoint,
        device=plan.device,
        observer=observer,
    )
    if not place().is_first:
        return None
    found = evaluate_clean(trained.model, plan.dataset.test, observer=observer)
    path = plan.out.with_suffix(f".history.{history}")
    rows = {name: np.array([row[name] for row in trained.history]) for name in trained.history[0]}
    write_table_as(history, rows, path)
    metrics = {
        "test_accuracy": found.accuracy.as_json(),
        "test_loss": found.mean_loss.as_json(),
        "epoch": trained.epoch,
        "best_epoch": trained.best_epoch,
        "stopped_at": trained.stopped_at,
        "provenance": surroundings(plan.device, plan.threads) | {"processes": trained.processes},
    }
    _save_others(trained, plan)
    save(trained.model.cpu(), plan.out, replace(plan.description, metrics=metrics))
    checkpoint.unlink(missing_ok=True)
    numbers = found.accuracy.as_numbers("test/accuracy") | found.mean_loss.as_numbers("test/loss")
    track(observer, Tracked(numbers=numbers, files=[plan.out, plan.out.with_suffix(".json"), path]))
    return TrainOutcome(trained, found, path)


def _save_others(trained: TrainResult, plan: TrainPlan) -> None:
    """Save, beside the model, the weights of `TrainConfig.save_epochs`, and the best ones if training went on after."""
    others = {f"epoch-{epoch:03d}": (epoch, weights) for epoch, weights in trained.kept.items()}
    if trained.stopped_at is not None and trained.epoch != trained.best_epoch:
        others["best"] = (trained.best_epoch, trained.best)
    model = copy.deepcopy(trained.model).cpu()
    for name, (epoch, weights) in others.items():
        model.load_state_dict(weights)
        path = plan.out.with_suffix(f".{name}.safetensors")
        save(model, path, replace(plan.description, metrics={"epoch": epoch}))
