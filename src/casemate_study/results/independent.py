"""Differences of two numbers measured on different images, and shares of which only the fraction is stored."""

import math

import numpy as np

from casemate.evaluation import Estimate, share


def share_of(fraction: float, n: int) -> Estimate:
    """The share `fraction` of `n` images with its 95 % interval, for a stored accuracy without one."""
    return share(np.arange(n) < round(fraction * n))


def difference_of(one: Estimate, other: Estimate) -> Estimate:
    """One number minus another from different images, with its 95 % interval; `n` is the smaller of theirs.

    The interval is made of the two numbers' own (Newcombe 1998, method 10, which for shares starts from Wilson's; Zou
    and Donner 2008 for any numbers).
    """
    value = one.value - other.value
    low = value - math.hypot(one.value - one.low, other.high - other.value)
    high = value + math.hypot(one.high - one.value, other.value - other.low)
    return Estimate(value, low, high, min(one.n, other.n))
