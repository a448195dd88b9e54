"""Affine transformations of batches of images, differentiable with respect to the pixels."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from casemate.types import Images


def affine(
    images: Images, angle: Float[Tensor, " n"], shift: Float[Tensor, "n 2"], scale: Float[Tensor, " n"]
) -> Images:
    """Shift, then rotate, then scale each image about its centre, by bilinear interpolation with black outside.

    Args:
        images: `(n, channels, height, width)`.
        angle: in degrees, counter-clockwise as seen.
        shift: to the right and downwards, as shares of width and height.
        scale: magnification factor.

    The gradient with respect to `images` is that of the interpolation.
    """
    height, width = images.shape[2:]
    # grid_sample needs the inverse map, from output to input positions: undo the scale, the rotation and the shift
    turn = torch.deg2rad(angle)
    cosine, sine = turn.cos() / scale, turn.sin() / scale
    # its coordinates run from -1 to 1 along each side, so non-square images need the factors width/height
    rows = [
        torch.stack([cosine, -sine * height / width, -2 * shift[:, 0]], 1),
        torch.stack([sine * width / height, cosine, -2 * shift[:, 1]], 1),
    ]
    inverse = torch.stack(rows, 1).to(images.device, images.dtype)
    grid = F.affine_grid(inverse, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved.contiguous(memory_format=torch.channels_last)
