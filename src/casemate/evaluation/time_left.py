"""The time that is left of an evaluation, as a range that is estimated anew after a pilot and after every attack.

Costs are counted in passes of single images, a backward pass as two. Their speed is that of the attacks so far, and the
images that later attacks get are those that have withstood so far, or are expected to.
"""

from dataclasses import dataclass, field
from typing import final

from casemate.attacks import Passes
from casemate.evaluation.intervals import Estimate
from casemate.timing import duration

_PILOT_SHARE, _PILOT_LEAST, _PILOT_MOST, _PARTS = 20, 16, 64, 6
"""The pilot is the first attack on the first of its images: one in `_PILOT_SHARE`, but at least and at most as many as
the next two numbers; none if the images are fewer than `_PARTS` pilots. The first attack is at most a third of the time
of a budget's attacks on an image that withstands them."""
_WAITING = 5.0
"""Seconds up to which a user does not have to be prepared for the time left."""
_SOON, _NARROW = 2.0, 5.0
"""Seconds after which the range is said however wide it is, and ratio of its ends up to which it is said before."""
_SOONER = 0.4
"""Share of their passes that later attacks make at least, if they fool many of the images left to them."""
_ALONE = 8
"""Number of images that take as long together as the passes themselves: passes of few images are slower per image."""
_CHECKED = 0.25
"""Share of their most passes that the checks make at least: some stop where a part of the sample shows nothing."""
_SLOWER = 1.3
"""Factor on the upper end: attacks differ in their own work between passes, by up to a third on small networks."""


def cost_of(passes: Passes) -> int:
    """The cost of passes in forward passes, a backward pass counting as two."""
    return passes.forward + 2 * passes.backward


@final
@dataclass(frozen=True)
class TimeLeft:
    """Seconds that are left, from at least to at most."""

    low: float
    high: float

    @property
    def is_worth_saying(self) -> bool:
        """Whether a user has to wait at all: the upper end is a few seconds or more."""
        return self.high > _WAITING

    def is_known(self, spent: float) -> bool:
        """Whether the range is said now, after `spent` seconds: soon, but the sooner the narrower it has to be."""
        return spent > _SOON or self.high <= _NARROW * self.low

    def __str__(self) -> str:
        low, high = duration(self.low), duration(self.high)
        return f"about {high}" if low == high else f"{low} to {high}"


@final
@dataclass(frozen=True)
class Afterwards:
    """The most passes that follow the attacks, if the model has fallen and if it has not."""

    fallen: Passes = field(default_factory=Passes)
    standing: Passes = field(default_factory=Passes)
    fallen_up_to: int = 0
    """Number of robust images up to which the model has fallen."""

    def cost(self, robust: float) -> int:
        """The cost if `robust` images withstand the attacks."""
        return cost_of(self.fallen if robust <= self.fallen_up_to else self.standing)


def part_size(given: int, tried: int) -> int:
    """Number of images that an attack is tried on next, before the range of the time left is known.

    Of `given` images first a pilot, then as many as were tried, until the rest is small.

    The results do not depend on it: all random draws are keyed by example.
    """
    size = tried or min(max(given // _PILOT_SHARE, _PILOT_LEAST), _PILOT_MOST)
    return size if given - tried >= _PARTS * size else given - tried


def time_left(
    speed: float,
    withstood: Estimate,
    *,
    given: int,
    rest: int,
    cost: float,
    most: float,
    later: float,
    afterwards: Afterwards,
    before: float = 0,
    standing: int = 0,
    more: float = 0,
) -> TimeLeft:
    """The time left while an attack runs on a shard of the images, or after it.

    The shards to come are expected to cost as much per image as those so far.

    Args:
        speed: seconds per unit of cost.
        withstood: share of the images tried by the attack that withstood it.
        given: number of images that the attack was given.
        rest: number of them that it was not tried on yet.
        cost: its mean cost on an image so far.
        most: its most cost on an image.
        later: the most cost of the later attacks on an image.
        afterwards: what follows the attacks.
        before: the cost of all passes so far.
        standing: number of images of earlier shards that withstood all attacks.
        more: images of the shards to come, per image of the shards so far, this one included.
    """
    low, high = (withstood.low, withstood.high) if rest else (withstood.value, withstood.value)
    after_least, after_most = (afterwards.cost((standing + end * given) * (1 + more)) for end in (low, high))
    sooner = _SOONER * (rest * cost + low * given * later)
    slower = rest * (cost + (high - withstood.value) * most)
    if high > 0:
        slower += (high * given + _ALONE) * later
    sooner, slower = (each + more * (before + each) for each in (sooner, slower))
    return TimeLeft(speed * (sooner + _CHECKED * after_least), _SLOWER * speed * (slower + after_most))
