"""Paired comparisons of two models, or two attacks, on the same images, from the per-example tables of artifacts."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, final

import numpy as np

from casemate.engine import Artifact
from casemate.errors import StoreError
from casemate.evaluation import mcnemar, mean
from casemate.tables import Table, read_table

_LEVEL = 0.05
"""Significance level of the paired tests."""

Order = Literal[-1, 0, 1]


@final
@dataclass(frozen=True)
class PairedComparison:
    """A mean of two models, or under two attacks, over the same images."""

    first: float
    second: float
    order: Order
    """1: the first is larger; -1: the second is; 0: no difference at the 5 % level of the paired test."""
    n: int


Compare = Callable[..., PairedComparison | None]
"""`compare_accuracy` or `compare_loss`."""


@lru_cache(maxsize=512)
def _table(folder: Path) -> Table:
    return read_table(folder / "examples", StoreError)


def rows_of(artifact: Artifact, axis: str | None = None, value: float | None = None) -> Table:
    """The per-example table of an artifact; of a curve the rows where `axis` ("eps" or "steps") is `value`."""
    table = _table(artifact.folder)
    if axis is None or value is None:
        return table
    chosen = np.abs(table[axis] - value) < 1e-9
    return {name: column[chosen] for name, column in table.items()}


def is_correct(artifact: Artifact, axis: str | None = None, value: float | None = None) -> np.ndarray:
    """Which images are classified correctly, booleans `(n,)`.

    Of clean measures without an attack, of a curve at the last iterate, of a worst case under every attack.
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
    """McNemar's test of two accuracies, on the images that both artifacts hold; None without such images."""
    if first is None or second is None:
        return None
    return compare_masks(is_correct(first, axis, value), is_correct(second, axis, value))


def compare_masks(one: np.ndarray, other: np.ndarray) -> PairedComparison | None:
    """McNemar's test of two boolean masks `(n,)`, the longer cut to the length of the shorter; None if that is 0."""
    n = min(len(one), len(other))
    if n == 0:
        return None
    one, other = one[:n], other[:n]
    a, b = float(one.mean()), float(other.mean())
    return PairedComparison(a, b, _order(a - b, mcnemar(one, other) < _LEVEL), n)


def compare_loss(
    first: Artifact | None, second: Artifact | None, axis: str | None = None, value: float | None = None
) -> PairedComparison | None:
    """Two mean cross-entropies, ordered by the 95 % bootstrap interval of the paired difference.

    Over the images that both artifacts hold and whose losses are finite; None without such images.
    """
    if first is None or second is None:
        return None
    one, other = (rows_of(artifact, axis, value)["loss"].astype(np.float64) for artifact in (first, second))
    n = min(len(one), len(other))
    finite = np.isfinite(one[:n]) & np.isfinite(other[:n])
    if not finite.any():
        return None
    one, other = one[:n][finite], other[:n][finite]
    interval = mean(one - other)
    order = _order(interval.value, interval.low > 0 or interval.high < 0)
    return PairedComparison(float(one.mean()), float(other.mean()), order, len(one))
