"""Square: random search with square windows, without gradients (Andriushchenko et al. 2020, arXiv 1912.00049).

Each query changes one square window of the best image so far, and the change is kept if it increases the loss. For Linf
the window is set to clean image plus or minus eps (algorithm 2 of the paper). For L2 two bumps of opposite sign are
added to the window, and it gets the norm that another window gives up (algorithm 3); L1 is the variant of Croce and
Hein 2021 (arXiv 2103.01208). Windows shrink on a schedule. Parameters are those of the original code
(github.com/fra31/auto-attack), with these differences: windows, signs and orientations are drawn for every example
(there for the whole batch), so that results do not depend on the batch size; windows also reach the last row and
column; images need not be square.

Where windows are changed, images have the shape `(n, height * width, channels)`: a window is then an index along the
second axis, and the view back is channels-last. For Linf a query that does not change the best image takes no pass,
since its logits are known.
"""

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from dataclasses import dataclass
from functools import cache
from typing import Annotated, ClassVar, final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from casemate.attacks._worst_case import BestCandidates, RunState
from casemate.attacks.base import AbstractAttack
from casemate.attacks.criterion import Criterion
from casemate.attacks.result import Passes, RunResult
from casemate.logits import is_valid
from casemate.losses import margin, stable_cross_entropy
from casemate.models import Classifier
from casemate.norms import Ball, Bounds, ConvexNorm, Eps, Norm
from casemate.progress import Advance
from casemate.rng import Streams
from casemate.rows import Rows
from casemate.settings import at_least, between
from casemate.types import Flags, Images, Logits, Mask, PerExample

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Steps, out of `_SCHEDULED`, after each of which the share of changed pixels is halved."""

_SCHEDULED = 10_000

_BLOCK = 64
"""Steps whose random numbers are drawn together: a draw takes about the same time for one step as for many."""

_Flat = Float[Tensor, "n pixels channels"]
_FlatMask = Bool[Tensor, "n pixels channels"]
Indices = Int64[Tensor, "n window channels"]

_TINY = 1e-12


class AbstractSquareProposal(Rows, ABC):
    """The state of the random search: the best candidates of the images still attacked, and the next windows to change.

    There is one subclass for Linf and one for L2 and L1. Every tensor has one row per image.
    """

    ball: Ball
    bounds: Bounds
    channels: int
    height: int
    width: int
    device: torch.device
    clean: _Flat
    tried: _Flat
    """The candidates of the current query; after `settle` the best ones."""
    mask: _FlatMask | None
    """Which values may change; None: all. Windows touch the smallest rectangle around these, and change only these."""
    box: Int64[Tensor, "n 4"]
    """That rectangle: its first and last row, its first and last column."""

    def __init__(self, clean: Images, ball: Ball, bounds: Bounds, mask: Mask | None = None) -> None:
        self.ball, self.bounds = ball, bounds
        self.channels, self.height, self.width = clean.shape[1:]
        self.device = clean.device
        self.clean = self.rows(clean)
        self.mask = None if mask is None else self.rows(mask)
        everywhere = torch.ones(1, 1, self.height, self.width, dtype=torch.bool, device=self.device)
        self.box = _box(everywhere).expand(len(clean), 4) if mask is None else _box(mask)

    def rows(self, images: Tensor) -> Tensor:
        """Images, or their mask, in the shape `(n, height * width, channels)`."""
        return images.permute(0, 2, 3, 1).reshape(len(images), -1, self.channels)

    def view(self, rows: _Flat) -> Images:
        """Images `(n, channels, height, width)` from the shape that `rows` returns: its inverse."""
        return rows.view(-1, self.height, self.width, self.channels).permute(0, 3, 1, 2)

    def images(self, chosen: Tensor | slice) -> Images:
        """The images in `tried`, of the chosen examples, `(n, channels, height, width)`.

        They are the candidates of the current query; after `settle` they are the best images so far.
        """
        return self.view(self.tried[chosen])

    def _first(self, draws: Tensor, sides: list[int]) -> Int64[Tensor, "n steps"]:
        """Indices of the windows' first pixels, from two random numbers in [0, 1) each, `(n, steps, 2)`.

        All places where a window touches the box are equally likely.
        """
        side = torch.tensor(sides, device=draws.device)
        places = []
        for axis, size in enumerate((self.height, self.width)):
            first, last = self.box[:, 2 * axis, None], self.box[:, 2 * axis + 1, None]
            low, high = (first - side + 1).clamp(min=0), last.minimum(size - side)
            places.append(low + (draws[..., axis] * (high - low + 1)).long())
        return places[0] * self.width + places[1]

    @abstractmethod
    def start(self, streams: Streams, restart: int) -> None:
        """Set `tried` to the random start of run number `restart`."""

    @abstractmethod
    def plan(self, draws: Tensor, sides: list[int]) -> None:
        """Compute the windows of the next steps from their random numbers and sides.

        Args:
            draws: `(n, steps, 5 + channels)` in [0, 1): positions of two windows, orientation of the bump, signs.
            sides: side of the window at each of these steps, in pixels.
        """

    @abstractmethod
    def step(self, number: int) -> Tensor | slice:
        """Set `tried` to the best images with one window changed. Returns the positions of those that really changed.

        `number` is the number of the step among those that `plan` prepared.
        """

    @abstractmethod
    def settle(self, better: Flags) -> None:
        """Keep the change of the last step where the candidate is `better`, and undo it elsewhere."""


@final
class LinfSquare(AbstractSquareProposal):
    """Linf: set a window to clean image plus or minus eps, in place; restore it where the loss does not increase."""

    corners: Tensor
    """Clean image minus and plus eps, `(n, 2 * pixels * channels)`."""
    sides: list[int]
    first: Tensor
    upper: Tensor
    window: Tensor
    corner: Tensor
    before: Tensor
    """The pixel values of the window before the last step."""

    def start(self, streams: Streams, restart: int) -> None:
        """Start with random vertical stripes at plus or minus eps, clipped to the bounds."""
        low, high = self.clean - self.ball.eps, self.clean + self.ball.eps
        if self.mask is not None:
            low, high = low.where(self.mask, self.clean), high.where(self.mask, self.clean)
        draws = streams.uniform((1, self.width, self.channels), "stripes", restart)
        upper = (draws < 0.5).expand(-1, self.height, -1, -1).reshape(low.shape)
        self.corners = torch.cat([low, high], 1).clamp_(*self.bounds).flatten(1)
        self.tried: _Flat = high.where(upper, low).clamp_(*self.bounds)

    def plan(self, draws: Tensor, sides: list[int]) -> None:
        """Compute the first pixels and the signs of the windows of the next steps."""
        self.sides = sides
        self.first = self._first(draws[..., 0:2], sides) * self.channels
        self.upper = (draws[..., 5:] < 0.5) * self.clean[0].numel()

    def step(self, number: int) -> Tensor | slice:
        """Set the window of step `number` to plus or minus eps in `tried`, and return which images that changed."""
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
        """Write the window again: the new values where they are better, the old ones elsewhere."""
        self.tried.flatten(1).scatter_(1, self.window, self.corner.where(better.unsqueeze(1), self.before))


@final
class L2Square(AbstractSquareProposal):
    """L2 and L1: clear one window of the perturbation, and add two bumps of opposite sign to another window.

    The other window also gets the norm set free there, and the norm still unused below eps.
    """

    best: _Flat
    sides: list[int]
    first: Tensor
    other: Tensor
    turn: Tensor
    sign: Tensor

    def start(self, streams: Streams, restart: int) -> None:
        """Start with a grid of bumps whose side is a fifth of the image's, of random signs and orientations."""
        height, width, channels = self.height, self.width, self.channels
        side = max(1, min(height, width) // 5)
        down, across = height // side, width // side
        draws = streams.uniform((down, across, 1 + channels), "grid", restart)
        bumps = self._bumps(side, draws[..., 0])  # (n, down, across, side, side)
        grid = bumps.permute(0, 1, 3, 2, 4).unsqueeze(-1) * _sign(draws[:, :, None, :, None, 1:], self.clean)
        top, left = (height - down * side) // 2, (width - across * side) // 2
        delta = torch.zeros_like(self.clean).view(-1, height, width, channels)
        delta[:, top : top + down * side, left : left + across * side] = grid.reshape(
            -1, down * side, across * side, channels
        )
        delta = delta.view_as(self.clean)
        self.best = self._inside(delta if self.mask is None else delta.where(self.mask, 0.0))
        self.tried: _Flat = self.best

    def plan(self, draws: Tensor, sides: list[int]) -> None:
        """Compute the first pixels of both windows, and orientations and signs of the bumps, of the next steps."""
        self.sides = sides
        self.first, self.other = self._first(draws[..., 0:2], sides), self._first(draws[..., 2:4], sides)
        self.turn, self.sign = draws[..., 4], _sign(draws[..., 5:], self.clean)

    def step(self, number: int) -> Tensor | slice:
        """Change both windows of step `number`, then project onto ball and bounds; all images count as changed."""
        side, order, eps = self.sides[number], 2 if self.ball.norm == "l2" else 1, self.ball.eps
        window, other = self._places(self.first[:, number], side), self._places(self.other[:, number], side)
        delta = self.best - self.clean
        unspent = (eps**order - delta.abs().pow(order).sum((1, 2))).clamp(min=0).view(-1, 1, 1)
        old = delta.gather(1, window)
        delta.scatter_(1, window, 0)  # at once, so that nothing is counted twice where the windows overlap
        freed = old.abs().pow(order).sum(1, keepdim=True)
        freed += delta.gather(1, other).abs().pow(order).sum(1, keepdim=True)
        delta.scatter_(1, other, 0)
        bump = self._bumps(side, self.turn[:, number]).view(-1, side * side, 1)
        new = bump * self.sign[:, number].unsqueeze(1) + old / (_length(old, order) + _TINY)
        if self.mask is not None:
            new = new.where(self.mask.gather(1, window), 0.0)
        new *= (unspent / self.channels + freed).pow(1 / order) / (_length(new, order) + _TINY)
        if order == 1:
            new *= self.channels  # longer than the ball allows; the projection then shortens all windows
        self.tried = self._inside(delta.scatter_(1, window, new))
        return slice(None)

    def settle(self, better: Flags) -> None:
        """Keep the candidates that are better as the best ones; undo the others."""
        self.best = self.tried.where(better.view(-1, 1, 1), self.best)
        self.tried = self.best

    def _places(self, first: Tensor, side: int) -> Indices:
        """Indices of a window's pixels, `(n, side * side, channels)`, from the index of its first pixel."""
        places = first.view(-1, 1, 1) + _window(side, self.width, 1, self.device)
        return places.expand(-1, -1, self.channels)

    def _bumps(self, side: int, draws: Tensor) -> Tensor:
        """A bump for each of `draws`, transposed where it is below 0.5, `(..., side, side)`."""
        return _bumps(side, self.ball.norm, self.clean.dtype, self.device)[(draws < 0.5).long()]

    def _inside(self, delta: _Flat) -> _Flat:
        """Clean images plus `delta`: scaled to the norm eps and clipped for L2, projected exactly for L1."""
        if self.ball.norm == "l2":
            length = delta.flatten(1).norm(dim=1).view(-1, 1, 1) + _TINY
            return (self.clean + delta * (self.ball.eps / length)).clamp_(*self.bounds)
        images = self.view(self.clean)
        return self.rows(self.ball.project(images + self.view(delta), images, self.bounds))


def _box(mask: Mask) -> Int64[Tensor, "n 4"]:
    """First and last row, first and last column in which a value of each image may change; 0 if none may."""
    ends = []
    for axes in ((1, 3), (1, 2)):
        allowed = mask.any(axes[1]).any(axes[0]).long()
        ends += [allowed.argmax(1), (allowed.shape[1] - 1 - allowed.flip(1).argmax(1)) * allowed.any(1)]
    return torch.stack(ends, 1)


@cache
def _window(side: int, width: int, channels: int, device: torch.device) -> Tensor:
    """Indices of a window's entries relative to its first, `(side * side, channels)`."""
    steps = torch.arange(side, device=device)
    pixels = (steps.unsqueeze(1) * width + steps).view(-1, 1)
    return pixels * channels + torch.arange(channels, device=device)


def _sign(draws: Tensor, like: Tensor) -> Tensor:
    """Plus or minus one for each of `draws`, random numbers in [0, 1), in the type of `like`."""
    return torch.where(draws < 0.5, 1.0, -1.0).to(like.dtype)


def _length(window: Tensor, order: int) -> Tensor:
    """The norm over the pixels of each window, per channel, `(n, 1, channels)`."""
    return window.norm(p=order, dim=1, keepdim=True)


@cache
def _bumps(side: int, norm: Norm, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The paper's window for L2 and L1, and its transpose: `(2, side, side)`, each of norm 1.

    One half is positive and one negative; absolute values fall with the distance from the middle of each half.
    """
    order = 2 if norm == "l2" else 1
    upper = _eta(side // 2, side, order)
    bump = torch.cat([upper, -_eta(side - side // 2, side, order)])
    bump = (bump / bump.norm(p=order)).to(device, dtype)
    return torch.stack([bump, bump.T])


def _eta(height: int, width: int, order: int) -> Tensor:
    """The paper's eta, `(height, width)`, of norm 1: a sum of nested squares, the k-th worth 1 / k^2 (L1: 1 / k^4)."""
    steps = torch.arange(1, max(height, width) // 2 + 2, dtype=torch.float64) ** (-2 if order == 2 else -4)
    heights = steps.flip(0).cumsum(0).flip(0)  # at each distance from the middle, the sum of the squares that reach it
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
    norm: ConvexNorm = "linf"
    """Norm of the ball: Linf, L2 or L1."""
    n_queries: Annotated[int, at_least(1)] = 5000
    """Queries per image and restart, the start included (AutoAttack: 5000 in addition to the start). Each takes a
    forward pass, unless it does not change the best image (Linf)."""
    p_init: Annotated[float, between(0, 1, "a share of the pixels", without_low=True)] = 0.8
    """Share of the pixels that the first windows change."""
    restarts: Annotated[int, at_least(1)] = 1
    """Number of runs from different random starts; later ones are only for images not yet fooled."""
    rescale_schedule: bool = False
    """Rescale the schedule, made for 10,000 queries, to the number of queries (AutoAttack does not)."""

    def side(self, step: int, height: int, width: int) -> int:
        """Side of the window at a step (from 0), in pixels; for L2 and L1 odd and at least 3 if the image allows it."""
        if self.rescale_schedule:
            step = int(step / self.n_queries * _SCHEDULED)
        share = self.p_init / 2 ** bisect_left(_HALVINGS, step)
        side = round(math.sqrt(share * height * width))
        side = max(side, 1) if self.norm == "linf" else max(side, 3) // 2 * 2 + 1
        return min(side, height, width)

    def max_passes(self, classes: int) -> Passes:
        """Per image at most: a forward pass for the clean image, and one for each query of each restart."""
        del classes
        return Passes(forward=1 + self.restarts * self.n_queries)

    @torch.no_grad()
    def run(
        self, model: Classifier, clean: Images, criterion: Criterion, streams: Streams, advance: Advance
    ) -> RunResult:
        """Search from every random start, on the examples not fooled yet.

        The candidate of an example is its first image that fools, or else the one with the highest loss. A query whose
        logits are not finite is not kept.
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
        """One run from one start, for images that are not fooled.

        Args:
            advance: called with the share of the run that is done.
            dtype: of the model's logits.
        """
        loss = stable_cross_entropy if criterion.targeted else margin  # as in the paper
        channels, height, width = clean.shape[1:]
        kind = LinfSquare if self.norm == "linf" else L2Square
        proposal = kind(clean, self.ball(), model.bounds, criterion.mask)
        proposal.start(streams, restart)
        run = RunState(clean)
        best = _Best(
            place=torch.arange(len(clean), device=clean.device),
            logits=clean.new_full((len(clean), len(model.classes)), torch.nan, dtype=dtype),
            highest=torch.full((len(clean),), -math.inf, dtype=dtype, device=clean.device),
            finite=torch.ones_like(run.finite),
        )

        def note(chosen: Flags | slice) -> None:
            place = best.place[chosen]
            run.images[place], run.finite[place] = proposal.images(chosen), best.finite[chosen]
            run.loss[place] = best.highest[chosen].double()

        for query in range(self.n_queries):
            changed = proposal.step((query - 1) % _BLOCK) if query else slice(None)  # the first query is the start
            if query % _BLOCK == 0:
                draws = streams.uniform((_BLOCK, 5 + channels), "square", restart, query // _BLOCK)
                proposal.plan(draws, [self.side(query + i, height, width) for i in range(_BLOCK)])
                advance(_BLOCK / self.n_queries, "")
            if isinstance(changed, Tensor) and not len(changed):
                continue
            new = model(proposal.images(changed))
            run.passes.forward += len(new)
            logits = best.logits.clone()  # an image that did not change has the logits of the best one
            logits[changed] = new
            fooled = criterion.is_adversarial(logits)
            valid = is_valid(logits)
            value = criterion.objective(loss, logits).masked_fill(~valid, -torch.inf)
            better = fooled | (value > best.highest)
            if query:
                proposal.settle(better)
            best.settle(better, logits, value, valid)
            if fooled.any():
                run.fooled[best.place] = fooled
                note(fooled)
                going = ~fooled
                best, proposal = best[going], proposal[going]
                criterion, streams = criterion[going], streams[going]
            if not len(best.place):
                break
        note(slice(None))
        return run


@final
@dataclass
class _Best(Rows):
    """What is known of the best candidates so far of the images still attacked; every tensor has one row per image."""

    place: Int64[Tensor, " n"]
    """Positions of the images in the batch."""
    logits: Logits
    """Logits of the best candidate so far; NaN before the first query."""
    highest: PerExample
    """The loss of the best candidate so far."""
    finite: Flags
    """Whether the logits of all queries of this run were valid (see `is_valid`: a class may have minus infinity)."""

    def settle(self, better: Flags, logits: Logits, value: PerExample, valid: Flags) -> None:
        """Record the logits and the loss (`value`) of the candidates tried where they are `better`.

        `valid` says whether the candidates' logits are finite, and is recorded everywhere.
        """
        self.logits = logits.where(better.unsqueeze(1), self.logits)
        self.highest = value.where(better, self.highest)
        self.finite = self.finite & valid
