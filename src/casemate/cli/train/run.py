"""What `casemate train` does once PyTorch is loaded: build the recipe, train, test, save."""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from casemate import data
from casemate.cli.shared.augmentations import read_augmentation
from casemate.cli.train.base_models import BaseModel, start_model, teacher_model, trained_at
from casemate.data import Dataset, LabelledImages
from casemate.data.named import make_augmentation
from casemate.defenses import Recipe, make_objective
from casemate.errors import SettingError
from casemate.evaluation import CleanResult, evaluate_clean
from casemate.models import Classifier, ModelMetadata, create, save
from casemate.progress import Observer
from casemate.provenance import surroundings
from casemate.tables import write_table_as
from casemate.timing import relative_step_cost
from casemate.training import TrainConfig, TrainResult
from casemate.training.cost import measure_step_cost

_VALIDATION = 6000
_COLUMNS = ("epoch", "learning_rate", "loss", "accuracy", "val_loss", "val_accuracy", "seconds")


@dataclass(frozen=True)
class TrainPlan:
    """A training that is ready to run."""

    about: dict[str, Any]
    """The settings, as JSON."""
    description: ModelMetadata
    """The metadata to be saved with the model, without its metrics."""
    settings: TrainConfig
    recipe: Recipe
    dataset: Dataset
    train: LabelledImages
    validation: LabelledImages
    model: Classifier
    architectures: set[str | None]
    """Those of the network and of the models that it builds on."""
    out: Path
    device: str
    threads: int


@dataclass(frozen=True)
class TrainOutcome:
    """A finished training."""

    trained: TrainResult
    found: CleanResult
    """Accuracy and loss on the test images."""
    history: Path
    """The file with the history."""


def prepare(
    settings: TrainConfig,
    objective: dict[str, Any],
    options: Mapping[str, Any],
    *,
    architecture: str | None,
    start: Path | None,
    teacher: str | None,
    out: Path,
    device: str,
    threads: int,
    observer: Observer,
) -> TrainPlan:
    """Check the settings, read the images, set some aside for validation, create the network.

    Args:
        settings: of the training.
        objective: name and settings of the objective, as JSON; a temperature of None is replaced by the teacher's.
        options: the fields of `TrainImages`.
        architecture: a registered network; None for that of `start`, or else paper-cnn.
        start: the model to start from.
        teacher: the teacher of a distillation.
        out: the file for the model.
        device, threads: where to train.

    Raises `CasemateError`.
    """
    seed = settings.seed
    augment, extra = ([read_augmentation(text) for text in options[name]] for name in ("augment", "extra"))
    roles = {"start": start_model(start, architecture), "teacher": teacher_model(teacher)}
    bases = {role: each for role, each in roles.items() if each is not None}
    notes = _set_temperature(objective, bases["teacher"]) if "teacher" in bases else []
    recipe = Recipe(
        objective=make_objective(objective, bases["teacher"].model.to(device) if "teacher" in bases else None),
        extra=tuple(map(make_augmentation, extra)),
        augment=tuple(map(make_augmentation, augment)),
    )
    images = _read(options["dataset"], bases, options["data_dir"], observer)
    train, validation = _parts(images, options["train_images"], options["validation_images"], seed)
    if "start" in bases:
        architecture, model = bases["start"].architecture, bases["start"].model
    else:
        architecture = architecture or "paper-cnn"
        model = create(architecture, input_shape=images.image_shape, classes=images.classes, seed=seed)
    models = {role: bases[role].as_json() if role in bases else None for role in roles}
    defended = {"objective": objective, "augment": augment, "extra": extra, **models}
    about: dict[str, Any] = {
        "architecture": architecture,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dataset": images.name,
        "train_images": len(train),
        "validation_images": len(validation),
        "test_images": len(images.test),
        "epochs": settings.epochs,
        **defended,
        "seed": seed,
        "device": device,
        "threads": threads,
        "out": str(out),
        "notes": notes,
    }
    own = {name: value for name, value in asdict(settings).items() if name != "seed"}  # a field of its own
    own |= {name: options[name] for name in ("train_images", "validation_images")}
    description = ModelMetadata(architecture=str(architecture), dataset=images.name, recipe=own | defended, seed=seed)
    architectures = {architecture, *(each.architecture for each in bases.values())}
    return TrainPlan(
        about, description, settings, recipe, images, train, validation, model, architectures, out, device, threads
    )


def _set_temperature(objective: dict[str, Any], teacher: BaseModel) -> list[str]:
    """Use the teacher's temperature if none was given; return a note if another one was."""
    settings, own = objective["settings"], trained_at(teacher.description)
    if settings["temperature"] is None:
        settings["temperature"] = own
    if settings["temperature"] == own:
        return []
    return [
        f"{Path(teacher.source).name} was trained at temperature {own:g}, but its soft labels are at "
        f"{settings['temperature']:g}; distillation is meant to use the same for both"
    ]


def _read(dataset: str | None, bases: Mapping[str, BaseModel], data_dir: Path | None, observer: Observer) -> Dataset:
    """Load the named data set, or else that of the models built on, or else Fashion-MNIST. Raises `CasemateError`."""
    named = dataset or next((each.dataset for each in bases.values() if each.dataset is not None), "fashion-mnist")
    if named not in data.NAMES:
        raise SettingError(f"the saved model was trained on {named!r}; give --dataset, one of {', '.join(data.NAMES)}")
    with observer.work("Reading the images", 0):
        images = data.load(named, data_dir, observer=observer)
    for each in bases.values():
        each.check(images)
    return images


def _parts(dataset: Dataset, wanted: int | None, aside: int | None, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """Training images (`wanted`, or all the rest) and validation images (`aside`). Raises `SettingError`."""
    there = len(dataset.train)
    if aside is None:
        aside = min(_VALIDATION, there // 5 if wanted is None else max(1, wanted // 4))
    if wanted is not None and wanted + aside > there:
        raise SettingError(f"{wanted} training and {aside} validation images, but {dataset.title} has {there}")
    pool = dataset.train if wanted is None else data.subset(dataset.train, wanted + aside, seed)
    return data.split(pool, aside, seed)


def estimate(plan: TrainPlan, observer: Observer) -> float | None:
    """The seconds that the training would take; None for networks whose speed is unknown."""
    if plan.architectures != {"paper-cnn"}:
        return None
    with observer.work("Measuring how fast this machine is", 0):
        speed = measure_step_cost(plan.dataset.image_shape, plan.device)
    images = len(plan.train) * (1 + len(plan.recipe.extra)) + len(plan.validation)
    return speed.training * relative_step_cost(plan.about["objective"]) * images * plan.settings.epochs


def run(plan: TrainPlan, checkpoint: Path, history: str, observer: Observer) -> TrainOutcome:
    """Train, or continue from the checkpoint; test; write model, history and metadata."""
    trained = plan.recipe.fit(
        plan.model,
        plan.train,
        plan.validation,
        plan.settings,
        checkpoint=checkpoint,
        device=plan.device,
        observer=observer,
    )
    found = evaluate_clean(trained.model, plan.dataset.test, observer=observer)
    path = plan.out.with_suffix(f".history.{history}")
    rows = {name: np.array([row[name] for row in trained.history]) for name in _COLUMNS}
    write_table_as(history, rows, path)
    metrics = {
        "test_accuracy": found.accuracy.as_json(),
        "test_loss": found.mean_loss.as_json(),
        "epoch": trained.epoch,
        "best_epoch": trained.best_epoch,
        "stopped_at": trained.stopped_at,
        "provenance": surroundings(plan.device, plan.threads),
    }
    _save_others(trained, plan)
    save(trained.model.cpu(), plan.out, replace(plan.description, metrics=metrics))
    checkpoint.unlink(missing_ok=True)
    return TrainOutcome(trained, found, path)


def _save_others(trained: TrainResult, plan: TrainPlan) -> None:
    """Save the weights of `TrainConfig.save_epochs`, and the best weights if training continued after them."""
    others = {f"epoch-{epoch:03d}": (epoch, weights) for epoch, weights in trained.kept.items()}
    if trained.stopped_at is not None and trained.epoch != trained.best_epoch:
        others["best"] = (trained.best_epoch, trained.best)
    model = copy.deepcopy(trained.model).cpu()
    for name, (epoch, weights) in others.items():
        model.load_state_dict(weights)
        path = plan.out.with_suffix(f".{name}.safetensors")
        save(model, path, replace(plan.description, metrics={"epoch": epoch}))
