"""Training objectives: callables from model, images and labels to the mean loss and the logits."""

from dataclasses import dataclass
from typing import Annotated, Protocol, final, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from casemate.models import Classifier
from casemate.settings import between, expect
from casemate.types import Images, Labels, Logits


@runtime_checkable
class Objective(Protocol):
    """Interface of the loss that training minimises, with its own loss for validation."""

    def __call__(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the mean loss of the batch, a differentiable scalar, and the logits of `images`."""
        ...

    def validate(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the mean validation loss of the batch, by which early stopping decides, and the logits.

        The model is in evaluation mode.
        """
        ...


@final
@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """The objective of ordinary training: the cross-entropy of the labels on unperturbed images."""

    label_smoothing: Annotated[float, between(0, 1, without_high=True)] = 0.0
    """Target probability that is spread evenly over all classes (Szegedy et al. 2016, section 7)."""

    def __post_init__(self) -> None:
        expect(self)

    def __call__(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the mean cross-entropy of the batch and the logits."""
        logits = model(images)
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing), logits

    @torch.no_grad()
    def validate(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the mean cross-entropy of the batch, without label smoothing, and the logits."""
        logits = model(images)
        return F.cross_entropy(logits, labels), logits
