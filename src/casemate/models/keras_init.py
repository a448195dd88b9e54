"""Keras' initialisers on PyTorch layers, since the study was written in Keras and they differ from PyTorch's."""

import math

from torch import nn

_TRUNCATED_STD = 0.87962566103423978
"""Standard deviation of a standard normal cut off at two: Keras divides by it, to keep the intended variance."""


def he_normal(layer: nn.Conv2d | nn.Linear) -> None:
    """He et al. 2015, as Keras' HeNormal: normal of variance 2 / fan_in, cut off at two deviations."""
    fan_in = layer.weight[0].numel()
    std = math.sqrt(2 / fan_in) / _TRUNCATED_STD
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)


def keras_defaults(module: nn.Module) -> None:
    """Give every convolution and dense layer below `module` Keras' defaults: Glorot-uniform weights, zero bias."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def batch_norm(channels: int, *, flat: bool = False) -> nn.Module:
    """Batch normalisation with Keras' settings: momentum 0.99 (PyTorch counts it from the other end), eps 1e-3."""
    kind = nn.BatchNorm1d if flat else nn.BatchNorm2d
    return kind(channels, momentum=0.01, eps=1e-3)
