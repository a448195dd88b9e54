"""The figures that show every model at once: accuracy under each attack, and what makes an attack misleading."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from casemate.losses import TITLES
from casemate.report import COLOURS, MARKERS, Figure, canvas, finished, legend_below, plain_ticks, shown
from casemate_study.experiments.models import EOT_DRAWS
from casemate_study.experiments.specs import LOSSES
from casemate_study.results import Artifacts, Estimate, ModelResults

Models = Mapping[str, ModelResults]
_EPS = 0.1


def _dots(axes: Axes, places: Sequence[int], estimates: Sequence[Estimate | None], **style: Any) -> None:
    """Estimates with their intervals as points on rows."""
    known = [(place, each) for place, each in zip(places, estimates, strict=True) if each is not None]
    if not known:
        return
    x = [100 * each["value"] for _, each in known]
    spread = [[100 * (e["value"] - e["low"]) for _, e in known], [100 * (e["high"] - e["value"]) for _, e in known]]
    axes.errorbar(x, [place for place, _ in known], xerr=spread, linestyle="none", elinewidth=1, **style)


def _sizes(estimates: Sequence[Estimate | None]) -> str:
    """The numbers of images that estimates rest on, in words."""
    return " or ".join(f"{size:,}" for size in sorted({int(each["n"]) for each in estimates if each is not None}))


def _rows_axis(axes: Axes, titles: Sequence[str]) -> None:
    axes.set_yticks(range(len(titles)), titles)
    axes.set_ylim(len(titles) - 0.5, -0.5)


def accuracies(models: Models) -> Figure | None:
    """Clean accuracy, and what FGSM, BIM and all attacks together leave at eps 0.1, for every model."""
    known = [each for each in models.values() if each.clean is not None]
    if len(known) < 2:
        return None
    drawing, axes = canvas(1, 1, 9, 1.4 + 0.3 * len(known))
    place = axes[0, 0]
    measures: list[tuple[str, list[Estimate | None], dict[str, Any]]] = [
        (
            "clean",
            [each.clean["accuracy"] if each.clean else None for each in known],
            {"color": "#000000", "marker": "o"},
        ),
        ("FGSM", [each.left("fgsm", _EPS) for each in known], {"color": "#E69F00", "marker": "s"}),
        ("BIM-10, clip ball", [each.left("ball", _EPS) for each in known], {"color": "#0072B2", "marker": "^"}),
        (
            f"worst case of all, PGD-40 with restarts among them (randomised: BIM over the mean of {EOT_DRAWS})",
            [each.worst(_EPS) for each in known],
            {"color": "#D55E00", "marker": "D"},
        ),
    ]
    for label, estimates, style in measures:
        _dots(place, range(len(known)), estimates, label=label, markersize=5, **style)
    _rows_axis(place, [each.title for each in known])
    place.set_xlim(-2, 102)
    place.set_xlabel("accuracy, %")
    drawing.legend(loc="outside lower center", ncols=2, fontsize=8.5)
    sizes = [
        f"{count} {where}"
        for where, (_, estimates, _) in zip(
            ("clean", "under FGSM", "under BIM", "in the worst case"), measures, strict=True
        )
        if (count := _sizes(estimates))
    ]
    words = "; ".join(
        f"{each.title}: clean {shown(each.clean['accuracy']['value'])}, worst case {shown(worst['value'])}"
        for each in known
        if each.clean and (worst := each.worst(_EPS))
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
            (each.title, label, e["n"], e["value"], e["low"], e["high"])
            for label, estimates, _ in measures
            for each, e in zip(known, estimates, strict=True)
            if e is not None
        ],
    )


def diagnosis(models: Models) -> Figure | None:
    """Top-1 logit gaps, images without gradients, and angles between gradients nearby, for every model."""
    known = [each for each in models.values() if each.clean is not None]
    results = [each.clean for each in known if each.clean is not None]
    if len(known) < 2:
        return None
    drawing, axes = canvas(1, 3, 12, 1.9 + 0.28 * len(known))
    places = range(len(known))
    gaps, zeros, angles = axes[0]
    for place, result in zip(places, results, strict=True):
        q = result["gap_quantiles"]
        gaps.plot([q["0.05"], q["0.95"]], [place, place], color="#0072B2", linewidth=1)
        gaps.plot([q["0.25"], q["0.75"]], [place, place], color="#0072B2", linewidth=5, solid_capstyle="butt")
        gaps.plot([q["0.5"]], [place], color="white", marker="|", markersize=7)
    gaps.axvline(17, color="#666666", linestyle=":", linewidth=1)
    gaps.set_xscale("symlog", linthresh=10)
    gaps.set_xlim(left=0)
    plain_ticks(gaps.xaxis, gaps.get_xlim()[1], (0, 5, 10, 30, 100, 300, 1000, 3000))
    gaps.set_title("gap between the\ntwo largest logits", fontsize=10)
    for loss in LOSSES:
        estimates = [result["zero_gradients"][loss] for result in results]
        _dots(zeros, places, estimates, color=COLOURS[loss], marker=MARKERS[loss], markersize=4.5, label=TITLES[loss])
    zeros.set_xlim(-2, 102)
    zeros.set_title("images with an exactly\nzero gradient, %", fontsize=10)
    legend_below(zeros)
    for radius, style in (("0.01", {"color": "#009E73", "marker": "o"}), ("0.1", {"color": "#CC79A7", "marker": "s"})):
        pairs = [(place, result["alignment"][radius]) for place, result in zip(places, results, strict=True)]
        shown_pairs = [(place, angle["value"]) for place, angle in pairs if angle]
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
                *(float(result["gap_quantiles"][q]) for q in ("0.05", "0.25", "0.5", "0.75", "0.95")),
                *(float(result["zero_gradients"][loss]["value"]) for loss in LOSSES),
                *((result["alignment"][radius] or {}).get("value", "") for radius in ("0.01", "0.1")),
                float(result["calibration_error"]),
            )
        )
    return finished(
        drawing,
        "diagnosis",
        title="Why attacks mislead: saturation, vanished gradients, gradient_misalignment gradients",
        caption="Left: quantiles 5, 25, 50, 75 and 95 % of the gap between the two largest logits; past about 17 "
        "(dotted) the float32 F.cross_entropy gradient of the true class is exactly zero. Middle: images whose "
        "gradient is exactly zero under each loss. Right: angle between the gradients at an image and at a random "
        f"point near it (Linf). n = {_sizes([result['accuracy'] for result in results])} on the left, "
        f"{_sizes([result['zero_gradients'][loss] for result in results for loss in LOSSES])} in the middle and, of "
        "these, those with a gradient on the right; bars in the middle: 95 % intervals.",
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


def _confusable(title: str, result: Mapping[str, Any]) -> str | None:
    """The pair that the paper asks for, in words: shirt to T-shirt, and back."""
    places = {name.lower(): number for number, name in enumerate(result["classes"])}
    if "shirt" not in places or "t-shirt/top" not in places:
        return None
    there, back = places["shirt"], places["t-shirt/top"]
    rates = [result["rates"][there][back], result["rates"][back][there]]
    if None in rates:
        return None
    words = [
        f"{shown(rate['value'])} ({shown(rate['low'])} to {shown(rate['high'])}, n = {rate['n']})" for rate in rates
    ]
    return f"{title}: shirt to T-shirt {words[0]}, back {words[1]}."


def targeted(artifacts: Artifacts, models: Models) -> Figure | None:
    """The matrices of targeted success rates."""
    found = {name: artifact for name in models if (artifact := artifacts.get(f"E13/targeted/{name}"))}
    if not found:
        return None
    drawing, axes = canvas(1, len(found), 4.9 * len(found), 5)
    rows: list[tuple[Any, ...]] = []
    for place, (name, artifact) in zip(axes[0], found.items(), strict=True):
        classes, rates = artifact.result["classes"], artifact.result["rates"]
        values = np.array([[np.nan if rate is None else 100 * rate["value"] for rate in row] for row in rates])
        place.imshow(values, cmap="Reds", vmin=0, vmax=100)
        place.grid(visible=False)
        place.set_xticks(range(len(classes)), classes, rotation=60, ha="right", fontsize=10)
        place.set_yticks(range(len(classes)), classes, fontsize=10)
        place.set_xlabel("made to look like", fontsize=11)
        place.set_title(models[name].title, fontsize=12)
        for i, row in enumerate(rates):
            for j, rate in enumerate(row):
                if rate is not None:
                    colour = "white" if rate["value"] > 0.6 else "black"
                    place.text(j, i, f"{100 * rate['value']:.0f}", ha="center", va="center", fontsize=9, color=colour)
                    rows.append((name, classes[i], classes[j], rate["n"], rate["value"], rate["low"], rate["high"]))
    axes[0, 0].set_ylabel("true class", fontsize=11)
    some = next(iter(found.values())).result
    pairs = [words for name, artifact in found.items() if (words := _confusable(models[name].title, artifact.result))]
    attack = some["attack"]
    sizes = [row[3] for row in rows]
    attacked = f"n = {min(sizes)} to {max(sizes)} images of a class" if sizes else "no image attacked"
    return finished(
        drawing,
        "targeted",
        title="Targeted attacks from every class to every other",
        caption=f"Success of {attack['name']} towards each class, in % of the correctly classified test images, eps "
        f"{attack['eps']:g}, {attack['steps']} iterations, stable cross-entropy; {attacked}. " + " ".join(pairs),
        alt="; ".join(
            f"{models[name].title}: {shown(artifact.result['overall']['value'])} of all pairs succeed"
            if artifact.result["overall"]
            else f"{models[name].title}: no image was classified correctly, and none attacked"
            for name, artifact in found.items()
        )
        + ".",
        columns=("model", "true class", "target", "n", "value", "low", "high"),
        rows=rows,
    )
