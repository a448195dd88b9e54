"""SurFree: a decision-based attack for the nearest image in L2 (Maho, Furon and Le Merrer 2021, arXiv 2011.12807).

It uses predicted classes only, and estimates no gradient. Let the image that fools lie at the distance d from the clean
image x, in the direction u, and let v be a random direction at a right angle to u. The points x + d cos(a) (cos(a) u +
sin(a) v) lie on a circle through both images, at the distance d cos(a) from x. A step tries the angles plus and minus
theta; where one of them fools, it looks for a larger angle that does, by doubling and then by bisection (section 4 of
the paper). theta grows after a success and shrinks after a failure. Directions have random signs at the low frequencies
of the discrete cosine transform, and are at a right angle to those tried last.

Differences from the original code (github.com/t-maho/SurFree): starts are those of `HopSkipJump`; directions are at a
right angle to the present u, not to that of the start; angles are doubled, not increased by theta; the image is
returned a little beyond the boundary; and an image without a start fails without affecting the others.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor

from casemate.attacks._decisions import BEYOND, BLENDS, Oracle, Positions, find_starts, to_boundary
from casemate.attacks._minimum_norm import column
from casemate.attacks.base import AbstractMinimumNormAttack
from casemate.attacks.criterion import Criterion
from casemate.attacks.result import Passes, RunResult
from casemate.models import Classifier
from casemate.norms import Bounds, Norm, norm_of
from casemate.progress import Advance
from casemate.rng import Streams
from casemate.rows import Rows
from casemate.settings import at_least, between, one_of
from casemate.types import Images, PerExample

_DOUBLINGS = 4
"""How often an angle that fools is doubled at most."""

_BISECTIONS = 8
"""Largest number of bisection steps between an angle that fools and one that does not."""

_LARGEST = math.radians(89)
"""Largest angle tried: at 90 degrees the point on the circle is the clean image."""


@final
@dataclass(frozen=True, kw_only=True)
class SurFree(AbstractMinimumNormAttack):
    """Walk on circles through the clean image, in random directions, using predicted classes only."""

    stream: ClassVar[str] = "SurFree"

    norm: Annotated[Norm, one_of("l2")] = "l2"
    """Norm of the perturbation that is minimised: L2, since the geometry is that of circles."""
    n_queries: Annotated[int, at_least(100, "finding a start alone takes as many")] = 5000
    """Largest number of forward passes (queries) per image; the paper shows up to 5,000. A step for which too few
    queries are left is not started."""
    theta_max: Annotated[float, between(0, 89, "degrees", without_low=True)] = 30.0
    """The first angle tried, in degrees."""
    rho: Annotated[float, between(0, 1, without_low=True)] = 0.98
    """Factor on the angle after a failure; after a success the angle is divided by it."""
    precision: Annotated[float, between(0, 1, without_low=True)] = 0.01
    """Bisection of the angle ends where its cosine, to which the distance is proportional, is known to so much."""
    frequencies: Annotated[float, between(0, 1, "a share of the frequencies", without_low=True)] = 0.5
    """Share of the frequencies, the lowest ones, that directions consist of. The distance in the others stays that of
    the start."""
    n_ortho: Annotated[int, at_least(0)] = 20
    """Number of the last directions tried to which a new one is at a right angle; memory grows with it."""
    starts: Annotated[int, at_least(1)] = 100
    """Largest number of random images tried as a start, until one fools."""

    def max_passes(self, classes: int) -> Passes:
        """Per image at most: `n_queries` forward passes."""
        del classes
        return Passes(forward=self.n_queries)

    @torch.no_grad()
    def run(
        self, model: Classifier, clean: Images, criterion: Criterion, streams: Streams, advance: Advance
    ) -> RunResult:
        """Find a start for each image, then walk on circles; the candidates are the nearest images that fooled.

        `finite` is False where no image fooled and some logits were not finite.
        """
        oracle = Oracle(model, criterion, len(clean))
        active = torch.arange(len(clean), device=clean.device)
        active = active[~oracle(clean, active) & oracle.finite]
        last = BLENDS + 1  # queries after the last step
        images, started = find_starts(
            oracle, clean, active, streams, min(self.starts, self.n_queries - BLENDS - last - 1)
        )
        at = started.nonzero().squeeze(1)
        if len(at):
            images[at] = to_boundary(oracle, images[at], clean[at], at, "l2", BLENDS)
        state = _State(at, clean[at], images[at], math.radians(self.theta_max), self.n_ortho)
        step, most = 0, 2 + _DOUBLINGS + _BISECTIONS
        while True:
            before = oracle.spent[state.place].sum()
            state = state[oracle.spent[state.place] + most + last <= self.n_queries]
            if not len(state.place):
                break
            self._step(oracle, state, streams[state.place], step)
            images[state.place] = state.images
            advance(float(oracle.spent[state.place].sum() - before) / self.n_queries, "")
            step += 1
        if len(at):
            nearer = to_boundary(oracle, images[at], clean[at], at, "l2", BLENDS)
            beyond = torch.lerp(clean[at], nearer, 1 + BEYOND).clamp(*model.bounds)
            images[at] = torch.where(column(oracle(beyond, at)), beyond, images[at])
        usable = oracle.finite | started
        return RunResult(images, usable, torch.ones_like(usable), Passes(forward=int(oracle.spent.sum())))

    def _step(self, oracle: Oracle, state: "_State", streams: Streams, step: int) -> None:
        """Try one direction for each image, and move the images where it leads nearer."""
        directions = self._directions(state, oracle.criterion[state.place], streams, step)
        circle = _Circle(state, directions, oracle.model.bounds)
        if self.n_ortho:
            state.tried[:, step % self.n_ortho] = circle.v.flatten(1)
        theta = state.theta
        sign = torch.where(oracle(circle(theta), state.place), 1.0, 0.0).to(theta.dtype)
        rest = (sign == 0).nonzero().squeeze(1)
        if len(rest):
            sign[rest] = torch.where(oracle(circle[rest](-theta[rest]), state.place[rest]), -1.0, 0.0).to(theta.dtype)
        won = sign != 0
        state.theta = torch.where(won, theta / self.rho, theta * self.rho).clamp(max=_LARGEST)
        at = won.nonzero().squeeze(1)
        if len(at):
            angle = self._largest_angle(oracle, circle[at], state.place[at], sign[at], theta[at])
            state.images[at] = circle[at](sign[at] * angle)

    def _largest_angle(
        self, oracle: Oracle, circle: "_Circle", place: Positions, sign: PerExample, theta: PerExample
    ) -> PerExample:
        """The largest angle found that fools, from `theta`, which does; `sign` is that of the angles."""

        def fools(at: Tensor, angle: PerExample) -> Tensor:
            return oracle(circle[at](sign[at] * angle), place[at])

        low, high = theta.clone(), torch.full_like(theta, _LARGEST)
        left = (low < _LARGEST).nonzero().squeeze(1)
        for _ in range(_DOUBLINGS):
            if not len(left):
                break
            angle = (2 * low[left]).clamp(max=_LARGEST)
            fooled = fools(left, angle)
            low[left] = torch.where(fooled, angle, low[left])
            high[left] = torch.where(fooled, high[left], angle)
            left = left[fooled & (angle < _LARGEST)]
        high[left] = low[left]  # it might be larger still
        for _ in range(_BISECTIONS):
            left = (low.cos() - high.cos() > self.precision).nonzero().squeeze(1)
            if not len(left):
                break
            angle = (low[left] + high[left]) / 2
            fooled = fools(left, angle)
            low[left] = torch.where(fooled, angle, low[left])
            high[left] = torch.where(fooled, high[left], angle)
        return low

    def _directions(self, state: "_State", criterion: Criterion, streams: Streams, step: int) -> Images:
        """A random direction for each image, of length 1 (0 if there is none): low frequencies, at right angles to u.

        It is first made to be at right angles to the directions in `state.tried`, of length 1, and then to u.
        """
        clean = state.clean
        height, width = clean.shape[2:]
        draws = streams.uniform(tuple(clean.shape[1:]), "direction", step)
        signs = torch.where(draws < 1 / 3, -1.0, torch.where(draws < 2 / 3, 0.0, 1.0)).to(clean.dtype)
        signs *= _low_frequencies(height, width, self.frequencies).to(clean)
        waves = criterion.masked(_cosines(height).to(clean).T @ signs @ _cosines(width).to(clean))
        flat = waves.flatten(1)
        flat = flat - torch.einsum("nk,nkd->nd", torch.einsum("nd,nkd->nk", flat, state.tried), state.tried)
        towards = _unit(state.images - clean).flatten(1)
        flat = flat - (flat * towards).sum(1, keepdim=True) * towards
        return _unit(flat.view_as(clean))


def _unit(delta: Images) -> Images:
    """Each perturbation divided by its length; zero stays zero."""
    return delta / column(norm_of(delta, "l2").clamp(min=torch.finfo(delta.dtype).tiny))


@final
class _State(Rows):
    """The images that are still moved; every tensor has one row per image."""

    def __init__(self, place: Positions, clean: Images, images: Images, theta: float, tried: int) -> None:
        self.place = place
        """Positions of the images in the batch."""
        self.clean, self.images = clean, images
        self.theta = torch.full((len(clean),), theta, dtype=clean.dtype, device=clean.device)
        """The angle to try next."""
        self.tried = clean.new_zeros(len(clean), tried, clean[0].numel() if len(clean) else 0)
        """The last directions tried."""


@final
class _Circle(Rows):
    """The circles through clean images and images that fool, in planes with random directions `v`."""

    def __init__(self, state: _State, v: Images, bounds: Bounds) -> None:
        delta = state.images - state.clean
        self.clean, self.u, self.v, self.bounds = state.clean, _unit(delta), v, bounds
        self.diameter = norm_of(delta, "l2")

    def __call__(self, angle: PerExample) -> Images:
        """The points at these angles, clipped to the bounds; the clean image is at plus and minus 90 degrees."""
        cos, sin = column(angle.cos()), column(angle.sin())
        return (self.clean + column(self.diameter) * cos * (cos * self.u + sin * self.v)).clamp(*self.bounds)


@cache
def _cosines(size: int) -> Tensor:
    """The orthonormal discrete cosine transform (type II) of a line of `size` pixels, `(frequencies, pixels)`."""
    frequency, pixel = torch.arange(size).unsqueeze(1), torch.arange(size)
    waves = torch.cos(math.pi / size * (pixel + 0.5) * frequency) * math.sqrt(2 / size)
    waves[0] /= math.sqrt(2)
    return waves


@cache
def _low_frequencies(height: int, width: int, share: float) -> Tensor:
    """1 for the `share` of the frequencies with the lowest sum of both relative frequencies, 0 for the others."""
    height_share, width_share = torch.arange(height) / height, torch.arange(width) / width
    order = (height_share.unsqueeze(1) + width_share).flatten().argsort(stable=True)
    kept = torch.zeros(height * width)
    kept[order[: max(1, round(share * height * width))]] = 1
    return kept.view(height, width)
