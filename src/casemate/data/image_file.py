"""Reading a user's own images and labels into memory."""

from pathlib import Path

from casemate.data.dataset import LabelledImages
from casemate.data.sources import open_images
from casemate.files import as_path


def read_images(path: Path | str) -> LabelledImages:
    """Read all images and labels of a file or folder into memory; see `casemate.data.open_images` for the formats.

    Of a .npz or .safetensors file the arrays `images` and `labels` are read: images are bytes (uint8) or floating-point
    numbers within the model's bounds, `(n, channels, height, width)` or, with one channel, `(n, height, width)`; labels
    are integers `(n,)` from 0. Pickled objects are rejected.

    Raises:
        DataError: the file is missing, unreadable or inconsistent, or its images or labels are not as above.
    """
    return open_images(as_path(path)).read(slice(None))
