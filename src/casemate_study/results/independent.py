"""Differences and ratios of independent numbers, sums with a constant, and intervals of shares stored without one."""

import math

import numpy as np

from casemate.evaluation import Estimate, share


def share_of(fraction: float, n: int) -> Estimate:
    """The share `fraction` of `n` images with its 95 % interval (Wilson)."""
    interval = share(np.arange(n) < round(fraction * n))
    return Estimate(fraction, interval.low, interval.high, n)


def difference_of(one: Estimate, other: Estimate) -> Estimate:
    """One number minus an independent one, with its 95 % interval; `n` is the smaller of theirs.

    The interval combines those of the two numbers (for shares Newcombe 1998, method 10, from Wilson's intervals; for
    any numbers Zou and Donner 2008).
    """
    value = one.value - other.value
    low = value - math.hypot(one.value - one.low, other.high - other.value)
    high = value + math.hypot(one.high - one.value, other.value - other.low)
    return Estimate(value, low, high, min(one.n, other.n))


def plus_constant(number: Estimate, by: float) -> Estimate:
    """The number plus a constant, with its interval."""
    return Estimate(number.value + by, number.low + by, number.high + by, number.n)


def ratio_of(one: Estimate, other: Estimate) -> Estimate:
    """One positive number divided by another, with its 95 % interval, from `difference_of` their logarithms."""
    logarithms = (
        Estimate(math.log(each.value), math.log(each.low), math.log(each.high), each.n) for each in (one, other)
    )
    found = difference_of(*logarithms)
    return Estimate(math.exp(found.value), math.exp(found.low), math.exp(found.high), found.n)
