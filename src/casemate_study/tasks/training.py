"""Producer of models trained without a defence, and what it shares with `defended_training`."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from casemate import data
from casemate.data import make_augmentation
from casemate.engine import Artifact, Context
from casemate.models import Classifier, ModelMetadata, create, save
from casemate.training import CrossEntropy, TrainConfig, TrainResult, Weights, fit

FINGERPRINTS = "fingerprints"
"""Where the result of a training has the SHA-256 of the weights of each version."""


def dataset_of(config: dict[str, Any], context: Context) -> data.Dataset:
    """Load the data set that a task's configuration names, from the data folder of `context`.

    The name is never "auto": planning the study has replaced it by that of the data set found.
    """
    return data.load(config["dataset"], context.data_dir, observer=context.observer)


def parts_of(config: dict[str, Any], dataset: data.Dataset) -> tuple[data.LabelledImages, data.LabelledImages]:
    """The images that a task's configuration trains on, and those it validates on, in this order.

    Both are stratified draws from the training part, determined by the seed. A small data set may give fewer than
    configured; at most a fifth are validation images.
    """
    pool = data.subset(dataset.train, config["train_images"] + config["validation_images"], config["seed"])
    return data.split(pool, min(config["validation_images"], len(pool) // 5), config["seed"])


def train_config(config: dict[str, Any]) -> TrainConfig:
    """The settings of the training loop that a task's configuration states; the others have their defaults."""
    settings = dict(config["training"])
    return TrainConfig(seed=config["seed"], **{**settings, "save_epochs": tuple(settings.get("save_epochs", ()))})


def network_of(config: dict[str, Any], dataset: data.Dataset) -> Classifier:
    """A new, untrained network of the configured architecture for the data set's image shape and classes.

    The rates of all its dropout layers are multiplied by the factor `config["dropout"]`.
    """
    model = create(
        config["architecture"], input_shape=dataset.image_shape, classes=dataset.classes, seed=config["seed"]
    )
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p *= config["dropout"]
    return model


def train_model(
    config: dict[str, Any], needs: Mapping[str, Artifact], folder: Path, working: Path, context: Context
) -> dict[str, Any]:
    """Train a new network without a defence, as the task's configuration states; return its training history.

    Writes the weights into `folder` as `save_versions` does.
    """
    del needs
    dataset = dataset_of(config, context)
    train, validation = parts_of(config, dataset)
    trained = fit(
        network_of(config, dataset),
        train,
        validation,
        train_config(config),
        objective=CrossEntropy(label_smoothing=config["label_smoothing"]),
        augment=[make_augmentation(spec) for spec in config["augment"]],
        checkpoint=working / "training.safetensors",
        device=context.device,
        observer=context.observer,
    )
    return save_versions(trained, config, folder) | {"train_images": len(train), "validation_images": len(validation)}


def save_versions(trained: TrainResult, config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the weights of a training into `folder`: final.safetensors, best.safetensors (lowest validation loss) and
    those of each kept epoch, epoch-NNN.safetensors, each with a sidecar file of metadata.

    Returns what the task's artifact states, as JSON: history, best epoch, epoch of early stopping, epoch and
    fingerprint of the weights by version, and number of parameters.
    """
    versions: dict[str, tuple[int, Weights | None]] = {
        "final": (trained.epoch, None),
        "best": (trained.best_epoch, trained.best),
    }
    versions |= {f"epoch-{epoch:03d}": (epoch, weights) for epoch, weights in trained.kept.items()}
    final = {name: tensor.cpu().clone() for name, tensor in trained.model.state_dict().items()}
    fingerprints: dict[str, str] = {}
    for name, (epoch, weights) in versions.items():
        model = trained.model.cpu()
        model.load_state_dict(final if weights is None else weights)
        path = _save_version(model, name, epoch, trained.history, config, folder)
        fingerprints[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return {
        "history": trained.history,
        "best_epoch": trained.best_epoch,
        "stopped_at": trained.stopped_at,
        "versions": {name: epoch for name, (epoch, _) in versions.items()},
        FINGERPRINTS: fingerprints,
        "parameters": sum(p.numel() for p in trained.model.parameters()),
    }


def _save_version(
    model: Classifier,
    name: str,
    epoch: int,
    history: list[dict[str, Any]],
    config: dict[str, Any],
    folder: Path,
) -> Path:
    row = history[epoch - 1]
    description = ModelMetadata(
        architecture=config["architecture"],
        dataset=config["dataset"],
        recipe={key: value for key, value in config.items() if key not in ("dataset", "architecture", "seed")},
        seed=config["seed"],
        metrics={"epoch": epoch, "val_loss": row["val_loss"], "val_accuracy": row["val_accuracy"]},
    )
    return save(model, folder / f"{name}.safetensors", description)
