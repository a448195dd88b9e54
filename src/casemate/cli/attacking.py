"""What `casemate attack` does once everything is loaded: run, gather per eps, render, write."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars
import safetensors.torch
import torch
from rich.table import Table
from torch import Tensor

from casemate.attacks import GradientAttack, Passes, Status
from casemate.cli import console
from casemate.data import LabelledImages
from casemate.evaluate import eps_curve, mean, share
from casemate.evaluate.examples import attack_table, curve_table, write_table
from casemate.files import write_bytes, write_json
from casemate.models import Classifier
from casemate.progress import Observer


@dataclass
class Found:
    """What an attack found, over all eps."""

    points: list[dict[str, Any]] = field(default_factory=list)
    """One entry per eps, ascending."""
    table: polars.DataFrame = field(default_factory=polars.DataFrame)
    """One row per image and eps."""
    images: dict[str, Tensor] = field(default_factory=dict)
    """Clean and adversarial images, if they are kept."""
    passes: Passes = field(default_factory=Passes)


def _eps(attack: GradientAttack) -> float:
    return attack.eps  # type: ignore[attr-defined]  # every preset has the field


def _clean(test: LabelledImages) -> dict[str, Tensor]:
    images, labels = test.unit()
    return {"clean": images.contiguous(), "labels": labels.clone()}


def sweep(
    model: Classifier,
    test: LabelledImages,
    attacks: Sequence[GradientAttack],
    seed: int,
    keep: bool,
    observer: Observer,
) -> Found:
    """An untargeted attack at every eps; with `keep` also the images on which each one ends."""
    curve = eps_curve(model, attacks[0], test, [_eps(attack) for attack in attacks], seed=seed, observer=observer)
    found = Found(points=curve.points(), table=curve_table(curve, test.labels.numpy()), passes=curve.passes)
    if curve.last is not None:
        for column, point in enumerate(found.points):
            point["no_gradient"] = share(curve.last.status[:, column] == Status.ZERO_GRADIENT).as_json()
    if keep:
        found.images = _clean(test)
        images, labels = test.unit(model.device)
        for attack in attacks:
            result = attack(model, images, labels, seed=seed, observer=observer)
            found.images[f"eps-{_eps(attack):g}"] = result.adversarial.cpu().contiguous()
    return found


def reach(
    model: Classifier,
    test: LabelledImages,
    target: int,
    attacks: Sequence[GradientAttack],
    seed: int,
    keep: bool,
    observer: Observer,
) -> Found:
    """A targeted attack at every eps on images that are all of other classes."""
    found = Found(images=_clean(test) if keep else {})
    images, labels = test.unit(model.device)
    tables = []
    for attack in attacks:
        result = attack(model, images, labels, targets=torch.full_like(labels, target), seed=seed, observer=observer)
        loss = result.loss.cpu().numpy()
        finite = loss[np.isfinite(loss)]
        found.points.append(
            {
                "eps": _eps(attack),
                "reached": share(result.success.cpu().numpy()).as_json(),
                "still_right": share((result.prediction == labels).cpu().numpy()).as_json(),
                "loss": mean(finite).as_json() if finite.size else None,
                "no_gradient": share(result.status.cpu().numpy() == Status.ZERO_GRADIENT).as_json(),
            }
        )
        found.passes.add(result.passes)
        tables.append(
            attack_table(result, test.labels.numpy()).with_columns(
                polars.lit(_eps(attack)).alias("eps"), polars.lit(target).alias("target")
            )
        )
        if keep:
            found.images[f"eps-{_eps(attack):g}"] = result.adversarial.cpu().contiguous()
    found.table = polars.concat(tables)
    return found


_SHARES = {
    "worst": "Worst, %",
    "last": "Last, %",
    "reached": "Target reached, %",
    "still_right": "Still right, %",
}


def render(found: Found, texts: Sequence[str], title: str) -> Table:
    """One row per eps, given as the user wrote it."""
    shown = [name for name in _SHARES if name in found.points[0]]
    made = console.table(
        "eps", *console.right(*(_SHARES[name] for name in shown), "Mean loss", "No gradient, %"), title=title
    )
    for text, point in zip(texts, found.points, strict=True):
        loss = point.get("loss")
        still = point.get("no_gradient")
        made.add_row(
            text,
            *(console.interval(point[name]) for name in shown),
            "" if loss is None else f"{loss['value']:.4g}",
            "" if still is None else console.percent(still["value"]),
        )
    return made


def notes(about: dict[str, Any]) -> list[str]:
    """What the table's columns mean, and what the attack cost."""
    if about["target"] is None:
        words = "Accuracy left, 95 % intervals. Worst: after every iterate up to this eps; last: after the last one."
    else:
        words = "With 95 % intervals, of the images that are not of the target's class."
    passes = about["passes"]
    return [
        f"{words} No gradient: it was zero in every pixel at every step.",
        f"n = {about['images']:,}; {passes['forward']:,} passes forward, {passes['backward']:,} backward; "
        f"{console.duration(about['seconds'])} on {about['device']}.",
    ]


def write(folder: Path, found: Found, about: dict[str, Any], provenance: dict[str, Any]) -> None:
    """Write result.json, examples.parquet and adversarial.safetensors, each whole or not at all."""
    write_bytes(folder / "adversarial.safetensors", safetensors.torch.save(found.images))
    write_table(found.table, folder / "examples.parquet")
    write_json(folder / "result.json", about | {"provenance": provenance})
