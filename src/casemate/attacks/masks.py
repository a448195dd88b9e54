"""Masks: which values of an image an attack may change, as a caller gives them and as attacks take them."""

import torch

from casemate.data import Array, as_tensor
from casemate.errors import DataError, ShapeError
from casemate.types import Images, Mask, PerExample


def as_mask(given: Array, images: Images) -> Mask:
    """The mask that a caller gave, expanded to the shape of the images without a copy.

    Args:
        given: booleans, or zeros and ones, of a shape that broadcasts to that of the images, such as `(height, width)`.

    Raises:
        DataError: values other than these.
        ShapeError: another shape.
    """
    mask, shape = as_tensor(given, "mask"), tuple(images.shape)
    if mask.dtype != torch.bool:
        other = (mask != 0) & (mask != 1)
        if other.any():
            raise DataError(
                f"mask with the value {mask[other][0].item():g}; expected booleans, or 0 and 1: for a grey picture "
                "picture > 0.5 of its range"
            )
        mask = mask != 0
    try:
        return mask.to(images.device).expand(shape)
    except RuntimeError as error:
        batch = "; of one mask per image, mask.unsqueeze(1)" if mask.ndim == 3 and len(mask) == len(images) else ""
        raise ShapeError(
            f"mask of shape {tuple(mask.shape)} for images of shape {shape}; expected a shape that broadcasts to "
            f"theirs, such as {shape[2:]}, {shape[1:]} or {(len(images), 1, *shape[2:])}{batch}"
        ) from error


def free_share(mask: Mask) -> PerExample:
    """The share of the values of each image that may change, `(n,)`."""
    return mask.flatten(1).float().mean(1)
