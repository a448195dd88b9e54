"""Producers of pictures: images of every class, images under attack, augmented images, adversarial neighbours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch

from casemate.attacks import frozen
from casemate.data import make_augmentation
from casemate.defenses import AdversarialRegularization
from casemate.engine import Artifact, Context
from casemate.evaluation import evaluate_clean
from casemate.files import write_bytes
from casemate.rng import derive
from casemate_study.tasks.inputs import attack_of, classifier_for, read, tested


def _write_images(folder: Path, pictures: Mapping[str, np.ndarray]) -> None:
    contiguous = {title: np.ascontiguousarray(picture) for title, picture in pictures.items()}
    write_bytes(folder / "images.safetensors", safetensors.numpy.save(contiguous))


def show_attack(
    config: dict[str, Any], needs: Mapping[str, Artifact], folder: Path, working: Path, context: Context
) -> dict[str, Any]:
    """Attack a few test images with each of the configured attacks; store them before and after.

    Writes images.safetensors: `clean` and one entry per attack, float32 `(n, height, width)`. The images are the first
    of their class that the model classifies correctly, in the test set's order, at most `count`; if it classifies none
    correctly, the first `count`. Returns their labels and predictions.
    """
    del working
    model, test = classifier_for(config, needs, context), tested(config, context)
    found = evaluate_clean(model, test, observer=context.observer)
    right = np.flatnonzero(found.correct)
    _, firsts = np.unique(found.labels[right], return_index=True)
    chosen = np.sort(right[firsts])[: config["count"]]
    if not len(chosen):
        chosen = np.arange(min(config["count"], len(test)))  # a model that is always wrong still needs pictures
    images, labels = test[torch.from_numpy(chosen)].tensors(context.device)
    pictures = {"clean": images.cpu().numpy()[:, 0]}
    shown: dict[str, list[dict[str, Any]]] = {}
    for title, spec in config["attacks"].items():
        result = attack_of(spec)(model, images, labels)
        pictures[title] = result.adversarial.cpu().numpy()[:, 0]
        shown[title] = [
            {"adversarial_prediction": model.classes[prediction], "norm": norm}
            for prediction, norm in zip(result.prediction.tolist(), result.norm.tolist(), strict=True)
        ]
    _write_images(folder, pictures)
    return {
        "index": chosen.tolist(),
        "label": [model.classes[label] for label in labels.tolist()],
        "clean_taken_for": [model.classes[each] for each in found.prediction[chosen]],
        "attacks": shown,
    }


def show_samples(
    config: dict[str, Any], needs: Mapping[str, Artifact], folder: Path, working: Path, context: Context
) -> dict[str, Any]:
    """Store the first training images of every class. Writes images.safetensors: `samples`, uint8 `(class,
    n, h, w)`.
    """
    del needs, working
    dataset = read(config["dataset"], context)
    rows = []
    for label in range(len(dataset.classes)):
        places = (dataset.train.labels == label).nonzero().squeeze(1)[: config["per_class"]]
        rows.append(dataset.train.pixels[places, 0].numpy())
    _write_images(folder, {"samples": np.stack(rows)})
    return {
        "classes": list(dataset.classes),
        "train_images": len(dataset.train),
        "test_images": len(dataset.test),
        "origin": dataset.origin,
    }


def show_neighbours(
    config: dict[str, Any], needs: Mapping[str, Artifact], folder: Path, working: Path, context: Context
) -> dict[str, Any]:
    """Store test images and their adversarial neighbours under several settings of adversarial regularisation.

    Writes images.safetensors with the first `count`: `clean` and one entry per setting, float32 `(n, height, width)`.
    Returns statistics of the neighbours' pixels, over all the task's images.
    """
    del working
    model, test = classifier_for(config, needs, context), tested(config, context)
    images, labels = test.tensors(context.device)
    pictures = {"clean": images[: config["count"], 0].cpu().numpy()}
    facts: dict[str, dict[str, float]] = {}
    for title, settings in config["settings"].items():
        with frozen(model):
            moved = AdversarialRegularization(**settings).neighbours(model, images, labels)
        change = (moved - images).abs()
        facts[title] = {
            "largest_change": change.amax().item(),
            "changed_pixels": (change > 1e-6).double().mean().item(),
            "outside_range": ((moved < 0) | (moved > 1)).double().mean().item(),
            "lowest": moved.amin().item(),
            "highest": moved.amax().item(),
            "mean_shift": (moved.mean() - images.mean()).item(),
        }
        pictures[title] = moved[: config["count"], 0].cpu().numpy()
    _write_images(folder, pictures)
    return {"label": [model.classes[label] for label in labels[: config["count"]].tolist()], "settings": facts}


def show_augmented(
    config: dict[str, Any], needs: Mapping[str, Artifact], folder: Path, working: Path, context: Context
) -> dict[str, Any]:
    """Store the first training images before and after each configured list of augmentations.

    Writes images.safetensors: `original` and one entry per list, float32 `(n, height, width)`.
    """
    del needs, working
    images, labels = read(config["dataset"], context).train[: config["count"]].tensors()
    pictures = {"original": images[:, 0].numpy()}
    for title, changes in config["changes"].items():
        generator = torch.Generator().manual_seed(derive(config["seed"], "augmented", title))
        changed = images
        for spec in changes:
            changed = make_augmentation(spec)(changed, torch.arange(len(images)), 1, generator)
        pictures[title] = changed[:, 0].numpy()
    _write_images(folder, pictures)
    return {"label": labels.tolist(), "titles": list(pictures)}
