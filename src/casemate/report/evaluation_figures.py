"""The figures of the report on one model: accuracy over eps, per class, and what adversarial examples look like."""

from collections.abc import Callable
from typing import Any

import numpy as np

from casemate.evaluation.intervals import percent
from casemate.norms import format_eps
from casemate.report.charts import COLOURS, Figure, canvas, estimate_line, finished, legend_below, percent_axis
from casemate.report.evaluation_result import EvaluationResult
from casemate.tables import Table, is_missing
from casemate.units import share_of_range

_EXAMPLES = 6
"""Number of adversarial examples shown, at most."""
_BARS = 30
"""Number of classes shown, at most; these are the least robust ones."""
_ATTACK_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#F0E442", "#0072B2", "#999999")


def accuracy_over_eps(result: EvaluationResult) -> Figure:
    """A chart of robust accuracy, with its 95 % interval, against eps.

    It also shows the accuracy left after each attack of the sequence, and the borders of the grades broken and weak.
    """
    number, borders = result.verdict.number, result.verdict.borders
    values = [0.0, *(each.eps for each in result.verdicts)]
    worst = [number.clean, *(each.number.robust for each in result.verdicts)]
    drawing, axes = canvas(1, 1, 7, 4.2)
    place = axes[0, 0]
    rows: list[tuple[Any, ...]] = [(0.0, "without an attack", number.clean.value, number.clean.low, number.clean.high)]
    left = number.clean.value
    for eps, after in zip(values[1:], worst[1:], strict=True):
        for attempt in result.attempts:
            if attempt.eps == eps:
                left -= attempt.fooled / result.images
                rows.append((eps, f"after {attempt.attack}", left, None, None))
        rows.append((eps, "worst case", after.value, after.low, after.high))
        left = after.value
    for order, attack in enumerate(result.attacks):
        points = [(row[0], 100 * row[2]) for row in rows if row[1] == f"after {attack.name}"]
        if points:
            place.plot(
                *zip(*points, strict=True),
                linestyle="none",
                marker="_",
                markersize=14,
                markeredgewidth=2,
                color=_ATTACK_COLOURS[order % len(_ATTACK_COLOURS)],
                label=f"after {attack.name}",
                zorder=4,
            )
    style: Any = {"color": COLOURS["ce"], "marker": "o", "label": "worst case, 95 % interval"}
    estimate_line(place, values, worst, percent=True, **style)
    clean = number.clean.value
    broken, weak = max(borders.broken * clean, number.guessing), borders.weak * clean
    for least, words, dashes in ((broken, "broken", ":"), (weak, "weak", "--")):
        if least >= broken:  # among few classes guessing may lie above the border of weak
            place.axhline(100 * least, color="#888888", linestyle=dashes, linewidth=1, label=f"{words} below this line")
    share = share_of_range(number.eps, number.bounds, number.norm)
    place.set_xlabel(f"eps ({number.norm}){f'; {format_eps(number.eps)} is {share}' if share else ''}")
    percent_axis(place)
    legend_below(place, pad=5, ncols=3)
    return finished(
        drawing,
        "robust-accuracy",
        title="Robust accuracy against eps",
        caption="Line: images classified correctly under every attack at this and every smaller eps, with the 95 % "
        "interval. Dashes: what each attack left for the next. Grey lines: where the grades of the verdict begin, for "
        f"the estimate (a grade depends on the interval). {result.conditions}.",
        alt="; ".join(f"eps {format_eps(eps)}: {percent(each.value)}" for eps, each in zip(values, worst, strict=True))
        + ".",
        columns=("eps", "what", "accuracy", "low", "high"),
        rows=rows,
    )


def accuracy_per_class(result: EvaluationResult) -> Figure:
    """A bar chart of each class's accuracy without an attack, and under all attacks at the largest eps.

    The least robust class comes first; of many classes only the first `_BARS` are drawn.
    """
    classes = result.per_class[:_BARS]
    eps = format_eps(result.verdict.eps)
    drawing, axes = canvas(1, 1, 7, 0.6 + 0.38 * len(classes))
    place = axes[0, 0]
    robust = np.array([(each.robust.value, each.robust.low, each.robust.high) for each in classes])
    error = np.maximum([robust[:, 0] - robust[:, 1], robust[:, 2] - robust[:, 0]], 0)
    bars: Any = range(len(classes))
    clean = [100 * each.clean.value for each in classes]
    place.barh(bars, clean, height=0.8, color="#cfd8e0", label="without an attack")
    style = {"color": COLOURS["ce"], "label": f"under attack, eps {eps}", "ecolor": "#333333", "capsize": 2}
    place.barh(bars, 100 * robust[:, 0], xerr=100 * error, height=0.44, **style)
    place.set_yticks(bars, [each.name for each in classes])
    place.invert_yaxis()
    place.grid(visible=False, axis="y")
    place.set_xlim(0, 100)
    place.set_xlabel("accuracy, %")
    legend_below(place, pad=5, ncols=2)
    which = "" if classes == result.per_class else f" The {len(classes)} worst of {len(result.per_class)} classes."
    return finished(
        drawing,
        "per-class",
        title="Accuracy per class",
        caption=f"Without an attack (wide bars) and under all attacks at eps {eps} (narrow bars, with 95 % intervals), "
        f"the worst first.{which} {result.conditions}.",
        alt="; ".join(f"{each.name}: {percent(each.robust.value)} of {percent(each.clean.value)}" for each in classes)
        + ".",
        columns=("class", "images", "accuracy without an attack", "robust accuracy", "low", "high"),
        rows=[
            (each.name, each.robust.n, each.clean.value, each.robust.value, each.robust.low, each.robust.high)
            for each in result.per_class
        ],
    )


def adversarial_examples(
    result: EvaluationResult, table: Table, image: Callable[[str, int], np.ndarray]
) -> Figure | None:
    """A figure of one fooled image for each of several classes, its perturbation, and the adversarial image.

    Args:
        result: the evaluation.
        table: the table of examples, with one row per image.
        image: returns the image `(channels, height, width)`, "clean" or "adversarial", at a position in the table.

    Returns:
        The figure; None if no image was fooled.
    """
    fooled = np.flatnonzero(~is_missing(table["first_success"]) & (table["adversarial_prediction"] != table["label"]))
    _, first = np.unique(table["label"][fooled], return_index=True)
    places = fooled[np.sort(first)][:_EXAMPLES]
    if not len(places):
        return None
    columns = {name: column[places].tolist() for name, column in table.items()}
    chosen = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    names = result.classes
    drawing, axes = canvas(3, len(chosen), 1.75 * len(chosen), 6.3)
    for column, row in zip(axes.T, chosen, strict=True):
        clean, made = (image(name, row["index"]) for name in ("clean", "adversarial"))
        change = made - clean
        largest = float(np.abs(change).max())
        _picture(column[0], clean, f"{names[row['label']]}")
        _picture(column[1], change / (2 * max(largest, 1e-9)) + 0.5, f"at most {largest:.2g} a pixel")
        _picture(column[2], made, f"{names[row['adversarial_prediction']]}\nby {row['first_success']}")
    for place, words in zip(axes[:, 0], ("original", "perturbation", "predicted"), strict=True):
        place.text(-0.08, 0.5, words, transform=place.transAxes, rotation=90, va="center", ha="right", fontsize=9)
    return finished(
        drawing,
        "examples",
        title="Adversarial examples",
        caption="One image for each of several classes: the original, the perturbation (grey: no change; stretched to "
        "the full range), and the adversarial image with the class that the model predicts and the attack that found "
        "it.",
        alt="; ".join(
            f"image {row['index']}, {names[row['label']]}, predicted {names[row['adversarial_prediction']]} after "
            f"{row['first_success']}"
            for row in chosen
        )
        + ".",
        columns=("image", "class", "predicted", "attack", "eps", "distance"),
        rows=[
            (
                row["index"],
                names[row["label"]],
                names[row["adversarial_prediction"]],
                row["first_success"],
                row["fooled_at"],
                row["distance"],
            )
            for row in chosen
        ],
    )


def _picture(axes: Any, image: np.ndarray, title: str) -> None:
    """Draw an image `(channels, height, width)` with values in [0, 1], without axes.

    Three channels are drawn in colour, any other number of them as their mean in grey.
    """
    shape = image.shape[0]
    flat = image.transpose(1, 2, 0) if shape == 3 else image.mean(0)
    axes.imshow(np.clip(flat, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()
