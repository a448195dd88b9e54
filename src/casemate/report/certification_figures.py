"""The figures of the report on certificates: certified and attacked accuracy against eps; that of a smoothed model."""

from typing import Any

import numpy as np

from casemate.evaluation.certified import CertifiedEvaluation
from casemate.evaluation.intervals import Estimate, percent
from casemate.evaluation.smoothed import SmoothedEvaluation
from casemate.norms import format_eps
from casemate.report import palette
from casemate.report.charts import COLOURS, Figure, canvas, finished, legend_below, percent_axis
from casemate.units import eps_with_share

NAME = "certified-accuracy"
"""Name of both figures, and of the file."""
_CERTIFIED, _ATTACKED = COLOURS["ce"], COLOURS["prob-ce"]
_UNDECIDED = palette.FAINT


def certified_and_attacked(found: CertifiedEvaluation) -> Figure:
    """A chart of certified and attacked accuracy against eps, of the same images, from the clean accuracy at eps 0.

    The band between them are the images of which it is not decided whether they are robust. A certificate that is void
    is not drawn.
    """
    values = [0.0, *map(float, found.values)]
    certified = [found.clean_accuracy, *found.certified_accuracy]
    attacked = [found.clean_accuracy, *found.robust_accuracy]
    drawing, axes = canvas(1, 1, 7, 4.2)
    place = axes[0, 0]
    rows: list[tuple[Any, ...]] = []
    if found.has_attacks and not found.is_void:
        ends = [[100 * each.value for each in line] for line in (certified, attacked)]
        place.fill_between(values, *ends, color=_UNDECIDED, alpha=0.6, linewidth=0, label="undecided")
    if found.has_attacks:
        _line(
            place,
            values,
            attacked,
            color=_ATTACKED,
            marker="s",
            markersize=9,
            markerfacecolor=palette.PAPER,
            label="withstood every attack",
        )
        rows += [(eps, "attacked", each.value, each.low, each.high) for eps, each in _from_clean(values, attacked)]
    if not found.is_void:
        _line(place, values, certified, color=_CERTIFIED, marker="o", label=f"certified by {found.method}")
        rows += [(eps, "certified", each.value, each.low, each.high) for eps, each in _from_clean(values, certified)]
    clean = found.clean_accuracy
    rows.insert(0, (0.0, "clean", clean.value, clean.low, clean.high))
    place.plot([0], [100 * clean.value], "o", markersize=8, color=palette.INK, zorder=6, label="without an attack")
    _frame(place, found.values, found.norm, found.model.bounds)
    attacks = f", budget {found.budget}" if found.has_attacks else ""
    band = " Between them it is not decided." if found.has_attacks and not found.is_void else ""
    void = " The certificate is void and is not drawn: attacks fooled certified images." if found.is_void else ""
    lines = []
    if not found.is_void:
        lines.append(f"below the line with dots images are proven robust by {found.method}")
    if found.has_attacks:
        lines.append("above the line with squares attacks fooled them")
    return finished(
        drawing,
        NAME,
        title="Certified and attacked accuracy against eps" if found.has_attacks else "Certified accuracy against eps",
        caption=f"{'; '.join(lines).capitalize()}.{band}{void} Bars: 95 % intervals. n = {clean.n:,} images, "
        f"{found.norm}{attacks}, seed {found.seed}.",
        alt="; ".join(f"eps {format_eps(eps)}, {what}: {percent(value)}" for eps, what, value, *_ in rows) + ".",
        columns=("eps", "what", "accuracy", "low", "high"),
        rows=rows,
    )


def certified_by_radius(found: SmoothedEvaluation) -> Figure:
    """A chart of the certified accuracy of a smoothed model against the radius, with intervals at the values of eps."""
    chosen, most = found.smoothing, max(found.smoothing.largest_radius, float(found.values[-1]))
    radius = np.sort(found.radius)
    right = int(found.certificate.right.sum())
    count = len(radius)
    steps = [0.0, *radius[count - right :].tolist(), most]
    heights = [100 * each / count for each in (*range(right, -1, -1), 0)]
    drawing, axes = canvas(1, 1, 7, 4.2)
    place = axes[0, 0]
    place.step(steps, heights, where="post", color=_CERTIFIED, linewidth=1.2, label="certified, at every radius")
    values, numbers = [0.0, *map(float, found.values)], [found.clean_accuracy, *found.certified_accuracy]
    _line(place, values, numbers, color=_CERTIFIED, marker="o", linestyle="none", label="at eps, 95 % interval")
    place.axvline(chosen.largest_radius, color=palette.GREY, linestyle=":", linewidth=1.2, label="no radius beyond")
    _frame(place, found.values, found.norm, found.model.bounds)
    rows = [(eps, each.value, each.low, each.high) for eps, each in zip(values, numbers, strict=True)]
    return finished(
        drawing,
        NAME,
        title="Certified accuracy of the smoothed model",
        caption="Share of the images that the smoothed model, not the model itself, is certified to classify correctly "
        f"within the radius; each certificate holds with probability {1 - chosen.alpha:.10g}. Dotted: the largest "
        f"radius that {chosen.n:,} draws can certify. sigma {chosen.sigma:g}, n = {count:,} images, seed "
        f"{found.certificate.seed}.",
        alt="; ".join(f"radius {format_eps(eps)}: {percent(value)}" for eps, value, *_ in rows) + ".",
        columns=("radius", "certified accuracy", "low", "high"),
        rows=rows,
    )


def _from_clean(values: list[float], numbers: list[Estimate]) -> list[tuple[float, Estimate]]:
    """The estimates at each eps, without the one at eps 0."""
    return list(zip(values, numbers, strict=True))[1:]


def _line(place: Any, values: list[float], numbers: list[Estimate], **style: Any) -> None:
    """Draw estimates over eps with their intervals as bars."""
    points = np.array([(each.value, each.low, each.high) for each in numbers]) * 100
    error = np.maximum([points[:, 0] - points[:, 1], points[:, 2] - points[:, 0]], 0)
    place.errorbar(values, points[:, 0], yerr=error, capsize=2.5, elinewidth=1, linewidth=1.8, zorder=4, **style)


def _frame(place: Any, values: tuple[float, ...], norm: str, bounds: tuple[float, float]) -> None:
    """Axes and legend."""
    place.set_xlim(left=min(-0.02 * values[-1], 0))
    shown = eps_with_share(values[-1], bounds, norm)
    place.set_xlabel(f"eps ({norm})" if shown == format_eps(values[-1]) else f"eps ({norm}); {shown}")
    percent_axis(place)
    legend_below(place, pad=5, ncols=4)
