"""Keras' initialisers for PyTorch layers, since the study used Keras, whose defaults differ from PyTorch's."""

import math

from torch import nn

_TRUNCATED_STD = 0.87962566103423978
"""Standard deviation of a standard normal truncated at two; Keras divides by it to keep the intended variance."""


def he_normal(layer: nn.Conv2d | nn.Linear) -> None:
    """Initialise weights as Keras' HeNormal (He et al. 2015): normal of variance 2 / fan_in, cut at two deviations."""
    fan_in = layer.weight[0].numel()
    std = math.sqrt(2 / fan_in) / _TRUNCATED_STD
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)


def keras_defaults(module: nn.Module) -> None:
    """Initialise every convolution and dense layer in `module` as Keras does: Glorot-uniform weights, zero bias."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def batch_norm(channels: int, *, flat: bool = False) -> nn.Module:
    """Batch normalisation with Keras' defaults: momentum 0.99 (0.01 in PyTorch's convention) and eps 1e-3.

    `flat` is for inputs `(n, channels)` instead of `(n, channels, height, width)`.
    """
    kind = nn.BatchNorm1d if flat else nn.BatchNorm2d
    return kind(channels, momentum=0.01, eps=1e-3)
