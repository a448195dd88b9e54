"""Resizing, cropping and colours of images, as a model's configuration says: `Resizing`.

The images are resized as bytes by Pillow, with antialiasing, like torchvision's `Resize` and `CenterCrop` on Pillow's
images, by which most published classifiers were evaluated.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from casemate.data.streamed import StreamedImages
from casemate.errors import SettingError

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box"]
_METHODS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
_LARGEST = 8192
"""Largest side of a resized image, in pixels."""


@final
@dataclass(frozen=True, kw_only=True)
class Resizing:
    """How images are brought to one shape: resized, then cropped at the centre, then to one or three channels.

    Raises `SettingError` for sizes that are no whole numbers from 1 to 8,192.
    """

    size: int | tuple[int, int] | None = None
    """Pixels along the shorter side, or `(height, width)` for images that are stretched to that; None: unchanged."""
    crop: int | tuple[int, int] | None = None
    """Side of the square, or `(height, width)`, that is cut out at the centre; None: nothing is cut."""
    interpolation: Interpolation = "bilinear"
    channels: Literal[1, 3] | None = None
    """1 for grey, 3 for colour; None: as the images are. Grey levels are ITU-R BT.601's luma, as Pillow computes it."""

    def __post_init__(self) -> None:
        for name in ("size", "crop"):
            given = getattr(self, name)
            sides = given if isinstance(given, tuple) else () if given is None else (given,)
            if not all(isinstance(side, int) and 1 <= side <= _LARGEST for side in sides):
                raise SettingError(f"{name} = {given}; expected whole numbers of pixels from 1 to {_LARGEST}")
        if self.interpolation not in _METHODS:
            raise SettingError(f"interpolation = {self.interpolation!r}; expected one of {', '.join(_METHODS)}")
        if self.channels not in (None, 1, 3):
            raise SettingError(f"channels = {self.channels}; expected 1 for grey or 3 for colour")

    @property
    def makes(self) -> tuple[int, int] | None:
        """Height and width of all images after it; None where they depend on the image."""
        if self.crop is None:
            return self.size if isinstance(self.size, tuple) else None
        return self.crop if isinstance(self.crop, tuple) else (self.crop, self.crop)

    def in_proportion(self, wanted: tuple[int, int]) -> "Resizing":
        """The same for images of another height and width: as large a part of each image is cut away."""
        own = self.makes
        if own is None or own == wanted:
            return self
        sides = self.size if isinstance(self.size, tuple) else (self.size,) * 2
        rows, columns = (side and round(side * new / old) for side, new, old in zip(sides, wanted, own, strict=True))
        if rows is None or columns is None:
            return replace(self, crop=wanted)
        size = (rows, columns) if isinstance(self.size, tuple) else min(rows, columns)
        return replace(self, size=size, crop=None if self.crop is None else wanted)

    @property
    def in_words(self) -> str:
        """What is done to images, such as "resized to 256 along the shorter side (bicubic), cropped to ..."."""
        parts: list[str] = []
        if self.size is not None:
            to = _by(self.size) if isinstance(self.size, tuple) else f"{self.size} along the shorter side"
            parts.append(f"resized to {to} ({self.interpolation})")
        if self.crop is not None:
            parts.append(f"cropped to {_by(self.crop)} at the centre")
        if self.channels is not None:
            parts.append("converted to grey" if self.channels == 1 else "converted to colour")
        return ", ".join(parts) or "unchanged"

    def resized(self, image: Image.Image) -> Image.Image:
        """An image of Pillow, resized and cropped; its colours stay. A crop beyond the edges is filled with black."""
        width, height = image.size
        if self.size is not None:
            wanted = self._scaled(height, width)
            if wanted != (height, width):
                image = image.resize((wanted[1], wanted[0]), _METHODS[self.interpolation])
                height, width = wanted
        if self.crop is not None:
            rows, columns = self.crop if isinstance(self.crop, tuple) else (self.crop, self.crop)
            top, left = (round((side - part) / 2.0) for side, part in ((height, rows), (width, columns)))
            image = image.crop((left, top, left + columns, top + rows))
        return image

    def _scaled(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a resized image. Raises `SettingError` where a long, thin image would be too large."""
        if isinstance(self.size, tuple):
            return self.size
        short, long = min(height, width), max(height, width)
        side = self.size or short
        other = int(side * long / short)
        if other > 4 * _LARGEST:
            raise SettingError(
                f"an image of {height} x {width} pixels, resized to {side} along its shorter side, would have {other} "
                "along the other; give height and width, as --resize HEIGHT WIDTH"
            )
        return (side, other) if height <= width else (other, side)

    def applied(self, images: StreamedImages) -> StreamedImages:
        """The same images, resized, cropped and converted while they are read; `images` itself if nothing changes."""
        channels, height, width = images.image_shape
        if self.channels not in (None, channels) and channels not in (1, 3):
            raise SettingError(
                f"channels = {self.channels}, but {images.name} has images of {channels} channels; leave it out"
            )
        sample = self.resized(Image.new("L", (width, height)))
        shape = (self.channels or channels, sample.height, sample.width)
        if shape == images.image_shape:
            return images
        what = "grey images repeated in three channels" if channels == 1 else "colour images converted to grey"
        remarks = images.remarks + (() if shape[0] == channels else (what,))
        return replace(images, image_shape=shape, reader=_converting(images.reader, self, shape), remarks=remarks)


def _by(sides: int | tuple[int, int]) -> str:
    height, width = sides if isinstance(sides, tuple) else (sides, sides)
    return f"{height} x {width}"


def _converting(
    reader: Callable[[Tensor], Tensor], resizing: Resizing, shape: tuple[int, int, int]
) -> Callable[[Tensor], Tensor]:
    """The reader of images of `shape`, resized and converted from those that `reader` reads."""

    def read(positions: Tensor) -> Tensor:
        pixels = reader(positions)
        if tuple(pixels.shape[2:]) != shape[1:]:
            planes = pixels.flatten(0, 1)
            low, high = pixels.flatten(1).aminmax(dim=1)
            made = [np.array(resizing.resized(Image.fromarray(plane.numpy()))) for plane in planes]
            pixels = torch.from_numpy(np.stack(made)).view(len(pixels), -1, *shape[1:])
            if pixels.is_floating_point():  # bicubic and Lanczos interpolation may leave the range, as bytes cannot
                pixels = pixels.clamp(low.view(-1, 1, 1, 1), high.view(-1, 1, 1, 1))
        if pixels.shape[1] == shape[0]:
            return pixels
        if shape[0] == 3:
            return pixels.expand(-1, 3, -1, -1).contiguous()
        luma = (pixels.float() * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
        return luma.round().to(torch.uint8) if pixels.dtype == torch.uint8 else luma

    return read
