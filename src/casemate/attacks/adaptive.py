"""The steps of Auto-PGD: how long, which way, and when to go back to the best point so far.

Linf and L2 (Croce and Hein 2020, arXiv 2003.01690, algorithm 1): the step starts at 2 eps, with momentum; at
checkpoints it is halved where the loss has stopped rising. L1 (Croce and Hein 2021, arXiv 2103.01208): a step moves
only the pixels with the largest gradient, fewer of them as the best point becomes sparser. Every example has a step of
its own; the checkpoints are common to all.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from casemate.norms import Ball, Bounds, Norm, norm_of
from casemate.types import Flags, Images, PerExample

_MOMENTUM = 0.75
"""Weight of the new move; the rest is the weight of the one before it (alpha in the paper)."""


def checkpoints(steps: int, norm: Norm) -> Iterator[int]:
    """The steps after which the step size is looked at.

    Linf and L2: after 22 % of the steps, then in intervals shorter by 3 % each time, but not below 6 %. L1: every 4 %.
    """
    shares = (4, 0, 4) if norm == "l1" else (22, 3, 6)
    interval, shorter, shortest = (max(steps * share // 100, share > 0) for share in shares)
    step = interval
    while step < steps:
        yield step
        interval = max(interval - shorter, shortest)
        step += interval


class Ascent:
    """The examples still going up, one row of every tensor each."""

    def __init__(self, clean: Images, images: Images, ball: Ball, bounds: Bounds, *, dense: bool) -> None:
        """`dense`: the first L1 steps move a fifth of the pixels, however sparse the start is."""
        nothing = torch.zeros(len(images), dtype=torch.float64, device=images.device)
        self.place = torch.arange(len(images), device=images.device)
        """Positions in the batch."""
        self.clean, self.images, self.before, self.best = clean, images, images, images.clone()
        self.gradient = self.best_gradient = torch.zeros_like(images)
        if ball.norm == "linf":
            self.low, self.high = ball.limits(clean, bounds)
        self.highest = self.highest_checked = nothing - math.inf
        """The loss of `best`, now and at the last checkpoint."""
        self.loss, self.rises = nothing, nothing
        """The loss of `images`, and how often it rose since the last checkpoint."""
        self.halved = torch.ones_like(self.place, dtype=torch.bool)
        """At the last checkpoint; counts as done before the first."""
        self.size = torch.full_like(images[:, 0, 0, 0], ball.eps if ball.norm == "l1" else 2 * ball.eps)
        """Length of the step."""
        pixels = clean[0].numel()
        self.changed = torch.full_like(self.place, pixels) if dense else self._changed(images)
        """L1: the pixels in which `best` was not `clean` at the last checkpoint."""
        self.moved = torch.full_like(self.place, pixels - pixels * 4 // 5) if dense else _share(self.changed)
        """L1: the pixels that a step moves."""

    def keep(self, chosen: Flags) -> None:
        """Drop the other examples."""
        for name, rows in vars(self).items():
            setattr(self, name, rows[chosen])

    def arrive(self, loss: PerExample, gradient: Images, *, first: bool) -> None:
        """Note what was seen at `images`. A loss that is not a number is never the highest."""
        if not first:
            self.rises = self.rises + (loss > self.loss)
        self.loss, self.gradient = loss, gradient
        rose = loss > self.highest
        self.highest = loss.where(rose, self.highest)
        place = rose.nonzero().squeeze(1)
        self.best[place], self.best_gradient[place] = self.images[place], gradient[place]

    def halve(self, enough: float) -> None:
        """Checkpoint of Linf and L2: halve the step and go back to the best point where the ascent has stalled.

        That is (conditions 1 and 2 of the paper) where the loss rose `enough` times or less, or where the step was not
        halved the last time and no better point was found since.
        """
        stalled = (self.rises <= enough) | (~self.halved & (self.highest_checked >= self.highest))
        self.halved, self.highest_checked, self.rises = stalled, self.highest, torch.zeros_like(self.rises)
        self._put(stalled, size=self.size / 2, images=self.best, gradient=self.best_gradient)

    def adapt(self, eps: float) -> None:
        """Checkpoint of L1: move two thirds as many pixels as the best point changes.

        Where that has become at least 5 % sparser, go back to it with the full step; elsewhere shorten the step.
        """
        changed = self._changed(self.best)
        sparser = changed < 0.95 * self.changed
        self.changed, self.moved = changed, _share(changed)
        self.size = (self.size / 1.5).clamp(min=eps / 10).masked_fill(sparser, eps)
        self._put(sparser, images=self.best, gradient=self.best_gradient)

    def move(self, ball: Ball, bounds: Bounds, *, first: bool) -> None:
        """One step; for Linf and L2, but for the first one, with momentum."""
        here, size = self.images, self.size.view(-1, 1, 1, 1)
        direction = self._sparse() if ball.norm == "l1" else ball.ascent(self.gradient, here, bounds)
        there = self._inside(here + direction.mul_(size), ball, bounds)
        if ball.norm != "l1" and not first:
            there = there.sub_(here).mul_(_MOMENTUM).add_(here).add_((here - self.before).mul_(1 - _MOMENTUM))
            there = self._inside(there, ball, bounds)
        self.images, self.before = there, here

    def _inside(self, images: Images, ball: Ball, bounds: Bounds) -> Images:
        """The projection, in place where the limits of each pixel are known."""
        return images.clamp_(self.low, self.high) if ball.norm == "linf" else ball.project(images, self.clean, bounds)

    def _sparse(self) -> Images:
        """The L1 step of length 1: the gradient's sign in its `moved` largest entries, and in those equal to them."""
        magnitude = self.gradient.abs()
        ranked = magnitude.flatten(1).sort(dim=1, descending=True).values
        least = ranked.gather(1, (self.moved - 1).unsqueeze(1))
        sign = self.gradient.sign() * (magnitude >= least.view(-1, 1, 1, 1))
        return sign / norm_of(sign, "l1").clamp(min=1).view(-1, 1, 1, 1)

    def _changed(self, images: Images) -> Tensor:
        """In how many entries images are not the clean ones."""
        return images.ne(self.clean).flatten(1).sum(1)

    def _put(self, where: Flags, **new: Tensor) -> None:
        """Replace rows."""
        for name, rows in new.items():
            old = getattr(self, name)
            setattr(self, name, rows.where(where.view(-1, *[1] * (old.ndim - 1)), old))


def _share(changed: Tensor) -> Tensor:
    """Two thirds of the pixels, rounded up, at least one."""
    return (-(-2 * changed // 3)).clamp(min=1)
