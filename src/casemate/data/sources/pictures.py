"""Decoding of picture files (JPEG, PNG and the like) from untrusted sources, by Pillow.

Only formats whose decoders run no other programs are accepted; the size in the header is checked before anything is
decoded. What would change the meaning of pixels is refused with a remedy, and what is converted is counted.
"""

import io
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import (  # the plugins register the formats
    BmpImagePlugin,  # noqa: F401
    ExifTags,
    GifImagePlugin,  # noqa: F401
    Image,
    ImageOps,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)
from torch import Tensor

from casemate.arrays import OpenFile, UnsoundError, guarded
from casemate.data.sources.resizing import Resizing
from casemate.data.streamed import StreamedImages
from casemate.errors import DataError, SettingError
from casemate.types import Labels, Pixels

Fetch = Callable[[list[int]], Iterable[tuple[str, bytes]]]
"""Fetches pictures by their positions in a source: for each its name, for errors, and its bytes."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
"""Endings of the names of picture files, in lower case."""
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
"""Formats by Pillow's names; not among them are those that run Ghostscript (EPS) or decode slowly (AVIF, JPEG 2000)."""
_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB")
"""Pillow's modes of at most 8 bits per channel."""
_MOST_BYTES = 1 << 28
"""Largest picture file, in bytes."""
_MOST_PIXELS = 51_000_000
"""Largest picture, in pixels: decoding takes up to 16 bytes for each (WebP)."""
_TOO_LARGE = f"its size exceeds {_MOST_PIXELS // 10**6} million pixels: scale it down"
_MOST_WORK = 400_000_000
"""Most pixels times scans of a progressive JPEG, in which every scan costs time for all pixels."""


def stream_pictures(
    name: str, labels: Labels, classes: tuple[str, ...] | None, fetch: Fetch, resizing: Resizing
) -> StreamedImages:
    """The pictures that `fetch` finds, decoded when they are read; the first one sets the shape of all.

    Without `Resizing.channels` they are in colour if the first one is, and all grey otherwise. Raises `DataError` for a
    picture that cannot be decoded, is of another shape, or in colour after a first one in grey.
    """
    if not len(labels):
        raise DataError(f"{name} has no pictures; expected at least one")
    _, channels, height, width = _decode_all(fetch([0]), resizing, Counter(), None).shape
    rule = replace(resizing, channels=3) if channels == 3 else resizing
    conversions, shape = Counter[str](), (channels, height, width)
    return StreamedImages(
        name=name,
        labels=labels,
        image_shape=shape,
        reader=lambda positions: _decode_all(fetch(positions.tolist()), rule, conversions, shape),
        classes=classes,
        conversions=conversions,
    )


def _decode_all(
    pictures: Iterable[tuple[str, bytes]],
    resizing: Resizing,
    conversions: Counter[str],
    shape: tuple[int, int, int] | None,
) -> Pixels:
    """The pictures as uint8 `(n, *shape)`; raises `DataError`, also if one has another shape than `shape`."""
    found = []
    for name, raw in pictures:
        try:
            pixels = decode(raw, resizing, conversions)
        except UnsoundError as error:
            raise DataError(f"cannot read {name}: {error}") from error
        _, channels, height, width = pixels.shape
        if shape is not None and channels != shape[0]:
            raise DataError(
                f"{name} is in colour, but the first picture is grey; choose 3 or 1 for all of them with --channels"
            )
        if shape is not None and (height, width) != shape[1:]:
            raise DataError(
                f"{name} has {height} x {width} pixels, but the first picture {shape[1]} x {shape[2]}; expected all "
                "alike: resize them with --resize HEIGHT WIDTH, or --resize SIDE and --crop SIDE"
            )
        found.append(pixels)
    return torch.cat(found) if found else torch.empty(0, *(shape or (1, 1, 1)), dtype=torch.uint8)


def read_picture(path: Path, root: Path) -> bytes:
    """The bytes of a picture file in the folder `root`, a resolved path.

    Raises `UnsoundError` if the file is too large, no regular file, or outside of the folder by a symbolic link.
    """
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(root):
        raise UnsoundError(
            f"it is a link to {real}, outside of {root}; only files in the folder are read: copy it there"
        )
    file = OpenFile.at(real)
    if file.size > _MOST_BYTES:
        raise UnsoundError(f"it takes {file.size} bytes; expected a picture of at most {_MOST_BYTES}")
    return file.read(0, file.size)


def decode(raw: bytes, resizing: Resizing, conversions: Counter[str]) -> Pixels:
    """A picture as uint8 `(1, channels, height, width)`, turned as its EXIF says, resized, cropped and converted.

    Without `Resizing.channels` grey pictures have one channel and all others three. Each conversion is counted in
    `conversions`. Raises `UnsoundError` for what is damaged, too large, transparent, animated, or of more than 8 bits.
    """
    made, done = _decoded(raw, resizing)
    conversions.update(done)
    return made


@guarded
def _decoded(raw: bytes, resizing: Resizing) -> tuple[Tensor, list[str]]:
    done: list[str] = []
    with warnings.catch_warnings():  # of EXIF data, and of sizes, which are checked here
        warnings.simplefilter("ignore")
        image = _opened(raw)
        image.load()
        if image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9):
            image = ImageOps.exif_transpose(image)
            done.append("turned by the orientation in the EXIF data")
        image = _without_alpha(image, done)
        grey = image.mode == "L" if resizing.channels is None else resizing.channels == 1
        if image.mode == "CMYK":
            done.append("converted from CMYK to RGB without a colour profile")
        elif grey != (image.mode == "L"):
            done.append("converted from colour to grey" if grey else "converted from grey to three equal channels")
        try:
            image = resizing.resized(image.convert("L" if grey else "RGB"))
        except SettingError as error:
            raise UnsoundError(str(error)) from error
    pixels = torch.from_numpy(np.array(image))
    return (pixels[None, None] if grey else pixels.permute(2, 0, 1)[None]), done


def _opened(raw: bytes) -> Image.Image:
    """The picture, with only its header read. Raises `UnsoundError` if it is too large, animated, or not of 8 bits."""
    try:
        image = Image.open(io.BytesIO(raw), formats=_FORMATS)
    except Image.UnidentifiedImageError as error:
        raise UnsoundError("it is damaged, or no picture in JPEG, PNG, BMP, WebP, GIF, TIFF or PPM") from error
    except Image.DecompressionBombError as error:  # raised by Pillow for the largest sizes
        raise UnsoundError(_TOO_LARGE) from error
    width, height = image.size
    if width * height > _MOST_PIXELS:
        raise UnsoundError(_TOO_LARGE)
    if not width * height:
        raise UnsoundError(f"it has {width} x {height} pixels; expected at least one along each side")
    if image.format in ("JPEG", "MPO"):
        scans = raw.count(b"\xff\xda")
        if scans * width * height > _MOST_WORK:
            raise UnsoundError(
                f"it is a JPEG of {scans} scans of {width} x {height} pixels, which takes too long; save it as baseline"
            )
    elif getattr(image, "is_animated", False):
        raise UnsoundError("it has several frames; save the one that is meant as a file of its own")
    if image.mode not in _MODES:
        raise UnsoundError(
            f"it has levels of more than 8 bits (Pillow's mode {image.mode}); scale them to bytes by the range that is "
            "meant, or store them as numbers in [0, 1] in a .npz file"
        )
    if any("16" in str(tile.args) and image.mode == "RGB" for tile in image.tile if image.format == "PNG"):
        raise UnsoundError("it has 16 bits per channel; save it with 8, or store numbers in [0, 1] in a .npz file")
    return image


def _without_alpha(image: Image.Image, done: list[str]) -> Image.Image:
    """The picture in mode L, RGB or CMYK. Raises `UnsoundError` if it is transparent anywhere."""
    if image.mode in ("1", "L") and "transparency" not in image.info:
        return image.convert("L")
    if image.mode in ("P", "PA"):
        done.append("converted from a palette")
    if image.has_transparency_data:
        image = image.convert("RGBA" if image.mode not in ("LA", "La") else "LA")
        if image.getchannel("A").getextrema()[0] != 255:  # type: ignore[index]
            raise UnsoundError(
                "it is transparent in places, and what would be seen there depends on the background: draw it on the "
                "one that is meant (with ImageMagick: magick IN -background white -flatten OUT)"
            )
        done.append("dropped an opaque alpha channel")
        return image.convert("L" if image.mode == "LA" else "RGB")
    return image if image.mode in ("RGB", "CMYK") else image.convert("RGB")
