"""Models that a training builds on, saved ones or the user's own: the one it starts from, and its teacher."""

from dataclasses import dataclass
from typing import Any

from casemate.cli.shared import inputs
from casemate.cli.shared.options import ModelOptions
from casemate.data import Dataset, to_float
from casemate.errors import ModelError, SettingError
from casemate.evaluation.fingerprints import fingerprint
from casemate.models import Classifier, ModelMetadata, OpenedModel, check_storable, same_classes


@dataclass(frozen=True)
class BaseModel:
    """A loaded model that a training builds on: the one whose weights it starts from, or the teacher."""

    source: str
    """Its file or name, or package.module:function for the function that made it."""
    role: str
    """What the training uses it as: "start" or "teacher"."""
    opened: OpenedModel
    hash: str | None
    """SHA-256 of its file, or of the weights of a model that a function made."""

    @property
    def model(self) -> Classifier:
        """The classifier itself."""
        return self.opened.model

    @property
    def description(self) -> ModelMetadata | None:
        """The metadata saved beside its weights; None for a model from elsewhere."""
        return self.opened.description

    @property
    def architecture(self) -> str | None:
        """The registered name of its network; None for a model that a function made."""
        return None if self.description is None else self.description.architecture

    @property
    def dataset(self) -> str | None:
        """Name of the data set that it was trained on; None for a model that a function made."""
        return None if self.description is None else self.description.dataset

    def as_json(self) -> dict[str, str | None]:
        """Its source and hash, as the metadata of the newly trained model states them."""
        return {"file" if self.description is not None else "function": self.source, "sha256": self.hash}

    def check(self, dataset: Dataset) -> None:
        """Raise `ModelError` unless the model takes images of this data set and has its classes."""
        if self.description is None:
            self.opened.check(to_float(dataset.train.pixels[:8]))
            if callable(self.model.output):
                raise ModelError(
                    f"{self.source} returns probabilities whose logarithm is taken, and cannot be saved after its "
                    "training; return logits from it"
                )
        expected = (dataset.image_shape, dataset.classes, (0.0, 1.0))
        own = (self.model.input_shape, self.model.classes, self.model.bounds)
        for what, ours, theirs in zip(("images of shape", "the classes", "pixels within"), own, expected, strict=True):
            if ours != theirs and not (what == "the classes" and self._has_classes_of(dataset)):
                raise ModelError(
                    f"{self.source}, given as --{self.role}, has {what} {_short(ours)}, but {dataset.title} has "
                    f"{_short(theirs)}; choose another --{self.role}, or the --dataset it was trained on "
                    f"({self.dataset})"
                )

    def _has_classes_of(self, dataset: Dataset) -> bool:
        """Whether a model from elsewhere, whose classes may have numbers for names, has those of a data set."""
        return self.description is None and same_classes(self.model.classes, dataset.classes)


def start_model(source: str | None, architecture: str | None, loading: ModelOptions) -> BaseModel | None:
    """Load the model whose weights the training starts from; None without `source`.

    `loading` are the options of a model of the user's own.

    Raises `ModelError` if it cannot be loaded, or could not be saved after the training, or has another architecture
    than the given one (None accepts any); `SettingError` for an architecture beside the user's own network.
    """
    if source is None:
        return None
    found = _opened("start", source, loading)
    check_storable(found.model)
    if architecture is not None:
        if found.description is None:
            raise SettingError(
                f"--architecture {architecture} beside --start {source}, which brings a network of its own; leave "
                "--architecture out"
            )
        if found.description.architecture != architecture:
            raise ModelError(
                f"{source} contains a {found.description.architecture}, but a {architecture} is expected; choose the "
                "matching checkpoint"
            )
    return found


def teacher_model(source: str | None, loading: ModelOptions) -> BaseModel | None:
    """Load the teacher of a distillation; None without `source`. Raises `ModelError`.

    `loading` are the options of a model of the user's own.
    """
    return None if source is None else _opened("teacher", source, loading)


def _opened(role: str, source: str, loading: ModelOptions) -> BaseModel:
    found = inputs.load_model(source, "cpu", loading)
    if found.description is None:
        digest = fingerprint(found.model)
    else:
        digest = next(each for name, each in found.sha256.items() if name.endswith(".safetensors"))
    return BaseModel(source, role, found, digest)


def _short(values: tuple[Any, ...]) -> str:
    """The first three values as text, followed by "..." if there are more."""
    return ", ".join([*map(str, values[:3]), *(["..."] if len(values) > 3 else [])])


def trained_at(description: ModelMetadata | None) -> float:
    """The softmax temperature that a saved model was trained at; 1 if its metadata names none."""
    match None if description is None else description.recipe:
        case {"objective": {"settings": {"temperature": float(temperature)}}}:
            return temperature
        case _:
            return 1.0
