"""Max-pooling over 2 x 2 and ReLU as one layer, alone or with a convolution of few channels before it.

On one core of a Xeon an input gradient of appendix A of the paper took 430 instead of 460 microseconds an image with
the first, and 350 with the second as well.
"""

from typing import Any, TypeGuard, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from casemate import compiled
from casemate.models.accel import few_channels, loops
from casemate.models.accel.few_channels import FewChannels

_FEW_PLACES = 9
"""Of a kernel, times channels: with more, the compiled loop is slower than PyTorch's convolution."""


def _pair(size: int | tuple[int, ...]) -> tuple[int, ...]:
    """Height and width, of which PyTorch takes one where they are equal."""
    return (size, size) if isinstance(size, int) else size


def suits_pooling(layer: nn.Module) -> bool:
    """Whether a layer is a pooling over 2 x 2 as it is meant here."""
    return (
        type(layer) is nn.MaxPool2d
        and (_pair(layer.kernel_size), _pair(layer.stride)) == ((2, 2), (2, 2))
        and (_pair(layer.padding), _pair(layer.dilation)) == ((0, 0), (1, 1))
        and not layer.ceil_mode
        and not layer.return_indices
    )


def suits_convolution(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a layer is a convolution that can be one with the pooling behind it."""
    return few_channels.suits(layer) and layer.out_channels % loops.BLOCK == 0


@final
class RectifiedPool(nn.Module):
    """Does what a max-pooling over 2 x 2 and a ReLU do, in either order."""

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps of half the height and width, rounded down."""
        return _rectified_pool(maps)


@final
class PooledFewChannels(nn.Module):
    """Does what a frozen convolution of few channels and a `RectifiedPool` do; its weights get no gradient."""

    flat: Tensor
    """The weights `(places * inputs, outputs)`."""
    seen: Tensor
    """The weights as all four places of a pooling see the images, by the position of the largest."""

    def __init__(self, layer: FewChannels) -> None:
        super().__init__()
        self.layer = layer
        outputs, inputs, tall, wide = layer.weight.shape
        self.register_buffer("flat", layer.weight.permute(2, 3, 1, 0).reshape(-1, outputs).contiguous())
        down, across = layer.stride
        seen = layer.weight.new_zeros(loops.NOWHERE + 1, outputs, tall + down, wide + across, inputs)
        for position in range(loops.NOWHERE):
            y, x = position // 2 * down, position % 2 * across
            seen[position, :, y : y + tall, x : x + wide] = layer.weight.permute(0, 2, 3, 1)
        self.register_buffer("seen", seen.flatten(2))

    def forward(self, images: Tensor) -> Tensor:
        """Return the pooled maps."""
        if images.ndim != 4 or not compiled.takes(images) or min(self.layer.sides(images)) < 2:
            return _rectified_pool(self.layer(images))
        return _PooledConvolution.apply(images, self)  # pyright: ignore[reportReturnType]


def _rectified_pool(maps: Tensor) -> Tensor:
    if maps.ndim != 4 or not compiled.takes(maps, to_compare=True) or min(maps.shape[2:]) < 2:
        return F.relu_(F.max_pool2d(maps, 2))
    return _Pooling.apply(maps)  # pyright: ignore[reportReturnType]


class _Pooling(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        pooled, positions = _pooled(maps)
        ctx.save_for_backward(positions)
        ctx.shape = maps.shape
        return pooled

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _Unpooling.apply(*gradients, *ctx.saved_tensors, ctx.shape)  # pyright: ignore[reportReturnType]


class _Unpooling(torch.autograd.Function):
    """The way back, with one of its own: some objectives differentiate gradients."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, positions: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(positions)
        found = compiled.empty_maps(gradient, *shape)
        compiled.over_images(loops.unpool, compiled.channels_last(gradient), positions, compiled.channels_last(found))
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (positions,) = ctx.saved_tensors
        count, height, width, channels = positions.shape
        picked = compiled.empty_maps(gradients[0], count, channels, height, width)
        seen = compiled.channels_last(gradients[0])
        compiled.over_images(loops.pick, seen, positions, compiled.channels_last(picked))
        return picked, None, None


class _PooledConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, pooling: PooledFewChannels) -> Tensor:
        layer = pooling.layer
        few = len(pooling.flat) <= _FEW_PLACES
        pooled, positions = _convolved_and_pooled(images, pooling) if few else _pooled(layer(images))
        ctx.save_for_backward(positions, pooling.seen)
        ctx.images, ctx.kernel, ctx.stride, ctx.padding = images.shape, layer.weight.shape, layer.stride, layer.padding
        return pooled

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = gradients
        positions, seen = ctx.saved_tensors
        (count, channels, height, width), (outputs, _, tall, wide) = ctx.images, ctx.kernel
        (down, across), (top, left) = ctx.stride, ctx.padding
        found = gradient.new_empty(count, height + 2 * top, (width + 2 * left) * channels)
        loop = loops.unpool_and_convolve(
            tall + down, (wide + across) * channels, outputs, (2 * down, 2 * across * channels)
        )
        compiled.over_images(loop, compiled.channels_last(gradient), positions, found, fixed=(seen,))
        bordered = found.view(count, height + 2 * top, width + 2 * left, channels).permute(0, 3, 1, 2)
        inner = bordered[:, :, top : top + height, left : left + width]
        return inner.contiguous(memory_format=torch.channels_last), None


def _pooled(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled maps, and the positions of what they hold."""
    loop = loops.pool_bits if maps.dtype is torch.bfloat16 else loops.pool
    return _filled(loop, compiled.channels_last(maps), maps.shape[1], (maps.shape[2], maps.shape[3]))


def _convolved_and_pooled(images: Tensor, pooling: PooledFewChannels) -> tuple[Tensor, Tensor]:
    """The same of the maps that a convolution gives, which are never written down."""
    layer = pooling.layer
    (outputs, inputs, tall, wide), (top, left) = layer.weight.shape, layer.padding
    bias = images.new_zeros(outputs) if layer.bias is None else layer.bias
    loop = loops.convolve_and_pool((tall, wide), inputs, outputs, layer.stride)
    bordered = compiled.channels_last(F.pad(images, (left, left, top, top)))
    return _filled(loop, bordered, outputs, layer.sides(images), fixed=(pooling.flat, bias))


def _filled(
    loop: compiled.Loop, maps: Tensor, channels: int, sides: tuple[int, int], fixed: tuple[Tensor, ...] = ()
) -> tuple[Tensor, Tensor]:
    """What a loop makes of maps, channels first again; and where it stood, channels last."""
    count, height, width = len(maps), sides[0] // 2, sides[1] // 2
    pooled = compiled.empty_maps(maps, count, channels, height, width)
    positions = torch.empty(count, height, width, channels, dtype=torch.uint8, device=maps.device)
    compiled.over_images(loop, maps, compiled.channels_last(pooled), positions, fixed=fixed)
    return pooled, positions
