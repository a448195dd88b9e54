"""Producers of measures on a trained model: without attack, curves, worst cases, targeted attacks, checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from casemate.engine import Artifact, Context
from casemate.evaluation import (
    Curve,
    clean_table,
    curve_table,
    eps_curve,
    evaluate_clean,
    gradient_alignment,
    mean,
    share,
    steps_curve,
    targeted_matrix,
    worst_case,
    worst_table,
    zero_gradients,
)
from casemate.tables import write_table
from casemate_study.tasks.inputs import attack_of, batch_size, classifier_for, tested, with_seeded_randomness


def _estimate(hits: np.ndarray) -> dict[str, float | int]:
    return share(hits).as_json()


@with_seeded_randomness
def measure_clean(
    config: dict[str, Any], needs: Mapping[str, Artifact], folder: Path, working: Path, context: Context
) -> dict[str, Any]:
    """Measure the configured model without an attack; return what `StoredClean` reads: accuracy, loss, confusion matrix
    and more, and input gradients' zero shares and angles on the first `gradient_images`.

    Writes the table `examples` with one row per test image.
    """
    del working
    model, test = classifier_for(config, needs, context), tested(config, context)
    found = evaluate_clean(model, test, observer=context.observer)
    few = test[: config["gradient_images"]]
    zero = zero_gradients(model, few, observer=context.observer)
    aligned = {
        f"{radius:g}": gradient_alignment(model, few, radius, seed=config["seed"], observer=context.observer)
        for radius in config["radii"]
    }
    write_table(clean_table(found), folder / "examples")
    return {
        "classes": list(found.classes),
        "accuracy": found.accuracy.as_json(),
        "loss": found.mean_loss.as_json(),
        "confusion": found.confusion.tolist(),
        "per_class": [None if each is None else each.as_json() for each in found.per_class],
        "calibration_error": found.calibration_error,
        "gap_quantiles": found.gap_quantiles,
        "zero_gradients": {loss: _estimate(hits) for loss, hits in zero.items()},
        "alignment": {radius: _mean_angle(cosine) for radius, cosine in aligned.items()},
    }


def _mean_angle(cosine: np.ndarray) -> dict[str, float | int] | None:
    """Cosines `(n,)` as their mean angle in degrees with interval, over those that are finite; None if none is."""
    known = cosine[np.isfinite(cosine)]
    return mean(np.degrees(np.arccos(known.clip(-1, 1)))).as_json() if known.size else None


@with_seeded_randomness
def measure_curve(
    config: dict[str, Any], needs: Mapping[str, Artifact], folder: Path, working: Path, context: Context
) -> dict[str, Any]:
    """Run one attack on the configured model at each configured eps or number of steps; return the accuracies.

    Writes the table `examples` with one row per image and value.
    """
    del working
    model, test = classifier_for(config, needs, context), tested(config, context)
    attack = attack_of(config["attack"])
    sweep = eps_curve if config["axis"] == "eps" else steps_curve
    curve: Curve = sweep(
        model,
        attack,
        test,
        config["values"],
        seed=config["seed"],
        batch_size=batch_size(context),
        observer=context.observer,
    )
    write_table(curve_table(curve, test.labels.numpy()), folder / "examples")
    zero = zero_gradients(model, test, (config["attack"]["loss"],), observer=context.observer)
    return {
        "axis": curve.axis,
        "attack": curve.attack,
        "points": curve.points(),
        "zero_gradients": _estimate(zero[config["attack"]["loss"]]),
        "forward": curve.passes.forward,
        "backward": curve.passes.backward,
    }


@with_seeded_randomness
def measure_worst(
    config: dict[str, Any], needs: Mapping[str, Artifact], folder: Path, working: Path, context: Context
) -> dict[str, Any]:
    """Run several attacks at several eps; return the accuracy under each and under all together.

    Writes the table `examples` with one row per image and eps.
    """
    del working
    model, test = classifier_for(config, needs, context), tested(config, context)
    attacks = {name: attack_of(spec) for name, spec in config["attacks"].items()}
    found = worst_case(
        model,
        attacks,
        test,
        config["values"],
        seed=config["seed"],
        batch_size=batch_size(context),
        observer=context.observer,
    )
    write_table(worst_table(found, test.labels.numpy()), folder / "examples")
    return {
        "points": [
            {
                "eps": eps,
                "every": _estimate(found.every[:, column]),
                "each": {name: _estimate(hits[:, column]) for name, hits in found.each.items()},
            }
            for column, eps in enumerate(found.values)
        ],
        "attacks": {name: attack.record() for name, attack in attacks.items()},
        "forward": found.passes.forward,
        "backward": found.passes.backward,
    }


@with_seeded_randomness
def measure_targeted(
    config: dict[str, Any], needs: Mapping[str, Artifact], folder: Path, working: Path, context: Context
) -> dict[str, Any]:
    """Attack every correctly classified image towards each other class; return the success rates by true class and
    target, and the rate over all pairs.
    """
    del folder, working
    model, test = classifier_for(config, needs, context), tested(config, context)
    attack = attack_of(config["attack"])
    found = targeted_matrix(
        model, attack, test, seed=config["seed"], batch_size=batch_size(context), observer=context.observer
    )
    places = range(len(found.classes))
    rates = [[None if i == j else found.rate(i, j) for j in places] for i in places]
    others = found.reached[np.arange(len(model.classes)) != found.labels[:, None]]
    return {
        "classes": list(found.classes),
        "attack": attack.record(),
        "rates": [[None if rate is None else rate.as_json() for rate in row] for row in rates],
        "overall": _estimate(others) if others.size else None,
        "attacked": len(found.labels),
    }


@with_seeded_randomness
def measure_masking(
    config: dict[str, Any], needs: Mapping[str, Artifact], folder: Path, working: Path, context: Context
) -> dict[str, Any]:
    """Measure one checkpoint of a training: clean accuracy, accuracy under each attack ascending each loss, and the
    share of images whose gradient is exactly zero (gradient masking).
    """
    del folder, working
    model = classifier_for(config, needs, context)
    whole = tested(config, context)
    few = whole[: config["attacked_images"]]
    clean = evaluate_clean(model, whole, observer=context.observer)
    zero = zero_gradients(model, few, observer=context.observer)
    attacks: dict[str, dict[str, Any]] = {}
    for loss in config["losses"]:
        for name, spec, values in config["attacks"]:
            curve = eps_curve(
                model,
                attack_of({**spec, "loss": loss}),
                few,
                values,
                batch_size=batch_size(context),
                observer=context.observer,
            )
            for point in curve.points():
                attacks.setdefault(f"{name} {point['eps']:g}", {})[loss] = point
    return {
        "accuracy": clean.accuracy.as_json(),
        "loss": clean.mean_loss.as_json(),
        "gap_quantiles": clean.gap_quantiles,
        "zero_gradients": {loss: _estimate(hits) for loss, hits in zero.items()},
        "attacks": attacks,
    }
