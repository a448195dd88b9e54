"""The last steps of a run along the decision boundary: from an image that fools to nearer ones, by its linear picture.

What an optimiser ends with is seldom the nearest image: it oscillates about the boundary, at a distance that the
falling step size has left. Here the boundary is taken to be the plane that value and gradient at the nearest image so
far show, as DeepFool and FAB do. The nearest point of that plane to the clean image is tried; where it does not fool, a
point between. On a linear classifier the first try is the nearest image there is.
"""

from dataclasses import dataclass
from typing import final

import torch

from casemate.attacks._hyperplane import NormalizedNormal, shortest_move
from casemate.attacks._iterates import AbstractRule, Iterate, Room
from casemate.attacks._minimum_norm import column
from casemate.norms import Norm, norm_of
from casemate.types import Flags, Images, PerExample

_BEYOND = 1.002
"""Factor on the move to the plane, so that it ends across it."""
_LEAST_SHARE = 0.1
"""Smallest share of the way to the plane that is tried: below it nothing is to be gained."""


def refining_rule(nearest: Iterate, room: Room, norm: Norm) -> AbstractRule:
    """The rule that starts at the nearest images so far, `nearest`, all of which fool."""
    if norm == "l0":
        return _Fewer(nearest, torch.zeros_like(nearest.value), room)
    distance = norm_of(nearest.delta, norm)
    return _TowardsPlane(nearest, distance, torch.ones_like(distance), nearest.delta, norm, room)


@final
@dataclass
class _TowardsPlane(AbstractRule):
    """For all norms but L0."""

    nearest: Iterate
    distance: PerExample
    share: PerExample
    """The share of the way from `nearest` to `goal` that was tried last; 1 at a new `nearest`."""
    goal: Images
    norm: Norm
    room: Room

    def step(self, here: Iterate, number: int, share: float) -> Images:
        """The nearest point of the plane; after a try that did not fool, half as far."""
        del share
        if number:
            length = norm_of(here.delta, self.norm)
            nearer = here.fooled & (length < self.distance)
            self.nearest = _chosen(nearer, here, self.nearest)
            self.distance = length.where(nearer, self.distance)
            self.share = torch.where(nearer, 1.0, self.share / 2)
        else:
            nearer = torch.ones_like(here.fooled)
        if nearer.any():
            at = nearer.nonzero().squeeze(1)
            self.goal = self.goal.index_put((at,), self._plane_point(at))
        self.done = self.share < _LEAST_SHARE
        return self.nearest.delta + column(self.share) * (self.goal - self.nearest.delta)

    def _plane_point(self, at: torch.Tensor) -> Images:
        """The nearest point to the clean image on the plane through the boundary next to `nearest`."""
        nearest, room = self.nearest[at], self.room[at]
        normal = NormalizedNormal(nearest.gradient)
        # what the objective has to rise by from the clean image, in the linear picture, to be zero
        rise = (nearest.gradient * nearest.delta).flatten(1).sum(1) - nearest.value
        ahead = torch.where(normal.sign * rise.sign().unsqueeze(1) > 0, room.high.flatten(1), -room.low.flatten(1))
        move = shortest_move(ahead.clamp(min=0), normal, rise, self.norm).view_as(nearest.delta)
        return room.clip(_BEYOND * move)


@final
@dataclass
class _Fewer(AbstractRule):
    """For L0: the fewest values that suffice in the linear picture; then the nearest image so far less one of its
    changes, and with one of them exchanged for another value's.

    Of the changes those that count least go first, and the value that comes in counts most of all others. An exchange
    stays if the image is then more clearly fooled, so that another change can go. Values that stay changed go all the
    way to the bound that the gradient points to, which costs nothing.
    """

    nearest: Iterate
    tried: PerExample
    """How many tries were in vain since the last that was not."""
    room: Room

    def step(self, here: Iterate, number: int, share: float) -> Images:
        """The next try: first that of the linear picture; then, in turn, without a change and with an exchange."""
        del share
        if number:
            size, least = norm_of(here.delta, "l0"), norm_of(self.nearest.delta, "l0")
            better = here.fooled & ((size < least) | ((size == least) & (here.value > self.nearest.value)))
            self.nearest = _chosen(better, here, self.nearest)
            self.tried = torch.where(better, 0.0, self.tried + 1)
        gradient, delta = self.nearest.gradient.flatten(1), self.nearest.delta.flatten(1)
        changed = delta != 0
        count = changed.sum(1, keepdim=True)
        tried = self.tried.long().unsqueeze(1)
        self.done = self.tried > 2 * count.squeeze(1)
        bound = torch.where(gradient > 0, self.room.high.flatten(1), self.room.low.flatten(1))
        gain = gradient * bound
        # the linear picture
        rise = (gradient * delta).sum(1) - self.nearest.value
        most, order = gain.sort(dim=1, descending=True)
        needed = ((most.cumsum(1) < rise.unsqueeze(1)).sum(1, keepdim=True) + 1).minimum(count - 1)
        rank = torch.arange(delta.shape[1], device=delta.device)
        fewest = bound * torch.zeros_like(changed).scatter(1, order, rank < needed)
        # without a change, and every second time with that of another value in its place
        pushed = torch.where(gain > gradient * delta, bound, delta)
        worth = (gradient * pushed).masked_fill(~changed, torch.inf)
        goes = worth.argsort(1).gather(1, ((tried - 1) // 2).clamp(0, delta.shape[1] - 1))
        fewer = torch.where(changed.scatter(1, goes, value=False), pushed, 0.0)
        comes = gain.masked_fill(changed, -torch.inf).argmax(1, keepdim=True)
        exchanged = fewer.scatter(1, comes, bound.gather(1, comes))
        varied = torch.where(tried % 2 == 1, fewer, exchanged)
        return torch.where(tried > 0, varied, fewest).view_as(self.nearest.delta)


def _chosen(which: Flags, one: Iterate, other: Iterate) -> Iterate:
    """`one` for the examples that `which` marks, else `other`."""
    at = which.nonzero().squeeze(1)
    return other.put(at, one[at])
