"""Randomised defences: models whose logits for an image differ from pass to pass.

They draw from PyTorch's global generator, so their draws cannot be keyed by example. Attacks with single gradients
overestimate their robustness: attack them with expectation over transformation too (`casemate.attacks.EOT`).
"""

import copy
from typing import final

import torch
from torch import nn

from casemate.data.augment import Affine
from casemate.errors import ModelError
from casemate.models import Classifier, as_classifier, with_network
from casemate.models.layers import NoiseLayer
from casemate.types import Images


@final
class StochasticAffine(nn.Module):
    """A layer that transforms every image at random in every pass: Stochastic Affine Transformation (Zeng et al. 2020).

    Shift, then rotation, then scaling, in one interpolation; new pixels at the border are black.

    Args:
        shift: largest shift along each axis, as a share of the side.
        scale: largest change of size in either direction, as a share of the size.
        rotation: largest angle in either direction, in degrees.
    """

    def __init__(self, *, shift: float = 0.16, scale: float = 0.16, rotation: float = 4.0) -> None:
        super().__init__()
        self._draw = Affine(shift=shift, scale=scale, rotation=rotation)

    def forward(self, images: Images) -> Images:
        """Return the transformed images; gradients flow through the interpolation."""
        return self._draw(images, torch.arange(len(images)), 0, torch.default_generator)

    def extra_repr(self) -> str:
        """The settings as text, for `repr`."""
        return f"shift={self._draw.shift}, scale={self._draw.scale}, rotation={self._draw.rotation}"


def preprocessed(model: nn.Module, change: nn.Module) -> Classifier:
    """A classifier that applies `change` to its images and then `model`, whose weights it shares.

    Raises:
        ModelError: a model with bounds other than [0, 1], which `change` is expected to keep to.
    """
    model = as_classifier(model)
    if model.bounds != (0.0, 1.0):
        raise ModelError(
            f"a model with bounds {model.bounds}; expected (0, 1): scale the pixels inside the Classifier (std=)"
        )
    return with_network(model, nn.Sequential(change, model))


def with_noise(model: nn.Module) -> Classifier:
    """A copy of `model` whose noise layers add noise at inference too. Raises `ModelError` if it has none."""
    noisy = copy.deepcopy(as_classifier(model))
    layers = [layer for layer in noisy.modules() if isinstance(layer, NoiseLayer)]
    if not layers:
        raise ModelError("a network without a noise layer; expected one with, such as paper-cnn-noise")
    for layer in layers:
        layer.at_inference = True
    return noisy
