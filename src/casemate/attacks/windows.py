"""The windows of Square: where the search starts, and what one query changes in the best images so far.

Images lie as rows `(n, height * width, channels)`: a window is then an index along the second axis, and the view back
is channels-last.
"""

from abc import ABC, abstractmethod
from functools import cache
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from casemate.norms import Ball, Bounds, Norm
from casemate.rng import Streams
from casemate.types import Flags, Images

Rows = Float[Tensor, "n pixels channels"]
Places = Int64[Tensor, "n window channels"]

_TINY = 1e-12


class Moves(ABC):
    """The images still searched, one row of every tensor each: the best so far, or a change of it under trial."""

    tried: Rows
    """Once settled, the best."""

    def __init__(self, clean: Images, ball: Ball, bounds: Bounds) -> None:
        self.ball, self.bounds = ball, bounds
        self.channels, self.height, self.width = clean.shape[1:]
        self.device = clean.device
        self.clean = self.rows(clean)

    def rows(self, images: Images) -> Rows:
        """Images as rows."""
        return images.permute(0, 2, 3, 1).reshape(len(images), -1, self.channels)

    def view(self, rows: Rows) -> Images:
        """Rows as images."""
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
            draws: `(steps, n, 5 + channels)` in [0, 1): the windows' places, the bump's turn, the signs.
        """

    @abstractmethod
    def step(self, number: int) -> Tensor | slice:
        """Change one window of each of the best images. Returns those that are not as before."""

    @abstractmethod
    def settle(self, better: Flags) -> None:
        """Keep what was tried where it is better, and undo it elsewhere."""

    @abstractmethod
    def keep(self, going: Flags) -> None:
        """Drop the others."""


@final
class Corners(Moves):
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
        places = self.first[number].view(-1, 1, 1) + _window(self.sides[number], self.width, self.channels, self.device)
        self.window = places.flatten(1)
        self.corner = self.corners.gather(1, (places + self.upper[number].unsqueeze(1)).flatten(1))
        best = self.tried.flatten(1)
        self.before = best.gather(1, self.window)
        best.scatter_(1, self.window, self.corner)
        return (self.corner - self.before).abs_().amax(1).nonzero().squeeze(1)

    def settle(self, better: Flags) -> None:
        """Write it once more, as it was where it did not help."""
        self.tried.flatten(1).scatter_(1, self.window, self.corner.where(better.unsqueeze(1), self.before))

    def keep(self, going: Flags) -> None:
        """Drop the others."""
        self.corners, self.tried = self.corners[going], self.tried[going]
        self.first, self.upper = self.first[:, going], self.upper[:, going]


@final
class Bumps(Moves):
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
        window, other = self._places(self.first[number], side), self._places(self.other[number], side)
        delta = self.best - self.clean
        unspent = (eps**order - delta.abs().pow(order).sum((1, 2))).clamp(min=0).view(-1, 1, 1)
        old = delta.gather(1, window)
        delta.scatter_(1, window, 0)  # at once, so that nothing is counted twice where the windows overlap
        freed = old.abs().pow(order).sum(1, keepdim=True)
        freed += delta.gather(1, other).abs().pow(order).sum(1, keepdim=True)
        delta.scatter_(1, other, 0)
        bump = self._turned(side, self.turn[number]).view(-1, side * side, 1)
        new = bump * self.sign[number].unsqueeze(1) + old / (_length(old, order) + _TINY)
        new *= (unspent / self.channels + freed).pow(1 / order) / (_length(new, order) + _TINY)
        if order == 1:
            new *= self.channels  # more than the ball holds, which the projection then shares out
        self.tried = self._inside(delta.scatter_(1, window, new))
        return slice(None)

    def settle(self, better: Flags) -> None:
        """Keep the images that are better."""
        self.best = self.tried.where(better.view(-1, 1, 1), self.best)
        self.tried = self.best

    def keep(self, going: Flags) -> None:
        """Drop the others."""
        self.clean, self.best = self.clean[going], self.best[going]
        self.tried = self.best
        self.first, self.other = self.first[:, going], self.other[:, going]
        self.turn, self.sign = self.turn[:, going], self.sign[:, going]

    def _places(self, first: Tensor, side: int) -> Places:
        """The places of a window's pixels, `(n, side * side, channels)`."""
        places = first.view(-1, 1, 1) + _window(side, self.width, 1, self.device)
        return places.expand(-1, -1, self.channels)

    def _turned(self, side: int, draws: Tensor) -> Tensor:
        """Bumps, some of them turned, `(..., side, side)`."""
        return _bumps(side, self.ball.norm, self.clean.dtype, self.device)[(draws < 0.5).long()]

    def _inside(self, delta: Rows) -> Rows:
        """Images at `delta` from the clean ones: at the full length and clipped for L2; for L1 projected exactly."""
        if self.ball.norm == "l2":
            length = delta.flatten(1).norm(dim=1).view(-1, 1, 1) + _TINY
            return (self.clean + delta * (self.ball.eps / length)).clamp_(*self.bounds)
        images = self.view(self.clean)
        return self.rows(self.ball.project(images + self.view(delta), images, self.bounds))


def _first(draws: Tensor, height: int, width: int, sides: list[int]) -> Int64[Tensor, "steps n"]:
    """The places of windows' first pixels, from two numbers in [0, 1) each, `(steps, n, 2)`."""
    side = torch.tensor(sides, device=draws.device).unsqueeze(1)
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
