"""Contact sheets: many small images in one PNG file.

The functions import matplotlib themselves, so that a program that draws nothing does not load it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from casemate.data import LabelledImages, StreamedImages, to_float
from casemate.files import writing
from casemate.report import palette
from casemate.types import Images, Labels

_SIZE = 1.5
"""The longer side of one drawn image, in inches."""


def draw_samples(
    images: LabelledImages | StreamedImages, classes: Sequence[str], per_class: int, path: Path, *, most: int = 50
) -> None:
    """Draw the first `per_class` images of every class into a PNG file, one row per class, of at most `most` classes.

    Images with three channels are drawn in colour, others in grey, as the mean of their channels. Their values are
    bytes, or numbers in [0, 1].
    """
    shown = classes[:most]
    per_class = max(1, min(per_class, int(images.labels.bincount().max())))
    with _canvas(len(shown), 1, 1.6 + 0.6 * per_class, 0.62 * len(shown), path) as axes:
        for label, (name, place) in enumerate(zip(shown, axes[:, 0], strict=True)):
            chosen = (images.labels == label).nonzero().squeeze(1)[:per_class]
            pixels = to_float(images.read(chosen if len(chosen) else torch.tensor([0])).pixels)[: len(chosen)]
            blank = torch.zeros(per_class - len(chosen), *pixels.shape[1:])
            strip = torch.cat([pixels, blank]).permute(1, 2, 0, 3).flatten(2)
            place.imshow(_scaled(strip, 0.0, 1.0), cmap="gray", vmin=0, vmax=1)
            place.set_ylabel(_short(name), rotation=0, ha="right", va="center", fontsize=9)
            _bare(place)


def draw_attack(
    clean: Images,
    adversarial: Images,
    labels: Labels,
    adversarial_prediction: Labels,
    classes: Sequence[str],
    path: Path,
    *,
    title: str = "",
    bounds: tuple[float, float] = (0.0, 1.0),
    most: int = 10,
) -> None:
    """Draw original, perturbation and adversarial image side by side into a PNG file, with true and predicted class.

    All tensors are on the CPU.

    Args:
        clean: `(n, channels, height, width)` within `bounds`; one channel is drawn in grey, three in colour.
        adversarial: the adversarial images, of the same shape.
        labels: the true classes, `(n,)`.
        adversarial_prediction: the classes that the model predicts for the adversarial images, `(n,)`.
        classes: the names of the classes.
        path: the file; it ends in .png.
        title: the title of the sheet.
        bounds: the smallest and the largest value of a pixel.
        most: how many images are drawn at most: first the misclassified ones that were perturbed, then the correctly
            classified ones, then those misclassified without a perturbation.
    """
    fooled = adversarial_prediction != labels
    changed = (adversarial != clean).flatten(1).any(1)
    order = torch.argsort(fooled.int() - 2 * (fooled & changed).int(), stable=True)[:most].tolist()
    height, width = clean.shape[-2:]
    low, high = bounds
    side_by_side = min(2, len(order))
    rows = -(-len(order) // side_by_side)
    size = (side_by_side * 3 * (_SIZE * width / max(height, width) + 0.35), _SIZE * rows + 0.9)
    with _canvas(rows, 3 * side_by_side, *size, path) as axes:
        sheet = axes.flat[0].figure
        sheet.suptitle(title, fontsize=10)
        sheet.supxlabel("Perturbations are scaled to their largest value; grey is no change.", fontsize=8)
        for place in axes.flat:
            place.set_axis_off()
        for at, number in enumerate(order):
            row, first = at % rows, at // rows * 3
            before, after = clean[number].float(), adversarial[number].float()
            change = after - before
            largest = change.abs().max().item()
            true, seen = (_short(classes[int(each[number])]) for each in (labels, adversarial_prediction))
            pictures = (
                (_scaled(before, low, high), f"original: {true}"),
                (_scaled(change, -largest or -1.0, largest or 1.0), f"perturbation: at most {largest:.3g}"),
                (_scaled(after, low, high), f"predicted: {seen}"),
            )
            for column, (pixels, words) in enumerate(pictures):
                place = axes[row, first + column]
                place.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                wrong = column == 2 and bool(fooled[number])
                place.set_title(words, fontsize=8, color=palette.BAD if wrong else palette.INK)
                place.set_axis_on()
                _bare(place)


def _scaled(image: Tensor, low: float, high: float) -> Any:
    """An image `(channels, height, width)` for matplotlib, scaled from [low, high] to [0, 1] and clipped.

    The result is `(height, width, 3)` for three channels; any other number is averaged to `(height, width)`.
    """
    pixels = ((image - low) / (high - low)).clamp(0, 1)
    if len(pixels) not in (1, 3):
        pixels = pixels.mean(0, keepdim=True)
    return pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy()


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"


def _bare(place: Any) -> None:
    """Remove the ticks from the matplotlib axes `place`."""
    place.set_xticks([])
    place.set_yticks([])


@contextmanager
def _canvas(rows: int, columns: int, width: float, height: float, path: Path) -> Iterator[Any]:
    """A context that yields the axes of a new drawing, an array `(rows, columns)`, and at its end writes it to `path`.

    The drawing has `width` times `height` inches; the PNG file is written whole or not at all.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(drawing)  # no window, whatever the user's default is
    yield drawing.subplots(rows, columns, squeeze=False)
    with writing(path) as temporary:
        drawing.savefig(temporary, format="png", dpi=120, metadata={"Software": None})
