"""What `casemate train` does once PyTorch is loaded: put the recipe together, train by it, judge, save."""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from casemate import data
from casemate.cli.shared.augmentations import read_change
from casemate.cli.train.base_models import Held, start_model, teacher_model, trained_at
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
class Ready:
    """A training about to begin."""

    about: dict[str, Any]
    """What it is, as JSON."""
    description: ModelMetadata
    """What will be written beside the model, without its metrics."""
    settings: TrainConfig
    recipe: Recipe
    dataset: Dataset
    train: LabelledImages
    validation: LabelledImages
    model: Classifier
    architectures: set[str | None]
    """Of the network and of its teacher."""
    out: Path
    device: str
    threads: int


@dataclass(frozen=True)
class Done:
    """A finished training."""

    trained: TrainResult
    found: CleanResult
    history: Path


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
) -> Ready:
    """Check everything, read the images, set those for validation aside, make the network. Raises `CasemateError`.

    `options` are those of the images; `objective` is the loss as data, its temperature None if the teacher sets it.
    """
    seed = settings.seed
    augment, extra = ([read_change(text) for text in options[name]] for name in ("augment", "extra"))
    roles = {"start": start_model(start, architecture), "teacher": teacher_model(teacher)}
    held = {role: each for role, each in roles.items() if each is not None}
    notes = _set_temperature(objective, held["teacher"]) if "teacher" in held else []
    recipe = Recipe(
        objective=make_objective(objective, held["teacher"].model.to(device) if "teacher" in held else None),
        extra=tuple(map(make_augmentation, extra)),
        augment=tuple(map(make_augmentation, augment)),
    )
    images = _read(options["dataset"], held, options["data_dir"], observer)
    train, validation = _parts(images, options["train_images"], options["validation_images"], seed)
    if "start" in held:
        architecture, model = held["start"].architecture, held["start"].model
    else:
        architecture = architecture or "paper-cnn"
        model = create(architecture, input_shape=images.image_shape, classes=images.classes, seed=seed)
    models = {role: held[role].as_json() if role in held else None for role in roles}
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
    own = {name: value for name, value in asdict(settings).items() if name != "seed"}  # which stands beside
    own |= {name: options[name] for name in ("train_images", "validation_images")}
    description = ModelMetadata(architecture=str(architecture), dataset=images.name, recipe=own | defended, seed=seed)
    architectures = {architecture, *(each.architecture for each in held.values())}
    return Ready(
        about, description, settings, recipe, images, train, validation, model, architectures, out, device, threads
    )


def _set_temperature(objective: dict[str, Any], teacher: Held) -> list[str]:
    """Take the teacher's temperature if none was given; say so if another one was."""
    settings, own = objective["settings"], trained_at(teacher.description)
    if settings["temperature"] is None:
        settings["temperature"] = own
    if settings["temperature"] == own:
        return []
    return [
        f"{Path(teacher.source).name} was trained at temperature {own:g}, but answers at {settings['temperature']:g}; "
        f"distillation is meant to be at the same one"
    ]


def _read(dataset: str | None, held: Mapping[str, Held], data_dir: Path | None, observer: Observer) -> Dataset:
    """The data set named, or else that of the models built on, or else Fashion-MNIST. Raises `CasemateError`."""
    named = dataset or next((each.dataset for each in held.values() if each.dataset is not None), "fashion-mnist")
    if named not in data.NAMES:
        raise SettingError(f"the saved model is of {named!r}; say with --dataset which of {', '.join(data.NAMES)}")
    with observer.work("Reading the images", 0):
        images = data.load(named, data_dir, observer=observer)
    for each in held.values():
        each.check(images)
    return images


def _parts(dataset: Dataset, wanted: int | None, aside: int | None, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """Training and validation images, drawn as the study draws them. Raises `SettingError`."""
    there = len(dataset.train)
    if aside is None:
        aside = min(_VALIDATION, there // 5 if wanted is None else max(1, wanted // 4))
    if wanted is not None and wanted + aside > there:
        raise SettingError(f"{wanted} training and {aside} validation images, but {dataset.title} has {there}")
    pool = dataset.train if wanted is None else data.subset(dataset.train, wanted + aside, seed)
    return data.split(pool, aside, seed)


def estimate(ready: Ready, observer: Observer) -> float | None:
    """The seconds it would take; None for networks that no speed was measured for."""
    if ready.architectures != {"paper-cnn"}:
        return None
    with observer.work("Measuring how fast this machine is", 0):
        speed = measure_step_cost(ready.dataset.image_shape, ready.device)
    images = len(ready.train) * (1 + len(ready.recipe.extra)) + len(ready.validation)
    return speed.training * relative_step_cost(ready.about["objective"]) * images * ready.settings.epochs


def train(ready: Ready, checkpoint: Path, history: str, observer: Observer) -> Done:
    """Train, or go on from the checkpoint; judge on the test images; write everything."""
    trained = ready.recipe.fit(
        ready.model,
        ready.train,
        ready.validation,
        ready.settings,
        checkpoint=checkpoint,
        device=ready.device,
        observer=observer,
    )
    found = evaluate_clean(trained.model, ready.dataset.test, observer=observer)
    path = ready.out.with_suffix(f".history.{history}")
    rows = {name: np.array([row[name] for row in trained.history]) for name in _COLUMNS}
    write_table_as(history, rows, path)
    metrics = {
        "test_accuracy": found.accuracy.as_json(),
        "test_loss": found.mean_loss.as_json(),
        "epoch": trained.epoch,
        "best_epoch": trained.best_epoch,
        "stopped_at": trained.stopped_at,
        "provenance": surroundings(ready.device, ready.threads),
    }
    _save_others(trained, ready)
    save(trained.model.cpu(), ready.out, replace(ready.description, metrics=metrics))
    checkpoint.unlink(missing_ok=True)
    return Done(trained, found, path)


def _save_others(trained: TrainResult, ready: Ready) -> None:
    """Save weights of other epochs: those of `TrainConfig.save_epochs`, and the best if training went on after them."""
    others = {f"epoch-{epoch:03d}": (epoch, weights) for epoch, weights in trained.kept.items()}
    if trained.stopped_at is not None and trained.epoch != trained.best_epoch:
        others["best"] = (trained.best_epoch, trained.best)
    model = copy.deepcopy(trained.model).cpu()
    for name, (epoch, weights) in others.items():
        model.load_state_dict(weights)
        path = ready.out.with_suffix(f".{name}.safetensors")
        save(model, path, replace(ready.description, metrics={"epoch": epoch}))
