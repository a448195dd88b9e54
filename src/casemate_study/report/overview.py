"""Figures of all models at once: accuracy under each attack, and the measures that explain why attacks mislead."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from casemate.evaluation import Estimate, percent
from casemate.losses import TITLES
from casemate.report import COLOURS, MARKERS, Figure, canvas, finished, legend_below, palette, plain_ticks
from casemate_study.experiments.models import EOT_DRAWS
from casemate_study.experiments.specs import LOSSES
from casemate_study.report.comparison import sizes_in_words
from casemate_study.results.models import ModelResults
from casemate_study.results.stored import Artifacts, StoredTargets, find_result

Models = Mapping[str, ModelResults]
_EPS = 0.1
_QUANTILES = ("0.05", "0.25", "0.5", "0.75", "0.95")


def _dots(axes: Axes, places: Sequence[int], estimates: Sequence[Estimate | None], **style: Any) -> None:
    """Draw estimates as points with their intervals as bars, in percent, each at its row in `places`; skip those that
    are None.
    """
    known = [(place, each) for place, each in zip(places, estimates, strict=True) if each is not None]
    if not known:
        return
    x = [100 * each.value for _, each in known]
    spread = [[100 * (e.value - e.low) for _, e in known], [100 * (e.high - e.value) for _, e in known]]
    axes.errorbar(x, [place for place, _ in known], xerr=spread, linestyle="none", elinewidth=1, **style)


def _rows_axis(axes: Axes, titles: Sequence[str]) -> None:
    axes.set_yticks(range(len(titles)), titles)
    axes.set_ylim(len(titles) - 0.5, -0.5)


def accuracies_figure(models: Models) -> Figure | None:
    """A figure of the accuracy of every model: without an attack, under FGSM, under BIM, and in the worst case over all
    the study's attacks, at eps 0.1. None if fewer than two models are measured.
    """
    known = [each for each in models.values() if each.clean is not None]
    if len(known) < 2:
        return None
    drawing, axes = canvas(1, 1, 9, 1.4 + 0.3 * len(known))
    place = axes[0, 0]
    drawn_at_random = any(each.randomised for each in known)
    randomised = f"; of randomised models, under BIM over the mean of {EOT_DRAWS} draws" if drawn_at_random else ""
    measures: list[tuple[str, list[Estimate | None], dict[str, Any]]] = [
        (
            "clean",
            [each.clean.accuracy if each.clean else None for each in known],
            {"color": palette.INK, "marker": "o"},
        ),
        ("FGSM", [each.accuracy_under("fgsm", _EPS) for each in known], {"color": palette.BLUE, "marker": "s"}),
        (
            "BIM-10, clip ball",
            [each.accuracy_under("ball", _EPS) for each in known],
            {"color": palette.ORANGE, "marker": "^", "markersize": 8},
        ),
        (
            f"worst case of these and PGD-40{randomised}",
            [each.worst_case(_EPS) for each in known],
            {"color": palette.VERMILLION, "marker": "D"},
        ),
    ]
    for label, estimates, style in measures:
        _dots(place, range(len(known)), estimates, label=label, **{"markersize": 5, **style})
    _rows_axis(place, [each.title for each in known])
    place.set_xlim(-2, 102)
    place.set_xlabel("accuracy, %")
    drawing.legend(loc="outside lower center", ncols=2, fontsize=8.5)
    sizes = [
        f"{count} {where}"
        for where, (_, estimates, _) in zip(
            ("clean", "under FGSM", "under BIM", "in the worst case"), measures, strict=True
        )
        if (count := sizes_in_words(estimates))
    ]
    words = "; ".join(
        f"{each.title}: clean {percent(each.clean.accuracy.value)}, worst case {percent(worst.value)}"
        for each in known
        if each.clean and (worst := each.worst_case(_EPS))
    )
    return finished(
        drawing,
        "defences",
        title=f"Every model, clean and under attack at eps {_EPS:g}",
        caption="FGSM and BIM: last iterate, stable cross-entropy. Where the square or the triangle lies far right of "
        f"the diamond, the weaker attack flattered the model. n = {', '.join(sizes)}; bars: 95 % intervals.",
        alt=f"{words}.",
        columns=("model", "measure", "n", "value", "low", "high"),
        rows=[
            (each.title, label, e.n, e.value, e.low, e.high)
            for label, estimates, _ in measures
            for each, e in zip(known, estimates, strict=True)
            if e is not None
        ],
    )


def diagnosis_figure(models: Models) -> Figure | None:
    """A figure of every model's logit gaps, shares of images with zero gradient, and angles between nearby
    gradients.

    None if fewer than two models are measured.
    """
    known = [each for each in models.values() if each.clean is not None]
    results = [each.clean for each in known if each.clean is not None]
    if len(known) < 2:
        return None
    drawing, axes = canvas(1, 3, 12, 1.9 + 0.28 * len(known))
    places = range(len(known))
    gaps, zeros, angles = axes[0]
    for place, result in zip(places, results, strict=True):
        least, lower, median, upper, most = (result.gap_quantiles[q] for q in _QUANTILES)
        gaps.plot([least, most], [place, place], color=palette.BLUE, linewidth=1)
        gaps.plot([lower, upper], [place, place], color=palette.BLUE, linewidth=5, solid_capstyle="butt")
        gaps.plot([median], [place], color=palette.PAPER, marker="|", markersize=7)
    gaps.axvline(17, color=palette.SOFT, linestyle=":", linewidth=1)
    gaps.set_xscale("symlog", linthresh=10)
    gaps.set_xlim(left=0)
    plain_ticks(gaps.xaxis, gaps.get_xlim()[1], (0, 5, 10, 30, 100, 300, 1000, 3000))
    gaps.set_title("gap between the\ntwo largest logits", fontsize=10)
    for loss in LOSSES:
        estimates = [result.zero_gradients[loss] for result in results]
        _dots(zeros, places, estimates, color=COLOURS[loss], marker=MARKERS[loss], markersize=4.5, label=TITLES[loss])
    zeros.set_xlim(-2, 102)
    zeros.set_title("images with an exactly\nzero gradient, %", fontsize=10)
    legend_below(zeros)
    for radius, style in (
        ("0.01", {"color": palette.GREEN, "marker": "o"}),
        ("0.1", {"color": palette.PURPLE, "marker": "s"}),
    ):
        pairs = [(place, result.alignment[radius]) for place, result in zip(places, results, strict=True)]
        shown_pairs = [(place, angle.value) for place, angle in pairs if angle]
        angles.plot(
            [a for _, a in shown_pairs], [p for p, _ in shown_pairs], linestyle="none", label=f"{radius} apart", **style
        )
    angles.set_xlim(0, 95)
    angles.set_title("mean angle between\ngradients nearby, degrees", fontsize=10)
    legend_below(angles, ncols=2)
    for place in axes[0]:
        _rows_axis(place, [each.title for each in known])
    for place in axes[0, 1:]:
        place.tick_params(labelleft=False)
    rows: list[tuple[Any, ...]] = []
    for each, result in zip(known, results, strict=True):
        rows.append(
            (
                each.title,
                *(result.gap_quantiles[q] for q in _QUANTILES),
                *(result.zero_gradients[loss].value for loss in LOSSES),
                *("" if angle is None else angle.value for angle in map(result.alignment.get, ("0.01", "0.1"))),
                result.calibration_error,
            )
        )
    zero_shares = [result.zero_gradients[loss] for result in results for loss in LOSSES]
    return finished(
        drawing,
        "diagnosis",
        title="Why attacks mislead: saturation, vanished gradients, misaligned gradients",
        caption="Left: quantiles 5, 25, 50, 75 and 95 % of the gap between the two largest logits; the axis is linear "
        "up to 10 and logarithmic beyond. Past about 17 (dotted) the float32 F.cross_entropy gradient of the true "
        "class is exactly zero. Middle: images whose gradient is exactly zero under each loss. Right: angle between "
        "the gradients at an image and at a random point near it (Linf). n = "
        f"{sizes_in_words([result.accuracy for result in results])} on the left, {sizes_in_words(zero_shares)} in the "
        "middle and, of these, those with a gradient on the right; bars in the middle: 95 % intervals.",
        alt="Median logit gap: " + ", ".join(f"{row[0]} {row[3]:.1f}" for row in rows) + ".",
        columns=(
            "model",
            *(f"gap {q} %" for q in (5, 25, 50, 75, 95)),
            *(f"zero gradient, {TITLES[loss]}" for loss in LOSSES),
            "angle at 0.01",
            "angle at 0.1",
            "calibration error",
        ),
        rows=rows,
    )


def _confusable(title: str, found: StoredTargets) -> str | None:
    """Text with a model's success rates of targeted attacks from shirt to T-shirt and back, which the paper's further
    work names. None if the data set lacks these classes, or no image of one was attacked.
    """
    places = {name.lower(): number for number, name in enumerate(found.classes)}
    if "shirt" not in places or "t-shirt/top" not in places:
        return None
    shirt, other = places["shirt"], places["t-shirt/top"]
    there, back = found.rates[shirt][other], found.rates[other][shirt]
    return None if there is None or back is None else f"{title}: shirt to T-shirt {there:n}, back {back:n}."


def targeted_figure(artifacts: Artifacts, models: Models) -> Figure | None:
    """A figure of the success rates of targeted attacks (E13) from every class to every other: one matrix per model
    attacked.

    None if no model was.
    """
    every = {name: find_result(artifacts, f"E13/targeted/{name}", StoredTargets) for name in models}
    found = {name: each for name, each in every.items() if each is not None}
    if not found:
        return None
    drawing, axes = canvas(1, len(found), 4.9 * len(found), 5)
    rows: list[tuple[Any, ...]] = []
    for place, (name, each) in zip(axes[0], found.items(), strict=True):
        values = np.array([[np.nan if rate is None else 100 * rate.value for rate in row] for row in each.rates])
        place.imshow(values, cmap="Reds", vmin=0, vmax=100)
        place.grid(visible=False)
        place.set_xticks(range(len(each.classes)), each.classes, rotation=60, ha="right", fontsize=10)
        place.set_yticks(range(len(each.classes)), each.classes, fontsize=10)
        place.set_xlabel("made to look like", fontsize=11)
        place.set_title(models[name].title, fontsize=12)
        for i, row in enumerate(each.rates):
            for j, rate in enumerate(row):
                if rate is not None:
                    colour = palette.WHITE if rate.value > 0.6 else palette.BLACK
                    place.text(j, i, f"{100 * rate.value:.0f}", ha="center", va="center", fontsize=9, color=colour)
                    rows.append((name, each.classes[i], each.classes[j], rate.n, rate.value, rate.low, rate.high))
    axes[0, 0].set_ylabel("true class", fontsize=11)
    attack = next(iter(found.values())).attack
    pairs = [words for name, each in found.items() if (words := _confusable(models[name].title, each))]
    sizes = [row[3] for row in rows]
    attacked = f"n = {min(sizes)} to {max(sizes)} images of a class" if sizes else "no image attacked"
    return finished(
        drawing,
        "targeted",
        title="Targeted attacks from every class to every other",
        caption=f"Success of {attack['name']} towards each class, in % of the correctly classified test images, eps "
        f"{attack['eps']:g}, {attack['steps']} iterations, stable cross-entropy; {attacked}. " + " ".join(pairs),
        alt="; ".join(
            f"{models[name].title}: {percent(each.overall.value)} of all pairs succeed"
            if each.overall
            else f"{models[name].title}: no image was classified correctly, and none attacked"
            for name, each in found.items()
        )
        + ".",
        columns=("model", "true class", "target", "n", "value", "low", "high"),
        rows=rows,
    )
