"""What training minimises: a callable from model, images and labels to the mean loss and the logits."""

from dataclasses import dataclass
from typing import Protocol, final

import torch.nn.functional as F
from torch import Tensor

from casemate.models import Classifier
from casemate.types import Images, Labels, Logits


class Objective(Protocol):
    """The loss that a recipe trains."""

    def __call__(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the mean loss of the batch (a scalar with a gradient) and the logits on `images`."""
        ...


@final
@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """The ordinary objective: cross-entropy of the clean images."""

    label_smoothing: float = 0.0
    """Share of the target probability spread evenly over all classes (Szegedy et al. 2016, section 7)."""

    def __call__(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the batch's mean cross-entropy and its logits."""
        logits = model(images)
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing), logits
