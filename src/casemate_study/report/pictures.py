"""Figures that are pictures: sample images, the network, the confusion matrix, images before and after an attack."""

from typing import Any

import numpy as np
import torch
from matplotlib.patches import FancyBboxPatch
from torch import nn

from casemate.evaluation import percent
from casemate.models import create
from casemate.report import Figure, canvas, finished, palette, picture
from casemate_study.experiments import paper
from casemate_study.results.stored import Artifacts, StoredClean, StoredPictures, StoredSamples, find_result

_SHOWN = 4
"""Images in a figure of attacked images; the task keeps one of each class."""


def samples_figure(artifacts: Artifacts) -> Figure | None:
    """The paper's figure 6: the first training images of every class. None if the pictures are not finished."""
    found = find_result(artifacts, "data/samples", StoredSamples)
    if found is None:
        return None
    rows = artifacts["data/samples"].arrays("images.safetensors", ["samples"])["samples"]
    classes = found.classes
    drawing, axes = canvas(len(classes), 1, 8, 0.62 * len(classes))
    for place, name, images in zip(axes[:, 0], classes, rows, strict=True):
        place.imshow(np.concatenate(list(images), axis=1), cmap="gray_r", vmin=0, vmax=255)
        place.set_yticks([])
        place.set_xticks([])
        place.grid(visible=False)
        for side in place.spines.values():
            side.set_visible(False)
        place.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    return finished(
        drawing,
        "figure-06",
        title="Sample images of every class",
        caption=f"The first {rows.shape[1]} training images of each class, shown dark on light.",
        alt=f"Sample images of the {len(classes)} classes: {', '.join(classes)}.",
        columns=("class", "images shown"),
        rows=[(name, rows.shape[1]) for name in classes],
    )


def _layers(network: nn.Module, shape: tuple[int, int, int]) -> list[tuple[str, str, int]]:
    """Title, output shape and number of parameters of each layer of the network, from a forward pass of one black image
    of this shape.
    """
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


def architecture_figure(artifacts: Artifacts) -> Figure | None:
    """The paper's figure 7: the layers of its network in order, as read from the network itself.

    None until the sample images, which give the classes, are finished.
    """
    samples = find_result(artifacts, "data/samples", StoredSamples)
    if samples is None:
        return None
    model = create("paper-cnn", input_shape=(1, 28, 28), classes=samples.classes)
    layers = [("Input", "1 x 28 x 28", 0), *_layers(model.network, (1, 28, 28))]
    colours = {
        "Conv": palette.LIGHT["note-fill"],
        "Dense": palette.LIGHT["doubt-fill"],
        "MaxPool": palette.LIGHT["good-fill"],
        "Dropout": palette.LIGHT["fill"],
        "BatchNorm": palette.LIGHT["bad-fill"],
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
        colour = next((c for start, c in colours.items() if name.startswith(start)), palette.PAPER)
        box = FancyBboxPatch(
            (column + 0.06, -row - 0.86), 0.8, 0.72, boxstyle="round,pad=0.02", facecolor=colour, edgecolor=palette.SOFT
        )
        place.add_patch(box)
        place.text(column + 0.46, -row - 0.4, name.replace(", ", "\n", 1), ha="center", va="center", fontsize=8)
        place.text(column + 0.46, -row - 0.74, size, ha="center", va="center", fontsize=7, color=palette.INK)
        if column < per_row - 1 and number < len(layers) - 1:
            place.annotate(
                "", (column + 1.05, -row - 0.5), (column + 0.88, -row - 0.5), arrowprops={"arrowstyle": "->", "lw": 0.8}
            )
    total = sum(count for _, _, count in layers)
    return finished(
        drawing,
        "figure-07",
        title="Model architecture (appendix A)",
        caption=f"{total:,} trainable parameters. Under each layer the shape of its output. Pooling stands before "
        "ReLU: the two commute, value and gradient are those of the paper's order. Softmax belongs to the loss.",
        alt="The layers in order: " + "; ".join(f"{name} giving {size}" for name, size, _ in layers) + ".",
        columns=("layer", "output", "trainable parameters"),
        rows=list(layers),
    )


def confusion_figure(artifacts: Artifacts) -> Figure | None:
    """The paper's figure 8: the confusion matrix of E1, the undefended network, on test images. None if it is not
    measured.
    """
    clean = find_result(artifacts, "E1/clean", StoredClean)
    if clean is None:
        return None
    counts, classes = np.array(clean.confusion), clean.classes
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
                colour = palette.WHITE if share[row, column] > 55 else palette.BLACK
                place.text(column, row, counts[row, column], ha="center", va="center", fontsize=8, color=colour)
    accuracies = {name: each.value for name, each in zip(classes, clean.per_class, strict=True) if each is not None}
    return finished(
        drawing,
        "figure-08",
        title="Confusion matrix of the initial training",
        caption=f"Test images by true class (rows, shaded by share) and prediction, n = {counts.sum():,}. Accuracy "
        f"within a class runs from {percent(min(accuracies.values()))} to {percent(max(accuracies.values()))}; the "
        f"paper: {percent(paper.WORST_CLASS.value)} to {percent(paper.BEST_CLASS.value)}.",
        alt="Accuracy per class: "
        + ", ".join(f"{name} {percent(accuracy)}" for name, accuracy in accuracies.items())
        + ".",
        columns=("true class", *(f"as {name}" for name in classes), "accuracy"),
        rows=[
            (name, *map(int, row), float(row[number] / max(row.sum(), 1)))
            for number, (name, row) in enumerate(zip(classes, counts, strict=True))
        ],
    )


def before_after_figure(artifacts: Artifacts, task: str, name: str, title: str, caption: str) -> Figure | None:
    """The paper's figures 9 and 10: images before and after each attack of the task called `task`, the changes, and the
    predicted classes, of the first images.

    `name`, `title` and `caption` are the figure's. None if the task is not finished.
    """
    found = find_result(artifacts, task, StoredPictures)
    if found is None:
        return None
    images = artifacts[task].arrays("images.safetensors", ["clean", *found.attacks])
    columns, labels = 1 + 2 * len(found.attacks), found.label[:_SHOWN]
    drawing, axes = canvas(len(labels), columns, 2.0 * columns, 2.2 * len(labels))
    rows = []
    for number, label in enumerate(labels):
        clean = images["clean"][number]
        picture(axes[number, 0], clean, f"original: {label}\ntaken for: {found.clean_taken_for[number]}")
        largest = max(results[number].norm for results in found.attacks.values())
        for column, (attack, results) in enumerate(found.attacks.items()):
            norm, prediction = results[number].norm, results[number].adversarial_prediction
            changed = images[attack][number]
            noise = (changed - clean) / (2 * max(largest, 1e-9)) + 0.5
            picture(axes[number, 1 + 2 * column], noise, f"change, {attack}\nlargest {norm:.3f}")
            picture(axes[number, 2 + 2 * column], changed, f"after {attack}\ntaken for: {prediction}")
            rows.append((found.index[number], label, attack, norm, prediction))
    return finished(
        drawing,
        name,
        title=title,
        caption=caption
        + " Images: the first of the test set, of different classes, that the network classifies correctly. "
        "In a change grey means none, white and black the largest of its row either way. An attack may fail on some.",
        alt="; ".join(f"test image {i}, {label}, after {attack} taken for {seen}" for i, label, attack, _, seen in rows)
        + ".",
        columns=("test image", "true class", "attack", "largest change", "taken for"),
        rows=rows,
    )
