"""Saved models, or models of the user's own, that a training builds on: the one it starts from, or its teacher."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casemate.cli.shared import inputs
from casemate.data import Dataset
from casemate.errors import ModelError
from casemate.evaluation.record import fingerprint
from casemate.models import Classifier, ModelMetadata, load


@dataclass(frozen=True)
class Held:
    """A model that a training builds on."""

    source: str
    """Its file, or the function that made it."""
    role: str
    model: Classifier
    description: ModelMetadata | None
    """What stands beside its weights; None of a model that a function made."""
    hash: str | None
    """SHA-256 of its file, or of what the function made."""

    @property
    def architecture(self) -> str | None:
        """The name of its network, if it has one."""
        return None if self.description is None else self.description.architecture

    @property
    def dataset(self) -> str | None:
        """The data set that it was trained on, where it says so."""
        return None if self.description is None else self.description.dataset

    def as_json(self) -> dict[str, str | None]:
        """What the description of the new model says of it."""
        return {"file" if self.description is not None else "function": self.source, "sha256": self.hash}

    def check(self, dataset: Dataset) -> None:
        """Raise `ModelError` unless the model takes these images and tells their classes apart."""
        asked = (dataset.image_shape, dataset.classes, (0.0, 1.0))
        own = (self.model.input_shape, self.model.classes, self.model.bounds)
        for what, ours, theirs in zip(("images of shape", "the classes", "pixels within"), own, asked, strict=True):
            if ours != theirs:
                raise ModelError(
                    f"{self.source}, given as --{self.role}, has {what} {_short(ours)}, but {dataset.title} has "
                    f"{_short(theirs)}; choose another --{self.role}, or the --dataset it was trained on "
                    f"({self.dataset})"
                )


def start_model(path: Path | None, architecture: str | None) -> Held | None:
    """Load the model to start from, if there is one. Raises `ModelError`, also if it is another architecture."""
    if path is None:
        return None
    model, description = load(path, architecture=architecture)
    return Held(str(path), "start", model, description, hashlib.sha256(path.read_bytes()).hexdigest())


def teacher_model(source: str | None) -> Held | None:
    """Load the model to learn from, if there is one. Raises `ModelError`."""
    if source is None:
        return None
    found = inputs.load_model(source, "cpu")
    from_file = found.description is not None
    digest = hashlib.sha256(Path(source).read_bytes()).hexdigest() if from_file else fingerprint(found.model)
    return Held(source, "teacher", found.model, found.description, digest)


def _short(values: tuple[Any, ...]) -> str:
    """The first three of some values."""
    return ", ".join([*map(str, values[:3]), *(["..."] if len(values) > 3 else [])])


def trained_at(description: ModelMetadata | None) -> float:
    """The temperature that a saved model was trained at; 1 if it names none."""
    match None if description is None else description.recipe:
        case {"objective": {"settings": {"temperature": float(temperature)}}}:
            return temperature
        case _:
            return 1.0
