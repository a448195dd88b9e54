"""Paired comparisons of two models, or of two attacks, on the same images, from the tables of examples in artifacts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal, final

import numpy as np

from casemate.engine import Artifact
from casemate.errors import StoreError
from casemate.evaluation import Estimate, mcnemar, mean, paired_difference
from casemate.tables import Table, read_table
from casemate_study.results.significance import LEVEL, holm, p_value

Order = Literal[-1, 0, 1]


@final
@dataclass(frozen=True)
class PairedComparison:
    """Two means over the same images (accuracies, losses or confidences) of two models or under two attacks, their
    order, and their difference.
    """

    first: float
    second: float
    order: Order
    """1: the first is larger; -1: the second is; 0: the paired test at the 5 % level finds no difference."""
    difference: Estimate
    """The first minus the second, with the 95 % interval of the paired difference: how large it could still be."""
    p_value: float
    """That of the paired test, two-sided."""

    @property
    def n(self) -> int:
        """Number of images on which both were measured."""
        return self.difference.n


Compare = Callable[..., PairedComparison | None]
"""A function that compares two artifacts: `compare_accuracy`, `compare_loss` or `compare_confidence`."""


def adjusted(found: Sequence[PairedComparison]) -> list[PairedComparison]:
    """The same comparisons with the orders that remain after Holm's correction for their number (`holm`): the others
    become 0. Differences and their intervals stay as they are.
    """
    significant = holm([each.p_value for each in found])
    return [
        replace(each, order=_order(each.difference.value, kept)) for each, kept in zip(found, significant, strict=True)
    ]


@lru_cache(maxsize=512)
def _table(folder: Path) -> Table:
    return read_table(folder / "examples", StoreError)


def rows_of(artifact: Artifact, axis: str | None = None, value: float | None = None) -> Table:
    """The table of examples of an artifact, as one array per column.

    For the artifact of a curve or a worst case, only the rows of one point: those where the column `axis` ("eps" or
    "steps") equals `value`. All rows if either is None.
    """
    return _rows(artifact.folder, axis, value)


def _rows(folder: Path, axis: str | None, value: float | None) -> Table:
    table = _table(folder)
    if axis is None or value is None:
        return table
    chosen = np.abs(table[axis] - value) < 1e-9
    return {name: column[chosen] for name, column in table.items()}


def is_correct(artifact: Artifact, axis: str | None = None, value: float | None = None) -> np.ndarray:
    """Which images are classified correctly, booleans `(n,)`.

    From the artifact of clean measures: without an attack; of a curve: at the last iterate where `axis` ("eps" or
    "steps") is `value`; of a worst case: under every attack at that eps.
    """
    rows = rows_of(artifact, axis, value)
    if "right" in rows:
        return rows["right"]
    if "prediction" in rows:
        return rows["prediction"] == rows["label"]
    attacks = [name for name in rows if name not in ("index", "label", "eps")]
    return np.logical_and.reduce([rows[name] for name in attacks])


def _order(difference: float, significant: bool) -> Order:
    return 0 if not significant or difference == 0 else (1 if difference > 0 else -1)


def compare_accuracy(
    first: Artifact | None, second: Artifact | None, axis: str | None = None, value: float | None = None
) -> PairedComparison | None:
    """Compare two accuracies by McNemar's test, on the images that both artifacts have; arguments as for
    `is_correct`.

    None if an artifact is None or they have no images.
    """
    if first is None or second is None:
        return None
    return compare_masks(is_correct(first, axis, value), is_correct(second, axis, value))


def compare_masks(one: np.ndarray, other: np.ndarray) -> PairedComparison | None:
    """Compare the shares of True in two boolean masks `(n,)` by McNemar's test.

    Both start with the same images; the longer is cut to the length of the shorter. None if that is 0.
    """
    n = min(len(one), len(other))
    if n == 0:
        return None
    one, other = one[:n], other[:n]
    a, b = float(one.mean()), float(other.mean())
    p = mcnemar(one, other)
    return PairedComparison(a, b, _order(a - b, p < LEVEL), paired_difference(one, other), p)


def compare_values(one: np.ndarray, other: np.ndarray) -> PairedComparison | None:
    """Compare the means of two arrays of numbers `(n,)`; the order and the p-value follow from the 95 % bootstrap
    interval of the mean paired difference.

    Both start with the same images; the longer is cut to the length of the shorter, and images at which either is not
    finite are omitted. None if no image is left.
    """
    n = min(len(one), len(other))
    one, other = one[:n].astype(np.float64), other[:n].astype(np.float64)
    finite = np.isfinite(one) & np.isfinite(other)
    if not finite.any():
        return None
    one, other = one[finite], other[finite]
    interval = mean(one - other)
    p = p_value(interval)
    return PairedComparison(float(one.mean()), float(other.mean()), _order(interval.value, p < LEVEL), interval, p)


@lru_cache(maxsize=4096)
def _compare_column(
    first: Path, second: Path, column: str, axis: str | None, value: float | None, times: float = 1.0
) -> PairedComparison | None:
    """`compare_values` of one column in the tables of two artifacts' folders, the second multiplied by `times`. Cached,
    since several claims compare the same pair, and the bootstrap is the slowest part of a report.
    """
    return compare_values(_rows(first, axis, value)[column], times * _rows(second, axis, value)[column])


def compare_loss(
    first: Artifact | None,
    second: Artifact | None,
    axis: str | None = None,
    value: float | None = None,
    times: float = 1.0,
) -> PairedComparison | None:
    """Compare a mean cross-entropy with `times` another by `compare_values`; other arguments as for `is_correct`.

    None if an artifact is None or there are no images at which both losses are finite.
    """
    if first is None or second is None:
        return None
    return _compare_column(first.folder, second.folder, "loss", axis, value, times)


def compare_confidence(first: Artifact | None, second: Artifact | None) -> PairedComparison | None:
    """Compare the mean confidences (probability of the predicted class) of two clean measures by `compare_values`.

    None if an artifact is None.
    """
    if first is None or second is None:
        return None
    return _compare_column(first.folder, second.folder, "confidence", None, None)
