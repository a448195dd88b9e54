"""Colour pictures of ten kinds of garments before photographs, as PNG files in folders: images of a user's own.

The garments are those of Fashion-MNIST, enlarged to 32 x 32 and tinted; the backgrounds are cut at random from the two
photographs that come with scikit-learn. `write_pictures` writes FOLDER/train/CLASS/NUMBER.png and FOLDER/test/...
"""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from casemate.data import LabelledImages, load, subset

SIDE = 32
TRAIN, TEST = 8000, 1500
_SEED = 0


def write_pictures(folder: Path) -> None:
    """Write training and test pictures, unless they are there."""
    if (folder / "test").exists():
        return
    data, rng = load("fashion-mnist"), np.random.default_rng(_SEED)
    for part, images, count in (("train", data.train, TRAIN), ("test", data.test, TEST)):
        temporary = folder / f".{part}"
        _write(subset(images, count, _SEED), data.classes, temporary, rng)
        temporary.rename(folder / part)


def _write(images: LabelledImages, classes: tuple[str, ...], folder: Path, rng: np.random.Generator) -> None:
    photographs = load_sample_images().images
    for place, (pixels, label) in enumerate(zip(images.pixels[:, 0].numpy(), images.labels.tolist(), strict=True)):
        large = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        garment = np.asarray(large, dtype=np.float64)[..., None] / 255
        tint = rng.uniform(0.3, 1, size=3)
        photograph = photographs[rng.integers(len(photographs))]
        top, left = (rng.integers(side - SIDE) for side in photograph.shape[:2])
        behind = photograph[top : top + SIDE, left : left + SIDE] / 255
        cover = np.clip(4 * garment, 0, 1)
        colours = cover * garment * tint + (1 - cover) * 0.6 * behind
        target = folder / classes[label].replace("/", "-")
        target.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(255 * colours).astype(np.uint8)).save(target / f"{place:05d}.png")
