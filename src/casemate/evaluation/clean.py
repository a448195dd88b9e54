"""The results of a classifier on images without an attack: accuracy, loss, confusion, calibration."""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import nn

from casemate.attacks import check_first, check_images, frozen
from casemate.data import Array, ImageSource, ReadableImages, as_readable
from casemate.errors import ShapeError
from casemate.evaluation.intervals import Estimate, mean, share
from casemate.logits import is_valid, top_gap
from casemate.losses import stable_cross_entropy
from casemate.memory import batched
from casemate.models import as_classifier, user_call
from casemate.progress import NULL_OBSERVER, Observer

_BINS = 15
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@final
@dataclass(frozen=True, kw_only=True)
class CleanResult:
    """Predictions on unperturbed images as NumPy arrays `(n,)`, one entry per image, and statistics of them."""

    classes: tuple[str, ...]
    labels: np.ndarray
    prediction: np.ndarray
    loss: np.ndarray
    """Cross-entropy of each image (`stable_cross_entropy`); NaN where the logits are not valid (`is_valid`)."""
    confidence: np.ndarray
    """Largest softmax probability of each image."""
    gap: np.ndarray
    """Largest logit minus the second largest, of each image."""

    def __repr__(self) -> str:
        return f"CleanResult(accuracy {self.accuracy:n}; {len(self.classes)} classes)"

    @property
    def correct(self) -> np.ndarray:
        """Whether each image is classified correctly, booleans `(n,)`; False where its logits are not valid."""
        return (self.prediction == self.labels) & ~np.isnan(self.loss)

    @property
    def accuracy(self) -> Estimate:
        """Share of the images classified correctly."""
        return share(self.correct)

    @property
    def mean_loss(self) -> Estimate:
        """Mean cross-entropy over all images. Raises `ShapeError` if one is not finite."""
        return mean(self.loss)

    @property
    def confusion(self) -> np.ndarray:
        """Confusion matrix: counts `(classes, classes)`, the true class by row and the predicted class by column."""
        count = len(self.classes)
        return np.bincount(self.labels * count + self.prediction, minlength=count * count).reshape(count, count)

    @property
    def per_class(self) -> list[Estimate | None]:
        """Accuracy on the images of each true class; None for a class without images."""
        picks = [self.labels == label for label in range(len(self.classes))]
        return [share(self.correct[pick]) if pick.any() else None for pick in picks]

    @property
    def calibration_error(self) -> float:
        """Mean distance between confidence and accuracy, see `expected_calibration_error`."""
        return expected_calibration_error(self.confidence, self.correct)

    @property
    def gap_quantiles(self) -> dict[str, float]:
        """Quantiles of `gap` over all images, by their share as text, from "0.05" to "0.95"."""
        return {f"{q:g}": float(np.quantile(self.gap, q)) for q in _QUANTILES}


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Mean distance between confidence and accuracy over 15 equal bins, weighted by size (Guo et al. 2017, eq. 3).

    Args:
        confidence: largest softmax probability of each image, `(n,)`.
        correct: whether each image is classified correctly, booleans `(n,)`.
    """
    place = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    size = np.bincount(place, minlength=_BINS)
    sums = np.bincount(place, weights=confidence - correct, minlength=_BINS)
    return float(np.abs(sums[size > 0]).sum() / size.sum())


@torch.no_grad()
def evaluate_clean(
    model: nn.Module,
    images: ImageSource | ReadableImages,
    labels: Array | None = None,
    *,
    batch_size: int = 500,
    observer: Observer = NULL_OBSERVER,
) -> CleanResult:
    """Classify images in evaluation mode; the model does not change.

    Args:
        model: a `Classifier`, or a module that maps images within [0, 1] to logits.
        images, labels: as for `evaluate`.
        batch_size: images per pass.

    Raises:
        ShapeError: no images, or images and labels that the model does not take.
        ModelError: a model that fails, or returns something other than one logit per class.
    """
    model, images = as_classifier(model), as_readable(images, labels)
    if not len(images):
        raise ShapeError("no images to classify; expected at least one")
    with user_call(model), frozen(model), observer.work("Classifying", len(images)) as advance:
        model.examine(check_first(model, images, 2))

        count = len(images)
        prediction, loss = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.float32)
        confidence, gap = np.zeros(count), np.zeros(count, dtype=np.float32)

        def classify(batch: slice) -> None:
            pixels, truth = images.read(batch).tensors(model.device)
            check_images(model, pixels, truth, start=batch.start)
            logits = model(pixels)
            confidence[batch] = logits.double().softmax(1).amax(1).cpu().numpy()
            prediction[batch] = logits.argmax(1).cpu().numpy()  # softmax may round to ties
            loss[batch] = stable_cross_entropy(logits, truth).where(is_valid(logits), torch.nan).cpu().numpy()
            gap[batch] = top_gap(logits).cpu().numpy()
            advance(len(truth), "")

        batched(count, batch_size, classify, observer)
    return CleanResult(
        classes=model.classes,
        labels=images.labels.cpu().numpy(),
        prediction=prediction,
        loss=loss,
        confidence=confidence,
        gap=gap,
    )
