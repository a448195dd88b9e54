"""The figure of a benchmark: every model's accuracies in a row, and those that withstand most as clean against robust.

The models are numbered in both parts, and what others published has letters, as in the tables of the page.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from casemate.benchmark import BenchmarkPlan, BenchmarkRow
from casemate.benchmark.published import Published
from casemate.evaluation.intervals import Estimate, percent
from casemate.norms import format_eps
from casemate.report import palette
from casemate.report.charts import Figure, canvas, finished

_KINDS = {
    "ordinary": palette.GREY,
    "adversarial": palette.BLUE,
    "distilled": palette.PURPLE,
    "certified": palette.GREEN,
    "smoothed": palette.ORANGE,
    "unlabelled": palette.SKY,
}
"""Colour of each kind of recipe."""
_TRAINED = {
    "ordinary": "without an attack",
    "adversarial": "on attacked images",
    "distilled": "by a teacher",
    "certified": "for bounds",
    "smoothed": "with noise",
    "unlabelled": "without labels",
}
"""What the legend says of each kind."""
_PUBLISHED = palette.INK
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_CLOSE = 0.5
"""The second part shows what withstands at least this share of the attacks that the best model withstands."""
_ROOM = 9.0
"""Distance in points from a sign to the nearest marker or other sign that is enough."""
_MOVES = [
    distance * np.array([np.cos(angle), np.sin(angle)])
    for distance in (10, 17, 24, 31)
    for angle in np.pi / 4 * np.arange(8)
]
"""Where a sign may be, in points from its marker: the nearest place with enough room is taken."""


@final
@dataclass(frozen=True, kw_only=True)
class _Point:
    """A model of the figure; what is not known of it is None."""

    sign: str
    """Its number or letter."""
    name: str
    color: str
    images: str
    """Of which test images these are."""
    clean: Estimate | float | None
    attacked: Estimate | float | None
    certified: Estimate | float | None
    source: str
    """Where `attacked` is from."""

    @property
    def values(self) -> dict[str, Estimate | float]:
        """What is known, by the name that the legend gives it."""
        found = {"clean": self.clean, "attacked": self.attacked, "certified": self.certified}
        return {name: each for name, each in found.items() if each is not None}


def letter(number: int) -> str:
    """The sign of a published result, from 0."""
    return _LETTERS[number]


def benchmark_figure(plan: BenchmarkPlan, rows: Sequence[BenchmarkRow], published: Sequence[Published]) -> Figure:
    """Draw what is measured at the radius of the benchmark, and what others published for the same."""
    points = _points(plan, rows, published)
    drawing, axes = canvas(1, 2, 10, 1.4 + 0.27 * max(len(points), 5))
    eps = format_eps(plan.eps)
    _rows(axes[0, 0], points)
    most = _trade_off(axes[0, 1], points, eps)
    words = {"clean": "clean", "attacked": f"attacked, eps {eps}", "certified": f"certified, eps {eps}"}
    known = [what for what in words if any(what in each.values for each in points)]
    if known:
        signs = [Line2D([], [], **_marker(what, palette.INK)) for what in known]
        kinds = dict.fromkeys(row.entry.kind for row in rows)
        signs += [Line2D([], [], color=_KINDS[kind], linewidth=5) for kind in kinds]
        said = [*(words[what] for what in known), *(f"trained: {_TRAINED[kind]}" for kind in kinds)]
        drawing.legend(signs, said, loc="outside lower center", ncols=3)
    _name_points(axes[0, 1], most)  # after the legend, which takes some of its height
    texts = [
        f"{each.name} ({each.images}): "
        + ", ".join(f"{percent(_value(found))} {what}" for what, found in each.values.items())
        for each in points
    ]
    return finished(
        drawing,
        "benchmark",
        title="Clean, robust and certified accuracy",
        caption=f"Accuracy without an attack, under all attacks of the budget {plan.budget} at eps "
        f"{eps} in Linf, and certified accuracy, on the left with 95 % intervals, all on the test images in brackets; "
        "what others published is black.",
        alt=f"{'; '.join(texts)}." if texts else "No model is measured yet.",
        columns=("sign", "model", "images", "source", "what", "value", "low", "high"),
        rows=[
            (each.sign, each.name, each.images, each.source, what, _value(found), *_interval(found))
            for each in points
            for what, found in each.values.items()
        ],
    )


def _points(plan: BenchmarkPlan, rows: Sequence[BenchmarkRow], published: Sequence[Published]) -> list[_Point]:
    ours = [_ours(plan, row, number) for number, row in enumerate((each for each in rows if each.clean()), 1)]
    theirs = [
        _Point(
            sign=letter(number),
            name=each.model,
            color=_PUBLISHED,
            images=each.images,
            clean=each.clean,
            attacked=each.attacked,
            certified=each.certified,
            source=each.attack,
        )
        for number, each in enumerate(published)
    ]
    return [*ours, *theirs] if ours else []


def _ours(plan: BenchmarkPlan, row: BenchmarkRow, number: int) -> _Point:
    """A model of the benchmark, on all test images, or on the first ones if only they are attacked."""
    attacked, certified = row.widest(plan.eps, "robust"), row.widest(plan.eps, "certified")
    whole, first = row.clean(), row.clean_of_first()
    clean = first if attacked is not None and first is not None and attacked.n == first.n else whole
    assert clean is not None, "only trained models are drawn"
    return _Point(
        sign=str(number),
        name=row.name,
        color=_KINDS[row.entry.kind],
        images=f"{'first ' if clean.n < len(plan.dataset.test) else ''}{clean.n:,}",
        clean=clean,
        attacked=attacked,
        certified=None if row.is_void() else certified,
        source=plan.budget,
    )


def _rows(place: Axes, points: Sequence[_Point]) -> None:
    """One line per model, from 0 to 100 %."""
    for height, point in enumerate(points):
        for what, found in point.values.items():
            if isinstance(found, Estimate) and what != "clean":
                place.plot([100 * found.low, 100 * found.high], [height] * 2, color=point.color, linewidth=1.4)
            place.plot([100 * _value(found)], [height], **_marker(what, point.color))
    place.set_yticks(range(len(points)), [f"{each.name} ({each.images})  {each.sign}" for each in points])
    place.invert_yaxis()
    place.set_xlim(-3, 103)
    place.set_xlabel("accuracy, %")


def _trade_off(place: Axes, points: Sequence[_Point], eps: str) -> list[_Point]:
    """Attacked and certified against clean accuracy, of the models that withstand the most, which are returned."""
    drawn = [each for each in points if each.clean is not None and each.attacked is not None]
    least = _CLOSE * max((_value(each.attacked) for each in drawn), default=0.0)
    drawn = [each for each in drawn if _value(each.attacked) >= least]
    for point in drawn:
        for what in ("certified", "attacked"):
            found = point.values.get(what)
            if found is not None and _value(found) >= least:
                place.plot([100 * _value(point.clean)], [100 * _value(found)], **_marker(what, point.color))
    place.margins(0.1)
    place.set_xlabel("clean accuracy, %")
    place.set_ylabel(f"attacked or certified at eps {eps}, %")
    return drawn


def _name_points(place: Axes, points: Sequence[_Point]) -> None:
    """Write the sign of each point near its attacked accuracy, where no other sign or marker is."""
    figure = place.get_figure(root=True)
    assert figure is not None, "the axes are part of a figure"
    figure.draw_without_rendering()  # the layout is known from here on
    scale = 72 / figure.dpi
    markers = [np.asarray(line.get_xydata(), dtype=float)[0] for line in place.get_lines()]
    taken = [scale * at for at in place.transData.transform(markers)] if markers else []
    for point in points:
        here = (100 * _value(point.clean), 100 * _value(point.attacked))
        start = scale * place.transData.transform(here)
        move = max(_MOVES, key=lambda by: min(_ROOM, *(float(np.hypot(*(start + by - each))) for each in taken)))
        taken.append(start + move)
        place.annotate(
            point.sign,
            here,
            (float(move[0]), float(move[1])),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            color=point.color,
            arrowprops={"arrowstyle": "-", "linewidth": 0.6, "color": point.color, "shrinkA": 4, "shrinkB": 2},
        )


def _marker(what: str, color: str) -> dict[str, Any]:
    """How the points of one kind look."""
    face = palette.PAPER if what == "certified" else color
    shape = {"clean": "|", "attacked": "o", "certified": "D"}[what]
    size = {"clean": 9, "attacked": 5.5, "certified": 5}[what]
    return {"marker": shape, "linestyle": "", "color": color, "markerfacecolor": face, "markersize": size}


def _value(found: Estimate | float | None) -> float:
    return found.value if isinstance(found, Estimate) else float(found or 0)


def _interval(found: Estimate | float) -> tuple[float | None, float | None]:
    return (found.low, found.high) if isinstance(found, Estimate) else (None, None)
