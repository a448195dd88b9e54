"""Parts of honest but odd models: outputs, precision, images and classes that few models have."""

import math
from typing import final

import torch
from torch import Tensor, nn

from casemate.data import LabelledImages
from casemate.models import Classifier, with_network
from casemate.types import Images, Logits

_PREFERENCE = 3.0
"""By how much the logit of the last class is raised, and that of the first one lowered."""


@final
class Transformer(nn.Module):
    """A small vision transformer (Dosovitskiy et al. 2021): patches of 2 x 2 pixels, one encoder layer, the mean of it.

    Without gradients PyTorch computes the layer in one fused kernel, with gradients it does not.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, *, width: int = 32) -> None:
        super().__init__()
        channels, height, across = shape
        self.patches = nn.Conv2d(channels, width, kernel_size=2, stride=2)
        self.places = nn.Parameter(0.02 * torch.randn(1, (height // 2) * (across // 2), width))
        self.layer = nn.TransformerEncoderLayer(
            width, nhead=4, dim_feedforward=2 * width, dropout=0.0, activation="gelu", batch_first=True
        )
        self.head = nn.Linear(width, classes)

    def forward(self, images: Images) -> Logits:
        """Return the logits of the mean over the patches."""
        patches = self.patches(images).flatten(2).transpose(1, 2) + self.places
        return self.head(self.layer(patches).mean(1))


@final
class UpperHalf(nn.Module):
    """Separates the upper half of the classes from the lower half, by one logit, which it returns in a dictionary."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: nn.Module = model

    def forward(self, images: Images) -> dict[str, Tensor]:
        """Return the log-odds that the class is in the upper half, `(n,)`, under "score", and the model's logits."""
        logits = self.model(images)
        lower, upper = logits.tensor_split([(logits.shape[1] + 1) // 2], dim=1)
        return {"logits of all classes": logits, "score": upper.logsumexp(1) - lower.logsumexp(1)}


@final
class InBfloat16(nn.Module):
    """Computes in bfloat16 where `torch.autocast` does, with weights in float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: nn.Module = model

    def forward(self, images: Images) -> Logits:
        """Return the model's logits, in the type in which its last layer was computed."""
        with torch.autocast(images.device.type, torch.bfloat16):
            return self.model(images)


@final
class Strip(nn.Module):
    """Takes images in one row of pixels between -1 and 1, as a time series would come."""

    def __init__(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.model: nn.Module = model
        self.shape: tuple[int, ...] = shape

    def forward(self, images: Images) -> Logits:
        """Return the model's logits for the images in their own shape, with pixels between 0 and 1."""
        return self.model((images.reshape(-1, *self.shape) + 1) / 2)


@final
class Preferring(nn.Module):
    """Adds a constant to each class's logit, rising with its number, so that the first are hardly ever predicted."""

    preference: Tensor

    def __init__(self, model: nn.Module, classes: int) -> None:
        super().__init__()
        self.model: nn.Module = model
        self.register_buffer("preference", torch.linspace(-_PREFERENCE, _PREFERENCE, classes))

    def forward(self, images: Images) -> Logits:
        """Return the model's logits plus the preference of each class."""
        return self.model(images) + self.preference


def separating_halves(model: Classifier) -> Classifier:
    """A model of two classes, the lower and the upper half of the given one's, with one logit in a dictionary."""
    return Classifier(
        UpperHalf(model),
        input_shape=model.input_shape,
        classes=("lower half", "upper half"),
        bounds=model.bounds,
        output="score",
    )


def halves(images: LabelledImages, classes: int) -> LabelledImages:
    """The images with label 1 where the class is in the upper half of the classes, else 0."""
    return LabelledImages(pixels=images.pixels, labels=(images.labels >= (classes + 1) // 2).long())


def with_bfloat16(model: Classifier) -> Classifier:
    """A model that computes the given one in bfloat16 where `torch.autocast` does."""
    return with_network(model, InBfloat16(model.network))


def of_strips(model: Classifier) -> Classifier:
    """A model of images in one row of pixels between -1 and 1 (see `strips`)."""
    pixels = math.prod(model.input_shape)
    network = Strip(model, model.input_shape)
    return Classifier(network, input_shape=(1, 1, pixels), classes=model.classes, bounds=(-1.0, 1.0))


def strips(images: LabelledImages, classes: int) -> LabelledImages:
    """The images with all pixels in one row, between -1 and 1."""
    del classes
    pixels, labels = images.tensors()
    return LabelledImages(pixels=2 * pixels.reshape(len(pixels), 1, 1, -1) - 1, labels=labels)


def preferring(model: Classifier) -> Classifier:
    """A model with the given one's logits plus a constant preference for some classes over others."""
    return with_network(model, Preferring(model, len(model.classes)))
