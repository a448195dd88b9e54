"""Sentences of the report that follow from stored numbers by stated rules."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import final

from casemate.evaluation import percent
from casemate.losses import TITLES
from casemate_study.experiments.specs import LOSSES
from casemate_study.results.paired import compare_accuracy
from casemate_study.results.reading import read_as
from casemate_study.results.stored import Artifacts


def masking_sentence(artifacts: Artifacts) -> str | None:
    """A sentence that says for each loss ascended whether E1 (over-fitted) or E11 (stopped early) is more accurate
    under FGSM at eps 0.1, by the paired test on the same images. None if a curve is not finished.
    """
    words = {
        1: "the over-fitted model keeps more",
        -1: "the early-stopped model keeps more",
        0: "no difference shown",
    }
    parts = []
    for loss in LOSSES:
        pair = artifacts.get(f"E2/fgsm/{loss}"), artifacts.get(f"E11/fgsm/{loss}")
        found = compare_accuracy(*pair, "eps", 0.1)
        if found is None:
            return None
        shares = f"{percent(found.first)} over-fitted, {percent(found.second)} early-stopped, n = {found.n:,}"
        parts.append(f"{TITLES[loss]}: {words[found.order]} ({shares})")
    return "Under FGSM at eps 0.1, " + "; ".join(parts) + "."


@final
@dataclass(frozen=True)
class KerasRun:
    """How the attack was run in Keras: sizes, epochs and seed of the training, and versions of the libraries."""

    train_images: int
    epochs: int
    test_images: int
    seed: int
    versions: Mapping[str, str]


@final
@dataclass(frozen=True)
class KerasCode:
    """One way to write the attack in Keras: its description, what its cross-entropy is in effect computed from
    ("logits", "probabilities" or "neither"), and how often its gradient is zero.
    """

    what: str
    loss_in_effect: str
    zero_share: float
    """Share of images whose input gradient is exactly zero."""


@final
@dataclass(frozen=True)
class KerasReference:
    """The committed result of `benchmarks/keras`: the attack's input gradient computed in Keras itself, by code written
    in several ways (`ways`), and what the cross-entropy is in effect computed from in each.
    """

    loss_in_effect: str
    """"logits" or "probabilities": what the cross-entropy of the TensorFlow tutorial's code is in effect
    computed from."""
    run: KerasRun
    ways: Mapping[str, KerasCode]


def keras_reference() -> KerasReference:
    """Read the committed result of computing the attack's gradient in Keras itself (`benchmarks/keras`); nothing is
    run.
    """
    place = resources.files("casemate_study.experiments").joinpath("keras_reference.json")
    return read_as(KerasReference, json.loads(place.read_text()), place.name)


def _effect(way: KerasCode) -> str:
    """What a way to write the attack ascends, as text."""
    if way.loss_in_effect == "neither":
        return "exactly neither the loss from logits nor that from probabilities"
    return f"the loss from {way.loss_in_effect}"


def keras_sentences(reference: KerasReference) -> list[str]:
    """Sentences on the loss that the TensorFlow tutorial's code in effect ascends in Keras, and on what code written in
    other ways ascends.
    """
    run, effect = reference.run, reference.loss_in_effect
    where = (
        f"Keras {run.versions['keras']} on TensorFlow {run.versions['tensorflow']}, {run.train_images:,} training "
        f"images, {run.epochs} epochs, {run.test_images:,} test images, seed {run.seed}"
    )
    zero = percent(reference.ways["tutorial"].zero_share)
    sentences = [
        f"The attack as the TensorFlow tutorial writes it was run in Keras itself ({where}). It ascends the loss "
        f"computed from {effect}: its gradients are those of that loss, and {zero} of the images had a gradient of "
        "exactly zero."
    ]
    other = [way for way in reference.ways.values() if way.loss_in_effect != effect]
    if other:
        ways = (f"{way.what} ({_effect(way)}, {percent(way.zero_share)} zero gradients)" for way in other)
        sentences.append(f"Written differently, the same Keras ascends another loss: {'; '.join(ways)}.")
    return sentences
