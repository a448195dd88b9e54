"""Numbers with 95 % intervals, their format, and the paired test of a difference. The statistics are SciPy's."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np
from scipy import stats

from casemate.errors import ShapeError

_CONFIDENCE = 0.95
_RESAMPLES = 1000
_FORMAT = re.compile(r"(?:\.(?P<digits>\d+))?(?P<kind>[f%]?)(?P<n>n?)")


@final
@dataclass(frozen=True)
class Estimate:
    """A number with its sample size and 95 % interval.

    Formatting writes all of it: `f"{estimate}"` gives "62.0 % (58.9 to 65.0)", and `f"{estimate:n}"` adds the sample
    size: "62.0 % (58.9 to 65.0, n = 1,000)". The format may name decimals and a kind, `%` (default: a share in percent)
    or `f` (the number as it is): `.2f`, `.0%n`.
    """

    value: float
    low: float
    high: float
    n: int

    def as_json(self) -> dict[str, float | int]:
        """The fields value, low, high and n, for a result file."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Estimate":
        """The estimate that `as_json` described; in JSON whole numbers may have become floats."""
        return cls(float(found["value"]), float(found["low"]), float(found["high"]), int(found["n"]))

    def __format__(self, spec: str) -> str:
        parts = _FORMAT.fullmatch(spec)
        if parts is None:
            raise ValueError(f"format {spec!r} of an estimate; expected decimals, % or f, and n, such as .1%n")
        scale, unit = (1, "") if parts["kind"] == "f" else (100, " %")
        value, low, high = (f"{scale * each:.{parts['digits'] or 1}f}" for each in (self.value, self.low, self.high))
        return f"{value}{unit} ({low} to {high}{f', n = {self.n:,}' if parts['n'] else ''})"

    def __str__(self) -> str:
        return format(self)


def percent(share: float, digits: int = 1) -> str:
    """A share as text in percent, with `digits` decimals: 0.625 gives "62.5 %"."""
    return f"{100 * share:.{digits}f} %"


def share(hits: np.ndarray) -> Estimate:
    """The share of booleans `(n,)` that are True, with Wilson's score interval (Wilson 1927).

    Raises `ShapeError` if there are none.
    """
    if hits.size == 0:
        raise ShapeError("a share of no examples; expected at least one")
    count = int(np.count_nonzero(hits))
    interval = stats.binomtest(count, hits.size).proportion_ci(_CONFIDENCE, method="wilson")
    return Estimate(count / hits.size, float(interval.low), float(interval.high), int(hits.size))


def mean(values: np.ndarray, seed: int = 0) -> Estimate:
    """The mean of numbers `(n,)` with its percentile bootstrap interval (Efron 1979; 1,000 resamples drawn by `seed`).

    Raises `ShapeError` for no numbers, and for any that is not finite: the mean would say nothing.
    """
    if values.size == 0 or not np.isfinite(values).all():
        raise ShapeError(f"a mean of {values.size} values, not all finite; expected at least one, all finite")
    values = values.astype(np.float64)
    centre = float(values.mean())
    if values.size == 1 or np.ptp(values) == 0:
        return Estimate(centre, centre, centre, int(values.size))
    found = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=_RESAMPLES,
        batch=50,
        confidence_level=_CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(centre, float(found.low), float(found.high), int(values.size))


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """The p-value of the hypothesis that two models are equally accurate, paired by example (McNemar 1947, exact).

    Args:
        first, second: whether each model is right, booleans `(n,)` over the same examples in the same order.
    """
    if first.shape != second.shape or first.ndim != 1:
        raise ShapeError(f"paired results of shapes {first.shape} and {second.shape}; expected the same examples")
    only_first = int(np.count_nonzero(first & ~second))
    only_second = int(np.count_nonzero(~first & second))
    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second, 0.5).pvalue)
