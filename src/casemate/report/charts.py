"""The style of all figures, and the class of a rendered one: SVG and PNG, its texts, and its numbers as CSV.

Figures are drawn without `matplotlib.pyplot`, so that the backend of the caller's own figures stays as it is: in a
notebook they are shown as before.
"""

import csv
import io
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, final

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator, NullLocator

from casemate.evaluation import Estimate
from casemate.report.palette import BLUE, GREEN, GREY, INK, LINE, ORANGE, PAPER, VERMILLION

COLOURS = {"ce": BLUE, "torch-ce": ORANGE, "prob-ce": VERMILLION, "margin": GREEN}
"""The colour of each loss in all figures; each also has its own marker."""
MARKERS = {"ce": "o", "torch-ce": "s", "prob-ce": "^", "margin": "D"}
PUBLISHED = {"color": INK, "marker": "*", "markersize": 13, "linestyle": "none", "zorder": 5}
_STYLE: dict[Any, Any] = {
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": GREY,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "xtick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.color": GREY,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": LINE,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.constrained_layout.use": True,
}


@final
@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure rendered as SVG and PNG, with its texts and a table of the numbers that it shows."""

    name: str
    """File name without ending, such as "figure-12"."""
    title: str
    caption: str
    """What the figure shows, with n, seed and settings."""
    alt: str
    """Alternative text for readers who cannot see the figure, with the main numbers."""
    svg: bytes
    png: bytes
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    """The table of numbers that the figure shows: in each row one value for each of `columns`."""

    @property
    def csv(self) -> str:
        """`columns` and `rows` as the text of a CSV file; floats with six significant digits."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([[f"{v:.6g}" if isinstance(v, float) else v for v in row] for row in self.rows])
        return out.getvalue()


def styled() -> AbstractContextManager[None]:
    """A context in which matplotlib draws figures in the style that all figures share."""
    return matplotlib.rc_context(_STYLE)


def canvas(rows: int, columns: int, width: float, height: float) -> tuple[Canvas, np.ndarray]:
    """An empty figure of `width` times `height` inches, and its axes as an array `(rows, columns)`."""
    drawing = Canvas(figsize=(width, height))
    FigureCanvasAgg(drawing)  # no window, whatever the caller's backend is
    return drawing, drawing.subplots(rows, columns, squeeze=False)


def render_figure(drawing: Canvas, name: str) -> tuple[bytes, bytes]:
    """Render a drawing as (SVG, PNG); equal drawings of the same `name` give the same bytes."""
    svg, png = io.BytesIO(), io.BytesIO()
    drawing.draw_without_rendering()  # the first drawing settles the layout of axes with a fixed aspect
    with matplotlib.rc_context({"svg.hashsalt": name}):
        drawing.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        drawing.savefig(png, format="png", dpi=140, metadata={"Software": None})
    return svg.getvalue(), png.getvalue()


def finished(drawing: Canvas, name: str, **words: Any) -> Figure:
    """Render a drawing; `words` are the remaining fields of `Figure`: title, caption, alt, columns, rows."""
    svg, png = render_figure(drawing, name)
    return Figure(name=name, svg=svg, png=png, **words)


def estimate_line(
    axes: Axes,
    x: Sequence[float],
    estimates: Sequence[Estimate],
    *,
    percent: bool,
    band: bool = True,
    **style: Any,
) -> None:
    """Draw a line through estimates over `x`, and unless `band` is false their 95 % intervals as a band.

    Args:
        axes: where to draw.
        x: the horizontal position of each estimate.
        estimates: with `value`, `low` and `high`, as `Estimate.as_json` gives them.
        percent: draw shares in percent, that is times 100.
        band: draw the intervals.
        style: matplotlib's settings of the line; `color` is required.
    """
    factor = 100 if percent else 1
    axes.plot(x, [factor * each.value for each in estimates], **style)
    if band:
        low, high = [factor * each.low for each in estimates], [factor * each.high for each in estimates]
        axes.fill_between(x, low, high, color=style["color"], alpha=0.13, linewidth=0)


_TICKS = (0, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


def plain_ticks(axis: Axis, largest: float, ticks: Sequence[float] = _TICKS) -> None:
    """Set the ticks of an axis, such as a logarithmic one, to those of `ticks` up to `largest`, as plain numbers."""
    axis.set_major_locator(FixedLocator([tick for tick in ticks if tick <= largest]))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def legend_below(axes: Axes, *, pad: float = 3, **style: Any) -> None:
    """Put the legend below the plot, `pad` font sizes from the horizontal axis; an axis with a label needs more."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=pad, **style)


def percent_axis(axes: Axes) -> None:
    """Label the vertical axis as accuracy in percent, and let it range from 0 to 100 with a small margin."""
    axes.set_ylim(-2, 102)
    axes.set_ylabel("accuracy, %")


def picture(axes: Axes, image: np.ndarray, title: str, *, largest: float = 1.0) -> None:
    """Draw an image `(height, width)` in grey, from 0 (black) to `largest` (white), with a title and without axes."""
    axes.imshow(image, cmap="gray", vmin=0, vmax=largest, interpolation="nearest")
    axes.set_title(title, fontsize=8.5)
    axes.set_axis_off()
