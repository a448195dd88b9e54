"""The figures of the report on one model: accuracy against eps, and what adversarial examples look like."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from casemate.evaluation.intervals import Estimate, percent
from casemate.norms import format_eps
from casemate.report import palette
from casemate.report.charts import Figure, canvas, estimate_line, finished, legend_below, percent_axis
from casemate.report.evaluation_result import EvaluationResult
from casemate.report.undefended import UndefendedModel
from casemate.tables import Table, is_missing
from casemate.units import share_of_range

_EXAMPLES = 6
"""Number of adversarial examples shown, at most."""


def accuracy_over_eps(result: EvaluationResult, beside: UndefendedModel | None) -> Figure:
    """A chart of robust accuracy against eps, with its 95 % interval and the borders of the grades.

    `beside` is an undefended model, whose accuracies are drawn in grey up to the largest eps of the evaluation.
    """
    number, borders = result.verdict.number, result.verdict.borders
    values = [0.0, *(each.eps for each in result.verdicts)]
    worst = [number.clean, *(each.number.robust for each in result.verdicts)]
    rows: list[tuple[Any, ...]] = _rows(result.model, values, worst)
    drawing, axes = canvas(1, 1, 5.4, 3.6)
    place = axes[0, 0]
    place.set_xlim(-0.03 * values[-1], 1.06 * values[-1])
    if beside is not None:
        known = {0.0: beside.clean, **{eps: each for eps, each in beside.robust.items() if eps <= values[-1]}}
        rows += _rows(beside.name, list(known), list(known.values()))
        # marks alone: in between its accuracy is far from a straight line; large and hollow, to be seen under others
        style = {"color": palette.GREY, "marker": "s", "linestyle": "none", "markersize": 9, "fillstyle": "none"}
        place.plot(
            known.keys(),
            [100 * each.value for each in known.values()],
            label="undefended model",
            clip_on=False,
            **style,
        )
    own: dict[str, Any] = {"color": palette.BLUE, "marker": "o", "label": "this model", "zorder": 3}
    if not result.verdict.trust.trusted:
        own["alpha"] = 0.35
    if len(values) > 2:
        estimate_line(place, values, worst, percent=True, linewidth=2.2, **own)
    else:  # a line between two points would be read as measured
        shares = [(100 * each.value, 100 * (each.value - each.low), 100 * (each.high - each.value)) for each in worst]
        height, down, up = zip(*shares, strict=True)
        place.errorbar(values, height, (down, up), linestyle="none", capsize=4, **own)
    for eps, each in zip(values, worst, strict=True) if result.verdict.trust.trusted else ():
        move, align = ((0, 7), "center") if eps == values[-1] else ((6, 7), "left")
        if len(values) == 2:  # beside the bar of the interval
            move, align = ((-9, -4), "right") if eps else ((9, -4), "left")
        style = {"ha": align, "va": "bottom", "fontsize": 11, "fontweight": "bold", "color": palette.BLUE}
        place.annotate(f"{100 * each.value:.0f} %", (eps, 100 * each.value), move, textcoords="offset points", **style)
    if not result.verdict.trust.trusted:
        style = {"fontsize": 15, "color": palette.BAD, "ha": "center", "va": "center", "rotation": 20, "zorder": 6}
        place.text(0.55, 0.55, "cannot be trusted", transform=place.transAxes, **style)
    clean = number.clean.value
    broken, weak, robust = max(borders.broken * clean, number.guessing), borders.weak * clean, borders.robust * clean
    lowest = "broken" if broken > number.guessing else "broken (guessing)"
    for least, words in ((broken, f"{lowest} below"), (weak, "weak below"), (robust, "robust above")):
        if least >= broken:  # among few classes guessing may lie above the border of weak
            place.axhline(100 * least, color=palette.GREY, linestyle=":", linewidth=1)
            style = {"fontsize": 8.5, "color": palette.SOFT, "va": "top", "ha": "left"}
            place.annotate(words, (0, 100 * least), (4, -2), textcoords="offset points", **style)
    share = share_of_range(number.eps, number.bounds, number.norm)
    place.set_xlabel(f"eps ({number.norm}){f'; {format_eps(number.eps)} is {share}' if share else ''}")
    percent_axis(place)
    place.set_ylim(-2, 106)
    legend_below(place, pad=4.5, ncols=2)
    others = f" Grey: {beside.words}." if beside else ""
    return finished(
        drawing,
        "robust-accuracy",
        title="Accuracy against the size of the change",
        caption="Share of the images that are classified correctly under every attack, at this and every smaller eps, "
        "with its 95 % interval. Between the points nothing was measured. The dotted lines are the borders of the "
        f"grades for a model of this accuracy without an attack; guessing reaches {percent(number.guessing)}.{others}",
        alt="; ".join(f"{name}, eps {format_eps(eps)}: {percent(value)}" for eps, name, value, *_ in rows) + ".",
        columns=("eps", "model", "accuracy", "low", "high"),
        rows=rows,
    )


def _rows(name: str, values: Sequence[float], found: Sequence[Estimate]) -> list[tuple[Any, ...]]:
    return [(eps, name, each.value, each.low, each.high) for eps, each in zip(values, found, strict=True)]


def adversarial_examples(
    result: EvaluationResult, table: Table, image: Callable[[str, int], np.ndarray]
) -> Figure | None:
    """A figure of one fooled image for each of several classes, its change, and the adversarial image.

    Args:
        result: the evaluation.
        table: the table of examples, with one row per image.
        image: returns the image `(channels, height, width)`, "clean" or "adversarial", at a position in the table.

    Returns:
        The figure; None if no changed image fooled the model.
    """
    fooled = np.flatnonzero(~is_missing(table["first_success"]) & (table["adversarial_prediction"] != table["label"]))
    _, first = np.unique(table["label"][fooled], return_index=True)
    places = fooled[np.sort(first)][:_EXAMPLES]
    if not len(places):
        return None
    columns = {name: column[places].tolist() for name, column in table.items()}
    chosen = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    pairs = {row["index"]: (image("clean", row["index"]), image("adversarial", row["index"])) for row in chosen}
    # a model that is random or stores its inputs changes its answers without a change of the image
    chosen = [row for row in chosen if not np.array_equal(pairs[row["index"]][0], pairs[row["index"]][1])]
    if not chosen:
        return None
    names = result.classes
    drawing, axes = canvas(3, len(chosen), 1.75 * len(chosen), 6.3)
    for column, row in zip(axes.T, chosen, strict=True):
        clean, made = pairs[row["index"]]
        change = made - clean
        largest = float(np.abs(change).max())
        _picture(column[0], clean, f"{names[row['label']]}")
        _picture(column[1], change / (2 * max(largest, 1e-9)) + 0.5, f"at most {largest:.2g} a pixel")
        _picture(column[2], made, f"{names[row['adversarial_prediction']]}\nby {row['first_success']}")
    for place, words in zip(axes[:, 0], ("original", "change", "predicted"), strict=True):
        place.text(-0.08, 0.5, words, transform=place.transAxes, rotation=90, va="center", ha="right", fontsize=9)
    return finished(
        drawing,
        "examples",
        title="What fooled the model",
        caption="One image for each of several classes: the original, the change (grey: none; stretched to the full "
        "range, so that it can be seen), and the attacked image as it is, with the class that the model predicts and "
        "the attack that found it.",
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
