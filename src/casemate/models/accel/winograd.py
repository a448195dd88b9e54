"""Convolutions of 3 x 3 by fewer multiplications: Winograd's minimal filtering, F(2 x 2, 3 x 3).

Lavin and Gray (2016, arXiv 1509.09308, section 4): a tile of 4 x 4 numbers of each channel is transformed by additions,
multiplied number by number with the transformed weights and summed over the channels, and transformed back to 2 x 2
outputs: 16 multiplications for what takes 36. Products for the same of the 16 places are one product of matrices. The
way back to the images is the same read from the end, and costs the same. Rounding stays near that of the plain sum.

On one core of a Xeon a gradient through 512 channels on maps of 4 x 4 took 480 instead of 1250 microseconds an image,
256 channels on 8 x 8 560 instead of 730, 128 channels on 6 x 6 102 instead of 123; with 64 channels the transforms cost
what the products save. Of the outputs of a tile each is rounded in its own way: see `rearrange.py`.
"""

import threading
from typing import Any, TypeGuard, final, no_type_check

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from casemate import compiled
from casemate.models.accel.convolutions import Border, StandIn, border_of

_CHANNELS = 128
"""In and out, from which on it is faster."""
_HELD = 1 << 20
"""Transformed numbers that are worked on at a time: those of some images, which stay in the cache."""
_THREADS = 16
"""So many times as much at most, by the threads, each of which has a cache of its own."""
_MOST = 4 * _HELD
"""The same of one image: from larger maps the transforms would write more than the products save."""


def suits(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a layer is a convolution that this one stands for, and faster."""
    return (
        type(layer) is nn.Conv2d
        and (layer.kernel_size, layer.stride, layer.dilation, layer.groups) == ((3, 3), (1, 1), (1, 1), 1)
        and layer.padding_mode == "zeros"
        and min(layer.in_channels, layer.out_channels) >= _CHANNELS
        and compiled.takes(layer.weight)
    )


@final
class Winograd(StandIn):
    """Does what a frozen convolution does; its weights get no gradient."""

    transformed: Tensor
    """The weights, `(16, inputs, outputs)`."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(layer)
        weight = layer.weight.detach()
        each = weight.new_tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
        planes = torch.einsum("pu,oiuv,qv->pqio", each, weight, each)
        self.register_buffer("transformed", planes.flatten(0, 1).contiguous())

    def forward(self, maps: Tensor) -> Tensor:
        """Return the feature maps."""
        if maps.ndim != 4 or not compiled.takes(maps):
            return self.layer(maps)
        left, right, top, bottom = border = border_of(self.layer)
        height, width = maps.shape[2] + top + bottom - 2, maps.shape[3] + left + right - 2
        numbers = 4 * height * width * (self.layer.in_channels + self.layer.out_channels)
        if len(maps) == 0 or min(height, width) < 1 or numbers > _MOST:
            return self.layer(maps)
        return _Convolution.apply(maps, self.transformed, self.bias, border)  # pyright: ignore[reportReturnType]


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor | None, border: Border) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.border = maps.shape, border
        left, right, top, bottom = border
        height, width = maps.shape[2] + top + bottom - 2, maps.shape[3] + left + right - 2
        even = F.pad(maps, (left, right + width % 2, top, bottom + height % 2))
        found = compiled.empty_maps(maps, len(maps), weight.shape[2], height, width)
        added = weight.new_zeros(weight.shape[2]) if bias is None else bias
        _in_parts(_spread, compiled.channels_last(even), weight, _gather, compiled.channels_last(found), (added,))
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (weight,) = ctx.saved_tensors
        (count, channels, height, width), (left, _, top, _) = ctx.shape, ctx.border
        gradient = compiled.channels_last(gradients[0])
        rows, columns = ((side + 1) // 2 for side in gradient.shape[1:3])
        even = gradient.new_zeros(count, 2 * rows + 2, 2 * columns + 2, channels)
        _in_parts(_spread_back, gradient, weight.transpose(1, 2), _gather_back, even, ())
        spare = (-left, left + width - even.shape[2], -top, top + height - even.shape[1])
        inner = F.pad(even.permute(0, 3, 1, 2), spare)  # the border goes
        return inner.contiguous(memory_format=torch.channels_last), None, None, None


def _in_parts(
    spread: compiled.Loop,
    given: Tensor,
    weight: Tensor,
    gather: compiled.Loop,
    found: Tensor,
    added: tuple[Tensor, ...],
) -> None:
    """Transform, multiply, transform back: for as many images at a time as the cache holds."""
    height, width = (min(sides) for sides in zip(given.shape[1:3], found.shape[1:3], strict=True))  # without borders
    tiles = ((height + 1) // 2) * ((width + 1) // 2)
    _, inputs, outputs = weight.shape
    most = _HELD * min(torch.get_num_threads(), _THREADS)
    at_once = min(max(1, most // (16 * tiles * (inputs + outputs))), len(given))
    before = _planes("before", at_once * tiles, inputs, given)
    behind = _planes("behind", at_once * tiles, outputs, given)
    for start in range(0, len(given), at_once):
        part = slice(start, min(start + at_once, len(given)))
        numbers = torch.arange(part.stop - part.start, device=given.device)
        used = slice(0, len(numbers) * tiles)
        compiled.over_images(spread, numbers, fixed=(given[part], before))
        torch.bmm(before[:, used], weight, out=behind[:, used])
        compiled.over_images(gather, numbers, fixed=(behind, found[part], *added))


class _Rooms(threading.local):
    """Each thread's memory for planes, kept since new memory takes as long to get as to fill."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, torch.dtype], Tensor] = {}


_rooms = _Rooms()


def _planes(name: str, rows: int, columns: int, like: Tensor) -> Tensor:
    """Room for 16 matrices, until it is asked for again by the same name.

    Each begins a sixteenth of a page further than the one before: were they whole pages apart, a processor's cache
    could not hold a line of each.
    """
    page = 4096 // like.element_size()
    apart = -(-rows * columns // page) * page + page // 16
    room = _rooms.kept.get((name, like.dtype))
    if room is None or len(room) < 16 * apart:
        with torch.inference_mode(False):  # kept for other passes
            room = _rooms.kept[name, like.dtype] = torch.empty(16 * apart, dtype=like.dtype, device=like.device)
    return room.as_strided((16, rows, columns), (apart, columns, 1))


@compiled.loop
@no_type_check
def _spread(numbers, maps, planes):
    """Every tile of 4 x 4, two apart, transformed: B' d B."""
    rows, columns, channels = maps.shape[1] // 2 - 1, maps.shape[2] // 2 - 1, maps.shape[3]
    for n in numbers:
        for y in range(rows):
            for x in range(columns):
                tile = (n * rows + y) * columns + x
                r0, r1 = maps[n, 2 * y, 2 * x : 2 * x + 4], maps[n, 2 * y + 1, 2 * x : 2 * x + 4]
                r2, r3 = maps[n, 2 * y + 2, 2 * x : 2 * x + 4], maps[n, 2 * y + 3, 2 * x : 2 * x + 4]
                for c in range(channels):
                    a0, a1, a2, a3 = r0[0, c] - r2[0, c], r0[1, c] - r2[1, c], r0[2, c] - r2[2, c], r0[3, c] - r2[3, c]
                    b0, b1, b2, b3 = r1[0, c] + r2[0, c], r1[1, c] + r2[1, c], r1[2, c] + r2[2, c], r1[3, c] + r2[3, c]
                    d0, d1, d2, d3 = r2[0, c] - r1[0, c], r2[1, c] - r1[1, c], r2[2, c] - r1[2, c], r2[3, c] - r1[3, c]
                    e0, e1, e2, e3 = r1[0, c] - r3[0, c], r1[1, c] - r3[1, c], r1[2, c] - r3[2, c], r1[3, c] - r3[3, c]
                    planes[0, tile, c], planes[1, tile, c] = a0 - a2, a1 + a2
                    planes[2, tile, c], planes[3, tile, c] = a2 - a1, a1 - a3
                    planes[4, tile, c], planes[5, tile, c] = b0 - b2, b1 + b2
                    planes[6, tile, c], planes[7, tile, c] = b2 - b1, b1 - b3
                    planes[8, tile, c], planes[9, tile, c] = d0 - d2, d1 + d2
                    planes[10, tile, c], planes[11, tile, c] = d2 - d1, d1 - d3
                    planes[12, tile, c], planes[13, tile, c] = e0 - e2, e1 + e2
                    planes[14, tile, c], planes[15, tile, c] = e2 - e1, e1 - e3


@compiled.loop
@no_type_check
def _gather(numbers, planes, found, bias):
    """Transformed back to 2 x 2, and the bias: A' m A + b. Of an odd number of rows or columns the last half counts."""
    height, width, channels = found.shape[1:]
    rows, columns = (height + 1) // 2, (width + 1) // 2
    beyond = np.empty(channels, found.dtype)
    for n in numbers:
        for y in range(rows):
            for x in range(columns):
                tile = (n * rows + y) * columns + x
                below, right = 2 * y + 1 < height, 2 * x + 1 < width
                f0 = found[n, 2 * y, 2 * x]
                f1 = found[n, 2 * y, 2 * x + 1] if right else beyond
                f2 = found[n, 2 * y + 1, 2 * x] if below else beyond
                f3 = found[n, 2 * y + 1, 2 * x + 1] if below and right else beyond
                for c in range(channels):
                    m0, m1, m2, m3 = planes[0, tile, c], planes[1, tile, c], planes[2, tile, c], planes[3, tile, c]
                    m4, m5, m6, m7 = planes[4, tile, c], planes[5, tile, c], planes[6, tile, c], planes[7, tile, c]
                    m8, m9, ma, mb = planes[8, tile, c], planes[9, tile, c], planes[10, tile, c], planes[11, tile, c]
                    mc, md, me, mf = planes[12, tile, c], planes[13, tile, c], planes[14, tile, c], planes[15, tile, c]
                    a0, a1, a2, a3 = m0 + m4 + m8, m1 + m5 + m9, m2 + m6 + ma, m3 + m7 + mb
                    b0, b1, b2, b3 = m4 - m8 - mc, m5 - m9 - md, m6 - ma - me, m7 - mb - mf
                    b = bias[c]
                    f0[c], f1[c] = a0 + a1 + a2 + b, a1 - a2 - a3 + b
                    f2[c], f3[c] = b0 + b1 + b2 + b, b1 - b2 - b3 + b


@compiled.loop
@no_type_check
def _spread_back(numbers, gradient, planes):
    """The way back of `_gather`: A g A'."""
    height, width, channels = gradient.shape[1:]
    rows, columns = (height + 1) // 2, (width + 1) // 2
    none = np.zeros(channels, gradient.dtype)
    for n in numbers:
        for y in range(rows):
            for x in range(columns):
                tile = (n * rows + y) * columns + x
                below, right = 2 * y + 1 < height, 2 * x + 1 < width
                g0 = gradient[n, 2 * y, 2 * x]
                g1 = gradient[n, 2 * y, 2 * x + 1] if right else none
                g2 = gradient[n, 2 * y + 1, 2 * x] if below else none
                g3 = gradient[n, 2 * y + 1, 2 * x + 1] if below and right else none
                for c in range(channels):
                    a, b, d, e = g0[c], g1[c], g2[c], g3[c]
                    up, down = a + d, a - d  # rows of the first column, then of the second
                    left, low = b + e, b - e
                    planes[0, tile, c], planes[1, tile, c] = a, a + b
                    planes[2, tile, c], planes[3, tile, c] = a - b, -b
                    planes[4, tile, c], planes[5, tile, c] = up, up + left
                    planes[6, tile, c], planes[7, tile, c] = up - left, -left
                    planes[8, tile, c], planes[9, tile, c] = down, down + low
                    planes[10, tile, c], planes[11, tile, c] = down - low, -low
                    planes[12, tile, c], planes[13, tile, c] = -d, -d - e
                    planes[14, tile, c], planes[15, tile, c] = e - d, e


@compiled.loop
@no_type_check
def _gather_back(numbers, planes, found):
    """The way back of `_spread`, added up where tiles overlap: B m B'."""
    rows, columns, channels = found.shape[1] // 2 - 1, found.shape[2] // 2 - 1, found.shape[3]
    for n in numbers:
        for y in range(rows):
            for x in range(columns):
                tile = (n * rows + y) * columns + x
                r0, r1 = found[n, 2 * y, 2 * x : 2 * x + 4], found[n, 2 * y + 1, 2 * x : 2 * x + 4]
                r2, r3 = found[n, 2 * y + 2, 2 * x : 2 * x + 4], found[n, 2 * y + 3, 2 * x : 2 * x + 4]
                for c in range(channels):
                    m0, m1, m2, m3 = planes[0, tile, c], planes[1, tile, c], planes[2, tile, c], planes[3, tile, c]
                    m4, m5, m6, m7 = planes[4, tile, c], planes[5, tile, c], planes[6, tile, c], planes[7, tile, c]
                    m8, m9, ma, mb = planes[8, tile, c], planes[9, tile, c], planes[10, tile, c], planes[11, tile, c]
                    mc, md, me, mf = planes[12, tile, c], planes[13, tile, c], planes[14, tile, c], planes[15, tile, c]
                    # along the rows of the tile
                    b0, b1, b2, b3 = m4 - m8 + mc, m5 - m9 + md, m6 - ma + me, m7 - mb + mf
                    d0, d1, d2, d3 = m4 + m8 - m0, m5 + m9 - m1, m6 + ma - m2, m7 + mb - m3
                    # along its columns
                    r0[0, c] += m0
                    r0[1, c] += m1 - m2 + m3
                    r0[2, c] += m1 + m2 - m0
                    r0[3, c] -= m3
                    r1[0, c] += b0
                    r1[1, c] += b1 - b2 + b3
                    r1[2, c] += b1 + b2 - b0
                    r1[3, c] -= b3
                    r2[0, c] += d0
                    r2[1, c] += d1 - d2 + d3
                    r2[2, c] += d1 + d2 - d0
                    r2[3, c] -= d3
                    r3[0, c] -= mc
                    r3[1, c] -= md - me + mf
                    r3[2, c] -= md + me - mc
                    r3[3, c] += mf
