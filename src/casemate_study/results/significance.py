"""When a difference counts as shown: the level of all tests, p-values, and the correction for several comparisons."""

import math
from collections.abc import Sequence
from statistics import NormalDist

from casemate.evaluation import Estimate

LEVEL = 0.05
"""Significance level of all tests; intervals have the confidence level 1 - `LEVEL`."""


def p_value(difference: Estimate) -> float:
    """The two-sided p-value of a difference of 0 that belongs to the 95 % interval of `difference`, by the normal
    distribution (Altman and Bland 2011): below 0.05 exactly if the interval excludes 0.
    """
    if difference.value == 0:
        return 1.0
    to_zero = difference.value - difference.low if difference.value > 0 else difference.high - difference.value
    if to_zero <= 0:  # an interval without width
        return 0.0
    deviations = NormalDist().inv_cdf(1 - LEVEL / 2) * abs(difference.value) / to_zero
    return math.erfc(deviations / math.sqrt(2))


def holm(p_values: Sequence[float]) -> list[bool]:
    """Which of several tests are significant at `LEVEL` by Holm's correction (1979): with it, the probability that any
    of them is significant by chance is at most `LEVEL`, however many they are.
    """
    found = [False] * len(p_values)
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda each: p_values[each])):
        if p_values[place] >= LEVEL / (len(p_values) - rank):
            break
        found[place] = True
    return found
