"""A number with its sample size and 95 % interval, and how it is written; the interval of a share is Wilson's."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np

from casemate.errors import ShapeError

CONFIDENCE = 0.95
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

    def as_numbers(self, name: str) -> dict[str, float]:
        """The value as `name`, and the ends of the interval as `name`_low and _high: numbers for a tracker."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}

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
    from scipy import stats  # takes half a second, and attacks alone do not need it

    if hits.size == 0:
        raise ShapeError("a share of no examples; expected at least one")
    count = int(np.count_nonzero(hits))
    interval = stats.binomtest(count, hits.size).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(count / hits.size, float(interval.low), float(interval.high), int(hits.size))
