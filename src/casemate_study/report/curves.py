"""The figures that are curves: training, accuracy and loss under attack, zero gradients while a network trains."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from casemate.engine import Artifact
from casemate.losses import TITLES
from casemate.report import (
    COLOURS,
    MARKERS,
    PAPER,
    Figure,
    canvas,
    estimate_line,
    finished,
    percent_axis,
    shown,
)
from casemate_study.experiments import paper
from casemate_study.experiments.specs import LOSSES
from casemate_study.experiments.undefended import E3_CLIPPINGS, E4_EPS, E4_STEP_SIZES, e4_prefix
from casemate_study.results import point_at

Artifacts = Mapping[str, Artifact]
Points = list[dict[str, Any]]


def _with_zero(loss: str, artifact: Artifact) -> str:
    """A loss in the legend, with the share of images that have no gradient at all under it."""
    return f"{TITLES[loss]} (zero gradient: {shown(artifact.result['zero_gradients']['value'])})"


def training(artifacts: Artifacts) -> Figure | None:
    """Loss and accuracy of E1 over its epochs, training against validation."""
    artifact = artifacts.get("E1/train")
    if artifact is None:
        return None
    history = artifact.result["history"]
    epochs = [row["epoch"] for row in history]
    drawing, axes = canvas(1, 2, 9, 3.3)
    for place, name in zip(axes[0], ("loss", "accuracy"), strict=True):
        factor = 100 if name == "accuracy" else 1
        place.plot(epochs, [factor * row[name] for row in history], color="#0072B2", label="training (with dropout)")
        place.plot(epochs, [factor * row[f"val_{name}"] for row in history], color="#D55E00", label="validation")
        place.axvline(
            artifact.result["best_epoch"],
            color="#666666",
            linestyle=":",
            linewidth=1,
            label="epoch whose weights E11 keeps",
        )
        place.set_xlabel("epoch")
        place.set_ylabel("accuracy, %" if factor == 100 else "mean cross-entropy")
        place.legend()
    last, best = history[-1], history[artifact.result["best_epoch"] - 1]
    return finished(
        drawing,
        "training",
        title="Training of E1",
        caption=f"{artifact.result['train_images']:,} training and {artifact.result['validation_images']:,} validation "
        f"images. Lowest validation loss after epoch {best['epoch']} ({best['val_loss']:.3f}); at the end "
        f"{last['val_loss']:.3f}, while the training loss went on to {last['loss']:.3f}.",
        alt=f"Training loss falls from {history[0]['loss']:.2f} to {last['loss']:.3f}; validation loss is lowest, "
        f"{best['val_loss']:.3f}, at epoch {best['epoch']} and {last['val_loss']:.3f} at the end.",
        columns=("epoch", "learning rate", "loss", "accuracy", "val loss", "val accuracy", "seconds"),
        rows=[
            tuple(row[k] for k in ("epoch", "learning_rate", "loss", "accuracy", "val_loss", "val_accuracy", "seconds"))
            for row in history
        ],
    )


def curve_rows(name: str, loss: str, axis: str, points: Points) -> list[tuple[Any, ...]]:
    """The points of a curve as rows under `CURVE_COLUMNS`."""
    return [
        (
            name,
            TITLES[loss],
            point[axis],
            point["last"]["n"],
            *(point["last"][k] for k in ("value", "low", "high")),
            *(point["worst"][k] for k in ("value", "low", "high")),
            *((point["loss"] or {}).get(k, "") for k in ("value", "low", "high")),
        )
        for point in points
    ]


CURVE_COLUMNS = (
    "model or setting",
    "loss ascended",
    "eps or iterations",
    "n",
    "accuracy (last)",
    "low",
    "high",
    "accuracy (worst)",
    "low",
    "high",
    "mean cross-entropy (last)",
    "low",
    "high",
)


def _draw_pair(loss_axes: Axes, accuracy_axes: Axes, curves: Mapping[str, Artifact], axis: str, label: str) -> None:
    """One attack under several losses: mean loss in one panel, accuracy in the other (`worst` thin and dashed)."""
    for loss, artifact in curves.items():
        points: Points = artifact.result["points"]
        x = [point[axis] for point in points]
        style = {"color": COLOURS[loss], "marker": MARKERS[loss], "markersize": 4, "linewidth": 1.4}
        losses = [point["loss"] for point in points]
        estimate_line(loss_axes, x, losses, percent=False, label=_with_zero(loss, artifact), **style)
        lasts, worsts = [point["last"] for point in points], [point["worst"] for point in points]
        estimate_line(accuracy_axes, x, lasts, percent=True, label=TITLES[loss], **style)
        estimate_line(
            accuracy_axes, x, worsts, percent=True, band=False, color=COLOURS[loss], linewidth=0.9, linestyle="--"
        )
    for place in (loss_axes, accuracy_axes):
        place.set_xlabel(label)
    loss_axes.set_ylabel("mean cross-entropy")
    loss_axes.legend(fontsize=7.5)
    percent_axis(accuracy_axes)


def _mark(axes: Axes, at: Sequence[float], statements: Sequence[paper.Statement]) -> None:
    axes.plot(at, [100 * statement.value for statement in statements], label="the paper", **PAPER)
    axes.legend(fontsize=7.5)


def _at(artifact: Artifact, axis: str, value: float) -> str:
    """Accuracy of the last iterate there, in words."""
    point = point_at(artifact, axis, value)
    return "not computed" if point is None else shown(point["last"]["value"])


def _lines_caption(artifacts: Mapping[str, Artifact]) -> str:
    first = next(iter(artifacts.values()))
    n = first.result["points"][0]["last"]["n"]
    return (
        f"n = {n:,} test images, seed {first.facts['config']['seed']}; bands: 95 % intervals. One line per loss that "
        "the attack ascends; zero gradient: images where it has none to follow and changes nothing. Solid: the raw "
        "last iterate on all images, as the paper and other tools report it. Dashed: the worst case, fooled at any "
        "iterate."
    )


def fgsm(artifacts: Artifacts) -> Figure | None:
    """Figure 12: E1 under FGSM."""
    curves = {loss: artifacts[f"E2/fgsm/{loss}"] for loss in LOSSES if f"E2/fgsm/{loss}" in artifacts}
    if not curves:
        return None
    drawing, axes = canvas(1, 2, 9.5, 3.8)
    _draw_pair(axes[0, 0], axes[0, 1], curves, "eps", "eps")
    _mark(axes[0, 1], [0.0, 0.1], [paper.TEST_ACCURACY, paper.FGSM_AT_01])
    words = ", ".join(f"{_at(p, 'eps', 0.1)} ascending {TITLES[loss]}" for loss, p in curves.items())
    return finished(
        drawing,
        "figure-12",
        title="The original model under FGSM",
        caption="Mean loss (left) and accuracy (right) against eps. " + _lines_caption(curves),
        alt=f"Accuracy under FGSM at eps 0.1: {words}. The paper states {shown(paper.FGSM_AT_01.value)}.",
        columns=CURVE_COLUMNS,
        rows=[row for loss, p in curves.items() for row in curve_rows("E1", loss, "eps", p.result["points"])],
    )


def bim(artifacts: Artifacts) -> Figure | None:
    """Figure 13: E1 under BIM with both clippings."""
    curves = {
        clip: {loss: artifacts[f"E3/{clip}/{loss}"] for loss in LOSSES if f"E3/{clip}/{loss}" in artifacts}
        for clip in E3_CLIPPINGS
    }
    curves = {clip: found for clip, found in curves.items() if found}
    if not curves:
        return None
    drawing, axes = canvas(len(curves), 2, 9.5, 3.6 * len(curves))
    rows = []
    for row, (clip, found) in enumerate(curves.items()):
        _draw_pair(axes[row, 0], axes[row, 1], found, "eps", "eps")
        setting = E3_CLIPPINGS[clip]
        title = f"clip {setting['clip']}, {setting['steps']} iterations"
        axes[row, 0].set_title(title)
        axes[row, 1].set_title(title)
        rows += [each for loss, p in found.items() for each in curve_rows(title, loss, "eps", p.result["points"])]
    words = "; ".join(
        f"clip {clip}: " + ", ".join(f"{_at(p, 'eps', 0.05)} ({TITLES[loss]})" for loss, p in found.items())
        for clip, found in curves.items()
    )
    some = next(iter(curves.values()))
    return finished(
        drawing,
        "figure-13",
        title="The original model under BIM, clip ball and clip range",
        caption="Iterations of eps / 4. Clip ball stays within eps of the image (eq. 2); clip range only keeps the "
        "pixels in [0, 1], so it reaches a quarter of eps times the number of iterations. The paper states no numbers "
        "for this figure, only that ball is more effective. " + _lines_caption(some),
        alt=f"Accuracy under BIM at eps 0.05. {words}.",
        columns=CURVE_COLUMNS,
        rows=rows,
    )


def iterations(artifacts: Artifacts) -> Figure | None:
    """Figure 14: E1 under BIM against the number of iterations."""
    curves = {}
    for size in E4_STEP_SIZES:
        prefix = e4_prefix(size)
        found = {loss: artifacts[f"{prefix}/{loss}"] for loss in LOSSES if f"{prefix}/{loss}" in artifacts}
        if found:
            curves[size] = found
    if not curves:
        return None
    drawing, axes = canvas(len(curves), 2, 9.5, 3.6 * len(curves))
    rows = []
    for row, (size, found) in enumerate(curves.items()):
        _draw_pair(axes[row, 0], axes[row, 1], found, "steps", "iterations")
        axes[row, 0].set_title(f"step {size}")
        axes[row, 1].set_title(f"step {size}")
        _mark(axes[row, 1], [25], [paper.BIM_AT_25])
        rows += [
            each for loss, p in found.items() for each in curve_rows(f"step {size}", loss, "steps", p.result["points"])
        ]
    words = "; ".join(
        f"step {size}: " + ", ".join(f"{_at(p, 'steps', 25)} ({TITLES[loss]})" for loss, p in found.items())
        for size, found in curves.items()
    )
    return finished(
        drawing,
        "figure-14",
        title="The original model under BIM, number of iterations",
        caption=f"Clip ball, eps {E4_EPS}. " + _lines_caption(next(iter(curves.values()))),
        alt=f"Accuracy after 25 iterations. {words}. The paper states {shown(paper.BIM_AT_25.value)}.",
        columns=CURVE_COLUMNS,
        rows=rows,
    )


def overfitted(artifacts: Artifacts) -> Figure | None:
    """Figure 17: the over-fitted E1 against the early-stopped E11 under FGSM, one column per loss."""
    shared = [loss for loss in LOSSES if f"E2/fgsm/{loss}" in artifacts and f"E11/fgsm/{loss}" in artifacts]
    if not shared:
        return None
    drawing, axes = canvas(2, len(shared), 3.3 * len(shared), 6)
    rows = []
    for column, loss in enumerate(shared):
        for experiment, colour, words in (
            ("E2", "#D55E00", "E1, over-fitted"),
            ("E11", "#0072B2", "E11, early-stopped"),
        ):
            artifact = artifacts[f"{experiment}/fgsm/{loss}"]
            points: Points = artifact.result["points"]
            x = [point["eps"] for point in points]
            label = f"{words}\n(zero gradient: {shown(artifact.result['zero_gradients']['value'])})"
            style = {"color": colour, "marker": MARKERS[loss], "markersize": 4, "linewidth": 1.4}
            estimate_line(axes[0, column], x, [p["loss"] for p in points], percent=False, label=label, **style)
            estimate_line(axes[1, column], x, [p["last"] for p in points], percent=True, label=words, **style)
            rows += curve_rows(words, loss, "eps", points)
        axes[0, column].set_title(TITLES[loss])
        axes[0, column].set_ylabel("mean cross-entropy")
        axes[0, column].legend(fontsize=7)
        percent_axis(axes[1, column])
        axes[1, column].set_xlabel("eps")
    words = "; ".join(
        f"{TITLES[loss]}: E1 {_at(artifacts[f'E2/fgsm/{loss}'], 'eps', 0.1)}, "
        f"E11 {_at(artifacts[f'E11/fgsm/{loss}'], 'eps', 0.1)}"
        for loss in shared
    )
    first = {loss: artifacts[f"E11/fgsm/{loss}"] for loss in shared}
    return finished(
        drawing,
        "figure-17",
        title="Over-fitted and non-over-fitted model under FGSM",
        caption="Mean loss (top) and accuracy of the last iterate (bottom), one column per loss ascended. The paper "
        "states no numbers, only that the early-stopped model does clearly better. n = "
        f"{next(iter(first.values())).result['points'][0]['last']['n']:,}; bands: 95 % intervals.",
        alt=f"Accuracy under FGSM at eps 0.1. {words}.",
        columns=CURVE_COLUMNS,
        rows=rows,
    )


def masking(artifacts: Artifacts) -> Figure | None:
    """How FGSM, BIM and the share of zero gradients change while E1 trains on."""
    found = {name: artifact for name, artifact in sorted(artifacts.items()) if name.startswith("E1/epoch-")}
    if not found:
        return None
    epochs = [int(name.rsplit("-", 1)[1]) for name in found]
    results = [artifact.result for artifact in found.values()]
    attacks = list(results[0]["attacks"])
    drawing, axes = canvas(1, len(attacks) + 1, 3.3 * (len(attacks) + 1), 3.4)
    rows = []
    for place, attack in zip(axes[0], attacks, strict=False):
        for loss in LOSSES:
            estimates = [result["attacks"][attack][loss]["last"] for result in results]
            style = {"color": COLOURS[loss], "marker": MARKERS[loss], "markersize": 4, "linewidth": 1.4}
            estimate_line(place, epochs, estimates, percent=True, label=TITLES[loss], **style)
            rows += [
                (epoch, attack, TITLES[loss], e["n"], e["value"], e["low"], e["high"])
                for epoch, e in zip(epochs, estimates, strict=True)
            ]
        place.set_title(f"{attack.split()[0]}, eps {attack.split()[1]}")
        place.set_xlabel("epochs trained")
        percent_axis(place)
    axes[0, 0].legend()
    place = axes[0, -1]
    for loss in LOSSES:
        estimates = [result["zero_gradients"][loss] for result in results]
        style = {"color": COLOURS[loss], "marker": MARKERS[loss], "markersize": 4, "linewidth": 1.4}
        estimate_line(place, epochs, estimates, percent=True, label=TITLES[loss], **style)
        rows += [
            (epoch, "exactly zero gradient", TITLES[loss], e["n"], e["value"], e["low"], e["high"])
            for epoch, e in zip(epochs, estimates, strict=True)
        ]
    place.set_title("exactly zero gradient")
    place.set_xlabel("epochs trained")
    percent_axis(place)
    place.set_ylabel("share of images, %")
    last = results[-1]["zero_gradients"]
    n = results[-1]["zero_gradients"]["ce"]["n"]
    return finished(
        drawing,
        "masking",
        title="Apparent robustness and vanished gradients while E1 trains",
        caption=f"The same network after more and more epochs, n = {n:,}; bands: 95 % intervals. One line per loss "
        "that the attack ascends. BIM: 10 iterations of 0.01, last iterate. "
        "Where a loss has no gradient, the attack does not move: accuracy that comes from there is not robustness.",
        alt=f"After {epochs[-1]} epochs the gradient is exactly zero for "
        + ", ".join(f"{shown(last[loss]['value'])} of the images under {TITLES[loss]}" for loss in LOSSES)
        + ".",
        columns=("epoch", "measure", "loss ascended", "n", "value", "low", "high"),
        rows=rows,
    )
