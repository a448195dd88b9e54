"""The operations of PyTorch's layers, and of casemate's own, in the mode that they are in.

In training mode batch normalisation uses the statistics of the clean images of the batch, for them and for the bounds
(Shi et al. 2021, arXiv 2103.17268, section 4), and updates its running averages once; dropout and noise are drawn once,
the same for images and bounds.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from casemate.certification.builder import Build, GraphBuilder, RefusedError, Value, map_size, pair_of, zero_pads
from casemate.certification.functions import (
    add_adaptive_averages,
    add_averages,
    add_flatten,
    add_leaky_relu,
    add_maxima,
    add_scaled,
)
from casemate.certification.operations import Convolution, Dense, Rectifier, Scaling
from casemate.models.accel.dropout import HashDropout
from casemate.models.accel.relu_max_pool import ReLUMaxPool2d
from casemate.models.layers import NoiseLayer


def _dense(builder: GraphBuilder, layer: nn.Linear, given: Value) -> Value:
    if builder.value(given).ndim != 2:
        raise RefusedError("its input is not (n, features); flatten it before")
    return builder.add(
        Dense(builder.cast(layer.weight), None if layer.bias is None else builder.cast(layer.bias)), given
    )


def _bias(builder: GraphBuilder, layer: nn.Linear | nn.Conv2d) -> Tensor | None:
    return None if layer.bias is None else builder.cast(layer.bias)


def _convolution(builder: GraphBuilder, layer: nn.Conv2d, given: Value) -> Value:
    if layer.padding_mode != "zeros":
        raise RefusedError(f"padding_mode={layer.padding_mode!r}; expected 'zeros'")
    dilation = pair_of(layer.dilation)
    operation = Convolution(
        weight=builder.cast(layer.weight),
        bias=_bias(builder, layer),
        stride=pair_of(layer.stride),
        pads=zero_pads(layer.padding, layer.weight.shape[2:], dilation),
        dilation=dilation,
        groups=layer.groups,
        size=map_size(builder, given),
    )
    return builder.add(operation, given)


def _batch_norm(builder: GraphBuilder, layer: nn.BatchNorm1d | nn.BatchNorm2d, given: Value) -> Value:
    values = builder.value(given)
    if layer.training:
        builder.need_training("it uses the statistics of the batch")
        own = next((each.dtype for each in (layer.weight, layer.running_mean) if each is not None), values.dtype)
        result: Tensor | None = layer(values.to(own)).to(values.dtype)
        variance, mean = torch.var_mean(values, dim=[axis for axis in range(values.ndim) if axis != 1], correction=0)
    elif layer.running_mean is None or layer.running_var is None:
        raise RefusedError("it has no running statistics, so that an output depends on the other images of the batch")
    else:
        result, mean, variance = None, builder.cast(layer.running_mean), builder.cast(layer.running_var)
    scale = (variance + layer.eps).rsqrt()
    if layer.weight is not None:
        scale = scale * builder.cast(layer.weight)
    shift, size = -mean * scale, (mean * scale).abs()
    if layer.bias is not None:
        bias = builder.cast(layer.bias)
        shift, size = shift + bias, size + bias.abs()
    shape = (1, -1, *[1] * (values.ndim - 2))
    operation = Scaling(scale.view(shape), shift.view(shape), size.view(shape), 8)
    return builder.add(operation, given, value=result)


def _relu(builder: GraphBuilder, layer: nn.Module, given: Value) -> Value:
    del layer
    return builder.add(Rectifier(), given)


def _leaky_relu(builder: GraphBuilder, layer: nn.LeakyReLU, given: Value) -> Value:
    return add_leaky_relu(builder, given, layer.negative_slope)


def _max_pool(builder: GraphBuilder, layer: nn.MaxPool2d, given: Value) -> Value:
    return add_maxima(
        builder,
        given,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.ceil_mode,
        layer.return_indices,
    )


def _relu_max_pool(builder: GraphBuilder, layer: nn.Module, given: Value) -> Value:
    del layer
    return builder.add(Rectifier(), add_maxima(builder, given, 2))


def _average_pool(builder: GraphBuilder, layer: nn.AvgPool2d, given: Value) -> Value:
    return add_averages(
        builder,
        given,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.ceil_mode,
        layer.count_include_pad,
        layer.divisor_override,
    )


def _adaptive_average_pool(builder: GraphBuilder, layer: nn.AdaptiveAvgPool2d, given: Value) -> Value:
    return add_adaptive_averages(builder, given, layer.output_size)


def _flatten_layer(builder: GraphBuilder, layer: nn.Flatten, given: Value) -> Value:
    return add_flatten(builder, given, layer.start_dim, layer.end_dim)


def _drawn(builder: GraphBuilder, layer: nn.Module, given: Value) -> Value:
    """Dropout: what it draws for ones, which are also the factors of any other input."""
    if not layer.training:
        return given
    builder.need_training("it draws at random")
    return add_scaled(builder, given, layer(torch.ones_like(builder.value(given))), None)


def _identity(builder: GraphBuilder, layer: nn.Module, given: Value) -> Value:
    del builder, layer
    return given


def _noise(builder: GraphBuilder, layer: NoiseLayer, given: Value) -> Value:
    if not layer.training:
        if layer.at_inference and layer.std:
            raise RefusedError("it adds noise in evaluation mode; use randomised smoothing")
        return given
    builder.need_training("it adds noise")
    return add_scaled(builder, given, None, layer(torch.zeros_like(builder.value(given))))


LAYERS: Mapping[type[nn.Module], Build] = {
    nn.Linear: _dense,
    nn.Conv2d: _convolution,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.ReLU: _relu,
    nn.LeakyReLU: _leaky_relu,
    nn.MaxPool2d: _max_pool,
    ReLUMaxPool2d: _relu_max_pool,
    nn.AvgPool2d: _average_pool,
    nn.AdaptiveAvgPool2d: _adaptive_average_pool,
    nn.Flatten: _flatten_layer,
    nn.Dropout: _drawn,
    nn.Dropout2d: _drawn,
    HashDropout: _drawn,
    nn.Identity: _identity,
    NoiseLayer: _noise,
}
"""How to build the operations of a layer, by its type."""
