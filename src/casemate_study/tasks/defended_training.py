"""Producer of models trained with a defence: builds the recipe that a task's configuration describes, and
trains by it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from casemate.data import make_augmentation
from casemate.defenses import Recipe, make_objective
from casemate.engine import Artifact, Context
from casemate.models import load
from casemate_study.tasks.training import dataset_of, network_of, parts_of, save_versions, train_config


def defend_model(
    config: dict[str, Any], needs: Mapping[str, Artifact], folder: Path, working: Path, context: Context
) -> dict[str, Any]:
    """Train a network with the configured defence (objective, extra images, augmentation); return its
    training history.

    The weights start as those of the artifact `needs["start"]`, if there is one; `needs["teacher"]` is distilled.
    Writes the weights into `folder` as `save_versions` does.
    """
    dataset = dataset_of(config, context)
    train, validation = parts_of(config, dataset)
    held = {role: load(artifact.path(f"{config['weights'][role]}.safetensors"))[0] for role, artifact in needs.items()}
    recipe = Recipe(
        objective=make_objective(
            config["objective"], held["teacher"].to(context.device) if "teacher" in held else None
        ),
        extra=tuple(make_augmentation(spec) for spec in config["extra"]),
        augment=tuple(make_augmentation(spec) for spec in config["augment"]),
    )
    trained = recipe.fit(
        held["start"] if "start" in held else network_of(config, dataset),
        train,
        validation,
        train_config(config),
        checkpoint=working / "training.safetensors",
        device=context.device,
        observer=context.observer,
    )
    sizes = {
        "train_images": len(train) * (1 + len(recipe.extra)),
        "original_images": len(train),
        "validation_images": len(validation),
    }
    return save_versions(trained, config, folder) | sizes
