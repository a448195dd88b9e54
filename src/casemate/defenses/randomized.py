"""Randomised defences: the same image gets another answer each time.

They draw from PyTorch's global generator, so their draws cannot be keyed by example. Judging one by a single
gradient flatters it: attack it with expectation over transformation too (`casemate.attacks.EOT`).
"""

import copy
from typing import final

import torch
from torch import nn

from casemate.data.augment import Affine
from casemate.errors import ModelError
from casemate.models import Classifier, with_network
from casemate.models.layers import NoiseLayer
from casemate.types import Images


@final
class StochasticAffine(nn.Module):
    """Moves every image at random, at every pass: the Stochastic Affine Transformation of Zeng et al. 2020.

    Shift, then rotation, then scale, in one interpolation; what enters is black.

    Args:
        shift: largest move to every side, as a share of the side.
        scale: largest change of size, as a share.
        rotation: largest angle to either side, in degrees.
    """

    def __init__(self, *, shift: float = 0.16, scale: float = 0.16, rotation: float = 4.0) -> None:
        super().__init__()
        self._draw = Affine(shift=shift, scale=scale, rotation=rotation)

    def forward(self, images: Images) -> Images:
        """Return the moved images; gradients pass through the interpolation."""
        return self._draw(images, torch.arange(len(images)), 0, torch.default_generator)

    def extra_repr(self) -> str:
        """The settings, for the network's text."""
        return f"shift={self._draw.shift}, scale={self._draw.scale}, rotation={self._draw.rotation}"


def preprocessed(model: Classifier, change: nn.Module) -> Classifier:
    """A classifier that passes its images through `change` and then asks `model` (whose weights it shares).

    Raises `ModelError` for a model whose pixels do not lie in [0, 1], as the changes here keep them.
    """
    if model.bounds != (0.0, 1.0):
        raise ModelError(
            f"a model for pixels within {model.bounds}; expected (0, 1): scale inside the Classifier (std=)"
        )
    return with_network(model, nn.Sequential(change, model))


def with_noise(model: Classifier) -> Classifier:
    """A copy of `model` whose noise layers work at inference too. Raises `ModelError` if it has none."""
    noisy = copy.deepcopy(model)
    layers = [layer for layer in noisy.modules() if isinstance(layer, NoiseLayer)]
    if not layers:
        raise ModelError("this network has no noise layer; train one that has, such as paper-cnn-noise")
    for layer in layers:
        layer.at_inference = True
    return noisy
