"""Figures of changed training images: augmentation (the paper's figures 2, 3, 4, 11) and adversarial neighbours."""

from collections.abc import Sequence

import numpy as np

from casemate.evaluation import percent
from casemate.report import Figure, canvas, finished
from casemate_study.results.stored import Artifacts, StoredNeighbours, find_result


def _strips(images: dict[str, np.ndarray], titles: Sequence[str], words: Sequence[str]) -> Figure | None:
    """A figure with one row of images for each of `titles` that `images` has; the first title's images are the
    originals.

    `words` are the figure's name, title and caption. None if fewer than two of the titles are in `images`.
    """
    there = [title for title in titles if title in images]
    if len(there) < 2:
        return None
    drawing, axes = canvas(len(there), 1, 8.6, 0.95 * len(there))
    drawing.get_layout_engine().set(w_pad=0.15)  # type: ignore[union-attr]  # the names at the left need the room
    rows = []
    for place, title in zip(axes[:, 0], there, strict=True):
        strip = np.concatenate(list(images[title]), axis=1)
        place.imshow(strip, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        place.set_xticks([])
        place.set_yticks([])
        place.grid(visible=False)
        for side in place.spines.values():
            side.set_visible(False)
        place.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
        changed = np.abs(images[title] - images[there[0]]).mean()
        rows.append((title, len(images[title]), float(changed)))
    name, heading, caption = words
    return finished(
        drawing,
        name,
        title=heading,
        caption=caption,
        alt="; ".join(f"{title}: pixels change by {change:.3f} on average" for title, _, change in rows[1:]) + ".",
        columns=("row", "images", "mean change of a pixel"),
        rows=rows,
    )


_AUGMENTED = (
    (
        ("original", "Gaussian blur", "Gaussian noise", "speckle", "salt and pepper"),
        (
            "figure-02",
            "Blur and noise",
            "The paper's figure 2 calls a 3 x 3 Gaussian filter of sigma 1 noise: it blurs.",
        ),
    ),
    (
        ("original", "horizontal flip", "vertical flip"),
        ("figure-03", "Flips", "Here every image is flipped; in training each by its own coin tosses."),
    ),
    (
        ("original", "rotation", "shift", "Stochastic Affine Transformation"),
        (
            "figure-04",
            "Rotations and shifts",
            "Each image by its own draw: up to 90 degrees to either side; up to 0.1 of the side; and the Stochastic "
            "Affine Transformation, which draws anew at every inference.",
        ),
    ),
    (
        ("original", "E5's mixture", "Gaussian blur"),
        (
            "figure-11",
            "Augmented data as E5 trains on it",
            "Shift, rotation and flips drawn anew each epoch, and blurred copies.",
        ),
    ),
)


def augmentation_figures(artifacts: Artifacts) -> list[Figure | None]:
    """The paper's figures 2, 3, 4 and 11: training images under each augmentation. Empty if the pictures are not
    finished.
    """
    artifact = artifacts.get("E5/samples")
    if artifact is None:
        return []
    images = artifact.arrays("images.safetensors", [each for titles, _ in _AUGMENTED for each in titles])
    return [_strips(images, titles, words) for titles, words in _AUGMENTED]


def neighbours_figure(artifacts: Artifacts) -> Figure | None:
    """A figure of the adversarial neighbours that regularisation trains on, under the paper's pixel limits and two
    others.

    None if the pictures are not finished.
    """
    found = find_result(artifacts, "E6/neighbours", StoredNeighbours)
    if found is None:
        return None
    images = artifacts["E6/neighbours"].arrays("images.safetensors", ["clean", *found.settings])
    words = "; ".join(
        f"{title}: pixels from {pixels.lowest:.2f} to {pixels.highest:.2f}, {percent(pixels.changed_pixels)} of them "
        f"changed, {percent(pixels.outside_range)} outside [0, 1], the mean image brighter by {pixels.mean_shift:.2f}"
        for title, pixels in found.settings.items()
    )
    renamed = {"original": images["clean"]} | {f"limits {title}": images[title] for title in found.settings}
    heading = "What adversarial regularisation trains on: one step of 0.2"
    return _strips(renamed, list(renamed), ("neighbours", heading, f"{words}. Shown from 0 to 1."))
