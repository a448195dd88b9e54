"""Defensive distillation (Papernot et al. 2016; the study's section 3.5.3).

A teacher is trained at temperature T (`TemperatureCrossEntropy`): its logits are divided by T before the softmax. A
student is trained on the teacher's probabilities at T, at T itself (`Distillation`). Both answer at temperature 1,
where logits that were trained to be divided by T are T times too large: probabilities saturate and gradients vanish,
which looks like robustness and is none (Carlini and Wagner 2017, section VIII).
"""

from dataclasses import dataclass
from typing import Annotated, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from casemate.attacks import frozen
from casemate.errors import ShapeError
from casemate.models import Classifier
from casemate.settings import expect, positive
from casemate.types import Images, Labels, Logits

_POSITIVE = positive("1 is ordinary training")
Temperature = Annotated[float, _POSITIVE]
"""What logits are divided by."""


@final
@dataclass(frozen=True, kw_only=True)
class TemperatureCrossEntropy:
    """The teacher's objective: cross-entropy of the logits divided by the temperature."""

    temperature: Temperature
    """T; 1 is ordinary training."""

    def __post_init__(self) -> None:
        expect(self)

    def __call__(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the batch's mean cross-entropy at the temperature, and its logits (undivided)."""
        logits = model(images)
        return F.cross_entropy(logits / self.temperature, labels), logits

    @torch.no_grad()
    def validate(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the same of validation images."""
        return self(model, images, labels)


@final
@dataclass(frozen=True, kw_only=True)
class Distillation:
    """The student's objective: cross-entropy at the temperature, to the teacher's probabilities at it.

    The labels are not used. The teacher is asked about the images as they come, augmented if they are.
    """

    teacher: Classifier
    """Asked in evaluation mode; it is left as it was, and must be on the student's device."""
    temperature: Temperature
    """T of both; the teacher should have been trained at it."""

    def __post_init__(self) -> None:
        expect(self)

    def __call__(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the batch's mean loss and the student's logits (undivided)."""
        del labels
        if self.teacher.classes != model.classes or self.teacher.input_shape != model.input_shape:
            raise ShapeError(
                f"a teacher of {len(self.teacher.classes)} classes and images {self.teacher.input_shape} for a "
                f"student of {len(model.classes)} classes and images {model.input_shape}; expected the same"
            )
        with torch.no_grad(), frozen(self.teacher):
            target = F.softmax(self.teacher(images) / self.temperature, dim=1)
        logits = model(images)
        return F.cross_entropy(logits / self.temperature, target), logits

    @torch.no_grad()
    def validate(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the same of validation images."""
        return self(model, images, labels)


@final
class _Divided(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, logits: Logits) -> Logits:
        return logits / self.by


def at_temperature(model: Classifier, temperature: float) -> Classifier:
    """A classifier that answers with `model`'s logits divided by the temperature, and shares its weights.

    Its predictions are the same; what a large temperature had hidden from losses that saturate is visible again.
    """
    _POSITIVE.check(temperature, "temperature")
    return Classifier(
        nn.Sequential(model, _Divided(temperature)),
        input_shape=model.input_shape,  # pyright: ignore[reportArgumentType]
        classes=model.classes,
        bounds=model.bounds,
    )
