"""Producers of everything that is measured on a trained model: clean results, curves, zero gradients, pictures."""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch

from casemate import data
from casemate.attacks import ATTACKS, GradientAttack
from casemate.engine.store import Piece
from casemate.engine.task import Context
from casemate.evaluate import Curve, eps_curve, evaluate_clean, share, steps_curve, zero_gradients
from casemate.evaluate.examples import clean_table, curve_table, write_table
from casemate.files import write_bytes
from casemate.models import Classifier, load
from casemate.progress import SILENT
from casemate.study.training import dataset_of


def _model(config: dict[str, Any], needs: Mapping[str, Piece], context: Context) -> Classifier:
    """The version of the model that the configuration names."""
    model, _ = load(needs["model"].path(f"{config['weights']}.safetensors"))
    return model.to(context.device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _attack(spec: dict[str, Any]) -> GradientAttack:
    settings = {name: value for name, value in spec.items() if name != "name"}
    return ATTACKS[spec["name"]](**settings)


@lru_cache(maxsize=1)
def _read(dataset: str, context: Context) -> data.Dataset:
    """The data set, read and verified once for all pieces of a run."""
    return dataset_of({"dataset": dataset}, context)


def _test(config: dict[str, Any], context: Context) -> data.LabelledImages:
    return _read(config["dataset"], replace(context, observer=SILENT)).test[: config["images"]]


def _estimate(hits: np.ndarray) -> dict[str, float | int]:
    return share(hits).as_json()


def measure_clean(
    config: dict[str, Any], needs: Mapping[str, Piece], folder: Path, working: Path, context: Context
) -> dict[str, Any]:
    """Accuracy, loss, confusion, calibration, logit gaps, zero gradients. Writes examples.parquet."""
    del working
    model, test = _model(config, needs, context), _test(config, context)
    found = evaluate_clean(model, test, observer=context.observer)
    zero = zero_gradients(model, test[: config["zero_images"]], observer=context.observer)
    write_table(clean_table(found), folder / "examples.parquet")
    return {
        "classes": list(found.classes),
        "accuracy": found.accuracy.as_json(),
        "loss": found.mean_loss.as_json(),
        "confusion": found.confusion.tolist(),
        "per_class": [None if each is None else each.as_json() for each in found.per_class],
        "calibration_error": found.calibration_error,
        "gap_quantiles": found.gap_quantiles,
        "zero_gradients": {loss: _estimate(hits) for loss, hits in zero.items()},
    }


def measure_curve(
    config: dict[str, Any], needs: Mapping[str, Piece], folder: Path, working: Path, context: Context
) -> dict[str, Any]:
    """One attack over eps or iterations. Writes examples.parquet."""
    del working
    model, test = _model(config, needs, context), _test(config, context)
    attack = _attack(config["attack"])
    curve: Curve
    if config["axis"] == "eps":
        curve = eps_curve(model, attack, test, config["values"], seed=config["seed"], observer=context.observer)
    else:
        curve = steps_curve(model, attack, test, config["values"], seed=config["seed"], observer=context.observer)
    write_table(curve_table(curve, test.labels.numpy()), folder / "examples.parquet")
    zero = zero_gradients(model, test, (config["attack"]["loss"],), observer=context.observer)
    return {
        "axis": curve.axis,
        "attack": curve.attack,
        "points": curve.points(),
        "zero_gradients": _estimate(zero[config["attack"]["loss"]]),
        "forward": curve.passes.forward,
        "backward": curve.passes.backward,
    }


def measure_masking(
    config: dict[str, Any], needs: Mapping[str, Piece], folder: Path, working: Path, context: Context
) -> dict[str, Any]:
    """What depends on how long a network was trained: FGSM and BIM under every loss, and zero gradients."""
    del folder, working
    model = _model(config, needs, context)
    whole = _test(config, context)
    few = whole[: config["attacked_images"]]
    clean = evaluate_clean(model, whole, observer=context.observer)
    zero = zero_gradients(model, few, observer=context.observer)
    attacks: dict[str, dict[str, Any]] = {}
    for loss in config["losses"]:
        for name, spec, values in config["attacks"]:
            curve = eps_curve(model, _attack({**spec, "loss": loss}), few, values, observer=context.observer)
            for point in curve.points():
                attacks.setdefault(f"{name} {point['eps']:g}", {})[loss] = point
    return {
        "accuracy": clean.accuracy.as_json(),
        "loss": clean.mean_loss.as_json(),
        "gap_quantiles": clean.gap_quantiles,
        "zero_gradients": {loss: _estimate(hits) for loss, hits in zero.items()},
        "attacks": attacks,
    }


def show_attack(
    config: dict[str, Any], needs: Mapping[str, Piece], folder: Path, working: Path, context: Context
) -> dict[str, Any]:
    """The study's before-and-after pictures: one test image per class row asked for, attacked in several ways.

    Writes images.safetensors: `clean` and one entry per attack, float32 `(n, height, width)`. The images are the
    first of the test set that the model classifies correctly, one of each class, up to `count`.
    """
    del working
    model, test = _model(config, needs, context), _test(config, context)
    found = evaluate_clean(model, test, observer=context.observer)
    right = np.flatnonzero(found.correct)
    _, firsts = np.unique(found.labels[right], return_index=True)
    chosen = np.sort(right[firsts])[: config["count"]]
    if not len(chosen):
        chosen = np.arange(min(config["count"], len(test)))  # a model that is never right still has pictures
    images, labels = test[torch.from_numpy(chosen)].unit(context.device)
    pictures = {"clean": images.cpu().numpy()[:, 0]}
    shown: dict[str, list[dict[str, Any]]] = {}
    for title, spec in config["attacks"].items():
        result = _attack(spec)(model, images, labels)
        pictures[title] = result.adversarial.cpu().numpy()[:, 0]
        shown[title] = [
            {"taken_for": model.classes[prediction], "norm": norm}
            for prediction, norm in zip(result.prediction.tolist(), result.norm.tolist(), strict=True)
        ]
    contiguous = {title: np.ascontiguousarray(picture) for title, picture in pictures.items()}
    write_bytes(folder / "images.safetensors", safetensors.numpy.save(contiguous))
    return {
        "index": chosen.tolist(),
        "label": [model.classes[label] for label in labels.tolist()],
        "clean_taken_for": [model.classes[each] for each in found.prediction[chosen]],
        "attacks": shown,
    }


def show_samples(
    config: dict[str, Any], needs: Mapping[str, Piece], folder: Path, working: Path, context: Context
) -> dict[str, Any]:
    """The first images of every class of the training part. Writes images.safetensors, uint8 `(class, n, h, w)`."""
    del needs, working
    dataset = _read(config["dataset"], replace(context, observer=SILENT))
    rows = []
    for label in range(len(dataset.classes)):
        places = (dataset.train.labels == label).nonzero().squeeze(1)[: config["per_class"]]
        rows.append(dataset.train.pixels[places, 0].numpy())
    write_bytes(folder / "images.safetensors", safetensors.numpy.save({"samples": np.stack(rows)}))
    return {
        "classes": list(dataset.classes),
        "train_images": len(dataset.train),
        "test_images": len(dataset.test),
        "origin": dataset.origin,
    }
