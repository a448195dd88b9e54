"""The figures of the report on a hardening: accuracies and their differences, epochs, and what attacks look like."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from casemate.attacks import PGD, Misclassification, frozen, input_gradient
from casemate.data import LabelledImages
from casemate.evaluation.intervals import Estimate, percent
from casemate.hardening import ComparedModel, Hardened
from casemate.norms import format_eps
from casemate.report import palette
from casemate.report.charts import Figure, canvas, finished, legend_below, percent_axis

_COLOURS = (palette.GREY, palette.SKY, palette.BLUE, palette.VERMILLION, palette.GREEN, palette.PURPLE)
_CLEAN = palette.SOFT
_EXAMPLES = 7
"""Number of images that are shown attacked, at most."""
_STEPS = 20
"""Gradient steps of the attack that is shown."""


def colour_of(found: Hardened, name: str) -> str:
    """The colour of a model in all figures."""
    return _COLOURS[list(found.models).index(name) % len(_COLOURS)]


def accuracies_and_differences(found: Hardened) -> Figure:
    """A chart of each model's clean and robust accuracy, and beside it one of the paired differences.

    All with their 95 % intervals.
    """
    models, pairs = list(found.models.values()), found.comparisons
    drawing, axes = canvas(1, 2, 9.4, 1.5 + 0.62 * max(len(models), len(pairs)))
    left, right = axes[0]
    rows: list[tuple[Any, ...]] = []
    for place, each in enumerate(models):
        colour = colour_of(found, each.name)
        span = [100 * each.robust.value, 100 * each.clean.value]
        left.plot(span, [place, place], color=colour, linewidth=5, alpha=0.22, solid_capstyle="round", zorder=1)
        _point(left, each.clean, place, color=_CLEAN, filled=False)
        _point(left, each.robust, place, color=colour, filled=True)
        for estimate, what in ((each.clean, "clean"), (each.robust, "robust")):
            words = f"{100 * estimate.value:.0f}"
            style: Any = {"ha": "center", "va": "bottom", "fontsize": 9}
            left.annotate(words, (100 * estimate.value, place), (0, 7), textcoords="offset points", **style)
            rows.append((each.name, f"{what} accuracy", estimate.value, estimate.low, estimate.high))
    guessing = 100 * found.before.verdict.number.guessing
    left.axvline(guessing, color=palette.GREY, linestyle=":", linewidth=1.2, zorder=0)
    left.annotate("guessing", (guessing, len(models) - 0.52), (3, 0), textcoords="offset points", fontsize=7.5)
    left.set_yticks(range(len(models)), [each.name for each in models])
    left.set_ylim(len(models) - 0.45, -0.75)
    left.set_xlim(-2, 102)
    left.set_xlabel(f"accuracy, %: under attack (filled), without (hollow); n = {len(found.test):,}")
    for place, each in enumerate(pairs):
        colour = colour_of(found, each.names[1])
        if each.clean is not None:
            _point(right, each.clean.difference, place + 0.17, color=_CLEAN, filled=False)
        _point(right, each.robust.difference, place - 0.17, color=colour, filled=True)
        for paired, what in ((each.clean, "clean"), (each.robust, "robust")):
            if paired is not None:
                gap = paired.difference
                rows.append((f"{each.names[1]} minus {each.names[0]}", f"{what}, points", gap.value, gap.low, gap.high))
    right.axvline(0, color=palette.INK, linewidth=1)
    right.set_yticks(range(len(pairs)), [f"{each.names[1]}\nminus {each.names[0]}" for each in pairs], fontsize=8.5)
    right.set_ylim(len(pairs) - 0.45, -0.6)
    right.set_xlabel("difference on the same images, points")
    for place in (left, right):
        place.grid(visible=False, axis="y")
        place.spines["left"].set_visible(False)
        place.tick_params(axis="y", length=0)
    eps = format_eps(found.eps)
    return finished(
        drawing,
        "accuracies",
        title="Before, control, hardened",
        caption=f"Left: accuracy under all attacks at eps {eps} ({found.norm}, budget {found.budget}) and without an "
        "attack, with 95 % intervals. Right: paired differences on the same images, with 95 % intervals; one that "
        f"crosses zero shows nothing. n = {len(found.test):,} test images, seed {found.seed}.",
        alt="; ".join(
            f"{each.name}: {percent(each.clean.value)} clean, {percent(each.robust.value)} robust" for each in models
        )
        + ".",
        columns=("model", "what", "value", "low", "high"),
        rows=rows,
    )


def _point(place: Any, estimate: Estimate, height: float, *, color: str, filled: bool) -> None:
    """Draw an estimate, a share, in percent at a height, with its interval."""
    value, low, high = 100 * estimate.value, 100 * estimate.low, 100 * estimate.high
    place.plot([low, high], [height, height], color=color, linewidth=1.8, zorder=3)
    face = color if filled else palette.PAPER
    place.plot([value], [height], "o", markersize=8, color=color, markerfacecolor=face, markeredgewidth=1.8, zorder=4)


def validation_by_epoch(found: Hardened) -> Figure:
    """A chart of each trained model's accuracies on the validation images after every epoch, the kept one marked."""
    drawing, axes = canvas(1, 1, 7, 3.9)
    place = axes[0, 0]
    robust, clean = found.start
    rows: list[tuple[Any, ...]] = [("before", 0, robust, clean)]
    last = 0
    for each in found.models.values():
        if (trained := each.training) is None:
            continue
        colour = colour_of(found, each.name)
        history = [(0, robust, clean), *((r["epoch"], r["val_robust"], r["val_accuracy"]) for r in trained.history)]
        epochs = [row[0] for row in history]
        last = max(last, epochs[-1])
        curve = [100 * row[1] for row in history]
        place.plot(epochs, curve, color=colour, marker="o", markersize=4, label=f"{each.name}, under attack")
        place.plot(epochs, [100 * row[2] for row in history], color=colour, linestyle="--", linewidth=1.2, alpha=0.8)
        place.plot(
            [trained.epoch], [curve[trained.epoch]], "*", markersize=15, color=colour, markeredgecolor=palette.PAPER
        )
        rows += [(each.name, *row) for row in history[1:]]
    place.set_xlabel("epoch (0: as it was given)")
    place.set_xticks(sorted({0, *range(0, last + 1, max(1, last // 10)), last}))
    percent_axis(place)
    legend_below(place, pad=5, ncols=3)
    return finished(
        drawing,
        "epochs",
        title="How the epoch was chosen",
        caption="Accuracy on the validation images after every epoch: under PGD with ten steps (lines with dots) and "
        f"without an attack (dashed). Stars: the epoch that was kept. n = {found.plan['validation_images']:,}, seed "
        f"{found.seed}. The test images chose nothing.",
        alt="; ".join(f"{name}, epoch {epoch}: {percent(under)} under attack" for name, epoch, under, _ in rows) + ".",
        columns=("model", "epoch", "accuracy under attack", "accuracy"),
        rows=rows,
    )


def attacked_images(found: Hardened) -> Figure | None:
    """A figure of test images attacked on the model as it was and on the best hardened one, and of their gradients.

    The images are the first of each class, of the first `_EXAMPLES` classes that have one, that both models classify
    correctly; None if there are none.
    """
    after = found.best
    right = found.before.correct & after.correct
    labels = found.test.labels.cpu().numpy()
    firsts = [np.flatnonzero(right & (labels == label)) for label in range(len(after.model.classes))]
    chosen = [int(places[0]) for places in firsts if len(places)][:_EXAMPLES]
    if not chosen:
        return None
    images = found.test[torch.tensor(chosen)]
    names = after.model.classes
    low, high = after.model.bounds
    drawing, axes = canvas(5, len(chosen), 1.15 * len(chosen) + 1.0, 6.6)
    rows: list[tuple[Any, ...]] = []
    clean = images.tensors()[0]
    for column in range(len(chosen)):
        _show(axes[0, column], (clean[column] - low) / (high - low), names[images.labels[column]], palette.INK)
    for place, each in enumerate((found.before, after)):
        attacked, predicted, gradient = _attacked(found, each, images)
        for column, label in enumerate(images.labels.tolist()):
            held = predicted[column] == label
            words = f"{names[predicted[column]]}"
            colour = palette.GOOD if held else palette.BAD
            _show(axes[1 + 2 * place, column], (attacked[column] - low) / (high - low), words, colour)
            _show(axes[2 + 2 * place, column], _stretched(gradient[column]), "", palette.INK)
            rows.append((chosen[column], each.name, names[label], names[predicted[column]]))
    titles = ("original", f"{found.before.name}:\nattacked", "its gradient", f"{after.name}:\nattacked", "its gradient")
    for place, words in zip(axes[:, 0], titles, strict=True):
        place.text(-0.12, 0.5, words, transform=place.transAxes, va="center", ha="right", fontsize=8.5)
    return finished(
        drawing,
        "examples",
        title="What the attack sees",
        caption=f"For {len(chosen)} classes the first test image that both models classify correctly: as it is; after "
        f"PGD with {_STEPS} steps at eps {format_eps(found.eps)} ({found.norm}) on the model as it was given, and on "
        f"{after.name}, with the class that is then predicted (green: still right). Gradients: that of the loss with "
        "respect to each pixel (grey: none). Those of robust models tend to follow what the image shows (Tsipras et "
        "al. 2019).",
        alt="; ".join(f"image {image}, {name}: {label}, predicted {guess}" for image, name, label, guess in rows) + ".",
        columns=("image", "model", "class", "predicted under attack"),
        rows=rows,
    )


def _attacked(found: Hardened, each: ComparedModel, images: LabelledImages) -> tuple[Tensor, Sequence[int], Tensor]:
    """Images after the attack that is shown, the classes predicted for them, and the gradients of the clean images."""
    model = each.model
    pixels, labels = images.tensors(model.device)
    made = PGD(eps=found.eps, norm=found.norm, steps=_STEPS)(model, pixels, labels, seed=found.seed)
    with frozen(model):
        _, gradient = input_gradient(model, pixels, Misclassification(labels), "ce")
    return made.adversarial.cpu(), made.prediction.tolist(), gradient.cpu()


def _stretched(gradient: Tensor) -> Tensor:
    """A gradient as an image: grey where it is zero, its 99th percentile at the ends of the range."""
    largest = torch.quantile(gradient.abs().flatten(), 0.99).clamp_min(1e-20)
    return (gradient / (2 * largest) + 0.5).clamp(0, 1)


def _show(place: Any, image: Tensor, title: str, colour: str) -> None:
    """Draw an image `(channels, height, width)` within [0, 1]: three channels in colour, others as their mean."""
    flat = image.permute(1, 2, 0) if image.shape[0] == 3 else image.mean(0)
    place.imshow(flat.clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    place.set_title(title, fontsize=8, color=colour)
    place.set_axis_off()
