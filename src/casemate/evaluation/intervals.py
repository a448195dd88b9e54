"""Means with 95 % intervals, and paired tests and intervals of a difference. The statistics are SciPy's.

`scipy.stats` takes half a second to import; each function does so itself, so that commands without statistics need not.
"""

import numpy as np

from casemate.errors import ShapeError
from casemate.intervals import CONFIDENCE
from casemate.intervals import Estimate as Estimate
from casemate.intervals import percent as percent
from casemate.intervals import share as share

_RESAMPLES = 1000


def mean(values: np.ndarray, seed: int = 0) -> Estimate:
    """The mean of numbers `(n,)` with its percentile bootstrap interval (Efron 1979; 1,000 resamples drawn by `seed`).

    Raises `ShapeError` for no numbers, and for any that is not finite: the mean would say nothing.
    """
    from scipy import stats

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
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(centre, float(found.low), float(found.high), int(values.size))


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """The p-value of the hypothesis that two models are equally accurate, paired by example (McNemar 1947, exact).

    Args:
        first, second: whether each model is right, booleans `(n,)` over the same examples in the same order.
    """
    from scipy import stats

    only_first, only_second = only_one(first, second)
    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second, 0.5).pvalue)


def paired_difference(first: np.ndarray, second: np.ndarray) -> Estimate:
    """The share of True in `first` minus that in `second`, paired by example, with its 95 % interval.

    The interval is the adjusted Wald interval of paired shares (Bonett and Price 2012), which has a width even where no
    example differs. Arguments as for `mcnemar`; raises `ShapeError` for no examples.
    """
    from scipy import stats

    wins, defeats = only_one(first, second)
    n = len(first)
    if n == 0:
        raise ShapeError("a difference over no examples; expected at least one")
    more, fewer = (wins + 1) / (n + 2), (defeats + 1) / (n + 2)
    half = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * ((more + fewer - (more - fewer) ** 2) / (n + 2)) ** 0.5
    centre = more - fewer
    return Estimate((wins - defeats) / n, max(centre - half, -1.0), min(centre + half, 1.0), n)


def only_one(first: np.ndarray, second: np.ndarray) -> tuple[int, int]:
    """How many examples are True in `first` only and in `second` only.

    Raises `ShapeError` unless both are `(n,)` over the same examples.
    """
    if first.shape != second.shape or first.ndim != 1:
        raise ShapeError(f"paired results of shapes {first.shape} and {second.shape}; expected the same examples")
    return int(np.count_nonzero(first & ~second)), int(np.count_nonzero(~first & second))
