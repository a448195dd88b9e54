"""Randomised defences: the same image gets another answer each time.

They draw from PyTorch's global generator, so their draws cannot be keyed by example. Judging one by a single
gradient flatters it: attack it with expectation over transformation too (`casemate.attacks.EOT`).
"""

import copy
from typing import final

import torch
from torch import nn

from casemate.data.augment import Affine
from casemate.errors import ModelError, SettingError
from casemate.models import Classifier
from casemate.models.layers import NoiseLayer
from casemate.rng import all_seeded
from casemate.types import Images, Logits


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
    return instead(model, nn.Sequential(change, model))


def with_noise(model: Classifier) -> Classifier:
    """A copy of `model` whose noise layers work at inference too. Raises `ModelError` if it has none."""
    noisy = copy.deepcopy(model)
    layers = [layer for layer in noisy.modules() if isinstance(layer, NoiseLayer)]
    if not layers:
        raise ModelError("this network has no noise layer; train one that has, such as paper-cnn-noise")
    for layer in layers:
        layer.at_inference = True
    return noisy


@final
class _Mean(nn.Module):
    """The mean logits of several answers."""

    def __init__(self, model: nn.Module, draws: int) -> None:
        super().__init__()
        self.model, self.draws = model, draws

    def forward(self, images: Images) -> Logits:
        logits = self.model(images)
        for _ in range(self.draws - 1):
            logits = logits + self.model(images)
        return logits / self.draws


@final
class _SameDraws(nn.Module):
    """The answer that a seed of the global generators (PyTorch's, NumPy's, Python's) gives, every time."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        super().__init__()
        self.model, self.seed = model, seed

    def forward(self, images: Images) -> Logits:
        with all_seeded(images.device, self.seed):
            return self.model(images)


def averaged(model: Classifier, draws: int) -> Classifier:
    """A classifier that asks a randomised `model` `draws` times and returns its mean logits (it shares the weights).

    Its gradient is the mean over the draws, so every attack on it takes the expectation over the randomness (Athalye
    et al. 2018, section 4.2), and an answer no longer hangs on the luck of one draw. Raises `SettingError`.
    """
    if draws < 1:
        raise SettingError(f"draws = {draws}; expected at least 1")
    return instead(model, _Mean(model, draws))


def with_same_draws(model: Classifier, seed: int = 0) -> Classifier:
    """A classifier that draws the same random numbers at every pass: what a randomised model is to one who knows them.

    An image's draws then depend on its place in the batch, so compare only passes over the same batch.
    """
    return instead(model, _SameDraws(model, seed))


def instead(model: Classifier, network: nn.Module) -> Classifier:
    """A classifier like `model` that answers by `network`, which takes its images as they are."""
    changed = Classifier(
        network,
        input_shape=model.input_shape,  # pyright: ignore[reportArgumentType]
        classes=model.classes,
        bounds=model.bounds,
    )
    modes = [(module, module.training) for module in model.modules()]
    changed.train(model.training)
    for module, mode in modes:  # `train` reaches the model's own modules too, whose modes are its owner's
        module.training = mode
    return changed
