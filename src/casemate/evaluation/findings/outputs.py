"""What the checks need of a model's logits for all images: columns, shares, and the logits of a few of the images."""

from dataclasses import dataclass
from typing import final

import numpy as np
import torch

from casemate.evaluation.clean import CleanResult
from casemate.logits import is_right, is_valid, magnitude, top_gap
from casemate.types import Labels, Logits

FIRST = 512
"""Number of images whose logits are kept, from the first on."""
_ROUNDED = 1e-3
"""Difference of logits that is due to rounding, as a share of the largest."""


@final
@dataclass(frozen=True, kw_only=True)
class Outputs:
    """The model's outputs for all images, computed in one pass before the attacks; on the CPU."""

    right: np.ndarray
    """Whether each image is classified correctly, booleans `(n,)`."""
    prediction: np.ndarray
    """The class with the largest logit, int32 `(n,)`."""
    gap: np.ndarray
    """The largest logit minus the second largest, float32 `(n,)`."""
    invalid: float
    """Share of the images whose logits are not valid."""
    probabilities: float
    """Share of the images whose outputs lie within [0, 1] and add up to 1."""
    masked: torch.Tensor
    """For each class the share of the images on which its logit is minus infinity, float64 `(classes,)`."""
    changed: float
    """Share of the images whose predicted class or gap is not that of the pass before this one."""
    first: torch.Tensor
    """The logits of the first `FIRST` images, `(k, classes)`."""
    sample: torch.Tensor
    """The logits of the first images that are classified correctly, or if there is none of the first ones."""


@final
class Gathering:
    """`Outputs` while they are computed, from the logits of one part of the images after the other.

    Args:
        labels: of all images.
        before: the results of an earlier pass.
        sample: number of images in the sample.
    """

    def __init__(self, labels: Labels, before: CleanResult, sample: int) -> None:
        count = len(labels)
        self._labels, self._before, self._sample = labels, before, sample
        self._right, self._gap = np.zeros(count, dtype=bool), np.zeros(count, dtype=np.float32)
        self._prediction = np.zeros(count, dtype=np.int32)
        self._invalid = self._summing = self._changed = 0
        self._masked = torch.zeros(())
        self._first: list[Logits] = []
        self._kept: list[Logits] = []

    def add(self, at: slice, logits: Logits) -> None:
        """Add the logits of the images at some positions; on the CPU, in ascending order of the positions."""
        hits = is_right(logits, self._labels[at])
        self._right[at] = hits.numpy()
        self._prediction[at], self._gap[at] = logits.argmax(1).numpy(), top_gap(logits).numpy()
        self._invalid += int((~is_valid(logits)).sum())
        sums = (logits.double().sum(1) - 1).abs() < 1e-4
        self._summing += int((sums & (logits >= -1e-6).all(1) & (logits <= 1 + 1e-6).all(1)).sum())
        self._masked = self._masked + (logits == -torch.inf).double().sum(0)
        self._changed += int(has_changed(logits, self._before.prediction[at], self._before.gap[at]).sum())
        if at.start < FIRST:
            self._first.append(logits[: FIRST - at.start].clone())
        wanted = self._sample - sum(map(len, self._kept))
        if wanted:
            self._kept.append(logits[hits][:wanted].clone())

    def outputs(self) -> Outputs:
        """The outputs, once the logits of all images were added."""
        count, first = len(self._labels), torch.cat(self._first)
        return Outputs(
            right=self._right,
            prediction=self._prediction,
            gap=self._gap,
            invalid=self._invalid / count,
            probabilities=self._summing / count,
            masked=self._masked / count,
            changed=self._changed / count,
            first=first,
            sample=torch.cat(self._kept) if self._right.any() else first[: self._sample],
        )


def has_changed(logits: Logits, prediction: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """Whether the predicted class or logit gap of each image differs from the given ones by more than rounding."""
    tolerance = _ROUNDED * magnitude(logits).numpy()
    again = top_gap(logits).numpy()
    with np.errstate(invalid="ignore"):
        near = (np.abs(again - gap) <= tolerance) | (again == gap) | (np.isnan(again) & np.isnan(gap))
    other = (logits.argmax(1).numpy() != prediction) & (gap > tolerance)
    return ~near | other
