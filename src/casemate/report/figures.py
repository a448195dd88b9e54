"""The study's figures, each from stored pieces alone. A function returns None while its pieces are not there yet."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from torch import nn

from casemate.engine import Piece
from casemate.losses import TITLES
from casemate.models import create
from casemate.report.charts import (
    COLOURS,
    MARKERS,
    PAPER,
    Figure,
    canvas,
    estimate_line,
    percent_axis,
    picture,
    render,
    shown,
    styled,
)
from casemate.study import paper
from casemate.study.experiments import E4_EPS, E4_STEP_SIZES, LOSSES

Pieces = Mapping[str, Piece]
Points = list[dict[str, Any]]


def _figure(drawing: Any, name: str, **words: Any) -> Figure:
    svg, png = render(drawing, name)
    return Figure(name=name, svg=svg, png=png, **words)


def _with_zero(loss: str, piece: Piece) -> str:
    """A loss in the legend, with the share of images that have no gradient at all under it."""
    return f"{TITLES[loss]} (zero gradient: {shown(piece.result['zero_gradients']['value'])})"


def samples(pieces: Pieces) -> Figure | None:
    """Figure 6: the first images of every class."""
    piece = pieces.get("data/samples")
    if piece is None:
        return None
    rows = safetensors.numpy.load_file(piece.path("images.safetensors"))["samples"]
    classes = piece.result["classes"]
    drawing, axes = canvas(len(classes), 1, 8, 0.62 * len(classes))
    for place, name, images in zip(axes[:, 0], classes, rows, strict=True):
        place.imshow(np.concatenate(list(images), axis=1), cmap="gray_r", vmin=0, vmax=255)
        place.set_yticks([]), place.set_xticks([])
        place.grid(visible=False)
        for side in place.spines.values():
            side.set_visible(False)
        place.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    return _figure(
        drawing,
        "figure-06",
        title="Sample images of every class",
        caption=f"The first {rows.shape[1]} training images of each class, shown dark on light.",
        alt=f"Sample images of the {len(classes)} classes: {', '.join(classes)}.",
        columns=("class", "images shown"),
        rows=[(name, rows.shape[1]) for name in classes],
    )


def _layers(network: nn.Module, shape: tuple[int, int, int]) -> list[tuple[str, str, int]]:
    """Name, output shape and parameters of each layer, from a pass of one empty image."""
    found: list[tuple[str, str, int]] = []

    def note(layer: nn.Module, _: Any, output: torch.Tensor) -> None:
        words = {
            nn.Conv2d: lambda m: f"Conv {m.out_channels}, 3x3, same",
            nn.Linear: lambda m: f"Dense {m.out_features}",
            nn.MaxPool2d: lambda m: "MaxPool 2x2",
            nn.Dropout: lambda m: f"Dropout {m.p:g}",
            nn.BatchNorm2d: lambda m: "BatchNorm",
            nn.BatchNorm1d: lambda m: "BatchNorm",
        }
        name = words.get(type(layer), lambda m: type(m).__name__)(layer)
        size = " x ".join(str(n) for n in output.shape[1:])
        found.append((name, size, sum(p.numel() for p in layer.parameters())))

    hooks = [layer.register_forward_hook(note) for layer in network.children()]
    with torch.no_grad():
        network.eval()(torch.zeros(1, *shape))
    for hook in hooks:
        hook.remove()
    return found


def architecture(pieces: Pieces) -> Figure | None:
    """Figure 7: the network, layer by layer, read off the network itself."""
    piece = pieces.get("data/samples")
    if piece is None:
        return None
    model = create("paper-cnn", input_shape=(1, 28, 28), classes=tuple(piece.result["classes"]))
    layers = [("Input", "1 x 28 x 28", 0), *_layers(model.network, (1, 28, 28))]
    colours = {
        "Conv": "#cfe3f3",
        "Dense": "#f7dcc4",
        "MaxPool": "#d5ecd9",
        "Dropout": "#eeeeee",
        "BatchNorm": "#efe3f3",
    }
    per_row = 7
    lines = -(-len(layers) // per_row)
    drawing, axes = canvas(1, 1, 9, 1.15 * lines + 0.2)
    place = axes[0, 0]
    place.set_axis_off()
    place.set_xlim(0, per_row)
    place.set_ylim(-lines, 0.05)
    for number, (name, size, _) in enumerate(layers):
        row, column = divmod(number, per_row)
        colour = next((c for start, c in colours.items() if name.startswith(start)), "white")
        box = FancyBboxPatch(
            (column + 0.06, -row - 0.86), 0.8, 0.72, boxstyle="round,pad=0.02", facecolor=colour, edgecolor="#666666"
        )
        place.add_patch(box)
        place.text(column + 0.46, -row - 0.4, name.replace(", ", "\n", 1), ha="center", va="center", fontsize=8)
        place.text(column + 0.46, -row - 0.74, size, ha="center", va="center", fontsize=7, color="#444444")
        if column < per_row - 1 and number < len(layers) - 1:
            place.annotate(
                "", (column + 1.05, -row - 0.5), (column + 0.88, -row - 0.5), arrowprops={"arrowstyle": "->", "lw": 0.8}
            )
    total = sum(count for _, _, count in layers)
    return _figure(
        drawing,
        "figure-07",
        title="Model architecture (appendix A)",
        caption=f"{total:,} trainable parameters. Under each layer the shape of its output. Pooling stands before ReLU: "
        "the two commute, value and gradient are those of the paper's order. Logits out; softmax belongs to the loss.",
        alt="The layers in order: " + "; ".join(f"{name} giving {size}" for name, size, _ in layers) + ".",
        columns=("layer", "output", "trainable parameters"),
        rows=list(layers),
    )


def training(pieces: Pieces) -> Figure | None:
    """Loss and accuracy of E1 over its epochs, training against validation."""
    piece = pieces.get("E1/train")
    if piece is None:
        return None
    history = piece.result["history"]
    epochs = [row["epoch"] for row in history]
    drawing, axes = canvas(1, 2, 9, 3.3)
    for place, name in zip(axes[0], ("loss", "accuracy"), strict=True):
        factor = 100 if name == "accuracy" else 1
        place.plot(epochs, [factor * row[name] for row in history], color="#0072B2", label="training (with dropout)")
        place.plot(epochs, [factor * row[f"val_{name}"] for row in history], color="#D55E00", label="validation")
        place.axvline(piece.result["best_epoch"], color="#666666", linestyle=":", linewidth=1, label="E11 stops here")
        place.set_xlabel("epoch")
        place.set_ylabel("accuracy, %" if factor == 100 else "mean cross-entropy")
        place.legend()
    last, best = history[-1], history[piece.result["best_epoch"] - 1]
    return _figure(
        drawing,
        "training",
        title="Training of E1",
        caption=f"{piece.result['train_images']:,} training and {piece.result['validation_images']:,} validation images. "
        f"Lowest validation loss after epoch {best['epoch']} ({best['val_loss']:.3f}); at the end "
        f"{last['val_loss']:.3f}, while the training loss went on to {last['loss']:.3f}.",
        alt=f"Training loss falls from {history[0]['loss']:.2f} to {last['loss']:.3f}; validation loss is lowest, "
        f"{best['val_loss']:.3f}, at epoch {best['epoch']} and {last['val_loss']:.3f} at the end.",
        columns=("epoch", "learning rate", "loss", "accuracy", "val loss", "val accuracy", "seconds"),
        rows=[
            tuple(row[k] for k in ("epoch", "learning_rate", "loss", "accuracy", "val_loss", "val_accuracy", "seconds"))
            for row in history
        ],
    )


def confusion(pieces: Pieces) -> Figure | None:
    """Figure 8: the confusion matrix of E1."""
    piece = pieces.get("E1/clean")
    if piece is None:
        return None
    counts = np.array(piece.result["confusion"])
    classes = piece.result["classes"]
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    drawing, axes = canvas(1, 1, 7, 6)
    place = axes[0, 0]
    place.imshow(share, cmap="Blues", vmin=0, vmax=100)
    place.grid(visible=False)
    ticks = range(len(classes))
    place.set_xticks(ticks, classes, rotation=45, ha="right")
    place.set_yticks(ticks, classes)
    place.set_xlabel("predicted")
    place.set_ylabel("true")
    for row in ticks:
        for column in ticks:
            if counts[row, column]:
                colour = "white" if share[row, column] > 55 else "black"
                place.text(column, row, counts[row, column], ha="center", va="center", fontsize=8, color=colour)
    right = [each["value"] for each in piece.result["per_class"] if each is not None]
    return _figure(
        drawing,
        "figure-08",
        title="Confusion matrix of the initial training",
        caption=f"Test images by true class (rows, shaded by share) and prediction, n = {counts.sum():,}. Accuracy within "
        f"a class runs from {shown(min(right))} to {shown(max(right))}; the paper: "
        f"{shown(paper.WORST_CLASS.value)} to {shown(paper.BEST_CLASS.value)}.",
        alt="Accuracy per class: "
        + ", ".join(
            f"{name} {shown(each['value'])}"
            for name, each in zip(classes, piece.result["per_class"], strict=True)
            if each is not None
        )
        + ".",
        columns=("true class", *(f"as {name}" for name in classes), "accuracy"),
        rows=[
            (name, *map(int, row), float(row[number] / max(row.sum(), 1)))
            for number, (name, row) in enumerate(zip(classes, counts, strict=True))
        ],
    )


def before_after(pieces: Pieces, task: str, name: str, title: str, caption: str) -> Figure | None:
    """Figures 9 and 10: an image, and what the attacks make of it, with what the network takes each for."""
    piece = pieces.get(task)
    if piece is None:
        return None
    images = safetensors.numpy.load_file(piece.path("images.safetensors"))
    result = piece.result
    attacks = list(result["attacks"])
    drawing, axes = canvas(
        len(result["label"]), 1 + 2 * len(attacks), 2.0 * (1 + 2 * len(attacks)), 2.2 * len(result["label"])
    )
    rows = []
    for number, (label, clean) in enumerate(zip(result["label"], images["clean"], strict=True)):
        picture(axes[number, 0], clean, f"original: {label}\ntaken for: {result['clean_taken_for'][number]}")
        for column, attack in enumerate(attacks):
            entry = result["attacks"][attack][number]
            changed = images[attack][number]
            noise = (changed - clean) / (2 * max(entry["norm"], 1e-9)) + 0.5
            picture(axes[number, 1 + 2 * column], noise, f"change, {attack}\nlargest {entry['norm']:.3f}")
            picture(axes[number, 2 + 2 * column], changed, f"after {attack}\ntaken for: {entry['taken_for']}")
            rows.append((result["index"][number], label, attack, entry["norm"], entry["taken_for"]))
    return _figure(
        drawing,
        name,
        title=title,
        caption=caption
        + " Images: the first of the test set, one of each class, that the network classifies correctly. "
        "Grey in a change means none.",
        alt="; ".join(f"test image {i}, {label}, after {attack} taken for {seen}" for i, label, attack, _, seen in rows)
        + ".",
        columns=("test image", "true class", "attack", "largest change", "taken for"),
        rows=rows,
    )


def _curve_rows(name: str, loss: str, axis: str, points: Points) -> list[tuple[Any, ...]]:
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


_CURVE_COLUMNS = (
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


def _draw_pair(loss_axes: Axes, accuracy_axes: Axes, curves: Mapping[str, Piece], axis: str, label: str) -> None:
    """One attack under several losses: mean loss in one panel, accuracy in the other (`worst` thin and dashed)."""
    for loss, piece in curves.items():
        points: Points = piece.result["points"]
        x = [point[axis] for point in points]
        style = {"color": COLOURS[loss], "marker": MARKERS[loss], "markersize": 4, "linewidth": 1.4}
        losses = [point["loss"] for point in points]
        estimate_line(loss_axes, x, losses, percent=False, label=_with_zero(loss, piece), **style)
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


def _at(points: Points, axis: str, value: float, kind: str = "last") -> str:
    for point in points:
        if abs(point[axis] - value) < 1e-9:
            return shown(point[kind]["value"])
    return "not computed"


def _lines_caption(pieces: Mapping[str, Piece]) -> str:
    first = next(iter(pieces.values()))
    n = first.result["points"][0]["last"]["n"]
    return (
        f"n = {n:,} test images, seed {first.facts['config']['seed']}; bands: 95 % intervals. Solid: the raw last iterate "
        "on all images, as the paper and other tools report it. Dashed: worst case, fooled at any iterate up to here."
    )


def fgsm(pieces: Pieces) -> Figure | None:
    """Figure 12: E1 under FGSM."""
    curves = {loss: pieces[f"E2/fgsm/{loss}"] for loss in LOSSES if f"E2/fgsm/{loss}" in pieces}
    if not curves:
        return None
    drawing, axes = canvas(1, 2, 9.5, 3.8)
    _draw_pair(axes[0, 0], axes[0, 1], curves, "eps", "eps")
    _mark(axes[0, 1], [0.0, 0.1], [paper.TEST_ACCURACY, paper.FGSM_AT_01])
    words = ", ".join(f"{_at(p.result['points'], 'eps', 0.1)} ascending {TITLES[loss]}" for loss, p in curves.items())
    return _figure(
        drawing,
        "figure-12",
        title="The original model under FGSM",
        caption="Mean loss (left) and accuracy (right) against eps. " + _lines_caption(curves),
        alt=f"Accuracy under FGSM at eps 0.1: {words}. The paper states {shown(paper.FGSM_AT_01.value)}.",
        columns=_CURVE_COLUMNS,
        rows=[row for loss, p in curves.items() for row in _curve_rows("E1", loss, "eps", p.result["points"])],
    )


def bim(pieces: Pieces) -> Figure | None:
    """Figure 13: E1 under BIM with both clippings."""
    curves = {
        clip: {loss: pieces[f"E3/{clip}/{loss}"] for loss in LOSSES if f"E3/{clip}/{loss}" in pieces}
        for clip in ("ball", "range")
    }
    curves = {clip: found for clip, found in curves.items() if found}
    if not curves:
        return None
    drawing, axes = canvas(len(curves), 2, 9.5, 3.6 * len(curves))
    rows = []
    for row, (clip, found) in enumerate(curves.items()):
        _draw_pair(axes[row, 0], axes[row, 1], found, "eps", "eps")
        axes[row, 0].set_title(f"clip {clip}")
        axes[row, 1].set_title(f"clip {clip}")
        rows += [each for loss, p in found.items() for each in _curve_rows(clip, loss, "eps", p.result["points"])]
    words = "; ".join(
        f"clip {clip}: "
        + ", ".join(f"{_at(p.result['points'], 'eps', 0.05)} ({TITLES[loss]})" for loss, p in found.items())
        for clip, found in curves.items()
    )
    some = next(iter(curves.values()))
    steps = next(iter(some.values())).facts["config"]["attack"]["steps"]
    return _figure(
        drawing,
        "figure-13",
        title="The original model under BIM, clip ball and clip range",
        caption=f"{steps} iterations of eps / 4. Clip ball stays within eps of the image (eq. 2); clip range only keeps "
        f"the pixels in [0, 1], so it reaches up to {steps / 4:g} eps. The paper states no numbers for this figure, only "
        "that ball is more effective. " + _lines_caption(some),
        alt=f"Accuracy under BIM at eps 0.05. {words}.",
        columns=_CURVE_COLUMNS,
        rows=rows,
    )


def iterations(pieces: Pieces) -> Figure | None:
    """Figure 14: E1 under BIM against the number of iterations."""
    curves = {}
    for size in E4_STEP_SIZES:
        prefix = f"E4/{size.replace('/', '-')}"
        found = {loss: pieces[f"{prefix}/{loss}"] for loss in LOSSES if f"{prefix}/{loss}" in pieces}
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
            each for loss, p in found.items() for each in _curve_rows(f"step {size}", loss, "steps", p.result["points"])
        ]
    words = "; ".join(
        f"step {size}: "
        + ", ".join(f"{_at(p.result['points'], 'steps', 25)} ({TITLES[loss]})" for loss, p in found.items())
        for size, found in curves.items()
    )
    return _figure(
        drawing,
        "figure-14",
        title="The original model under BIM, number of iterations",
        caption=f"Clip ball, eps {E4_EPS}. " + _lines_caption(next(iter(curves.values()))),
        alt=f"Accuracy after 25 iterations. {words}. The paper states {shown(paper.BIM_AT_25.value)}.",
        columns=_CURVE_COLUMNS,
        rows=rows,
    )


def overfitted(pieces: Pieces) -> Figure | None:
    """Figure 17: the over-fitted E1 against the early-stopped E11 under FGSM, one column per loss."""
    shared = [loss for loss in LOSSES if f"E2/fgsm/{loss}" in pieces and f"E11/fgsm/{loss}" in pieces]
    if not shared:
        return None
    drawing, axes = canvas(2, len(shared), 3.3 * len(shared), 6)
    rows = []
    for column, loss in enumerate(shared):
        for experiment, colour, words in (
            ("E2", "#D55E00", "E1, over-fitted"),
            ("E11", "#0072B2", "E11, early-stopped"),
        ):
            piece = pieces[f"{experiment}/fgsm/{loss}"]
            points: Points = piece.result["points"]
            x = [point["eps"] for point in points]
            label = f"{words}\n(zero gradient: {shown(piece.result['zero_gradients']['value'])})"
            style = {"color": colour, "marker": MARKERS[loss], "markersize": 4, "linewidth": 1.4}
            estimate_line(axes[0, column], x, [p["loss"] for p in points], percent=False, label=label, **style)
            estimate_line(axes[1, column], x, [p["last"] for p in points], percent=True, label=words, **style)
            rows += _curve_rows(words, loss, "eps", points)
        axes[0, column].set_title(TITLES[loss])
        axes[0, column].set_ylabel("mean cross-entropy")
        axes[0, column].legend(fontsize=7)
        percent_axis(axes[1, column])
        axes[1, column].set_xlabel("eps")
    words = "; ".join(
        f"{TITLES[loss]}: E1 {_at(pieces[f'E2/fgsm/{loss}'].result['points'], 'eps', 0.1)}, "
        f"E11 {_at(pieces[f'E11/fgsm/{loss}'].result['points'], 'eps', 0.1)}"
        for loss in shared
    )
    first = {loss: pieces[f"E11/fgsm/{loss}"] for loss in shared}
    return _figure(
        drawing,
        "figure-17",
        title="Over-fitted and non-over-fitted model under FGSM",
        caption="Mean loss (top) and accuracy of the last iterate (bottom), one column per loss ascended. The paper states "
        f"no numbers, only that the early-stopped model does clearly better. n = "
        f"{next(iter(first.values())).result['points'][0]['last']['n']:,}; bands: 95 % intervals.",
        alt=f"Accuracy under FGSM at eps 0.1. {words}.",
        columns=_CURVE_COLUMNS,
        rows=rows,
    )


def masking(pieces: Pieces) -> Figure | None:
    """How FGSM, BIM and the share of zero gradients change while E1 trains on."""
    found = {name: piece for name, piece in sorted(pieces.items()) if name.startswith("E1/epoch-")}
    if not found:
        return None
    epochs = [int(name.rsplit("-", 1)[1]) for name in found]
    results = [piece.result for piece in found.values()]
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
    return _figure(
        drawing,
        "masking",
        title="Apparent robustness and vanished gradients while E1 trains",
        caption=f"The same network after more and more epochs, n = {n:,}. BIM: 10 iterations of 0.01, last iterate. Where a "
        "loss has no gradient, the attack does not move: accuracy that comes from there is not robustness.",
        alt=f"After {epochs[-1]} epochs the gradient is exactly zero for "
        + ", ".join(f"{shown(last[loss]['value'])} of the images under {TITLES[loss]}" for loss in LOSSES)
        + ".",
        columns=("epoch", "measure", "loss ascended", "n", "value", "low", "high"),
        rows=rows,
    )


def all_figures(pieces: Pieces) -> list[Figure]:
    """Every figure whose pieces are there, in the paper's order."""
    with styled():
        found = (
            samples(pieces),
            architecture(pieces),
            training(pieces),
            confusion(pieces),
            before_after(
                pieces,
                "E2/pictures",
                "figure-09",
                "Before and after FGSM at eps 0.1",
                "FGSM ascending the stable cross-entropy.",
            ),
            before_after(
                pieces,
                "E3/pictures",
                "figure-10",
                "Original, BIM with clip range, BIM with clip ball, eps 0.05",
                "10 iterations of eps / 4, ascending the stable cross-entropy.",
            ),
            fgsm(pieces),
            bim(pieces),
            iterations(pieces),
            masking(pieces),
            overfitted(pieces),
        )
    return [figure for figure in found if figure is not None]
