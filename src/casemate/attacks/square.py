"""Square: random search with squares, no gradients (Andriushchenko et al. 2020, arXiv 1912.00049).

Each query changes one square window of the best image so far and is kept if it is more wrong. For Linf the window goes
to a corner of the ball (algorithm 2 of the paper), for L2 two bumps of opposite sign are added to it, and it takes the
size that another window gives up (algorithm 3); L1 is the variant of Croce and Hein 2021 (arXiv 2103.01208).
Windows shrink on a schedule. Parameters are those of the original code (github.com/fra31/auto-attack), with these
differences: every example draws its own windows, signs and turns (there one window serves the whole batch), so that the
batch split does not matter; windows also reach the last row and column; images need not be square.

Images lie as pixels `(n, height * width, channels)` where windows are changed: a window is then an index along the
second axis, and the view back is channels-last. For Linf a query that leaves the best image as it is takes no pass: its
answer is known.
"""

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from dataclasses import dataclass
from functools import cache
from typing import Annotated, ClassVar, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from casemate.attacks._worst_case import BestCandidates, RunState
from casemate.attacks.base import AbstractAttack
from casemate.attacks.criterion import Criterion
from casemate.attacks.result import Passes, RunResult
from casemate.logits import is_valid
from casemate.losses import margin, stable_cross_entropy
from casemate.models import Classifier
from casemate.norms import AnyNorm, Ball, Bounds, Eps, Norm
from casemate.progress import Advance
from casemate.rng import Streams
from casemate.rows import Rows
from casemate.settings import at_least, between, expect
from casemate.types import Flags, Images, Logits, PerExample

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Steps of 10,000 after each of which the share of changed pixels is halved."""

_SCHEDULED = 10_000

_BLOCK = 64
"""Steps whose random numbers are drawn together: a draw costs much the same for one step as for many."""


_Flat = Float[Tensor, "n pixels channels"]
Places = Int64[Tensor, "n window channels"]

_TINY = 1e-12


class AbstractSquareProposal(Rows, ABC):
    """The images still searched, one row of every tensor each: the best so far, or a change of it under trial."""

    tried: _Flat
    """Once settled, the best."""

    def __init__(self, clean: Images, ball: Ball, bounds: Bounds) -> None:
        self.ball, self.bounds = ball, bounds
        self.channels, self.height, self.width = clean.shape[1:]
        self.device = clean.device
        self.clean = self.rows(clean)

    def rows(self, images: Images) -> _Flat:
        """Images as rows."""
        return images.permute(0, 2, 3, 1).reshape(len(images), -1, self.channels)

    def view(self, rows: _Flat) -> Images:
        """_Flat as images."""
        return rows.view(-1, self.height, self.width, self.channels).permute(0, 3, 1, 2)

    def images(self, chosen: Tensor | slice) -> Images:
        """Some of the images tried."""
        return self.view(self.tried[chosen])

    @abstractmethod
    def start(self, streams: Streams, restart: int) -> None:
        """Go to where the search begins."""

    @abstractmethod
    def plan(self, draws: Tensor, sides: list[int]) -> None:
        """Take the random numbers of the next steps, and the sides of their windows.

        Args:
            draws: `(n, steps, 5 + channels)` in [0, 1): the windows' places, the bump's turn, the signs.
        """

    @abstractmethod
    def step(self, number: int) -> Tensor | slice:
        """Change one window of each of the best images. Returns those that are not as before."""

    @abstractmethod
    def settle(self, better: Flags) -> None:
        """Keep what was tried where it is better, and undo it elsewhere."""


@final
class LinfSquare(AbstractSquareProposal):
    """Linf: windows at a corner of the ball, written into the best images and taken back where they do not help."""

    def start(self, streams: Streams, restart: int) -> None:
        """Vertical stripes at plus or minus eps."""
        low, high = self.clean - self.ball.eps, self.clean + self.ball.eps
        draws = streams.uniform((1, self.width, self.channels), "stripes", restart)
        upper = (draws < 0.5).expand(-1, self.height, -1, -1).reshape(low.shape)
        self.corners = torch.cat([low, high], 1).clamp_(*self.bounds).flatten(1)
        self.tried = high.where(upper, low).clamp_(*self.bounds)

    def plan(self, draws: Tensor, sides: list[int]) -> None:
        """Look up where the windows begin, and at which corner."""
        self.sides = sides
        self.first = _first(draws[..., 0:2], self.height, self.width, sides) * self.channels
        self.upper = (draws[..., 5:] < 0.5) * self.clean[0].numel()

    def step(self, number: int) -> Tensor | slice:
        """Write the window."""
        places = self.first[:, number].view(-1, 1, 1) + _window(
            self.sides[number], self.width, self.channels, self.device
        )
        self.window = places.flatten(1)
        self.corner = self.corners.gather(1, (places + self.upper[:, number].unsqueeze(1)).flatten(1))
        best = self.tried.flatten(1)
        self.before = best.gather(1, self.window)
        best.scatter_(1, self.window, self.corner)
        return (self.corner - self.before).abs_().amax(1).nonzero().squeeze(1)

    def settle(self, better: Flags) -> None:
        """Write it once more, as it was where it did not help."""
        self.tried.flatten(1).scatter_(1, self.window, self.corner.where(better.unsqueeze(1), self.before))


@final
class L2Square(AbstractSquareProposal):
    """L2 and L1: two bumps of opposite sign on a window, in the size that it had and another window gives up."""

    def start(self, streams: Streams, restart: int) -> None:
        """A grid of bumps, a fifth of the image each."""
        height, width, channels = self.height, self.width, self.channels
        side = max(1, min(height, width) // 5)
        down, across = height // side, width // side
        draws = streams.uniform((down, across, 1 + channels), "grid", restart)
        bumps = self._turned(side, draws[..., 0])  # (n, down, across, side, side)
        grid = bumps.permute(0, 1, 3, 2, 4).unsqueeze(-1) * _sign(draws[:, :, None, :, None, 1:], self.clean)
        top, left = (height - down * side) // 2, (width - across * side) // 2
        delta = torch.zeros_like(self.clean).view(-1, height, width, channels)
        delta[:, top : top + down * side, left : left + across * side] = grid.reshape(
            -1, down * side, across * side, channels
        )
        self.tried = self.best = self._inside(delta.view_as(self.clean))

    def plan(self, draws: Tensor, sides: list[int]) -> None:
        """Look up where the windows begin, and the bumps' turns and signs."""
        self.sides = sides
        self.first = _first(draws[..., 0:2], self.height, self.width, sides)
        self.other = _first(draws[..., 2:4], self.height, self.width, sides)
        self.turn, self.sign = draws[..., 4], _sign(draws[..., 5:], self.clean)

    def step(self, number: int) -> Tensor | slice:
        """Change the window, and all that the ball and the bounds ask for."""
        side, order, eps = self.sides[number], 2 if self.ball.norm == "l2" else 1, self.ball.eps
        window, other = self._places(self.first[:, number], side), self._places(self.other[:, number], side)
        delta = self.best - self.clean
        unspent = (eps**order - delta.abs().pow(order).sum((1, 2))).clamp(min=0).view(-1, 1, 1)
        old = delta.gather(1, window)
        delta.scatter_(1, window, 0)  # at once, so that nothing is counted twice where the windows overlap
        freed = old.abs().pow(order).sum(1, keepdim=True)
        freed += delta.gather(1, other).abs().pow(order).sum(1, keepdim=True)
        delta.scatter_(1, other, 0)
        bump = self._turned(side, self.turn[:, number]).view(-1, side * side, 1)
        new = bump * self.sign[:, number].unsqueeze(1) + old / (_length(old, order) + _TINY)
        new *= (unspent / self.channels + freed).pow(1 / order) / (_length(new, order) + _TINY)
        if order == 1:
            new *= self.channels  # more than the ball holds, which the projection then shares out
        self.tried = self._inside(delta.scatter_(1, window, new))
        return slice(None)

    def settle(self, better: Flags) -> None:
        """Keep the images that are better."""
        self.best = self.tried.where(better.view(-1, 1, 1), self.best)
        self.tried = self.best

    def _places(self, first: Tensor, side: int) -> Places:
        """The places of a window's pixels, `(n, side * side, channels)`."""
        places = first.view(-1, 1, 1) + _window(side, self.width, 1, self.device)
        return places.expand(-1, -1, self.channels)

    def _turned(self, side: int, draws: Tensor) -> Tensor:
        """Bumps, some of them turned, `(..., side, side)`."""
        return _bumps(side, self.ball.norm, self.clean.dtype, self.device)[(draws < 0.5).long()]

    def _inside(self, delta: _Flat) -> _Flat:
        """Images at `delta` from the clean ones: at the full length and clipped for L2; for L1 projected exactly."""
        if self.ball.norm == "l2":
            length = delta.flatten(1).norm(dim=1).view(-1, 1, 1) + _TINY
            return (self.clean + delta * (self.ball.eps / length)).clamp_(*self.bounds)
        images = self.view(self.clean)
        return self.rows(self.ball.project(images + self.view(delta), images, self.bounds))


def _first(draws: Tensor, height: int, width: int, sides: list[int]) -> Int64[Tensor, "n steps"]:
    """The places of windows' first pixels, from two numbers in [0, 1) each, `(n, steps, 2)`."""
    side = torch.tensor(sides, device=draws.device)
    top, left = (draws[..., 0] * (height - side + 1)).long(), (draws[..., 1] * (width - side + 1)).long()
    return top * width + left


@cache
def _window(side: int, width: int, channels: int, device: torch.device) -> Tensor:
    """The places of a window's entries, the first being at 0, `(side * side, channels)`."""
    steps = torch.arange(side, device=device)
    pixels = (steps.unsqueeze(1) * width + steps).view(-1, 1)
    return pixels * channels + torch.arange(channels, device=device)


def _sign(draws: Tensor, like: Tensor) -> Tensor:
    """Plus or minus one from numbers in [0, 1)."""
    return torch.where(draws < 0.5, 1.0, -1.0).to(like.dtype)


def _length(window: Tensor, order: int) -> Tensor:
    """The norm over the pixels of each window, per channel, `(n, 1, channels)`."""
    return window.norm(p=order, dim=1, keepdim=True)


@cache
def _bumps(side: int, norm: Norm, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The paper's window for L2 and L1, and the same turned: `(2, side, side)`, each of length 1 in the norm.

    One half is positive and one negative; the size of each falls with the distance from its middle.
    """
    order = 2 if norm == "l2" else 1
    upper = _eta(side // 2, side, order)
    bump = torch.cat([upper, -_eta(side - side // 2, side, order)])
    bump = (bump / bump.norm(p=order)).to(device, dtype)
    return torch.stack([bump, bump.T])


def _eta(height: int, width: int, order: int) -> Tensor:
    """The paper's eta: nested squares added up, the k-th of them 1 / k^2 (L1: 1 / k^4) high, `(height, width)`."""
    steps = torch.arange(1, max(height, width) // 2 + 2, dtype=torch.float64) ** (-2 if order == 2 else -4)
    heights = steps.flip(0).cumsum(0).flip(0)  # at a distance from the middle, the squares that reach it add up
    down = (torch.arange(height) - height // 2).abs()
    across = (torch.arange(width) - width // 2).abs()
    eta = heights[torch.maximum(down.unsqueeze(1), across)]
    return eta / eta.norm(p=order)


@final
@dataclass(frozen=True, kw_only=True)
class Square(AbstractAttack):
    """Random search with square windows, within a fixed number of queries."""

    stream: ClassVar[str] = "Square"

    eps: Eps
    """Radius of the ball, in pixel units."""
    norm: AnyNorm = "linf"
    """Linf, L2 or L1."""
    n_queries: Annotated[int, at_least(1)] = 5000
    """Images tried per image and restart, the start included (AutoAttack: 5000 besides the start). Each takes a forward
    pass, unless it is the best one over again (Linf)."""
    p_init: Annotated[float, between(0, 1, "a share of the pixels", without_low=True)] = 0.8
    """Share of the pixels that the first windows change."""
    restarts: Annotated[int, at_least(1)] = 1
    """Runs from fresh starts, for the examples not yet fooled."""
    rescale_schedule: bool = False
    """Stretch the schedule, made for 10,000 queries, to the number of queries (AutoAttack does not)."""

    def __post_init__(self) -> None:
        expect(self)

    def side(self, step: int, height: int, width: int) -> int:
        """Side of the window at a step (from 0), in pixels; for L2 and L1 odd and at least 3 where the image allows."""
        if self.rescale_schedule:
            step = int(step / self.n_queries * _SCHEDULED)
        share = self.p_init / 2 ** bisect_left(_HALVINGS, step)
        side = round(math.sqrt(share * height * width))
        side = max(side, 1) if self.norm == "linf" else max(side, 3) // 2 * 2 + 1
        return min(side, height, width)

    def max_passes(self, classes: int) -> Passes:
        """All queries of all restarts, and a look at the clean image."""
        del classes
        return Passes(forward=1 + self.restarts * self.n_queries)

    @torch.no_grad()
    def run(
        self, model: Classifier, clean: Images, criterion: Criterion, streams: Streams, advance: Advance
    ) -> RunResult:
        """Search from every start; of those that are never fooled, the image with the highest loss is kept.

        A query on which the logits are not finite is lost.
        """
        logits = model(clean)
        passes = Passes(forward=len(clean))
        best = BestCandidates(clean, criterion, logits)
        # not `Restarts`: the runs share the pass over the clean images, and the draws are keyed by restart
        for restart in range(self.restarts if self.ball().eps else 0):
            at = best.left
            if not len(at):
                break
            share = len(at) / self.restarts
            run = self._search(
                model,
                clean[at],
                criterion[at],
                streams[at],
                restart,
                lambda part, note="", share=share: advance(part * share, note),
                logits.dtype,
            )
            passes.add(run.passes)
            best.update(at, run.images, run.loss, run.fooled, run.finite)
        return RunResult(best.images, best.finite, torch.ones_like(best.finite), passes)

    def _search(
        self,
        model: Classifier,
        clean: Images,
        criterion: Criterion,
        streams: Streams,
        restart: int,
        advance: Advance,
        dtype: torch.dtype,
    ) -> RunState:
        """One run from one start, for images that are not fooled; `advance` is told shares of the whole run.

        `dtype` is that of the model's logits.
        """
        loss = stable_cross_entropy if criterion.targeted else margin  # as in the paper
        channels, height, width = clean.shape[1:]
        moves = (LinfSquare if self.norm == "linf" else L2Square)(clean, self.ball(), model.bounds)
        moves.start(streams, restart)
        run = RunState(clean)
        on = _Standing(
            place=torch.arange(len(clean), device=clean.device),
            logits=clean.new_full((len(clean), len(model.classes)), torch.nan, dtype=dtype),
            highest=torch.full((len(clean),), -math.inf, dtype=dtype, device=clean.device),
            finite=torch.ones_like(run.finite),
        )

        def note(chosen: Flags | slice) -> None:
            place = on.place[chosen]
            run.images[place], run.finite[place] = moves.images(chosen), on.finite[chosen]
            run.loss[place] = on.highest[chosen].double()

        for query in range(self.n_queries):
            asked = moves.step((query - 1) % _BLOCK) if query else slice(None)  # the first is the start's
            if query % _BLOCK == 0:
                draws = streams.uniform((_BLOCK, 5 + channels), "square", restart, query // _BLOCK)
                moves.plan(draws, [self.side(query + i, height, width) for i in range(_BLOCK)])
                advance(_BLOCK / self.n_queries, "")
            if isinstance(asked, Tensor) and not len(asked):
                continue
            answer = model(moves.images(asked))
            run.passes.forward += len(answer)
            logits = on.logits.clone()  # an image that did not change has those of the best
            logits[asked] = answer
            fooled = criterion.is_adversarial(logits)
            valid = is_valid(logits)
            value = criterion.objective(loss, logits).masked_fill(~valid, -torch.inf)
            better = fooled | (value > on.highest)
            if query:
                moves.settle(better)
            on.settle(better, logits, value, valid)
            if fooled.any():
                run.fooled[on.place] = fooled
                note(fooled)
                going = ~fooled
                on, moves = on[going], moves[going]
                criterion, streams = criterion[going], streams[going]
            if not len(on.place):
                break
        note(slice(None))
        return run


@final
@dataclass
class _Standing(Rows):
    """What is known of the images still searched, one row of every tensor each."""

    place: Int64[Tensor, " n"]
    """Positions in the batch."""
    logits: Logits
    """Of the best image so far; not a number where it has no loss."""
    highest: PerExample
    """Its loss."""
    finite: Flags
    """The logits of every query were."""

    def settle(self, better: Flags, logits: Logits, value: PerExample, valid: Flags) -> None:
        """Note what the images tried gave, where that is better."""
        self.logits = logits.where(better.unsqueeze(1), self.logits)
        self.highest = value.where(better, self.highest)
        self.finite = self.finite & valid
