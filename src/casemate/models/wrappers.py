"""Classifiers that wrap another one: mean over several passes, a fixed seed, another network.

They serve to evaluate randomised models: attacks on the mean logits, and reproducible logits.
"""

from typing import final

from torch import nn

from casemate.errors import SettingError
from casemate.models.classifier import Classifier
from casemate.models.given import as_classifier
from casemate.rng import all_seeded
from casemate.types import Images, Logits


@final
class _Mean(nn.Module):
    """A module that returns the mean logits over `draws` passes of `model`."""

    def __init__(self, model: nn.Module, draws: int) -> None:
        super().__init__()
        self.model, self.draws = model, draws

    def forward(self, images: Images) -> Logits:
        logits = self.model(images)
        for _ in range(self.draws - 1):
            logits = logits + self.model(images)
        return logits / self.draws


@final
class _FixedSeed(nn.Module):
    """A module that returns the logits of `model` under a fixed seed of PyTorch's, NumPy's and Python's generators."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        super().__init__()
        self.model, self.seed = model, seed

    def forward(self, images: Images) -> Logits:
        with all_seeded(images.device, self.seed):
            return self.model(images)


def mean_over_samples(model: nn.Module, draws: int) -> Classifier:
    """A classifier whose logits are the mean over `draws` passes of a randomised `model`, whose weights it shares.

    Its gradient is the mean over the passes too, so every attack on it is an expectation over transformation (Athalye
    et al. 2018, section 4.2), and a prediction does not depend on a single draw. Raises `SettingError` for
    `draws` below 1.
    """
    if draws < 1:
        raise SettingError(f"draws = {draws}; expected at least 1")
    model = as_classifier(model)
    return with_network(model, _Mean(model, draws))


def with_fixed_seed(model: nn.Module, seed: int = 0) -> Classifier:
    """A classifier that draws the same random numbers in every pass, as for an attacker who knows the seed.

    The numbers for an image depend on its position in the batch, so compare only passes over the same batch.
    """
    model = as_classifier(model)
    return with_network(model, _FixedSeed(model, seed))


def with_network(model: Classifier, network: nn.Module) -> Classifier:
    """A classifier with the shape, classes and bounds of `model` and another `network`, without normalisation."""
    changed = Classifier(network, **model.interface)
    modes = [(module, module.training) for module in model.modules()]
    changed.train(model.training)
    for module, mode in modes:  # `train` also changed the modes of the model's own modules
        module.training = mode
    return changed
