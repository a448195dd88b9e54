"""Defensive distillation (Papernot et al. 2016; the study's section 3.5.3).

A teacher is trained at temperature T (`TemperatureCrossEntropy`): its logits are divided by T before the softmax. A
student is trained at T on the teacher's probabilities at T (`Distillation`). Both predict at temperature 1, where
logits that were trained to be divided by T are T times too large: probabilities saturate and gradients vanish, which
looks like robustness but is none (Carlini and Wagner 2017, section VIII).
"""

from dataclasses import dataclass
from typing import Annotated, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from casemate.attacks import frozen
from casemate.errors import ShapeError
from casemate.models import Classifier, as_classifier, check_batch, same_classes
from casemate.settings import expect, positive
from casemate.types import Images, Labels, Logits

_POSITIVE = positive("1 is ordinary training")
Temperature = Annotated[float, _POSITIVE]
"""The divisor of the logits before the softmax."""


@final
@dataclass(frozen=True, kw_only=True)
class TemperatureCrossEntropy:
    """The training objective of the teacher: cross-entropy of the logits divided by the temperature."""

    temperature: Temperature
    """Divisor of the logits (T); 1 is ordinary training."""

    def __post_init__(self) -> None:
        expect(self)

    def __call__(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the mean cross-entropy of the batch at the temperature, and the logits before the division."""
        logits = model(images)
        return F.cross_entropy(logits / self.temperature, labels), logits

    @torch.no_grad()
    def validate(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the mean loss and the undivided logits of a validation batch, without gradients."""
        return self(model, images, labels)


@final
@dataclass(frozen=True, kw_only=True)
class Distillation:
    """The training objective of the student: cross-entropy of the student under the teacher's probabilities.

    Both are computed from logits divided by the temperature. The labels are not used. The teacher predicts on the
    images of the batch, after augmentation.
    """

    teacher: nn.Module
    """The trained teacher, a `Classifier` or a module that maps images within [0, 1] to logits: used in evaluation mode
    and left as it was; it must be on the student's device."""
    temperature: Temperature
    """Divisor of the logits of teacher and student (T); the teacher should have been trained with it."""

    def __post_init__(self) -> None:
        expect(self)
        object.__setattr__(self, "teacher", as_classifier(self.teacher))

    def __call__(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the mean loss of the batch, and the student's logits before the division.

        Raises:
            ShapeError: teacher and student differ in classes, in image shape or in bounds.
        """
        del labels
        teacher = as_classifier(self.teacher)
        expect_alike(teacher, model, images)
        with torch.no_grad(), frozen(teacher):
            target = F.softmax(teacher(images) / self.temperature, dim=1)
        logits = model(images)
        return F.cross_entropy(logits / self.temperature, target), logits

    @torch.no_grad()
    def validate(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the mean loss and the undivided logits of a validation batch, without gradients."""
        return self(model, images, labels)


def expect_alike(teacher: Classifier, student: Classifier, images: Images) -> None:
    """Raise `ShapeError` if teacher and student differ in classes, in image shape or in bounds.

    What is not known yet of classes and shape is found out from `images`.
    """
    check_batch(student, images)
    teacher.infer(images)
    student.infer(images)
    alike = teacher.input_shape == student.input_shape and teacher.bounds == student.bounds
    if not alike or not same_classes(teacher.classes, student.classes):
        raise ShapeError(
            f"a teacher of {_described(teacher)} for a student of {_described(student)}; expected the same"
        )


def _described(model: Classifier) -> str:
    low, high = model.bounds
    return f"{len(model.classes)} classes and images {model.input_shape} with pixels within [{low:g}, {high:g}]"


@final
class _Divided(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, logits: Logits) -> Logits:
        return logits / self.by


def at_temperature(model: nn.Module, temperature: float) -> Classifier:
    """A classifier with the logits of `model` divided by the temperature; it shares the weights of `model`.

    Its predicted classes are those of `model`; gradients that vanish in `model` because its logits are too large do not
    vanish here.

    Raises:
        SettingError: a temperature that is not positive.
    """
    _POSITIVE.check(temperature, "temperature")
    model = as_classifier(model)
    return Classifier(nn.Sequential(model, _Divided(temperature)), **model.interface)
