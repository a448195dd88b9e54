"""What the playground offers: models by name, and images by class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch

from casemate.data import LabelledImages, to_float
from casemate.errors import ModelError
from casemate.models import Classifier, OpenedModel, open_model, pretrained_names
from casemate.types import Images


@final
@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model with what is known of it."""

    name: str
    model: Classifier
    about: str
    """One sentence: its defence, and its measured accuracies."""


@final
@dataclass(frozen=True, kw_only=True)
class Subjects:
    """Models that take the same images, and these images. Raises `ModelError` for models that do not fit."""

    models: Mapping[str, Subject]
    images: LabelledImages
    classes: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels, height and width of the images."""
        return tuple(self.images.pixels.shape[1:])

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest pixel, the same for all models."""
        return next(iter(self.models.values())).model.bounds

    @property
    def width(self) -> float:
        """Of the range of the pixels."""
        low, high = self.bounds
        return high - low

    @property
    def brightness(self) -> float:
        """The mean of all pixels of the images."""
        return to_float(self.images.pixels).mean().item()

    def of_class(self, label: int) -> list[int]:
        """The positions of the images of a class."""
        return torch.nonzero(self.images.labels == label).flatten().tolist()

    def image(self, position: int) -> Images:
        """The image at a position, `(1, channels, height, width)` within `bounds`."""
        return to_float(self.images.pixels[position : position + 1])


def own_subject(opened: OpenedModel) -> Subject:
    """A user's model."""
    return Subject(name=opened.name, model=opened.model.eval(), about="Your model.")


def packaged_subjects() -> list[Subject]:
    """The models that come with the package: the undefended one first, then by their robust accuracy."""
    found = []
    for name in pretrained_names():
        opened = open_model(name)
        assert opened.description is not None, "models of the package have a description"
        found.append(
            (
                _order(opened.description.metrics),
                Subject(
                    name=name, model=opened.model, about=_about(opened.description.recipe, opened.description.metrics)
                ),
            )
        )
    return [subject for _, subject in sorted(found, key=lambda each: each[0])]


def _order(metrics: Mapping[str, Any]) -> tuple[float, float]:
    """The least robust model first, by the radius in the middle of the first measurement; of those the most accurate.

    So the undefended model, which the others are compared with, comes first.
    """
    first = metrics["measures"][0]
    robust = first["robust"][len(first["robust"]) // 2]["value"]
    return float(robust), -float(first["clean"]["value"])


def _about(recipe: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    first = metrics["measures"][0]
    middle = len(first["eps"]) // 2
    eps, robust = first["eps"][middle], first["robust"][middle]["value"]
    clean = metrics["test_accuracy"]["value"]
    return (
        f"Trained by {recipe['objective']['name']}. {100 * clean:.1f} % of the test images are right without an "
        f"attack, {100 * robust:.1f} % under the attacks of the budget {first['budget']} at Linf {eps:g} (the first "
        f"{first['images']:,})."
    )


def on_one_page(subjects: Sequence[Subject], images: LabelledImages, classes: Sequence[str]) -> Subjects:
    """Subjects that can share the page. Raises `ModelError` for a model of another number of classes or bounds."""
    first = subjects[0]
    for each in subjects:
        if len(each.model.classes) != len(classes) or each.model.bounds != first.model.bounds:
            raise ModelError(
                f"{each.name} has {len(each.model.classes)} classes and pixels in {list(each.model.bounds)}, "
                f"{first.name} {len(first.model.classes)} and {list(first.model.bounds)}; show them one at a time"
            )
    return Subjects(models={each.name: each for each in subjects}, images=images, classes=tuple(classes))
