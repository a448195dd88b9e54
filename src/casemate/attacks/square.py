"""Square: random search with squares, no gradients (Andriushchenko et al. 2020, arXiv 1912.00049).

Each query changes one square window of the best image so far and is kept if it is more wrong. For Linf the window goes
to a corner of the ball (algorithm 2 of the paper), for L2 two bumps of opposite sign are added to it, and it takes the
size that another window gives up (algorithm 3); L1 is the variant of Croce and Hein 2021 (arXiv 2103.01208).
Windows shrink on a schedule. Parameters are those of the original code (github.com/fra31/auto-attack), with these
differences: every example draws its own windows, signs and turns (there one window serves the whole batch), so that the
batch split does not matter; windows also reach the last row and column; images need not be square.

Inside, images lie as rows `(n, height * width, channels)`: a window is then an index along the second axis, and the
view back is channels-last.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import cache
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from casemate.attacks.base import Attack, Criterion, Passes
from casemate.errors import SettingError
from casemate.losses import margin, stable_cross_entropy
from casemate.models import Classifier
from casemate.norms import Ball, Bounds, Norm, parse_eps
from casemate.progress import Advance
from casemate.rng import Streams
from casemate.types import Flags, Images, PerExample

Rows = Float[Tensor, "n pixels channels"]
Places = Int64[Tensor, "n window channels"]

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Steps of 10,000 after each of which the share of changed pixels is halved."""

_SCHEDULED = 10_000

_BLOCK = 64
"""Steps whose random numbers are drawn together: a draw costs much the same for one step as for many."""

_TINY = 1e-12


@final
@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Random search with square windows, within a fixed number of queries."""

    eps: float
    """Radius of the ball, in pixel units."""
    norm: Norm = "linf"
    """Linf, L2 or L1."""
    queries: int = 5000
    """Forward passes per image and restart, that of the start included (AutoAttack: 5000 besides the start)."""
    p: float = 0.8
    """Share of the pixels that the first windows change (AutoAttack's p_init)."""
    restarts: int = 1
    """Runs from fresh starts, for the examples not yet fooled."""
    rescale: bool = False
    """Stretch the schedule, made for 10,000 queries, to the number of queries (AutoAttack does not)."""

    def __post_init__(self) -> None:
        self.ball()
        if self.queries < 1:
            raise SettingError(f"queries = {self.queries}; expected at least 1")
        if not 0 < self.p <= 1:
            raise SettingError(f"p = {self.p}; expected above 0 and at most 1, a share of the pixels")
        if self.restarts < 1:
            raise SettingError(f"restarts = {self.restarts}; expected at least 1")

    def ball(self) -> Ball:
        """The ball searched in."""
        return Ball(eps=parse_eps(self.eps), norm=self.norm)

    def side(self, step: int, height: int, width: int) -> int:
        """Side of the window at a step (from 0), in pixels; for L2 and L1 odd and at least 3 where the image allows."""
        if self.rescale:
            step = int(step / self.queries * _SCHEDULED)
        share = self.p / 2 ** bisect_left(_HALVINGS, step)
        side = round(math.sqrt(share * height * width))
        side = max(side, 1) if self.norm == "linf" else max(side, 3) // 2 * 2 + 1
        return min(side, height, width)

    def most_passes(self, classes: int) -> Passes:
        """All queries of all restarts, and a look at the clean image."""
        del classes
        return Passes(forward=1 + self.restarts * self.queries)

    @torch.no_grad()
    def run(
        self, model: Classifier, clean: Images, criterion: Criterion, streams: Streams, advance: Advance
    ) -> tuple[Images, Flags, Passes]:
        """Search from every start; of those that are never fooled, the image with the highest loss is kept.

        A query on which the logits are not finite is lost.
        """
        logits = model(clean)
        passes = Passes(forward=len(clean))
        finite = logits.isfinite().all(1)
        found = clean.clone()
        highest = torch.full_like(logits[:, 0], -torch.inf)
        left = (finite & ~criterion.met(logits)).nonzero().squeeze(1)
        for restart in range(self.restarts if self.ball().eps else 0):
            if not len(left):
                break
            share = len(left) / self.restarts
            run = self._search(
                model,
                clean[left],
                criterion.take(left),
                streams.take(left),
                restart,
                lambda part, note="", share=share: advance(part * share, note),
            )
            passes.forward += run.forward
            better = run.fooled | (run.highest > highest[left])
            found[left[better]] = run.images[better]
            highest[left[better]] = run.highest[better]
            finite[left] = run.fooled | (finite[left] & run.finite)
            left = left[~run.fooled]
        return found.where(finite.view(-1, 1, 1, 1), torch.nan), torch.ones_like(finite), passes

    def _search(
        self, model: Classifier, clean: Images, criterion: Criterion, streams: Streams, restart: int, advance: Advance
    ) -> "_Run":
        """One run from one start, for images that are not fooled; `advance` is told shares of the whole run."""
        loss = stable_cross_entropy if criterion.targeted else margin  # as in the paper
        channels, height, width = clean.shape[1:]
        moves = _Moves(self.ball(), model.bounds, height, width, channels)
        rows = moves.rows(clean)
        best = moves.start(rows, streams, restart)
        run = _Run(
            images=clean.clone(),
            highest=torch.full((len(clean),), -torch.inf, dtype=clean.dtype, device=clean.device),
            fooled=torch.zeros(len(clean), dtype=torch.bool, device=clean.device),
            finite=torch.ones(len(clean), dtype=torch.bool, device=clean.device),
        )
        left = drawn = torch.arange(len(clean), device=clean.device)
        draws = torch.empty(0)
        for query in range(self.queries):
            step = query - 1  # the first query is the start's
            if step >= 0 and step % _BLOCK == 0:
                draws = streams.uniform((_BLOCK, 5 + channels), "square", restart, step // _BLOCK).transpose(0, 1)
                drawn = torch.arange(len(left), device=clean.device)
                advance(_BLOCK / self.queries, "")
            tried = (
                best
                if step < 0
                else moves.step(best, rows, draws[step % _BLOCK, drawn], self.side(step, height, width))
            )
            logits = model(moves.images(tried))
            run.forward += len(left)
            fooled = criterion.met(logits)
            valid = logits.isfinite().all(1)
            value = criterion.rising(loss, logits).masked_fill(~valid, -torch.inf)
            better = fooled | (value > run.highest[left])
            run.highest[left] = value.where(better, run.highest[left])
            run.finite[left] &= valid
            best = torch.where(better.view(-1, 1, 1), tried, best)
            if fooled.any():
                run.fooled[left] = fooled
                run.images[left[fooled]] = moves.images(best[fooled])
                going = ~fooled
                left, drawn, rows, best = left[going], drawn[going], rows[going], best[going]
                criterion, streams = criterion.take(going), streams.take(going)
            if not len(left):
                break
        run.images[left] = moves.images(best)
        return run


@dataclass
class _Run:
    """Where a search ended, per example."""

    images: Images
    """The first that fooled, or the most wrong one."""
    highest: PerExample
    """The loss there."""
    fooled: Flags
    finite: Flags
    """The logits of every query were."""
    forward: int = 0


@dataclass(frozen=True)
class _Moves:
    """What the search does to images in a ball: where it starts, and what one step changes."""

    ball: Ball
    bounds: Bounds
    height: int
    width: int
    channels: int

    def rows(self, images: Images) -> Rows:
        """Images as rows."""
        return images.permute(0, 2, 3, 1).reshape(len(images), -1, self.channels)

    def images(self, rows: Rows) -> Images:
        """Rows as images."""
        return rows.view(-1, self.height, self.width, self.channels).permute(0, 3, 1, 2)

    def start(self, clean: Rows, streams: Streams, restart: int) -> Rows:
        """Vertical stripes at plus or minus eps for Linf; for L2 and L1 a grid of bumps, a fifth of the image each."""
        height, width, channels = self.height, self.width, self.channels
        if self.ball.norm == "linf":
            sign = _sign(streams.uniform((1, width, channels), "stripes", restart), clean)
            sign = sign.expand(-1, height, -1, -1).reshape(clean.shape)
            return (clean + self.ball.eps * sign).clamp_(*self.bounds)
        side = max(1, min(height, width) // 5)
        down, across = height // side, width // side
        draws = streams.uniform((down, across, 1 + channels), "grid", restart)
        bumps = _bumps(side, self.ball.norm, clean.dtype, clean.device)[
            (draws[..., 0] < 0.5).long()
        ]  # (n, down, across, side, side)
        grid = bumps.permute(0, 1, 3, 2, 4).unsqueeze(-1) * _sign(draws[:, :, None, :, None, 1:], clean)
        top, left = (height - down * side) // 2, (width - across * side) // 2
        delta = torch.zeros_like(clean).view(-1, height, width, channels)
        delta[:, top : top + down * side, left : left + across * side] = grid.reshape(
            -1, down * side, across * side, channels
        )
        return self._inside(clean, delta.view_as(clean))

    def step(self, best: Rows, clean: Rows, draws: Tensor, side: int) -> Rows:
        """The best images with one window of each changed (for L2 and L1 another one pays for it).

        Args:
            draws: `(n, 5 + channels)` in [0, 1): the windows' places, the bump's turn, the signs.
        """
        window = self._window(draws[:, 0:2], side)
        sign = _sign(draws[:, None, 5:], clean)
        if self.ball.norm == "linf":
            corner = (clean.gather(1, window) + self.ball.eps * sign).clamp_(*self.bounds)
            return best.scatter(1, window, corner)
        order = 2 if self.ball.norm == "l2" else 1
        delta = best - clean
        unspent = (self.ball.eps**order - delta.abs().pow(order).sum((1, 2))).clamp(min=0).view(-1, 1, 1)
        old = delta.gather(1, window)
        delta.scatter_(1, window, 0)  # at once, so that nothing is counted twice where the windows overlap
        other = self._window(draws[:, 2:4], side)
        freed = old.abs().pow(order).sum(1, keepdim=True)
        freed += delta.gather(1, other).abs().pow(order).sum(1, keepdim=True)
        delta.scatter_(1, other, 0)
        bump = _bumps(side, self.ball.norm, clean.dtype, clean.device)[(draws[:, 4] < 0.5).long()].view(
            -1, side * side, 1
        )
        new = bump * sign + old / (_length(old, order) + _TINY)
        new *= (unspent / self.channels + freed).pow(1 / order) / (_length(new, order) + _TINY)
        if order == 1:
            new *= self.channels  # more than the ball holds, which the projection then shares out
        return self._inside(clean, delta.scatter_(1, window, new))

    def _window(self, draws: Tensor, side: int) -> Places:
        """The places of a window's pixels, `(n, side * side, channels)`, from two numbers in [0, 1) per example."""
        top = (draws[:, 0] * (self.height - side + 1)).long()
        left = (draws[:, 1] * (self.width - side + 1)).long()
        steps = torch.arange(side, device=draws.device)
        places = (top * self.width + left).unsqueeze(1) + (steps.unsqueeze(1) * self.width + steps).view(1, -1)
        return places.unsqueeze(2).expand(-1, -1, self.channels)

    def _inside(self, clean: Rows, delta: Rows) -> Rows:
        """Images at `delta` from the clean ones: at the full length and clipped for L2; for L1 projected exactly."""
        if self.ball.norm == "l2":
            length = delta.flatten(1).norm(dim=1).view(-1, 1, 1) + _TINY
            return (clean + delta * (self.ball.eps / length)).clamp_(*self.bounds)
        images = self.images(clean)
        return self.rows(self.ball.project(images + self.images(delta), images, self.bounds))


def _sign(draws: Tensor, like: Tensor) -> Tensor:
    """Plus or minus one from numbers in [0, 1)."""
    return torch.where(draws < 0.5, 1.0, -1.0).to(like.dtype)


def _length(window: Tensor, order: int) -> Tensor:
    """The norm over the pixels of each window, per channel, `(n, 1, channels)`."""
    return window.norm(p=order, dim=1, keepdim=True)


@cache
def _bumps(side: int, norm: Norm, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The paper's window for L2 and L1, and the same turned: `(2, side, side)`, each of length 1 in the norm.

    One half is positive and one negative, each a hill whose height falls with the distance from its middle.
    """
    order = 2 if norm == "l2" else 1
    upper = _hill(side // 2, side, order)
    bump = torch.cat([upper, -_hill(side - side // 2, side, order)])
    bump = (bump / bump.norm(p=order)).to(device, dtype)
    return torch.stack([bump, bump.T])


def _hill(height: int, width: int, order: int) -> Tensor:
    """Squares on one another, k pixels wider at each storey and 1 / k^2 (L1: 1 / k^4) high, `(height, width)`."""
    storeys = torch.arange(1, max(height, width) // 2 + 2, dtype=torch.float64) ** (-2 if order == 2 else -4)
    heights = storeys.flip(0).cumsum(0).flip(0)  # at a distance from the middle, those storeys lie that reach it
    down = (torch.arange(height) - height // 2).abs()
    across = (torch.arange(width) - width // 2).abs()
    hill = heights[torch.maximum(down.unsqueeze(1), across)]
    return hill / hill.norm(p=order)
