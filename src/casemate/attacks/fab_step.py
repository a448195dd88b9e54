"""One step of FAB: from an iterate over the nearest boundary, leaning towards the clean image.

Croce and Hein (2020, arXiv 1907.02044), algorithm 1: the mean, with weight alpha, of a step from the iterate and one
from the clean image, each a little beyond the nearest point of the same plane within the bounds (`hyperplane.py`).

On a processor, for Linf and L2, all of it is one compiled loop: some forty passes over an image, which as tensor
operations took 38 microseconds for 784 pixels on one core of a Xeon, take 5. Elsewhere, and for L1, it is tensor
operations. They agree to the rounding of the precision at hand.
"""

from typing import no_type_check

import numpy as np
import torch

from casemate import compiled
from casemate.attacks.hyperplane import Hyperplane, Incline, nearest_point
from casemate.norms import Bounds, Norm, norm_of
from casemate.types import Images, PerExample

_CACHED = 50_000
"""Pixels of images that tensor operations are given at a time: some ten arrays of that size stay in a cache of 2 MB."""
_LEAST = 1e-8
"""Length of a step from which on its share counts."""


def next_iterates(
    images: Images, clean: Images, plane: Hyperplane, norm: Norm, bounds: Bounds, *, eta: float, alpha_max: float
) -> Images:
    """Where the iterates `images` go next, within the bounds; without meaning where the plane is not `finite`.

    Args:
        plane: the nearest boundary at each iterate.
        eta: how far to go, 1 being the nearest point of the plane.
        alpha_max: the largest share of the step from the clean image.
    """
    if norm != "l1" and compiled.takes(images):
        return _in_one_loop(images, clean, plane, norm, bounds, eta, alpha_max)
    size = max(1, _CACHED // clean[0].numel())
    parts = (slice(start, start + size) for start in range(0, len(clean), size))
    return torch.cat(
        [
            _by_operations(images[part], clean[part], plane.slope[part], plane.gap[part], norm, bounds, eta, alpha_max)
            for part in parts
        ]
    )


def _by_operations(
    images: Images,
    clean: Images,
    slope: Images,
    gap: PerExample,
    norm: Norm,
    bounds: Bounds,
    eta: float,
    alpha_max: float,
) -> Images:
    incline = Incline(slope)
    across = nearest_point(images, incline, -gap, norm, bounds)
    from_clean = -gap - (clean - images).mul_(slope).flatten(1).sum(1)
    back = nearest_point(clean, incline, from_clean, norm, bounds)
    near, far = (norm_of(each, norm).clamp(min=_LEAST) for each in (across, back))
    alpha = (near / (near + far)).clamp(max=alpha_max).view(-1, 1, 1, 1)
    step = (images + across.mul_(eta)).mul_(1 - alpha)
    return step.add_(back.mul_(eta).add_(clean).mul_(alpha)).clamp_(*bounds)


def _in_one_loop(
    images: Images, clean: Images, plane: Hyperplane, norm: Norm, bounds: Bounds, eta: float, alpha_max: float
) -> Images:
    found = compiled.empty_maps(images, *images.shape)
    rows = (compiled.channels_last(each).flatten(1) for each in (images, clean, plane.slope))
    settings = images.new_tensor([*bounds, eta, alpha_max, norm == "l2"])
    gap = plane.gap.detach().to(images.dtype)
    compiled.over_images(_loop, *rows, gap, compiled.channels_last(found).flatten(1), fixed=(settings,))
    return found


@compiled.loop_in_any_order
@no_type_check
def _loop(images, clean, slope, gap, found, settings):
    """`_by_operations` for Linf and L2, image by image."""
    count, pixels = images.shape
    kind = images.dtype.type
    low, high, eta, alpha_max, squared = settings
    room, size = np.empty(pixels, images.dtype), np.empty(pixels, images.dtype)
    across, back = np.empty(pixels, images.dtype), np.empty(pixels, images.dtype)
    for n in range(count):
        largest, apart = kind(0), 0.0
        for i in range(pixels):
            largest = max(largest, abs(slope[n, i]))
            apart += (clean[n, i] - images[n, i]) * slope[n, i]
        largest = max(largest, np.finfo(images.dtype).tiny)
        _nearest(images[n], slope[n], largest, -gap[n], low, high, squared > 0, room, size, across)
        _nearest(clean[n], slope[n], largest, kind(-gap[n] - apart), low, high, squared > 0, room, size, back)
        near, far = 0.0, 0.0
        for i in range(pixels):
            if squared > 0:
                near += across[i] * across[i]
                far += back[i] * back[i]
            else:
                near, far = max(near, abs(across[i])), max(far, abs(back[i]))
        if squared > 0:
            near, far = np.sqrt(near), np.sqrt(far)
        near, far = max(near, _LEAST), max(far, _LEAST)
        alpha = kind(min(near / (near + far), alpha_max))
        for i in range(pixels):
            step = (images[n, i] + eta * across[i]) * (kind(1) - alpha) + (clean[n, i] + eta * back[i]) * alpha
            found[n, i] = min(max(step, low), high)


@compiled.loop_in_any_order
@no_type_check
def _nearest(image, slope, largest, rise, low, high, squared, room, size, move):
    """`nearest_point` for Linf and, `squared`, for L2, by the same iteration; `room` and `size` are overwritten."""
    pixels, kind = len(image), image.dtype.type
    tiny, most, rounding = np.finfo(image.dtype).tiny, np.finfo(image.dtype).max, np.finfo(image.dtype).eps
    need, total = min(abs(rise) / largest, most), 0.0
    for i in range(pixels):
        room[i] = high - image[i] if (slope[i] > 0) == (rise > 0) else image[i] - low
        size[i] = abs(slope[i]) / largest
        total += size[i] * size[i] if squared else size[i]
    scale = min(need / max(total, tiny), most)
    while True:
        risen, left = 0.0, 0.0
        for i in range(pixels):
            wanted = kind(scale) * size[i] if squared else kind(scale)
            gain = size[i] * size[i] if squared else size[i]
            risen += size[i] * min(room[i], wanted)
            left += gain if room[i] > wanted else kind(0)
        missing = need - risen
        better = min(scale + missing / max(left, tiny), most)
        if not (missing > 4 * rounding * need and left > 0 and kind(better) > kind(scale)):
            break
        scale = better
    for i in range(pixels):
        length = min(room[i], kind(scale) * size[i] if squared else kind(scale))
        move[i] = np.sign(slope[i]) * np.sign(rise) * length
