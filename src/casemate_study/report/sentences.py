"""The report's sentences that follow from numbers by stated rules."""

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from casemate.losses import TITLES
from casemate.report import shown
from casemate_study.experiments.specs import LOSSES
from casemate_study.results import Artifacts, point_at


def masking_sentence(artifacts: Artifacts) -> str | None:
    """Whether over-fitting lowered or raised apparent robustness under FGSM at 0.1, loss by loss."""
    parts = []
    for loss in LOSSES:
        curves = [artifacts.get(f"{name}/fgsm/{loss}") for name in ("E2", "E11")]
        points = [point for curve in curves if curve is not None and (point := point_at(curve, "eps", 0.1))]
        if len(points) < len(curves):
            return None
        first, second = (point["last"] for point in points)
        if second["low"] > first["high"]:
            word = "the early-stopped model keeps more"
        elif first["low"] > second["high"]:
            word = "the over-fitted model keeps more"
        else:
            word = "no difference beyond the intervals"
        parts.append(
            f"{TITLES[loss]}: {word} ({shown(first['value'])} over-fitted, {shown(second['value'])} early-stopped)"
        )
    return "Under FGSM at eps 0.1, " + "; ".join(parts) + "."


def keras_reference() -> dict[str, Any]:
    """The committed result of running the attack in Keras itself (`benchmarks/keras`)."""
    return json.loads(resources.files("casemate_study.experiments").joinpath("keras_reference.json").read_text())


def keras_sentences(reference: Mapping[str, Any]) -> list[str]:
    """What that run says about the loss that the tutorial's code used in effect."""
    run = reference["run"]
    where = (
        f"Keras {run['versions']['keras']} on TensorFlow {run['versions']['tensorflow']}, {run['train_images']:,} "
        f"training images, {run['epochs']} epochs, {run['test_images']:,} test images, seed {run['seed']}"
    )
    ways = reference["ways"]
    effect = reference["loss_in_effect"]
    zero = ways["tutorial"]["zero_share"]
    sentences = [
        f"The attack written as the TensorFlow tutorial writes it was run in Keras itself ({where}). In effect it used "
        f"the loss computed from {effect}: its gradients are those of that loss, and {shown(zero)} of the images had a "
        "gradient of exactly zero."
    ]
    other = [way for way in ways.values() if way["loss_in_effect"] != effect]
    if other:
        sentences.append(
            "Written differently, the same Keras takes another loss: "
            + "; ".join(f"{w['what']} ({shown(w['zero_share'])} zero gradients, {w['loss_in_effect']})" for w in other)
            + "."
        )
    return sentences
