"""The stored results of the study's tasks, one dataclass per kind; `casemate_study.tasks` writes them as JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from casemate.engine import Artifact
from casemate.evaluation import Estimate
from casemate_study.results.reading import T, read_as

Artifacts = Mapping[str, Artifact]
"""Finished artifacts by the names of their tasks."""


def find_result(artifacts: Artifacts, name: str, kind: type[T]) -> T | None:
    """The result of the task called `name`, read as `kind`; None if it is not finished.

    Raises `StoreError` if another version of casemate stored it with other fields.
    """
    artifact = artifacts.get(name)
    return None if artifact is None else read_as(kind, artifact.result, f"the stored result of {name}")


@final
@dataclass(frozen=True)
class Provenance:
    """When, where and from which code an artifact was made."""

    seconds: float
    finished: str
    """UTC, ISO 8601."""
    commit: str | None
    processor: str
    cores: int
    threads: int
    device: str
    libraries: Mapping[str, str]
    """Version by package."""

    @classmethod
    def of(cls, artifact: Artifact) -> "Provenance":
        """The provenance of an artifact."""
        return read_as(cls, artifact.facts["provenance"], f"the provenance of {artifact.facts['name']}")


@final
@dataclass(frozen=True)
class StoredClean:
    """Measures on images without an attack."""

    classes: tuple[str, ...]
    accuracy: Estimate
    loss: Estimate
    """Mean cross-entropy."""
    confusion: tuple[tuple[int, ...], ...]
    """Number of images by true class and predicted class."""
    per_class: tuple[Estimate | None, ...]
    """Accuracy within each class; None for a class without images."""
    calibration_error: float
    gap_quantiles: Mapping[str, float]
    """Quantiles of the gap between the two largest logits, by "0.05", "0.25", "0.5", "0.75" and "0.95"."""
    zero_gradients: Mapping[str, Estimate]
    """Share of images whose input gradient is exactly zero, by the name of the loss."""
    alignment: Mapping[str, Estimate | None]
    """Mean angle in degrees between the gradients at an image and at a random point near it, by the distance ("0.01").

    None if no image has a gradient at both points.
    """


@final
@dataclass(frozen=True)
class CurvePoint:
    """One attack at one eps or number of iterations."""

    at: float
    """The eps, or the number of iterations."""
    last: Estimate
    """Accuracy at the last iterate."""
    worst: Estimate
    """Share of images that no iterate fooled, at this or a smaller value."""
    loss: Estimate | None
    """Mean cross-entropy at the last iterate; None if it is finite for no image."""

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "CurvePoint":
        """A point as `casemate.evaluation.Curve.points` writes it."""
        loss = found["loss"]
        return cls(
            at=float(found["eps" if "eps" in found else "steps"]),
            last=Estimate.from_json(found["last"]),
            worst=Estimate.from_json(found["worst"]),
            loss=None if loss is None else Estimate.from_json(loss),
        )


@final
@dataclass(frozen=True)
class StoredCurve:
    """One attack over several eps or numbers of iterations."""

    points: tuple[CurvePoint, ...]
    zero_gradients: Estimate
    """Share of images whose input gradient under the attack's loss is exactly zero."""

    def at(self, value: float) -> CurvePoint | None:
        """The point at this eps or number of iterations; None if it was not computed."""
        return next((point for point in self.points if abs(point.at - value) < 1e-9), None)

    @property
    def n(self) -> int:
        """Number of images."""
        return self.points[0].last.n


def find_point(artifacts: Artifacts, name: str, value: float) -> CurvePoint | None:
    """The point of the curve called `name` at this eps or number of iterations; None if it is not there."""
    curve = find_result(artifacts, name, StoredCurve)
    return None if curve is None else curve.at(value)


@final
@dataclass(frozen=True)
class WorstCasePoint:
    """Several attacks at one eps."""

    eps: float
    every: Estimate
    """Accuracy under all attacks together: an image must withstand each."""
    each: Mapping[str, Estimate]
    """Accuracy under each attack alone."""


@final
@dataclass(frozen=True)
class StoredWorstCase:
    """The worst case over several attacks at several eps."""

    points: tuple[WorstCasePoint, ...]

    def at(self, eps: float) -> WorstCasePoint | None:
        """The point at this eps; None if it was not computed."""
        return next((point for point in self.points if abs(point.eps - eps) < 1e-9), None)


@final
@dataclass(frozen=True)
class EpochRow:
    """One epoch of a training; `val_` marks the validation images."""

    epoch: int
    learning_rate: float
    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float
    seconds: float


@final
@dataclass(frozen=True)
class StoredTraining:
    """A training."""

    history: tuple[EpochRow, ...]
    best_epoch: int
    """The epoch with the lowest validation loss, counted from 1."""
    stopped_at: int | None
    """The epoch at which early stopping ends; later epochs serve another model."""
    parameters: int
    train_images: int
    validation_images: int

    @property
    def best(self) -> EpochRow:
        """The epoch with the lowest validation loss."""
        return self.history[self.best_epoch - 1]


@final
@dataclass(frozen=True)
class StoredCheckpoint:
    """A network during training: clean accuracy, and one attack after the other under several losses."""

    accuracy: Estimate
    loss: Estimate
    zero_gradients: Mapping[str, Estimate]
    """Share of images whose input gradient is exactly zero, by the name of the loss."""
    attacks: Mapping[str, Mapping[str, CurvePoint]]
    """By attack and eps ("FGSM 0.1"), then by the name of the loss."""


@final
@dataclass(frozen=True)
class StoredTargets:
    """Targeted attacks from every class to every other."""

    classes: tuple[str, ...]
    attack: Mapping[str, Any]
    """Name and settings of the attack."""
    rates: tuple[tuple[Estimate | None, ...], ...]
    """Success rate by true class and target class; None where no image was attacked."""
    overall: Estimate | None
    """Success rate over all pairs."""


@final
@dataclass(frozen=True)
class AttackedImage:
    """One image after an attack."""

    adversarial_prediction: str
    """The predicted class."""
    norm: float
    """Distance from the clean image in the attack's norm."""


@final
@dataclass(frozen=True)
class StoredPictures:
    """Images before and after several attacks; the pixels are in images.safetensors."""

    index: tuple[int, ...]
    """Places in the test set."""
    label: tuple[str, ...]
    clean_taken_for: tuple[str, ...]
    """Predicted classes without an attack."""
    attacks: Mapping[str, tuple[AttackedImage, ...]]
    """By the title of the attack."""


@final
@dataclass(frozen=True)
class NeighbourPixels:
    """The pixels of adversarial neighbours under one setting."""

    changed_pixels: float
    """Share of pixels that differ from the clean image's."""
    outside_range: float
    """Share of pixels outside [0, 1]."""
    lowest: float
    highest: float
    mean_shift: float
    """Mean pixel of the neighbours less that of the clean images."""


@final
@dataclass(frozen=True)
class StoredNeighbours:
    """Adversarial neighbours under several settings of adversarial regularisation."""

    settings: Mapping[str, NeighbourPixels]


@final
@dataclass(frozen=True)
class StoredSamples:
    """The first training images of every class; the pixels are in images.safetensors."""

    classes: tuple[str, ...]


@final
@dataclass(frozen=True)
class CheckState:
    """One check of an evaluation."""

    check: str
    state: str
    """"passed", or the severity of the finding."""
    sentence: str | None
    """The finding; None if there is none."""


@final
@dataclass(frozen=True)
class StoredEvaluation:
    """The checks of an evaluation; `casemate.evaluation.read_verdicts` reads its verdicts."""

    checks: tuple[CheckState, ...]
