"""Max-pooling over 2 x 2 fused with ReLU, alone or together with the small-input convolution before it.

On one core of a Xeon an input gradient of the paper's appendix A network took 430 instead of 460 microseconds per image
with the first, and 350 with both.
"""

from typing import Any, TypeGuard, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from casemate import compiled
from casemate.models.accel import loops
from casemate.models.accel.small_input_conv import SmallInputConv, is_small_input_conv

_MOST_WEIGHTS = 9
"""Weights per output channel (kernel positions times input channels) beyond which the compiled loop is slower than
PyTorch's convolution."""


def _pair(size: int | tuple[int, ...]) -> tuple[int, ...]:
    """Height and width of a layer's setting, which PyTorch lets be one number if they are equal."""
    return (size, size) if isinstance(size, int) else size


def is_2x2_pooling(layer: nn.Module) -> bool:
    """Whether a layer is `nn.MaxPool2d` over 2 x 2 with stride 2 and no padding, dilation or extra options."""
    return (
        type(layer) is nn.MaxPool2d
        and (_pair(layer.kernel_size), _pair(layer.stride)) == ((2, 2), (2, 2))
        and (_pair(layer.padding), _pair(layer.dilation)) == ((0, 0), (1, 1))
        and not layer.ceil_mode
        and not layer.return_indices
    )


def can_fuse_convolution(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether `SmallInputConvPool` can replace `layer` and the 2 x 2 pooling with ReLU after it."""
    return is_small_input_conv(layer) and layer.out_channels % loops.BLOCK == 0


@final
class ReLUMaxPool2d(nn.Module):
    """A layer that replaces a 2 x 2 max-pooling and a ReLU, in either order."""

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps of half the height and width, rounded down."""
        return _relu_max_pool(maps)


@final
class SmallInputConvPool(nn.Module):
    """A layer that replaces a `SmallInputConv` followed by a `ReLUMaxPool2d`; its weights get no gradient."""

    flat: Tensor
    """The weights, `(kernel positions * inputs, outputs)`."""
    window: Tensor
    """The weights over the image window of one pooling, `(loops.ZEROED + 1, outputs, window * inputs)`: shifted to each
    of the four positions in the pooling, and zero for `loops.ZEROED`."""

    def __init__(self, layer: SmallInputConv) -> None:
        super().__init__()
        self.layer = layer
        outputs, inputs, tall, wide = layer.weight.shape
        self.register_buffer("flat", layer.weight.permute(2, 3, 1, 0).reshape(-1, outputs).contiguous())
        down, across = layer.stride
        window = layer.weight.new_zeros(loops.ZEROED + 1, outputs, tall + down, wide + across, inputs)
        for position in range(loops.ZEROED):
            y, x = position // 2 * down, position % 2 * across
            window[position, :, y : y + tall, x : x + wide] = layer.weight.permute(0, 2, 3, 1)
        self.register_buffer("window", window.flatten(2))

    def forward(self, images: Tensor) -> Tensor:
        """Return the maps after convolution, 2 x 2 max-pooling and ReLU, `(n, output channels, height, width)`."""
        if images.ndim != 4 or not compiled.supports(images) or min(self.layer.output_size(images)) < 2:
            return _relu_max_pool(self.layer(images))
        return _ConvPoolFunction.apply(images, self)  # pyright: ignore[reportReturnType]


def _relu_max_pool(maps: Tensor) -> Tensor:
    if maps.ndim != 4 or not compiled.supports(maps, bfloat16=True) or min(maps.shape[2:]) < 2:
        return F.relu_(F.max_pool2d(maps, 2))
    return _PoolFunction.apply(maps)  # pyright: ignore[reportReturnType]


class _PoolFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        pooled, positions = _pool(maps)
        ctx.save_for_backward(positions)
        ctx.shape = maps.shape
        return pooled

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _UnpoolFunction.apply(*gradients, *ctx.saved_tensors, ctx.shape)  # pyright: ignore[reportReturnType]


class _UnpoolFunction(torch.autograd.Function):
    """The backward pass of the pooling; it has a gradient itself, since some objectives differentiate gradients."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, positions: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(positions)
        unpooled = compiled.empty_maps(gradient, *shape)
        arrays = (compiled.channels_last(gradient), positions, compiled.channels_last(unpooled))
        compiled.over_images(loops.unpool, *arrays)
        return unpooled

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (positions,) = ctx.saved_tensors
        count, height, width, channels = positions.shape
        gathered = compiled.empty_maps(gradients[0], count, channels, height, width)
        maps = compiled.channels_last(gradients[0])
        compiled.over_images(loops.gather, maps, positions, compiled.channels_last(gathered))
        return gathered, None, None


class _ConvPoolFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, pooling: SmallInputConvPool) -> Tensor:
        layer = pooling.layer
        fused = len(pooling.flat) <= _MOST_WEIGHTS
        pooled, positions = _convolve_and_pool(images, pooling) if fused else _pool(layer(images))
        ctx.save_for_backward(positions, pooling.window)
        ctx.images, ctx.kernel, ctx.stride, ctx.padding = images.shape, layer.weight.shape, layer.stride, layer.padding
        return pooled

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = gradients
        positions, window = ctx.saved_tensors
        (count, channels, height, width), (outputs, _, tall, wide) = ctx.images, ctx.kernel
        (down, across), (top, left) = ctx.stride, ctx.padding
        padded = gradient.new_empty(count, height + 2 * top, (width + 2 * left) * channels)
        loop = loops.unpool_and_convolve(
            tall + down, (wide + across) * channels, outputs, (2 * down, 2 * across * channels)
        )
        compiled.over_images(loop, compiled.channels_last(gradient), positions, padded, fixed=(window,))
        maps = padded.view(count, height + 2 * top, width + 2 * left, channels).permute(0, 3, 1, 2)
        inner = maps[:, :, top : top + height, left : left + width]
        return inner.contiguous(memory_format=torch.channels_last), None


def _pool(maps: Tensor) -> tuple[Tensor, Tensor]:
    """`maps` after 2 x 2 max-pooling and ReLU, and the position of each maximum (see `_run_pooling`)."""
    loop = loops.pool_bfloat16 if maps.dtype is torch.bfloat16 else loops.pool
    return _run_pooling(loop, compiled.channels_last(maps), maps.shape[1], (maps.shape[2], maps.shape[3]))


def _convolve_and_pool(images: Tensor, pooling: SmallInputConvPool) -> tuple[Tensor, Tensor]:
    """`_pool` of the convolution's output, computed in one loop that does not store that output."""
    layer = pooling.layer
    (outputs, inputs, tall, wide), (top, left) = layer.weight.shape, layer.padding
    bias = images.new_zeros(outputs) if layer.bias is None else layer.bias
    loop = loops.convolve_and_pool((tall, wide), inputs, outputs, layer.stride)
    padded = compiled.channels_last(F.pad(images, (left, left, top, top)))
    return _run_pooling(loop, padded, outputs, layer.output_size(images), fixed=(pooling.flat, bias))


def _run_pooling(
    loop: compiled.Loop, maps: Tensor, channels: int, size: tuple[int, int], fixed: tuple[Tensor, ...] = ()
) -> tuple[Tensor, Tensor]:
    """Run a pooling loop; return the pooled maps `(n, channels, height, width)` and positions, uint8 channels-last.

    `size` is the height and width before pooling, `fixed` the loop's further arguments.
    """
    count, height, width = len(maps), size[0] // 2, size[1] // 2
    pooled = compiled.empty_maps(maps, count, channels, height, width)
    positions = torch.empty(count, height, width, channels, dtype=torch.uint8, device=maps.device)
    compiled.over_images(loop, maps, compiled.channels_last(pooled), positions, fixed=fixed)
    return pooled, positions
