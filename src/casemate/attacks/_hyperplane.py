"""The decision boundary as a hyperplane: the nearest one at an image, and its nearest point within the bounds.

DeepFool and FAB replace the boundary between two classes by the plane on which the two logits, linearised at an image,
are equal; that of a criterion without classes by the plane on which its linearised margin is zero. DeepFool steps to
the nearest point of the plane regardless of the bounds, FAB to the nearest point within the bounds. Croce and Hein
(2020, arXiv 1907.02044, section 3.1) find the latter exactly, by sorting; `shortest_move` finds it without a sort.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from casemate.attacks.criterion import Criterion
from casemate.attacks.differentiate import gradient_of
from casemate.logits import is_valid, unmasked
from casemate.models import Classifier
from casemate.norms import Bounds, Norm, dual_norm_of
from casemate.types import Flags, Images, Labels, Logits, PerExample

_PIXELS = 64
"""For L1, this number of pixels with the largest gradients are tried first: images seldom need more, and a full sort
takes four times as long (measured on 256 images of 784 pixels)."""

TargetClasses = Int64[Tensor, "n target_classes"]
"""Numbers of some classes other than the label, for each example, `(n, target_classes)`."""

_Flat = Float[Tensor, "n pixels"]


@final
@dataclass(frozen=True)
class Hyperplane:
    """Per example, the plane that replaces the boundary between its label and one target class.

    It contains the points z with `offset` + <`normal`, z - image> = 0, where their linearised logits are equal.
    """

    offset: PerExample
    """Logit of the target class minus logit of the label, at the image; the margin of a criterion without classes."""
    normal: Images
    """Gradient of `offset` with respect to the image; zero where no target class has a gradient."""
    length: PerExample
    """Dual norm of `normal`: |offset| / length is the distance to the plane if the bounds are ignored."""
    finite: Flags
    """The logits and the gradients for all target classes were finite."""


def likeliest_classes(logits: Logits, own: Labels, count: int) -> TargetClasses:
    """The `count` most likely classes other than `own`, the labels, most likely first; fewer if there are fewer.

    Masked classes (see `casemate.logits`) are replaced by the most likely one, which is then repeated.
    """
    others = logits.detach().scatter(1, own.unsqueeze(1), float("-inf"))
    ranked = others.topk(min(count, logits.shape[1] - 1), dim=1).indices
    playing = unmasked(logits).scatter(1, own.unsqueeze(1), False)  # the label ranks among those at minus infinity
    return ranked.where(playing.gather(1, ranked), ranked[:, :1])


def is_new(target_classes: TargetClasses, first: TargetClasses) -> Flags:
    """Which examples have other target classes than `first`, those of the first run.

    Equal ones replace masked classes (see `likeliest_classes`), and need no further run.
    """
    return (target_classes != first).any(1)


def nearest_boundary(
    model: Classifier, images: Images, criterion: Criterion, target_classes: TargetClasses | None, norm: Norm
) -> Hyperplane:
    """The nearest in `norm` of the linearised boundaries between each example's label and its target classes.

    A criterion without classes has a single boundary.

    It takes one forward pass, and one backward pass per target class: on a CPU no slower than all of them at once
    (`is_grads_batched`: 236 instead of 197 ms for ten classes of a convolutional network), for models of any kind,
    and only one gradient is held at a time.

    Args:
        criterion: whose `classes` are the labels; with its mask the boundaries among the images that differ only there.
        target_classes: the classes to consider; None for the most likely other class at `images`.
    """

    def boundary(part: slice) -> tuple[Tensor, ...]:
        chosen = None if target_classes is None else target_classes[part]
        return _boundary(model, images[part], criterion[part], chosen, norm)

    offset, normal, length, finite = model.in_parts(len(images), boundary)
    return Hyperplane(offset, normal, length, finite)


def _boundary(
    model: Classifier, images: Images, criterion: Criterion, target_classes: TargetClasses | None, norm: Norm
) -> tuple[PerExample, Images, PerExample, Flags]:
    """The fields of `Hyperplane` in order, for images that pass through the network together."""
    images = images.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = model(images)
        if criterion.by_class:
            own = criterion.classes
            chosen = likeliest_classes(logits, own, 1) if target_classes is None else target_classes
            offsets = logits.gather(1, chosen) - logits.gather(1, own.unsqueeze(1))
        else:
            offsets = criterion.checked_margin(logits).unsqueeze(1)
        totals = offsets.sum(0).unbind()
    offsets = offsets.detach()
    finite = is_valid(logits.detach())
    normal = torch.zeros_like(images, requires_grad=False)
    nearest = torch.full((len(images),), float("inf"), dtype=torch.float64, device=images.device)
    offset, length = (
        offsets[:, 0].clamp(min=torch.finfo(offsets.dtype).min),
        torch.zeros_like(nearest),
    )  # the offset of a masked class is -inf
    for column, total in enumerate(totals):
        gradient = criterion.masked(gradient_of(total, images, retain=column + 1 < len(totals)))
        finite &= gradient.flatten(1).abs().amax(1).isfinite()
        steepness = dual_norm_of(gradient, norm)
        distance = offsets[:, column].abs() / steepness
        nearer = distance < nearest
        nearest = torch.where(nearer, distance, nearest)
        offset, length = torch.where(nearer, offsets[:, column], offset), torch.where(nearer, steepness, length)
        normal[nearer] = gradient[nearer]
    return offset, normal, length.to(offset.dtype), finite


@final
class NormalizedNormal:
    """A hyperplane's normal as `nearest_point` takes it: signs, and absolute values divided by the largest."""

    def __init__(self, normal: Images) -> None:
        flat = normal.flatten(1)
        self.sign, size = flat.sign(), flat.abs()
        # only ratios count; with a largest entry of 1, no square leaves the range of the precision
        self.largest = size.amax(1).clamp(min=torch.finfo(flat.dtype).tiny)
        self.size = size.div_(self.largest.unsqueeze(1))


def nearest_point(images: Images, normal: NormalizedNormal, rise: PerExample, norm: Norm, bounds: Bounds) -> Images:
    """The shortest move within the bounds (in `norm`) to change the linear function with gradient `normal` by `rise`.

    It is `shortest_move` with the room that images within the bounds have.
    """
    toward = normal.sign * rise.sign().unsqueeze(1)
    ahead = (toward * max(map(abs, bounds))).clamp_(*bounds)  # the bound that a pixel moves to
    return shortest_move(ahead.sub_(images.flatten(1)).abs_(), normal, rise, norm).view_as(images)


def shortest_move(room: _Flat, normal: NormalizedNormal, rise: PerExample, norm: Norm) -> _Flat:
    """The shortest move in `norm` to change the linear function with gradient `normal` by `rise`, of either sign.

    Where the room does not suffice for such a change, it is the move with the largest change; where the normal is zero,
    it is zero.

    Pixel i moves by t_i, at most by room_i. For Linf and L2, t_i = min(s * p_i, room_i) with p_i = 1 and p_i =
    |normal_i|, and one scale s per image. The change is concave and piecewise linear in s, so Newton's method from the
    left reaches the exact s after a few steps: on 256 images of 784 pixels four or five, in less than half the time of
    the original's sort. For L1 the pixels with the largest |normal_i| move first, each as far as it can.

    Args:
        room: how far each pixel can move in the direction wanted, `(n, pixels)`, zero or more.

    Returns:
        The moves, `(n, pixels)`; <normal, move> equals `rise` up to rounding.
    """
    need = (rise.abs() / normal.largest).clamp(max=torch.finfo(room.dtype).max)
    moved = _steepest_first(normal.size, room, need) if norm == "l1" else _in_step(normal.size, room, need, norm)
    return normal.sign * rise.sign().unsqueeze(1) * moved


def _in_step(size: _Flat, room: _Flat, need: PerExample, norm: Norm, scale: PerExample | None = None) -> _Flat:
    """For Linf and L2: t = min(s * p, room) with the smallest s at which the sum of `size` * t is `need`, by Newton's
    method.

    The notation is that of `shortest_move`: `size` is |normal_i|, and `need` the absolute change wanted. It starts from
    `scale`, which is at most s; from the s for infinite room if None.
    """
    limits = torch.finfo(size.dtype)
    gain = size if norm == "linf" else size * size
    if scale is None:
        scale = (need / gain.sum(1).clamp(min=limits.tiny)).clamp(max=limits.max)
    work = torch.empty_like(size)
    while True:
        wanted = scale.unsqueeze(1) if norm == "linf" else scale.unsqueeze(1) * size
        moved = room.minimum(wanted)
        missing = need - torch.mul(size, moved, out=work).sum(1)
        # a float mask: comparing into a float tensor and multiplying takes a tenth of the time of `masked_fill`
        left = torch.gt(room, wanted, out=work).mul_(gain).sum(1)
        better = (scale + missing / left.clamp(min=limits.tiny)).clamp(max=limits.max)
        short = (missing > 4 * limits.eps * need) & (left > 0) & (better > scale)
        scale = torch.where(short, better, scale)
        remaining = int(short.sum())
        if 2 * remaining <= len(short):  # the examples that take longer continue in a smaller batch
            if remaining:
                rest = short.nonzero().squeeze(1)
                moved[rest] = _in_step(size[rest], room[rest], need[rest], norm, scale[rest])
            return moved


def _steepest_first(size: _Flat, room: _Flat, need: PerExample, pixels: int = _PIXELS) -> _Flat:
    """For L1: t = room for the pixels with the largest `size`, until the sum of `size` * t is `need`; 0 elsewhere.

    Only the first `pixels` of them are sorted, unless they do not suffice. For the notation see `shortest_move`.
    """
    pixels = min(pixels, size.shape[1])
    steepest, place = size.topk(pixels, dim=1)
    free = room.gather(1, place)
    cost = steepest * free
    spent = cost.cumsum(1)
    rest = (need.unsqueeze(1) - (spent - cost)).clamp(min=0)
    share = (rest / steepest.clamp(min=torch.finfo(size.dtype).tiny)).minimum(free)
    moved = torch.zeros_like(size).scatter_(1, place, share)
    if pixels == size.shape[1]:
        return moved
    beyond = (size * room).sum(1)
    short = spent[:, -1] < need
    moved = torch.where((short & (beyond <= need)).unsqueeze(1), room, moved)  # not reachable: the corner
    short = (short & (beyond > need)).nonzero().squeeze(1)
    if len(short):
        moved[short] = _steepest_first(size[short], room[short], need[short], size.shape[1])
    return moved
