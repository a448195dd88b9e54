"""When an epoch counts as catastrophic overfitting (Wong, Rice and Kolter 2020, arXiv 2001.03994, section 5.4)."""

import math

from torch import Tensor

_SHARE = 2 / 3
"""Share of the best robust accuracy so far, below which an epoch has collapsed. There robust accuracy falls to nearly
zero within one epoch; otherwise it varies by a few points."""
_ERRORS = 3.0
"""Standard errors of a difference of two shares, by which robust accuracy must have fallen."""


def commonest_share(labels: Tensor, classes: int) -> float:
    """The share of images `(n,)` that guessing gets right: that of the commonest label, at least 1 / `classes`."""
    return max(1 / classes, labels.bincount().max().item() / len(labels))


def has_collapsed(now: float, best: float, *, images: int, guessing: float) -> bool:
    """Whether robust accuracy has fallen from the `best` so far to `now` as catastrophic overfitting makes it fall.

    It must be below two thirds of the best by more than chance explains on that number of validation images. A best one
    that `guessing` reaches too says nothing: a network that predicts one class for all images has it.
    """
    mean = (best + now) / 2
    error = math.sqrt(2 * mean * (1 - mean) / images)
    return best > guessing and now < _SHARE * best and best - now > _ERRORS * error
