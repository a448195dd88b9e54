"""The report's tables and the sentences that follow from numbers by stated rules."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from casemate.data import Dataset
from casemate.engine import Piece
from casemate.losses import TITLES
from casemate.report.charts import shown
from casemate.study import paper
from casemate.study.experiments import E4_STEP_SIZES, e4_prefix
from casemate.study.results import point_at
from casemate.study.scales import Scale
from casemate.study.tasks import LOSSES

Pieces = Mapping[str, Piece]


_MENTIONED = 0.0005
"""Share of images from which it is said that they have no gradient: less would be shown as 0.0 %."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One row of "paper, ours, difference, why"."""

    what: str
    paper: str
    ours: str
    difference: str
    why: str


def _with_interval(estimate: Mapping[str, float]) -> str:
    interval = f"{100 * estimate['low']:.1f} to {100 * estimate['high']:.1f}"
    return f"{shown(estimate['value'])} ({interval}, n = {estimate['n']:,})"


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f} points"


def other_data(dataset: Dataset) -> str | None:
    """The paper's data set, if these are other data, asked for or standing in; None if they are the paper's."""
    return None if dataset.name == "fashion-mnist" else "Fashion-MNIST"


def _scale_words(scale: Scale, instead_of: str | None) -> str:
    if instead_of:
        return f"Another data set than the paper's {instead_of}: this decides nothing."
    return (
        "" if scale.decides else f"Scale {scale.name} cannot decide this: it trains on {scale.train_images:,} images."
    )


def _clean_row(
    statement: paper.Statement, estimate: Mapping[str, float], instead_of: str | None, scale: Scale
) -> Comparison:
    """Rule: inside our interval = agrees; else more or less accurate by the difference, and what is known to differ."""
    if estimate["low"] <= statement.value <= estimate["high"]:
        why = "The paper's number lies within our interval."
    else:
        side = "above" if statement.value > estimate["high"] else "below"
        why = (
            f"The paper's number lies {side} our interval. It gives no batch size, learning rate, number of epochs or "
            "seed, and does not say on which split the number was taken."
        )
    return _row(statement, estimate, f"{_scale_words(scale, instead_of)} {why}".strip(), None)


def _row(statement: paper.Statement, estimate: Mapping[str, float], why: str, setting: str | None) -> Comparison:
    return Comparison(
        what=f"{statement.experiment}: {statement.what}" + (f"; {setting}" if setting else ""),
        paper=f"{shown(statement.value)} (section {statement.where})",
        ours=_with_interval(estimate),
        difference=_points(estimate["value"] - statement.value),
        why=why,
    )


def _attack_rows(
    statement: paper.Statement,
    found: Mapping[str, tuple[Mapping[str, float], Mapping[str, float]]],
    instead_of: str | None,
    scale: Scale,
) -> list[Comparison]:
    """One row per loss (and step). Rule: the setting whose interval holds the paper's number could explain it.

    If none does, the number is unexplained, and the nearest setting is named.
    """
    nearest = min(found, key=lambda name: abs(found[name][0]["value"] - statement.value))
    rows = []
    for name, (estimate, zero) in found.items():
        inside = estimate["low"] <= statement.value <= estimate["high"]
        if inside:
            why = "The paper's number lies within our interval for this setting."
        elif name == nearest:
            why = "The nearest of ours, but the paper's number lies outside its interval: unexplained by this setting."
        else:
            why = "The paper's number lies outside our interval."
        if zero["value"] >= _MENTIONED:
            why += f" {shown(zero['value'])} of the images had no gradient to follow under this loss."
        rows.append(_row(statement, estimate, f"{_scale_words(scale, instead_of)} {why}".strip(), name))
    return rows


def comparisons(pieces: Pieces, scale: Scale, instead_of: str | None) -> list[Comparison]:
    """The paper's stated numbers beside ours, as far as their pieces are there."""
    rows: list[Comparison] = []
    clean = pieces.get("E1/clean")
    if clean is not None:
        classes = [each for each in clean.result["per_class"] if each is not None]
        rows += [
            _clean_row(paper.TEST_ACCURACY, clean.result["accuracy"], instead_of, scale),
            _clean_row(paper.WORST_CLASS, min(classes, key=lambda e: e["value"]), instead_of, scale),
            _clean_row(paper.BEST_CLASS, max(classes, key=lambda e: e["value"]), instead_of, scale),
        ]
    fgsm = {
        TITLES[loss]: _curve_point(pieces[f"E2/fgsm/{loss}"], "eps", 0.1)
        for loss in LOSSES
        if f"E2/fgsm/{loss}" in pieces
    }
    if fgsm:
        rows += _attack_rows(paper.FGSM_AT_01, fgsm, instead_of, scale)
    steps = {}
    for size in E4_STEP_SIZES:
        for loss in LOSSES:
            piece = pieces.get(f"{e4_prefix(size)}/{loss}")
            if piece is not None and point_at(piece, "steps", 25):
                steps[f"step {size}, {TITLES[loss]}"] = _curve_point(piece, "steps", 25)
    if steps:
        rows += _attack_rows(paper.BIM_AT_25, steps, instead_of, scale)
    return rows


def _curve_point(piece: Piece, axis: str, value: float) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """Accuracy of the last iterate at `value`, and the share of zero gradients at the clean images."""
    point = point_at(piece, axis, value)
    if point is None:
        raise ValueError(f"{piece.facts['name']} has no point at {axis} = {value}")
    return point["last"], piece.result["zero_gradients"]


def masking_sentence(pieces: Pieces) -> str | None:
    """Whether over-fitting lowered or raised apparent robustness under FGSM at 0.1, loss by loss."""
    parts = []
    for loss in LOSSES:
        one, other = pieces.get(f"E2/fgsm/{loss}"), pieces.get(f"E11/fgsm/{loss}")
        if one is None or other is None:
            return None
        (first, _), (second, _) = _curve_point(one, "eps", 0.1), _curve_point(other, "eps", 0.1)
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
    return json.loads(resources.files("casemate.study").joinpath("keras_reference.json").read_text())


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
            "Written differently, the same Keras takes the other loss: "
            + "; ".join(f"{w['what']} ({shown(w['zero_share'])} zero gradients, {w['loss_in_effect']})" for w in other)
            + "."
        )
    return sentences


def provenance(pieces: Sequence[Piece]) -> list[tuple[str, ...]]:
    """When, how long and where every piece was made."""
    rows = []
    for piece in pieces:
        made = piece.facts["provenance"]
        rows.append(
            (
                piece.facts["name"],
                piece.key,
                f"{made['seconds']:.1f}",
                made["finished"],
                made["commit"] or "-",
                f"{made['processor']}, {made['threads']} threads, {made['device']}",
            )
        )
    return rows
