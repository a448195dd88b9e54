"""Producer of defended models: what a configuration says of a recipe, and the training by it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from casemate.data.named import make_augmentation
from casemate.defenses import AdversarialRegularization, Distillation, Recipe, TemperatureCrossEntropy
from casemate.defenses.adversarial_training import AdversarialTraining
from casemate.engine.store import Artifact
from casemate.engine.task import Context
from casemate.models import Classifier, load
from casemate.training import CrossEntropy, Objective
from casemate_study.tasks.training import dataset_of, network_of, parts_of, settings_of, written

_OBJECTIVES = {
    "cross-entropy": CrossEntropy,
    "adversarial-regularization": AdversarialRegularization,
    "adversarial-training": AdversarialTraining,
    "at-temperature": TemperatureCrossEntropy,
}


def defend_model(
    config: dict[str, Any], needs: Mapping[str, Artifact], folder: Path, working: Path, context: Context
) -> dict[str, Any]:
    """Train as configured, from the weights of `start` if there is one; writes what `training.written` writes."""
    dataset = dataset_of(config, context)
    train, validation = parts_of(config, dataset)
    held = {role: load(artifact.path(f"{config['weights'][role]}.safetensors"))[0] for role, artifact in needs.items()}
    recipe = Recipe(
        objective=_objective(config["objective"], held.get("teacher"), context.device),
        extra=tuple(make_augmentation(spec) for spec in config["extra"]),
        augment=tuple(make_augmentation(spec) for spec in config["augment"]),
    )
    trained = recipe.fit(
        held["start"] if "start" in held else network_of(config, dataset),
        train,
        validation,
        settings_of(config),
        checkpoint=working / "training.safetensors",
        device=context.device,
        observer=context.observer,
    )
    sizes = {
        "train_images": len(train) * (1 + len(recipe.extra)),
        "original_images": len(train),
        "validation_images": len(validation),
    }
    return written(trained, config, folder) | sizes


def _objective(spec: Mapping[str, Any], teacher: Classifier | None, device: str) -> Objective:
    if teacher is not None:
        return Distillation(teacher=teacher.to(device), **spec["settings"])
    return _OBJECTIVES[spec["name"]](**spec["settings"])
