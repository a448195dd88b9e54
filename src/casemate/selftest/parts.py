"""Parts of the misleading models: changes that hide gradients without being defences, and the small network."""

import copy
from collections.abc import Callable
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from casemate.defenses import preprocessed
from casemate.models import Classifier, with_network
from casemate.models.layers import NoiseLayer
from casemate.types import Images, Logits


def small(
    shape: tuple[int, int, int],
    classes: int,
    *,
    activation: Callable[[], nn.Module] = nn.ReLU,
    noise: float = 0.0,
    dropout: float = 0.0,
) -> nn.Module:
    """Two strided convolutions and two dense layers (the network of Wong, Rice and Kolter 2020 on MNIST).

    `noise` is the standard deviation of the noise layer before the first convolution; the second has half of it.
    """
    channels, height, width = shape
    return nn.Sequential(
        NoiseLayer(noise),
        nn.Conv2d(channels, 16, kernel_size=4, stride=2, padding=1),
        activation(),
        NoiseLayer(noise / 2),
        nn.Conv2d(16, 32, kernel_size=4, stride=2, padding=1),
        activation(),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 100),
        activation(),
        nn.Dropout(dropout),
        nn.Linear(100, classes),
    )


@final
class KWinners(nn.Module):
    """An activation that keeps the largest entries of a layer and zeroes the rest (Xiao, Zhong and Zheng 2020)."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, inputs: Tensor) -> Tensor:
        """Return `inputs` with all but the largest entries set to zero; which these are jumps from image to image."""
        flat = inputs.flatten(1)
        least = flat.topk(max(1, round(self.share * flat.shape[1])), dim=1).values[:, -1:]
        return flat.where(flat >= least, 0.0).view_as(inputs)


@final
class Quantised(nn.Module):
    """Rounds pixels to `2**bits` levels, so that the gradient is zero (feature squeezing, Xu, Evans and Qi 2018)."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.levels: int = 2**bits - 1

    def forward(self, images: Images) -> Images:
        """Return the images with every pixel rounded to the nearest level."""
        return (images * self.levels).round() / self.levels


@final
class Stairs(nn.Module):
    """Rounds pixels by a smooth staircase function, whose gradient is tiny, but not zero, except at the steps."""

    def __init__(self, levels: int = 8, steepness: float = 200.0) -> None:
        super().__init__()
        self.levels: int = levels
        self.steepness: float = steepness

    def forward(self, images: Images) -> Images:
        """Return the images with every pixel rounded by the staircase function."""
        stair = (images * self.levels).detach().floor()
        return (stair + (self.steepness * (images * self.levels - stair - 0.5)).sigmoid()) / self.levels


class _Backwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        del ctx
        return images.view_as(images)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        del ctx
        return -gradients[0]


@final
class Backwards(nn.Module):
    """A layer that changes no pixel, but reverses the sign of the gradient in the backward pass."""

    def forward(self, images: Images) -> Images:
        """Return the images unchanged."""
        return _Backwards.apply(images)  # pyright: ignore[reportReturnType]


@final
class Counting(nn.Module):
    """Shifts a model's logits by one class at every ninth forward pass: too rarely for it to count as randomised."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: nn.Module = model
        self.count: int = 0

    def forward(self, images: Images) -> Logits:
        """Count the pass, and return the model's logits, shifted by one class if the count is a multiple of nine."""
        self.count += 1
        return self.model(images).roll(int(self.count % 9 == 0), 1)


@final
class ResizeAndPad(nn.Module):
    """Shrinks a batch to a random size and pads it with black to its old size, on random sides (Xie et al. 2018)."""

    def __init__(self, smallest: float = 0.75) -> None:
        super().__init__()
        self.smallest = smallest

    def forward(self, images: Images) -> Images:
        """Return the resized and padded images, of the shape of `images` and differentiable."""
        side = images.shape[-1]
        size = int(torch.randint(round(self.smallest * side), side + 1, ()))
        left, top = (int(torch.randint(side - size + 1, ())) for _ in range(2))
        shrunk = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
        return F.pad(shrunk, (left, side - size - left, top, side - size - top))


def quantised(model: Classifier) -> Classifier:
    """A model that rounds pixels to three bits before the given one, which leaves no gradient."""
    return preprocessed(model, Quantised(3))


def on_stairs(model: Classifier) -> Classifier:
    """A model that rounds pixels by a smooth staircase before the given one, which leaves tiny gradients."""
    return preprocessed(model, Stairs())


def misleading(model: Classifier) -> Classifier:
    """A model with the logits of the given one, but with its input gradient reversed in sign."""
    return preprocessed(model, Backwards())


def counting(model: Classifier) -> Classifier:
    """A model that counts its passes, and gives the given model's logits, shifted by one class at every ninth."""
    return with_network(model, Counting(model))


def with_probabilities(model: Classifier) -> Classifier:
    """A model that adds a softmax to the given one, so that it returns probabilities instead of logits."""
    return with_network(model, nn.Sequential(model, nn.Softmax(dim=1)))


def normalised_twice(model: Classifier) -> Classifier:
    """A model that normalises its input before the given model, which normalises it a second time in the same way.

    Raises `TypeError` for a model without a mean and standard deviation of its own.
    """
    if model.mean is None or model.std is None:
        raise TypeError("a model that normalises was expected")
    mean, std = (tuple(each.flatten().tolist()) for each in (model.mean, model.std))
    return Classifier(
        model,
        input_shape=model.input_shape,  # pyright: ignore[reportArgumentType]
        classes=model.classes,
        bounds=model.bounds,
        mean=mean,
        std=std,
    )


def in_training_mode(model: Classifier) -> Classifier:
    """A copy of the model in training mode, so with dropout on, as after a training loop."""
    return copy.deepcopy(model).train()
