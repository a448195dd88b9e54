"""Producer of trained models: the only part of the study whose code enters a trained model's key."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from casemate import data
from casemate.data.augment import AlternatingFlip, Augmentation, Shift
from casemate.engine.store import Piece
from casemate.engine.task import Context
from casemate.models import Classifier, Description, create, save
from casemate.train import CrossEntropy, Training, fit
from casemate.train.state import Weights

AUGMENTATIONS: dict[str, type[AlternatingFlip] | type[Shift]] = {"alternating-flip": AlternatingFlip, "shift": Shift}
"""Changes to training images, by the names a configuration uses."""


def dataset_of(config: dict[str, Any], context: Context) -> data.Dataset:
    """The data set a configuration names (its name is always a definite one, never "auto")."""
    return data.load(config["dataset"], context.data_dir, observer=context.observer)


def train_model(
    config: dict[str, Any], needs: Mapping[str, Piece], folder: Path, working: Path, context: Context
) -> dict[str, Any]:
    """Train as configured. Writes final.safetensors, best.safetensors, epoch-NNN.safetensors with their sidecars."""
    del needs
    dataset = dataset_of(config, context)
    pool = data.subset(dataset.train, config["train_images"] + config["validation_images"], config["seed"])
    train, validation = data.split(pool, min(config["validation_images"], len(pool) // 5), config["seed"])
    model = create(
        config["architecture"], input_shape=dataset.image_shape, classes=dataset.classes, seed=config["seed"]
    )
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p *= config["dropout"]
    recipe = dict(config["training"])
    recipe["keep"] = tuple(recipe.get("keep", ()))
    augment: list[Augmentation] = [AUGMENTATIONS[each["name"]](**each["settings"]) for each in config["augment"]]
    trained = fit(
        model,
        train,
        validation,
        Training(seed=config["seed"], **recipe),
        objective=CrossEntropy(label_smoothing=config["label_smoothing"]),
        augment=augment,
        checkpoint=working / "training.safetensors",
        device=context.device,
        observer=context.observer,
    )
    versions: dict[str, tuple[int, Weights | None]] = {"final": (trained.history[-1]["epoch"], None)}
    versions["best"] = (trained.best_epoch, trained.best)
    versions |= {f"epoch-{epoch:03d}": (epoch, weights) for epoch, weights in trained.kept.items()}
    final = {name: tensor.cpu().clone() for name, tensor in trained.model.state_dict().items()}
    for name, (epoch, weights) in versions.items():
        _save_version(
            trained.model.cpu(), final if weights is None else weights, name, epoch, trained.history, config, folder
        )
    return {
        "history": trained.history,
        "best_epoch": trained.best_epoch,
        "stopped_at": trained.stopped_at,
        "train_images": len(train),
        "validation_images": len(validation),
        "versions": {name: epoch for name, (epoch, _) in versions.items()},
        "parameters": sum(p.numel() for p in trained.model.parameters()),
    }


def _save_version(
    model: Classifier,
    weights: Weights,
    name: str,
    epoch: int,
    history: list[dict[str, Any]],
    config: dict[str, Any],
    folder: Path,
) -> None:
    model.load_state_dict(weights)
    row = history[epoch - 1]
    description = Description(
        architecture=config["architecture"],
        dataset=config["dataset"],
        recipe={key: value for key, value in config.items() if key not in ("dataset", "architecture", "seed")},
        seed=config["seed"],
        metrics={"epoch": epoch, "val_loss": row["val_loss"], "val_accuracy": row["val_accuracy"]},
    )
    save(model, folder / f"{name}.safetensors", description)
