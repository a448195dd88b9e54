"""The operations of functions and methods that a model calls: poolings, shapes, sums, and arithmetic with constants."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from casemate.certification.builder import (
    BATCH,
    BatchSize,
    Build,
    GraphBuilder,
    RefusedError,
    Value,
    map_size,
    pair_of,
    zero_pads,
)
from casemate.certification.operations import (
    Addition,
    Concatenation,
    Convolution,
    MaximumPooling,
    Rectifier,
    Reshape,
    Scaling,
)
from casemate.errors import kind_of


def add_leaky_relu(builder: GraphBuilder, given: Value, negative_slope: float = 0.01, inplace: bool = False) -> Value:
    """Add a leaky ReLU, by the arguments of PyTorch's."""
    del inplace
    if not 0 <= negative_slope <= 1:
        raise RefusedError(f"negative_slope = {negative_slope}; expected 0 to 1")
    return builder.add(Rectifier(float(negative_slope)), given)


def _rectified(builder: GraphBuilder, given: Value, inplace: bool = False) -> Value:
    del inplace
    return builder.add(Rectifier(), given)


def add_maxima(
    builder: GraphBuilder,
    given: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Value:
    """Add a max-pooling, by the arguments of PyTorch's."""
    map_size(builder, given)
    if ceil_mode or return_indices:
        raise RefusedError("with ceil_mode or return_indices")
    kernel = pair_of(kernel_size)
    steps = kernel if stride is None or stride == [] else pair_of(stride)
    return builder.add(MaximumPooling(kernel, steps, pair_of(padding), pair_of(dilation)), given)


def add_averages(
    builder: GraphBuilder,
    given: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    """Add a pooling by the mean, by the arguments of PyTorch's."""
    if ceil_mode or divisor_override is not None or (pair_of(padding) != (0, 0) and not count_include_pad):
        raise RefusedError("with ceil_mode, divisor_override, or padding that is not counted")
    size, kernel = map_size(builder, given), pair_of(kernel_size)
    values = builder.value(given)
    channels = values.shape[1]
    operation = Convolution(
        weight=values.new_full((channels, 1, *kernel), 1 / (kernel[0] * kernel[1])),
        bias=None,
        stride=kernel if stride is None or stride == [] else pair_of(stride),
        pads=zero_pads(padding, kernel, (1, 1)),
        dilation=(1, 1),
        groups=channels,
        size=size,
    )
    return builder.add(operation, given)


def add_adaptive_averages(builder: GraphBuilder, given: Value, output_size: Any) -> Value:
    """Add a pooling by the mean to a given size, which must divide that of the input."""
    size = map_size(builder, given)
    wanted = output_size if isinstance(output_size, tuple | list) else (output_size, output_size)
    target = [each if goal is None else goal for each, goal in zip(size, wanted, strict=True)]
    if any(each % goal for each, goal in zip(size, target, strict=True)):
        raise RefusedError(f"from {size} to {tuple(target)}; expected a size that divides the input's")
    return add_averages(builder, given, tuple(each // goal for each, goal in zip(size, target, strict=True)))


def _mean(builder: GraphBuilder, given: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
    axes = {axis % 4 for axis in (dim if isinstance(dim, tuple | list) else (dim,))} if dim is not None else set()
    if axes != {2, 3} or dtype is not None:
        raise RefusedError(f"over dimensions {dim}; expected (2, 3)")
    made = add_adaptive_averages(builder, given, 1)
    return made if keepdim else add_flatten(builder, made, 1)


def add_flatten(builder: GraphBuilder, given: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
    """Add a flattening, by the arguments of PyTorch's."""
    shape = builder.value(given).shape
    start, end = start_dim % len(shape), end_dim % len(shape)
    if start == 0 and len(shape) > 1:
        raise RefusedError(f"from dimension {start_dim}; expected 1, so that images stay apart")
    inside = 1
    for size in shape[start : end + 1]:
        inside *= size
    return _reshaped(builder, given, (*shape[1:start], inside, *shape[end + 1 :]))


def _reshaped(builder: GraphBuilder, given: Value, after: Sequence[int]) -> Value:
    before = tuple(builder.value(given).shape[1:])
    return given if before == tuple(after) else builder.add(Reshape(before, tuple(after)), given)


def _view(builder: GraphBuilder, given: Value, *shape: Any) -> Value:
    sizes = list(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple | list) else list(shape)
    values = builder.value(given)
    whole = values[0].numel()
    first, rest = sizes[0], sizes[1:]
    if not all(isinstance(size, int) for size in rest) or not (isinstance(first, BatchSize) or first == -1):
        raise RefusedError("to a shape that does not begin with the number of images, as x.view(x.size(0), ...) does")
    if -1 in rest:
        if first == -1:
            raise RefusedError("with -1 twice")
        known = 1
        for size in rest:
            known *= 1 if size == -1 else size
        rest = [whole // known if size == -1 else size for size in rest]
    count = 1
    for size in rest:
        count *= size
    if count != whole:
        raise RefusedError(f"to {tuple(rest)} for an image of {whole} numbers; images must stay apart")
    return _reshaped(builder, given, rest)


def _size(builder: GraphBuilder, given: Value, dim: int | None = None) -> Any:
    shape = (BATCH, *map(int, builder.value(given).shape[1:]))
    return shape if dim is None else shape[dim]


def _attribute(builder: GraphBuilder, given: Value, name: str) -> Any:
    if name != "shape":
        raise RefusedError(f"of {name}; expected shape")
    return _size(builder, given)


def _same(builder: GraphBuilder, given: Value, **options: Any) -> Value:
    del builder
    if set(options) - {"memory_format"}:
        raise RefusedError(f"with {', '.join(options)}")
    return given


def _dropped(
    builder: GraphBuilder, given: Value, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Value:
    del inplace
    if not training:
        return given
    builder.need_training("it draws at random; write training=self.training")
    return add_scaled(builder, given, F.dropout(torch.ones_like(builder.value(given)), p), None)


def _joined(builder: GraphBuilder, tensors: Sequence[Any], dim: int = 0) -> Value:
    if dim != 1 or not all(isinstance(each, Value) for each in tensors):
        raise RefusedError(f"along dimension {dim}; expected tensors along 1")
    sizes = tuple(builder.value(each).shape[1] for each in tensors)
    return builder.add(Concatenation(sizes), *tensors)


def _added(builder: GraphBuilder, one: Any, other: Any, *, alpha: float = 1) -> Value:
    if alpha != 1:
        raise RefusedError("with alpha")
    if not (isinstance(one, Value) and isinstance(other, Value)):
        given, constant = (one, other) if isinstance(one, Value) else (other, one)
        return add_scaled(builder, given, None, constant)
    if builder.value(one).shape != builder.value(other).shape:
        raise RefusedError("of tensors of different shapes")
    return builder.add(Addition(), one, other)


def _subtracted(builder: GraphBuilder, one: Any, other: Any) -> Value:
    if isinstance(one, Value) and isinstance(other, Value):
        raise RefusedError("of two tensors")
    if isinstance(one, Value):
        return add_scaled(builder, one, None, other, sign=-1)
    return add_scaled(builder, other, -1.0, one)


def _multiplied(builder: GraphBuilder, one: Any, other: Any) -> Value:
    if isinstance(one, Value) and isinstance(other, Value):
        raise RefusedError("of two tensors")
    given, constant = (one, other) if isinstance(one, Value) else (other, one)
    return add_scaled(builder, given, constant, None)


def _divided(builder: GraphBuilder, one: Any, other: Any) -> Value:
    if not isinstance(one, Value) or isinstance(other, Value):
        raise RefusedError("by a tensor that depends on the images")
    return add_scaled(builder, one, 1 / _as_tensor(builder, one, other), None)


def add_scaled(builder: GraphBuilder, given: Value, scale: Any, shift: Any, *, sign: int = 1) -> Value:
    """`given` times a constant, plus `sign` times another one; None leaves one out."""
    factor = _as_tensor(builder, given, 1.0 if scale is None else scale)
    added = sign * _as_tensor(builder, given, 0.0 if shift is None else shift)
    shape = torch.broadcast_shapes(factor.shape, added.shape)
    return builder.add(Scaling(factor.expand(shape), added.expand(shape), added.abs().expand(shape), 3), given)


def _as_tensor(builder: GraphBuilder, given: Value, constant: Any) -> Tensor:
    """A constant as a tensor that broadcasts to a value's shape, with as many dimensions."""
    like = builder.value(given)
    if isinstance(constant, Tensor):
        values = constant.to(like.dtype)
    elif isinstance(constant, int | float):
        values = like.new_tensor(float(constant))
    else:
        raise RefusedError(f"with {kind_of(constant)}")
    values = values.reshape(*[1] * (like.ndim - values.ndim), *values.shape)
    if torch.broadcast_shapes(values.shape, like.shape) != like.shape:
        raise RefusedError(f"with a constant of shape {tuple(values.shape)} for {tuple(like.shape)}")
    return values


FUNCTIONS: Mapping[Any, Build] = {
    F.relu: _rectified,
    torch.relu: _rectified,
    F.leaky_relu: add_leaky_relu,
    F.max_pool2d: add_maxima,
    torch.max_pool2d: add_maxima,
    F.avg_pool2d: add_averages,
    F.adaptive_avg_pool2d: add_adaptive_averages,
    torch.mean: _mean,
    torch.flatten: add_flatten,
    torch.reshape: _view,
    getattr: _attribute,
    F.dropout: _dropped,
    torch.cat: _joined,
    **dict.fromkeys((operator.add, operator.iadd, torch.add), _added),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub), _subtracted),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul), _multiplied),
    **dict.fromkeys((operator.truediv, operator.itruediv, torch.div), _divided),
    "relu": _rectified,
    "mean": _mean,
    "flatten": add_flatten,
    "view": _view,
    "reshape": _view,
    "size": _size,
    "contiguous": _same,
    "clone": _same,
    "add": _added,
    "sub": _subtracted,
    "mul": _multiplied,
    "div": _divided,
}
"""How to build the operations of a function, or of a method by its name without underscores at the ends."""
