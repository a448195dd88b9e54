"""What the defences of `casemate train` need once PyTorch is loaded: saved models to build on, losses, their words."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casemate.data import Dataset
from casemate.defenses import AdversarialRegularization, Distillation, TemperatureCrossEntropy
from casemate.defenses.adversarial_training import AdversarialTraining
from casemate.errors import ModelError
from casemate.models import Classifier, ModelMetadata, load
from casemate.training import CrossEntropy, Objective

OBJECTIVES: Mapping[str, type[Objective]] = {
    "adversarial-regularization": AdversarialRegularization,
    "adversarial-training": AdversarialTraining,
    "at-temperature": TemperatureCrossEntropy,
    "distillation": Distillation,
}
"""The losses of the defences, by the names of --defense."""


@dataclass(frozen=True)
class Held:
    """A saved model that a training builds on: the one it starts from, or its teacher."""

    path: Path
    role: str
    model: Classifier
    description: ModelMetadata
    sha256: str

    def as_json(self) -> dict[str, str]:
        """What the description of the new model says of it."""
        return {"file": str(self.path), "sha256": self.sha256}

    def check(self, dataset: Dataset) -> None:
        """Raise `ModelError` unless the model takes these images and tells their classes apart."""
        asked = (dataset.image_shape, dataset.classes, (0.0, 1.0))
        own = (self.model.input_shape, self.model.classes, self.model.bounds)
        for what, ours, theirs in zip(("images of shape", "the classes", "pixels within"), own, asked, strict=True):
            if ours != theirs:
                raise ModelError(
                    f"{self.path}, given as --{self.role}, has {what} {_short(ours)}, but {dataset.title} has "
                    f"{_short(theirs)}; choose another --{self.role}, or the --dataset it was trained on "
                    f"({self.description.dataset})"
                )


def hold(path: Path | None, role: str, *, architecture: str | None = None) -> Held | None:
    """Load the model for a role, if there is one. Raises `ModelError`, also if it is another architecture."""
    if path is None:
        return None
    model, description = load(path, architecture=architecture)
    return Held(path, role, model, description, hashlib.sha256(path.read_bytes()).hexdigest())


def _short(values: tuple[Any, ...]) -> str:
    """The first three of some values."""
    return ", ".join([*map(str, values[:3]), *(["..."] if len(values) > 3 else [])])


def trained_at(description: ModelMetadata) -> float:
    """The temperature that a saved model was trained at; 1 if it names none."""
    match description.recipe:
        case {"objective": {"settings": {"temperature": float(temperature)}}}:
            return temperature
        case _:
            return 1.0


def make_objective(spec: Mapping[str, Any], teacher: Held | None, device: str) -> Objective:
    """The loss that `spec` describes. Raises `SettingError` for a setting outside its values."""
    with_teacher = {} if teacher is None else {"teacher": teacher.model.to(device)}
    return OBJECTIVES.get(spec["name"], CrossEntropy)(**spec["settings"], **with_teacher)


def words_of(spec: Mapping[str, Any]) -> tuple[str, str, str]:
    """What is watched on the validation images (for prose, and for a column), and what the losses are, if not plain."""
    settings = spec["settings"]
    match spec["name"]:
        case "adversarial-regularization":
            what = f"Loss: of the images plus {settings['multiplier']:g} times that of their adversarial neighbours."
            return "adversarial validation loss", "Val. adv. loss", f"{what} Val. adv. loss: of the neighbours alone."
        case "adversarial-training":
            what = f"the images that {settings['steps']} steps of PGD find within {settings['eps']:g} of the clean ones"
            return "adversarial validation loss", "Val. adv. loss", f"Loss and val. adv. loss: of {what}."
        case "at-temperature":
            what = f"Loss and val. loss: cross-entropy at temperature {settings['temperature']:g}."
            return "validation loss", "Val. loss", what
        case "distillation":
            what = f"cross-entropy to the teacher's answers at temperature {settings['temperature']:g}"
            return "validation loss", "Val. loss", f"Loss and val. loss: {what}."
        case _:
            return "validation loss", "Val. loss", ""
