"""The numbers that the paper states beside ours, and why they differ, by stated rules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from casemate.data import Dataset
from casemate.losses import TITLES
from casemate.report import shown
from casemate_study.experiments import paper
from casemate_study.experiments.scales import Scale
from casemate_study.experiments.specs import LOSSES
from casemate_study.experiments.undefended import E4_STEP_SIZES, e4_prefix
from casemate_study.reference import Reference
from casemate_study.report.comparison import Table
from casemate_study.results import Artifacts, Estimate, point_at

_MENTIONED = 0.0005
"""Share of images from which it is said that they have no gradient: less would be shown as 0.0 %."""


@final
@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One row of "paper, ours, difference, why"."""

    name: str
    """What was measured: the artifact, and what of it. The same at every scale."""
    what: str
    paper: str
    ours: str
    estimate: Estimate
    """Ours as numbers."""
    difference: str
    why: str


@final
@dataclass(frozen=True, kw_only=True)
class _Setting:
    """What an attack leaves in one of the settings between which the paper does not decide."""

    name: str
    words: str
    left: Estimate
    zero: Estimate
    """The share of images without a gradient."""


def other_data(dataset: Dataset) -> str | None:
    """The paper's data set, if these are other data, asked for or standing in; None if they are the paper's."""
    return None if dataset.name == "fashion-mnist" else "Fashion-MNIST"


def comparisons(artifacts: Artifacts, scale: Scale, instead_of: str | None) -> list[Comparison]:
    """The paper's stated numbers beside ours, as far as their artifacts are there."""
    steps = {f"step {size}, {TITLES[loss]}": f"{e4_prefix(size)}/{loss}" for size in E4_STEP_SIZES for loss in LOSSES}
    fgsm = {TITLES[loss]: f"E2/fgsm/{loss}" for loss in LOSSES}
    doubt = _doubt(scale, instead_of)
    return [
        *_clean_rows(artifacts, doubt),
        *_attack_rows(paper.FGSM_AT_01, _settings(artifacts, fgsm, "eps", 0.1), doubt),
        *_attack_rows(paper.BIM_AT_25, _settings(artifacts, steps, "steps", 25), doubt),
    ]


def table(rows: Sequence[Comparison], reference: Reference | None) -> Table:
    """The rows, with what the same measures gave in the committed runs."""
    beside = () if reference is None else (f"ours at scale {reference.scales}",)
    return Table(
        ("what", "paper", "ours", *beside, "difference", "why"),
        [
            (
                row.what,
                row.paper,
                row.ours,
                *(() if reference is None else (reference.entry(_with_interval, "compared", row.name) or "-",)),
                row.difference,
                row.why,
            )
            for row in rows
        ],
        "",
    )


def _with_interval(estimate: Estimate) -> str:
    interval = f"{100 * estimate['low']:.1f} to {100 * estimate['high']:.1f}"
    return f"{shown(estimate['value'])} ({interval}, n = {estimate['n']:,})"


def _doubt(scale: Scale, instead_of: str | None) -> str:
    """Why no number here decides anything; nothing if it can."""
    if instead_of:
        return f"Another data set than the paper's {instead_of}: this decides nothing. "
    return (
        "" if scale.decides else f"Scale {scale.name} cannot decide this: it trains on {scale.train_images:,} images. "
    )


def _row(name: str, statement: paper.Statement, estimate: Estimate, why: str, setting: str | None = None) -> Comparison:
    return Comparison(
        name=name,
        what=f"{statement.experiment}: {statement.what}" + (f"; {setting}" if setting else ""),
        paper=f"{shown(statement.value)} (section {statement.where})",
        ours=_with_interval(estimate),
        estimate=estimate,
        difference=f"{100 * (estimate['value'] - statement.value):+.1f} points",
        why=why,
    )


def _clean_rows(artifacts: Artifacts, doubt: str) -> list[Comparison]:
    """Rule: inside our interval = agrees; else more or less accurate by the difference, and what is known to differ."""
    artifact = artifacts.get("E1/clean")
    if artifact is None:
        return []
    classes = [each for each in artifact.result["per_class"] if each is not None]
    found = (
        ("accuracy", paper.TEST_ACCURACY, artifact.result["accuracy"]),
        ("worst class", paper.WORST_CLASS, min(classes, key=lambda e: e["value"])),
        ("best class", paper.BEST_CLASS, max(classes, key=lambda e: e["value"])),
    )
    rows = []
    for what, statement, estimate in found:
        if estimate["low"] <= statement.value <= estimate["high"]:
            why = "The paper's number lies within our interval."
        else:
            side = "above" if statement.value > estimate["high"] else "below"
            why = (
                f"The paper's number lies {side} our interval. It gives no batch size, learning rate, number of epochs "
                "or seed, and does not say on which split the number was taken."
            )
        rows.append(_row(f"E1/clean, {what}", statement, estimate, doubt + why))
    return rows


def _settings(artifacts: Artifacts, names: Mapping[str, str], axis: str, value: float) -> list[_Setting]:
    """The settings whose curve has a point at `value`; `names` holds the curve's artifact by the setting's words."""
    found = []
    for words, name in names.items():
        artifact = artifacts.get(name)
        point = None if artifact is None else point_at(artifact, axis, value)
        if artifact is not None and point is not None:
            zero = artifact.result["zero_gradients"]
            found.append(_Setting(name=f"{name}, {axis} {value:g}", words=words, left=point["last"], zero=zero))
    return found


def _attack_rows(statement: paper.Statement, settings: Sequence[_Setting], doubt: str) -> list[Comparison]:
    """One row per setting. Rule: the setting whose interval holds the paper's number could explain it.

    If none does, the number is unexplained, and the nearest setting is named.
    """
    nearest = min(settings, key=lambda each: abs(each.left["value"] - statement.value), default=None)
    rows = []
    for each in settings:
        if each.left["low"] <= statement.value <= each.left["high"]:
            why = "The paper's number lies within our interval for this setting."
        elif each is nearest:
            why = "The nearest of ours, but the paper's number lies outside its interval: unexplained by this setting."
        else:
            why = "The paper's number lies outside our interval."
        if each.zero["value"] >= _MENTIONED:
            why += f" {shown(each.zero['value'])} of the images had no gradient to follow under this loss."
        rows.append(_row(each.name, statement, each.left, doubt + why, each.words))
    return rows
