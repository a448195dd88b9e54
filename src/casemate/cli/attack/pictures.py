"""Adversarial images as PNG files, read back and classified again."""

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from casemate.attacks.levels import Grid
from casemate.data.sources.pictures import decode
from casemate.data.sources.resizing import Resizing
from casemate.errors import SettingError
from casemate.files import make_folder
from casemate.models import Classifier
from casemate.norms import Bounds
from casemate.types import Images, Labels, Pixels

LEVELS = 256
"""Levels that a PNG file of 8 bits holds."""
_CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's modes by the number of channels."""


def check_channels(channels: int) -> None:
    """Raise `SettingError` for images that a PNG file cannot hold."""
    if channels not in _CHANNELS:
        raise SettingError(
            f"--png for images with {channels} channels; a PNG file holds 1 (grey), 3 (colour) or 4 (with "
            "transparency). adversarial.safetensors holds them all: leave out --png"
        )


def write_pngs(folder: Path, images: Images, bounds: Bounds) -> list[Path]:
    """Write each image to a PNG file, 00000.png and so on, in a folder; return the files in order."""
    make_folder(folder)
    low, high = bounds
    levels = ((images.double() - low) / (high - low) * (LEVELS - 1)).round().clamp(0, LEVELS - 1).to(torch.uint8)
    files = []
    for number, each in enumerate(levels):
        pixels = each.permute(1, 2, 0).contiguous().numpy()
        file = folder / f"{number:05d}.png"
        picture = Image.fromarray(pixels[:, :, 0] if len(each) == 1 else pixels, _CHANNELS[len(each)])
        picture.save(file)
        files.append(file)
    return files


def read_pngs(files: list[Path], channels: int) -> Pixels:
    """The pixels of PNG files of one shape, uint8 `(n, channels, height, width)`."""
    if channels == 4:  # `decode` takes no transparency
        opened = []
        for file in files:
            with Image.open(file) as picture:
                opened.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
        return torch.stack(opened)
    rule = Resizing(channels=3 if channels == 3 else 1)
    return torch.cat([decode(file.read_bytes(), rule, Counter()) for file in files])


def surviving(model: Classifier, files: list[Path], labels: Labels, target: int | None) -> Tensor:
    """Which of the images in PNG files fool the model when they are read again, booleans `(n,)`."""
    pixels = read_pngs(files, model.input_shape[0])
    images = Grid(model.bounds, LEVELS).values(torch.zeros(1))[pixels.long()]
    with torch.no_grad():
        predicted = model.eval()(images.to(model.device)).argmax(1).cpu()
    return predicted != labels if target is None else predicted == target
