"""The stored results of the study's tasks as dataclasses, one per kind of task, read from the JSON that
`casemate_study.tasks` writes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from casemate.engine import Artifact
from casemate.evaluation import Estimate
from casemate_study.results.reading import T, read_as

Artifacts = Mapping[str, Artifact]
"""Finished artifacts (each a stored result with its files), by the names of their tasks."""


def find_result(artifacts: Artifacts, name: str, kind: type[T]) -> T | None:
    """The result of the task called `name`, read as the dataclass `kind`; None if the task is not finished.

    Raises `StoreError` if another version of casemate stored it with other fields.
    """
    artifact = artifacts.get(name)
    return None if artifact is None else read_as(kind, artifact.result, f"the stored result of {name}")


@final
@dataclass(frozen=True)
class Provenance:
    """How long, when, on which machine and from which code an artifact was computed."""

    seconds: float
    finished: str
    """Time at which it was finished, UTC, ISO 8601."""
    commit: str | None
    processor: str
    cores: int
    threads: int
    device: str
    libraries: Mapping[str, str]
    """Versions of the libraries used, by package."""

    @classmethod
    def of(cls, artifact: Artifact) -> "Provenance":
        """Read from an artifact how long, when, on which machine and from which code it was computed."""
        return read_as(cls, artifact.facts["provenance"], f"the provenance of {artifact.facts['name']}")

    @property
    def machine(self) -> str:
        """Processor, threads and cores, and device, such as "AMD EPYC, 1 of 2 cores, cpu"."""
        return f"{self.processor}, {self.threads} of {self.cores} cores, {self.device}"


@final
@dataclass(frozen=True)
class StoredClean:
    """Measures of one model on test images without an attack."""

    classes: tuple[str, ...]
    accuracy: Estimate
    loss: Estimate
    """Mean cross-entropy over the images."""
    confusion: tuple[tuple[int, ...], ...]
    """Number of images by true class (rows) and predicted class (columns)."""
    per_class: tuple[Estimate | None, ...]
    """Share of the images of each class that are classified correctly; None for a class without images."""
    calibration_error: float
    gap_quantiles: Mapping[str, float]
    """Quantiles over the images of the gap between the two largest logits, by "0.05", "0.25", "0.5", "0.75"
    and "0.95"."""
    zero_gradients: Mapping[str, Estimate]
    """Share of images whose input gradient is exactly zero in every pixel, by the name of the loss ("ce", ...)."""
    alignment: Mapping[str, Estimate | None]
    """Mean angle in degrees between the input gradients at an image and at a random point near it, by the largest
    distance of that point (Linf): "0.01", "0.1". None if no image has a gradient at both points."""


@final
@dataclass(frozen=True)
class CurvePoint:
    """The results of one attack at one eps or number of iterations."""

    at: float
    """The eps, or the number of iterations."""
    last: Estimate
    """Share of images classified correctly at the last iterate."""
    worst: Estimate
    """Share of images classified correctly at every iterate, at this and every smaller value of the curve."""
    loss: Estimate | None
    """Mean cross-entropy at the last iterate, over the images where it is finite; None if there are none."""

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "CurvePoint":
        """Read one of the points that `casemate.evaluation.Curve.points` returns."""
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
    """The results of one attack on one model at several eps or numbers of iterations."""

    points: tuple[CurvePoint, ...]
    zero_gradients: Estimate
    """Share of images whose input gradient under the attack's loss is exactly zero."""

    def at(self, value: float) -> CurvePoint | None:
        """The point of the curve at `value`, an eps or a number of iterations; None if it was not computed."""
        return next((point for point in self.points if abs(point.at - value) < 1e-9), None)

    @property
    def n(self) -> int:
        """Number of images attacked."""
        return self.points[0].last.n


def find_point(artifacts: Artifacts, name: str, value: float) -> CurvePoint | None:
    """The point at `value` (an eps or a number of iterations) of the curve that the task called `name` computed.

    None if the task is not finished or its curve has no such point.
    """
    curve = find_result(artifacts, name, StoredCurve)
    return None if curve is None else curve.at(value)


@final
@dataclass(frozen=True)
class WorstCasePoint:
    """Accuracy on one model at one eps: under each of several attacks alone, and under all of them together."""

    eps: float
    every: Estimate
    """Accuracy under all attacks together: only images that withstand each of them count."""
    each: Mapping[str, Estimate]
    """Accuracy under each attack alone, by its name."""


@final
@dataclass(frozen=True)
class StoredWorstCase:
    """The worst case over several attacks on one model, at several eps."""

    points: tuple[WorstCasePoint, ...]

    def at(self, eps: float) -> WorstCasePoint | None:
        """The result at this eps; None if it was not computed."""
        return next((point for point in self.points if abs(point.eps - eps) < 1e-9), None)


@final
@dataclass(frozen=True)
class EpochRow:
    """One epoch of a training: mean loss and accuracy on the training images, and (`val_`) on the validation images."""

    epoch: int
    learning_rate: float
    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float
    seconds: float
    processor_seconds: float | None = None
    """Seconds of the processor, all threads of the process together; None in results of earlier versions."""

    @property
    def cost(self) -> float:
        """Seconds of the processor, which other work on the machine changes little; of the clock if not measured."""
        return self.seconds if self.processor_seconds is None else self.processor_seconds


@final
@dataclass(frozen=True)
class StoredTraining:
    """A training: its epochs, early stopping, and sizes."""

    history: tuple[EpochRow, ...]
    best_epoch: int
    """The epoch with the lowest validation loss (before early stopping), counted from 1."""
    stopped_at: int | None
    """The epoch at which early stopping ends the training; None if it does not. If the training went on after it, the
    later epochs serve another model."""
    parameters: int
    train_images: int
    validation_images: int

    @property
    def best(self) -> EpochRow:
        """The row of the epoch with the lowest validation loss."""
        return self.history[self.best_epoch - 1]

    @property
    def last(self) -> EpochRow:
        """The row of the last epoch."""
        return self.history[-1]


@final
@dataclass(frozen=True)
class StoredCheckpoint:
    """Measures of a network during or after training: clean accuracy, and its accuracy under several attacks, each
    ascending several losses.
    """

    accuracy: Estimate
    loss: Estimate
    zero_gradients: Mapping[str, Estimate]
    """Share of images whose input gradient is exactly zero in every pixel, by the name of the loss ("ce", ...)."""
    attacks: Mapping[str, Mapping[str, CurvePoint]]
    """The result of each attack by its title with eps ("FGSM 0.1"), then by the name of the loss that it ascends."""


@final
@dataclass(frozen=True)
class ZeroShares:
    """How much of a network's input gradients is exactly zero."""

    images: Estimate
    """Share of images whose gradient is zero in every pixel."""
    pixels: Estimate
    """Share of pixels without a gradient, the mean over the images."""


@final
@dataclass(frozen=True)
class StoredCombination:
    """Accuracy under FGSM with the changes of two hypotheses together."""

    hypotheses: tuple[str, ...]
    """The names of the two that raise the accuracy most under this loss."""
    accuracy: Estimate | None
    """None if no image counts."""


@final
@dataclass(frozen=True)
class StoredHypotheses:
    """E1's accuracy under FGSM in conditions that differ from E2's, by hypothesis and loss ascended."""

    clean: Mapping[str, Estimate]
    """Accuracy without an attack, on "test" images and on "training" images."""
    single: Mapping[str, Mapping[str, Estimate | None]]
    """Accuracy by the name of the hypothesis, then by the name of the loss; None if no image counts."""
    combined: Mapping[str, StoredCombination | None]
    """The combination under each loss, by its name; None if fewer than two hypotheses raise the accuracy."""
    zero_gradients: Mapping[str, Mapping[str, ZeroShares]]
    """By "own" (gradient of each image's own loss) or "mean" (of the mean over a batch, with denormals flushed), then
    by the name of the loss."""


@final
@dataclass(frozen=True)
class StoredTargets:
    """The results of a targeted attack on one model from every class to every other."""

    classes: tuple[str, ...]
    attack: Mapping[str, Any]
    """Name and settings of the attack."""
    rates: tuple[tuple[Estimate | None, ...], ...]
    """Success rate by true class (rows) and target class (columns); None on the diagonal and where no image was
    attacked."""
    overall: Estimate | None
    """Success rate over all pairs of an image and a target class; None if no image was attacked."""


@final
@dataclass(frozen=True)
class AttackedImage:
    """What an attack made of one image."""

    adversarial_prediction: str
    """Name of the class that the model predicts for the image after the attack."""
    norm: float
    """Distance of the image after the attack from the clean image, in the attack's norm."""


@final
@dataclass(frozen=True)
class StoredPictures:
    """A few test images before and after several attacks: labels and predictions. The pixels are in the artifact's
    images.safetensors.
    """

    index: tuple[int, ...]
    """Positions of the images in the test set."""
    label: tuple[str, ...]
    clean_taken_for: tuple[str, ...]
    """Names of the classes that the model predicts without an attack."""
    attacks: Mapping[str, tuple[AttackedImage, ...]]
    """What each attack made of each image, by the title of the attack."""


@final
@dataclass(frozen=True)
class NeighbourPixels:
    """Statistics over all pixels of the adversarial neighbours made with one setting of adversarial regularisation."""

    changed_pixels: float
    """Share of pixels that differ from the clean images'."""
    outside_range: float
    """Share of pixels below 0 or above 1."""
    lowest: float
    highest: float
    mean_shift: float
    """Mean of all pixels of the adversarial neighbours minus mean of all pixels of the clean images."""


@final
@dataclass(frozen=True)
class StoredNeighbours:
    """Statistics of adversarial neighbours, by the title of the setting of adversarial regularisation that
    made them.
    """

    settings: Mapping[str, NeighbourPixels]


@final
@dataclass(frozen=True)
class StoredSamples:
    """The first training images of every class; their pixels are in the artifact's images.safetensors."""

    classes: tuple[str, ...]


@final
@dataclass(frozen=True)
class CheckState:
    """The outcome of one check of a whole evaluation."""

    check: str
    state: str
    """"passed", or the severity of its finding: "note", "weakens" or "voids"; "not run" if the check was not made."""
    sentence: str | None
    """The finding as text; None if there is none."""


@final
@dataclass(frozen=True)
class StoredEvaluation:
    """The outcomes of the checks in the stored result of `casemate.evaluate`.

    The verdicts are not part of it: `casemate.evaluation.read_verdicts` reads them from the same JSON.
    """

    checks: tuple[CheckState, ...]
