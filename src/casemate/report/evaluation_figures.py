"""The figures of the report on one model: accuracy over eps, per class, and what adversarial examples look like."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from casemate.evaluation.verdict import Verdict
from casemate.report.charts import COLOURS, Figure, canvas, estimate_line, finished, legend_below, percent_axis, shown
from casemate.tables import Table, is_missing

_EXAMPLES = 6
"""Adversarial examples that are shown."""
_BARS = 30
"""Classes that are shown, the worst of more."""
_ATTACKS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#F0E442", "#0072B2", "#999999")


def _settings(result: Mapping[str, Any]) -> str:
    return f"n = {result['images']:,}, {result['norm']}, budget {result['budget']}, seed {result['seed']}"


def accuracy_over_eps(result: Mapping[str, Any], verdict: Verdict) -> Figure:
    """Robust accuracy against eps with its interval, what was left after each attack, and borders between grades."""
    values = [0.0, *result["eps"]]
    worst = [result["clean_accuracy"], *result["robust_accuracy"]]
    drawing, axes = canvas(1, 1, 7, 4.2)
    place = axes[0, 0]
    count = result["images"]
    rows: list[tuple[Any, ...]] = []
    left_before = worst[0]["value"]
    for eps, after in zip(result["eps"], result["robust_accuracy"], strict=True):
        left = left_before
        for attempt in result["attempts"]:
            if attempt["eps"] == eps:
                left -= attempt["fooled"] / count
                rows.append((eps, f"after {attempt['attack']}", left, None, None))
        rows.append((eps, "worst case", after["value"], after["low"], after["high"]))
        left_before = after["value"]
    for number, name in enumerate(each["attack"] for each in result["attacks"]):
        points = [(row[0], 100 * row[2]) for row in rows if row[1] == f"after {name}"]
        if points:
            place.plot(
                *zip(*points, strict=True),
                linestyle="none",
                marker="_",
                markersize=14,
                markeredgewidth=2,
                color=_ATTACKS[number % len(_ATTACKS)],
                label=f"after {name}",
                zorder=4,
            )
    estimate_line(
        place, values, worst, percent=True, color=COLOURS["ce"], marker="o", label="worst case, 95 % interval"
    )
    clean, borders = verdict.number.clean.value, verdict.borders
    broken, weak = max(borders.broken * clean, verdict.number.guessing), borders.weak * clean
    for least, words, style in ((broken, "broken", ":"), (weak, "weak", "--")):
        if least >= broken:  # among few classes guessing may lie above the border of weak
            place.axhline(100 * least, color="#888888", linestyle=style, linewidth=1, label=f"{words} below this line")
    place.set_xlabel(f"eps ({result['norm']})")
    percent_axis(place)
    legend_below(place, pad=5, ncols=3)
    return finished(
        drawing,
        "robust-accuracy",
        title="Robust accuracy against eps",
        caption=f"Images still right under every attack at this and every smaller eps (line, with its 95 % interval), "
        "what each attack left for the next (dashes), and where the grades of the verdict begin (for the estimate; a "
        f"grade is given by the interval). {_settings(result)}.",
        alt="; ".join(f"eps {eps:g}: {shown(each['value'])}" for eps, each in zip(values, worst, strict=True)) + ".",
        columns=("eps", "what", "accuracy", "low", "high"),
        rows=[(0.0, "without an attack", *(worst[0][name] for name in ("value", "low", "high"))), *rows],
    )


def accuracy_per_class(result: Mapping[str, Any]) -> Figure:
    """Accuracy within each class, without an attack and under all of them at the largest eps."""
    found = result["per_class"]
    classes = sorted(found, key=lambda each: each["robust_accuracy"]["value"])[:_BARS]
    drawing, axes = canvas(1, 1, 7, 0.6 + 0.38 * len(classes))
    place = axes[0, 0]
    for height, key, colour, words in (
        (0.8, "clean_accuracy", "#cfd8e0", "without an attack"),
        (0.44, "robust_accuracy", COLOURS["ce"], f"under attack, eps {result['eps'][-1]:g}"),
    ):
        value, low, high = (np.array([100 * each[key][name] for each in classes]) for name in ("value", "low", "high"))
        error = None if key == "clean_accuracy" else [np.maximum(value - low, 0), np.maximum(high - value, 0)]
        style = {"height": height, "color": colour, "label": words, "ecolor": "#333333", "capsize": 2}
        place.barh(range(len(classes)), value, xerr=error, **style)
    place.set_yticks(range(len(classes)), [each["class"] for each in classes])
    place.invert_yaxis()
    place.grid(visible=False, axis="y")
    place.set_xlim(0, 100)
    place.set_xlabel("accuracy, %")
    legend_below(place, pad=5, ncols=2)
    which = "" if len(classes) == len(found) else f" The {len(classes)} worst of {len(found)} classes."
    return finished(
        drawing,
        "per-class",
        title="Accuracy per class",
        caption=f"Without an attack (wide bars) and under all attacks at eps {result['eps'][-1]:g} (narrow, with 95 % "
        f"intervals), the worst first.{which} {_settings(result)}.",
        alt="; ".join(
            f"{each['class']}: {shown(each['robust_accuracy']['value'])} of {shown(each['clean_accuracy']['value'])}"
            for each in classes
        )
        + ".",
        columns=("class", "images", "accuracy without an attack", "robust accuracy", "low", "high"),
        rows=[
            (
                each["class"],
                each["robust_accuracy"]["n"],
                each["clean_accuracy"]["value"],
                *(each["robust_accuracy"][name] for name in ("value", "low", "high")),
            )
            for each in found
        ],
    )


def pictures(result: Mapping[str, Any], table: Table, images: Mapping[str, np.ndarray]) -> Figure | None:
    """Some images, what was done to them, and what the model then takes them for; None if nothing was fooled."""
    fooled = np.flatnonzero(~is_missing(table["first_success"]) & (table["adversarial_prediction"] != table["label"]))
    _, first = np.unique(table["label"][fooled], return_index=True)
    places = fooled[np.sort(first)][:_EXAMPLES]
    if not len(places):
        return None
    columns = {name: column[places].tolist() for name, column in table.items()}
    chosen = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    names = result["classes"]
    drawing, axes = canvas(3, len(chosen), 1.75 * len(chosen), 6.3)
    for column, row in zip(axes.T, chosen, strict=True):
        clean, made = images["clean"][row["index"]], images["adversarial"][row["index"]]
        change = made - clean
        largest = float(np.abs(change).max())
        _picture(column[0], clean, f"{names[row['label']]}")
        _picture(column[1], change / (2 * max(largest, 1e-9)) + 0.5, f"at most {largest:.2g} a pixel")
        _picture(column[2], made, f"{names[row['adversarial_prediction']]}\nby {row['first_success']}")
    for place, words in zip(axes[:, 0], ("original", "change", "taken for"), strict=True):
        place.text(-0.08, 0.5, words, transform=place.transAxes, rotation=90, va="center", ha="right", fontsize=9)
    return finished(
        drawing,
        "examples",
        title="Adversarial examples",
        caption="The first image of a class that was fooled: as it is, what was added (grey: nothing; stretched to the "
        "full range), and the sum, with what the model takes it for and which attack found it.",
        alt="; ".join(
            f"image {row['index']}, {names[row['label']]}, taken for {names[row['adversarial_prediction']]} after "
            f"{row['first_success']}"
            for row in chosen
        )
        + ".",
        columns=("image", "class", "taken for", "attack", "eps", "distance"),
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
    """An image of one or three channels without axes; of any other number their mean."""
    shape = image.shape[0]
    flat = image.transpose(1, 2, 0) if shape == 3 else image.mean(0)
    axes.imshow(np.clip(flat, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_axis_off()
