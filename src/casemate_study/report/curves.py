"""Figures of curves: training, accuracy and loss under attack, and zero gradients while a network trains."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from casemate.evaluation import Estimate, percent
from casemate.losses import TITLES
from casemate.report import COLOURS, MARKERS, PUBLISHED, Figure, canvas, estimate_line, finished, palette, percent_axis
from casemate_study.experiments import paper
from casemate_study.experiments.specs import LOSSES
from casemate_study.experiments.undefended import E3_CLIPPINGS, E4_EPS, E4_STEP_SIZES, e4_prefix
from casemate_study.results.stored import (
    Artifacts,
    CurvePoint,
    StoredCheckpoint,
    StoredCurve,
    StoredTraining,
    find_result,
)

MODEL_COLOURS: Mapping[str, str] = {
    "E1": palette.INK,
    "E5": palette.BLUE,
    "E6": palette.VERMILLION,
    "E7": palette.GREEN,
    "E8": palette.PURPLE,
    "E11": palette.ORANGE,
}
"""The colours of the models that several figures show, by name."""
Curves = Mapping[str, StoredCurve]
"""The curves of one attack, by the name of the loss that it ascends."""


def draw_estimates(axes: Axes, x: Sequence[float], estimates: Sequence[Estimate | None], **style: Any) -> None:
    """Draw a line through estimates at the positions `x`, with their 95 % intervals as a band; skip those that are
    None.
    """
    known = [(place, each) for place, each in zip(x, estimates, strict=True) if each is not None]
    if known:
        estimate_line(axes, [place for place, _ in known], [each for _, each in known], **style)


def curves_named(artifacts: Artifacts, start: str) -> dict[str, StoredCurve]:
    """The finished curves of the tasks called START/LOSS, such as "E2/fgsm/ce", by the name of the loss."""
    found = {loss: find_result(artifacts, f"{start}/{loss}", StoredCurve) for loss in LOSSES}
    return {loss: curve for loss, curve in found.items() if curve is not None}


def seed_of(artifacts: Artifacts, start: str) -> int:
    """The seed in the configuration of the first finished task whose name begins with `start`; one must exist."""
    return next(each.facts["config"]["seed"] for name, each in artifacts.items() if name.startswith(start))


def training_figure(artifacts: Artifacts) -> Figure | None:
    """A figure of the training of E1, the undefended network: loss and accuracy on training and validation images by
    epoch. None if it is not trained.
    """
    training = find_result(artifacts, "E1/train", StoredTraining)
    if training is None:
        return None
    history, best = training.history, training.best
    first, last, lowest = history[0], history[-1], min(history, key=lambda row: row.val_loss)
    epochs = [row.epoch for row in history]
    drawing, axes = canvas(1, 2, 9, 3.5)
    for place, lines, factor, label in (
        (axes[0, 0], [(row.loss, row.val_loss) for row in history], 1, "mean cross-entropy"),
        (axes[0, 1], [(row.accuracy, row.val_accuracy) for row in history], 100, "accuracy, %"),
    ):
        place.plot(epochs, [factor * seen for seen, _ in lines], color=palette.BLUE, label="training (with dropout)")
        place.plot(epochs, [factor * held_out for _, held_out in lines], color=palette.VERMILLION, label="validation")
        place.axvline(best.epoch, color=palette.SOFT, linestyle=":", linewidth=1, label="epoch whose weights E11 keeps")
        place.set_xlabel("epoch")
        place.set_ylabel(label)
    drawing.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return finished(
        drawing,
        "training",
        title="Training of E1",
        caption=f"{training.train_images:,} training and {training.validation_images:,} validation images. Early "
        f"stopping keeps the weights of epoch {best.epoch}, with a validation loss of {best.val_loss:.3f}; the lowest "
        f"of all is that of epoch {lowest.epoch} ({lowest.val_loss:.3f}). At the end it is {last.val_loss:.3f}, while "
        f"the training loss went on to {last.loss:.3f}.",
        alt=f"Training loss falls from {first.loss:.2f} to {last.loss:.3f}; validation loss is lowest, "
        f"{lowest.val_loss:.3f}, at epoch {lowest.epoch} and {last.val_loss:.3f} at the end.",
        columns=(
            *("epoch", "learning rate", "loss", "accuracy", "val loss", "val accuracy"),
            *("seconds", "processor seconds"),
        ),
        rows=[astuple(row) for row in history],
    )


def _numbers(*estimates: Estimate | None) -> list[float | str]:
    """Three cells for each estimate: its value and both ends of its interval; three empty ones if it is None."""
    return [cell for e in estimates for cell in (("", "", "") if e is None else (e.value, e.low, e.high))]


def curve_rows(name: str, loss: str, points: Sequence[CurvePoint]) -> list[tuple[Any, ...]]:
    """The points of a curve as rows for a figure's CSV file, with the columns `CURVE_COLUMNS`.

    `name` is the model or setting, `loss` the loss that the attack ascends.
    """
    return [
        (name, TITLES[loss], point.at, point.last.n, *_numbers(point.last, point.worst, point.loss)) for point in points
    ]


_ACROSS = 4
"""Panels side by side, at most, in the figure of E1 after several numbers of epochs."""
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


def _draw_pair(loss_axes: Axes, accuracy_axes: Axes, curves: Curves, label: str) -> None:
    """Draw one attack's curves into two panels, one line per loss ascended: the mean loss in one, the accuracy in the
    other.

    Accuracy at the last iterate is solid, that over all iterates (`worst`) thin and dashed; `label` names
    the x axis.
    """
    for loss, curve in curves.items():
        x = [point.at for point in curve.points]
        style = {"color": COLOURS[loss], "marker": MARKERS[loss], "markersize": 4, "linewidth": 1.4}
        zero = f"{TITLES[loss]} (zero gradient: {percent(curve.zero_gradients.value)})"
        draw_estimates(loss_axes, x, [point.loss for point in curve.points], percent=False, label=zero, **style)
        lasts, worsts = ([point.last for point in curve.points], [point.worst for point in curve.points])
        draw_estimates(accuracy_axes, x, lasts, percent=True, label=TITLES[loss], **style)
        thin = {"color": COLOURS[loss], "linewidth": 0.9, "linestyle": "--"}
        draw_estimates(accuracy_axes, x, worsts, percent=True, band=False, **thin)
    accuracy_axes.plot([], [], color=palette.SOFT, linewidth=0.9, linestyle="--", label="worst case")
    for place in (loss_axes, accuracy_axes):
        place.set_xlabel(label)
        place.xaxis.set_major_locator(MaxNLocator(5))
    loss_axes.set_ylabel("mean cross-entropy")
    loss_axes.legend(fontsize=7.5)
    percent_axis(accuracy_axes)


def _mark(axes: Axes, at: Sequence[float], statements: Sequence[paper.Statement]) -> None:
    axes.plot(at, [100 * statement.value for statement in statements], label="the paper", **PUBLISHED)
    axes.legend(fontsize=7.5)


def _at(curve: StoredCurve, value: float) -> str:
    """Text with the accuracy at the last iterate at this eps or number of iterations; "not computed" if it was not."""
    point = curve.at(value)
    return "not computed" if point is None else percent(point.last.value)


def _lines_caption(curves: Curves, seed: int) -> str:
    n = next(iter(curves.values())).n
    return (
        f"n = {n:,} test images, seed {seed}; bands: 95 % intervals. One line per loss that the attack ascends; zero "
        "gradient: share of images where it has none to follow and changes nothing. Solid: the raw last iterate on all "
        "images, as the paper and other tools report it. Dashed: the worst case, fooled at any iterate."
    )


def fgsm_figure(artifacts: Artifacts) -> Figure | None:
    """The paper's figure 12: accuracy and loss of E1, the undefended network, under FGSM over eps. None if nothing is
    finished.
    """
    curves = curves_named(artifacts, "E2/fgsm")
    if not curves:
        return None
    drawing, axes = canvas(1, 2, 9.5, 3.8)
    _draw_pair(axes[0, 0], axes[0, 1], curves, "eps")
    _mark(axes[0, 1], [0.0, 0.1], [paper.TEST_ACCURACY, paper.FGSM_AT_01])
    words = ", ".join(f"{_at(curve, 0.1)} ascending {TITLES[loss]}" for loss, curve in curves.items())
    return finished(
        drawing,
        "figure-12",
        title="The original model under FGSM",
        caption="Mean loss (left) and accuracy (right) against eps. "
        + _lines_caption(curves, seed_of(artifacts, "E2/")),
        alt=f"Accuracy under FGSM at eps 0.1: {words}. The paper states {percent(paper.FGSM_AT_01.value)}.",
        columns=CURVE_COLUMNS,
        rows=[row for loss, curve in curves.items() for row in curve_rows("E1", loss, curve.points)],
    )


def _panels(settings: Mapping[str, tuple[str, Curves]], label: str) -> tuple[Any, Any, list[tuple[Any, ...]]]:
    """Draw two panels for each setting, in one row of the figure under the setting's title: mean loss, and accuracy.

    `settings` are title and curves by name, `label` names the x axis. Returns the drawing, its axes, and all points as
    rows for the CSV file.
    """
    drawing, axes = canvas(len(settings), 2, 9.5, 3.6 * len(settings))
    for (title, curves), pair in zip(settings.values(), axes, strict=True):
        _draw_pair(pair[0], pair[1], curves, label)
        pair[0].set_title(title)
        pair[1].set_title(title)
    rows = [
        row
        for title, curves in settings.values()
        for loss, curve in curves.items()
        for row in curve_rows(title, loss, curve.points)
    ]
    return drawing, axes, rows


def _accuracies(settings: Mapping[str, tuple[str, Curves]], value: float) -> str:
    """Text with the accuracies at one eps or number of iterations, in every setting and for every loss ascended."""
    return "; ".join(
        f"{name}: " + ", ".join(f"{_at(curve, value)} ({TITLES[loss]})" for loss, curve in curves.items())
        for name, (_, curves) in settings.items()
    )


def bim_figure(artifacts: Artifacts) -> Figure | None:
    """The paper's figure 13: E1, the undefended network, under BIM over eps, with both clippings. None if nothing is
    finished.
    """
    settings = {
        f"clip {name}": (f"clip {clip['clip']}, {clip['steps']} iterations", curves)
        for name, clip in E3_CLIPPINGS.items()
        if (curves := curves_named(artifacts, f"E3/{name}"))
    }
    if not settings:
        return None
    drawing, _, rows = _panels(settings, "eps")
    _, some = next(iter(settings.values()))
    return finished(
        drawing,
        "figure-13",
        title="The original model under BIM, clip ball and clip range",
        caption="Iterations of eps / 4. Clip ball stays within eps of the image (eq. 2); clip range only keeps the "
        "pixels in [0, 1], so it reaches a quarter of eps times the number of iterations. The paper states no numbers "
        f"for this figure, only that ball is more effective. {_lines_caption(some, seed_of(artifacts, 'E3/'))}",
        alt=f"Accuracy under BIM at eps 0.05. {_accuracies(settings, 0.05)}.",
        columns=CURVE_COLUMNS,
        rows=rows,
    )


def iterations_figure(artifacts: Artifacts) -> Figure | None:
    """The paper's figure 14: E1, the undefended network, under BIM against the number of iterations, one row of panels
    per step size. None if nothing is finished.
    """
    settings = {
        f"step {size}": (f"step {size}", curves)
        for size in E4_STEP_SIZES
        if (curves := curves_named(artifacts, e4_prefix(size)))
    }
    if not settings:
        return None
    drawing, axes, rows = _panels(settings, "iterations")
    for place in axes[:, 1]:
        _mark(place, [25], [paper.BIM_AT_25])
    _, some = next(iter(settings.values()))
    return finished(
        drawing,
        "figure-14",
        title="The original model under BIM, number of iterations",
        caption=f"Clip ball, eps {E4_EPS}. {_lines_caption(some, seed_of(artifacts, 'E4/'))}",
        alt=f"Accuracy after 25 iterations. {_accuracies(settings, 25)}. The paper states "
        f"{percent(paper.BIM_AT_25.value)}.",
        columns=CURVE_COLUMNS,
        rows=rows,
    )


def overfitting_figure(artifacts: Artifacts) -> Figure | None:
    """The paper's figure 17: E1, trained to the end, and E11, stopped early, under FGSM; one column per
    loss ascended.

    None if no loss has both curves.
    """
    over, stopped = curves_named(artifacts, "E2/fgsm"), curves_named(artifacts, "E11/fgsm")
    shared = [loss for loss in over if loss in stopped]
    if not shared:
        return None
    drawing, axes = canvas(2, len(shared), 3.3 * len(shared), 6)
    rows = []
    for column, loss in enumerate(shared):
        for curve, colour, words in (
            (over[loss], MODEL_COLOURS["E1"], "E1, over-fitted"),
            (stopped[loss], MODEL_COLOURS["E11"], "E11, early-stopped"),
        ):
            x = [point.at for point in curve.points]
            label = f"{words}\n(zero gradient: {percent(curve.zero_gradients.value)})"
            style = {"color": colour, "marker": MARKERS[loss], "markersize": 4, "linewidth": 1.4}
            draw_estimates(axes[0, column], x, [p.loss for p in curve.points], percent=False, label=label, **style)
            draw_estimates(axes[1, column], x, [p.last for p in curve.points], percent=True, label=words, **style)
            rows += curve_rows(words, loss, curve.points)
        axes[0, column].set_title(TITLES[loss])
        axes[0, column].set_ylabel("mean cross-entropy")
        axes[0, column].legend(fontsize=7)
        percent_axis(axes[1, column])
        axes[1, column].set_xlabel("eps")
    words = "; ".join(f"{TITLES[loss]}: E1 {_at(over[loss], 0.1)}, E11 {_at(stopped[loss], 0.1)}" for loss in shared)
    return finished(
        drawing,
        "figure-17",
        title="Over-fitted and non-over-fitted model under FGSM",
        caption="Mean loss (top) and accuracy at the last iterate (bottom), one column per loss ascended. The paper "
        f"states no numbers, only that the early-stopped model does clearly better. n = {over[shared[0]].n:,} for E1, "
        f"{stopped[shared[0]].n:,} for E11; bands: 95 % intervals.",
        alt=f"Accuracy under FGSM at eps 0.1. {words}.",
        columns=CURVE_COLUMNS,
        rows=rows,
    )


def checkpoints_figure(artifacts: Artifacts) -> Figure | None:
    """A figure of E1, the undefended network, after several numbers of epochs: accuracy under FGSM and BIM, and the
    share of images whose gradient is exactly zero, one line per loss. None if nothing is finished.
    """
    names = sorted(name for name in artifacts if name.startswith("E1/epoch-"))
    results = [each for name in names if (each := find_result(artifacts, name, StoredCheckpoint))]
    if not results:
        return None
    epochs = [int(name.rsplit("-", 1)[1]) for name in names]
    attacks = list(results[0].attacks)
    columns = min(_ACROSS, len(attacks) + 1)
    lines = -(-(len(attacks) + 1) // columns)
    drawing, axes = canvas(lines, columns, 3.3 * columns, 3.4 * lines)
    rows = []
    for place in axes.flat[len(attacks) + 1 :]:
        place.set_axis_off()
    for place, attack in zip(axes.flat, [*attacks, None], strict=False):
        words = attack or "exactly zero gradient"
        for loss in LOSSES:
            found = [each.attacks[attack][loss].last if attack else each.zero_gradients[loss] for each in results]
            style = {"color": COLOURS[loss], "marker": MARKERS[loss], "markersize": 4, "linewidth": 1.4}
            draw_estimates(place, epochs, found, percent=True, label=TITLES[loss], **style)
            rows += [
                (epoch, words, TITLES[loss], each.n, *_numbers(each)) for epoch, each in zip(epochs, found, strict=True)
            ]
        place.set_title(words if attack is None else ", eps ".join(attack.rsplit(" ", 1)))
        place.set_xlabel("epochs trained")
        percent_axis(place)
    axes[0, 0].legend()
    axes.flat[len(attacks)].set_ylabel("share of images, %")
    last = results[-1].zero_gradients
    return finished(
        drawing,
        "masking",
        title="Apparent robustness and vanished gradients while E1 trains",
        caption=f"The same network after more and more epochs, n = {last['ce'].n:,}; bands: 95 % intervals. One line "
        "per loss that the attack ascends, last iterates. BIM: 10 iterations of 0.01, or of 1/255 where their number "
        "is given; with clip range 10 of a quarter of eps. Where a loss has no gradient, the attack does not move: "
        "accuracy that comes from there is not robustness.",
        alt=f"After {epochs[-1]} epochs the gradient is exactly zero for "
        + ", ".join(f"{percent(last[loss].value)} of the images under {TITLES[loss]}" for loss in LOSSES)
        + ".",
        columns=("epoch", "measure", "loss ascended", "n", "value", "low", "high"),
        rows=rows,
    )
