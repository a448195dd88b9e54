"""Affine changes of batches of images, differentiable with respect to the pixels."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from casemate.types import Images


def affine(
    images: Images, angle: Float[Tensor, " n"], shift: Float[Tensor, "n 2"], scale: Float[Tensor, " n"]
) -> Images:
    """Shift, then rotate, then scale each image about its centre, with bilinear interpolation; what enters is black.

    Args:
        images: `(n, channels, height, width)`.
        angle: in degrees, counter-clockwise as seen.
        shift: to the right and downwards, as shares of width and height.
        scale: factor on the size of what is shown.

    The gradient with respect to `images` is that of the interpolation.
    """
    height, width = images.shape[2:]
    # grid_sample asks for the way back, from a place of the result to its source: scale, rotate and shift undone
    turn = torch.deg2rad(angle)
    cosine, sine = turn.cos() / scale, turn.sin() / scale
    # its coordinates run from -1 to 1 over each side, so sides of unequal length need the factors width/height
    rows = [
        torch.stack([cosine, -sine * height / width, -2 * shift[:, 0]], 1),
        torch.stack([sine * width / height, cosine, -2 * shift[:, 1]], 1),
    ]
    back = torch.stack(rows, 1).to(images.device, images.dtype)
    grid = F.affine_grid(back, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved.contiguous(memory_format=torch.channels_last)
