"""Sparse-RS: random search for a few values, or a small patch, that fool (Croce et al. 2022, arXiv 2006.12834).

Changed values take the lowest or the highest value a pixel can have. Each query exchanges some of
the changed values for others (algorithm 2 of the paper), and the change is kept if it raises the loss; fewer are
exchanged as the search goes on. A patch is a square of such values: a query gives a smaller square in it a new colour,
and every fourth one moves it (algorithm 3). Schedules are those of the original code (github.com/fra31/sparse-rs),
always rescaled to the number of queries. Differences: everything is drawn for every example (there for the whole
batch), so that results do not depend on the batch size; values are counted, where the original counts pixels of up to
three values; single values of a patch are changed from the point on at which the squares are one pixel wide, not
halfway from there to the end.
"""

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from casemate.attacks._worst_case import BestCandidates
from casemate.attacks.base import AbstractAttack
from casemate.attacks.criterion import Criterion
from casemate.attacks.result import Passes, RunResult
from casemate.errors import SettingError
from casemate.logits import is_valid
from casemate.losses import margin, stable_cross_entropy
from casemate.models import Classifier
from casemate.norms import Bounds, Eps, Norm
from casemate.progress import Advance
from casemate.rng import Streams
from casemate.rows import Rows
from casemate.settings import at_least, between, one_of
from casemate.types import Flags, Images, Mask

_SCHEDULED = 10_000
"""Number of queries that the schedules are made for."""
_VALUES_FROM = (1, 51, 201, 501, 1001, 2001, 4001, 6001, 8001)
_VALUES_DIVISORS = (1, 2, 4, 5, 6, 8, 10, 12, 15, 20)
"""From each of these queries on, the share of the changed values that are exchanged is divided by the next divisor."""
_PATCH_FROM = (11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001)
"""From each of these queries on, the share of a patch that is changed is halved once more."""
_MOVE_EVERY, _MOVE_EVERY_TARGETED = 4, 10
"""The patch moves in one query out of this number, and changes in the others."""
_FIRST_SHIFT = 0.75
"""Largest move of a patch at the start, as a share of the image; it falls to zero."""
_SQUARES = 1000
"""Squares of random colours that the first patch is made of."""

_Flat = Float[Tensor, "n values"]


class AbstractProposal(Rows, ABC):
    """What changes of the best images so far, and how; every tensor has one row per example."""

    images: Images
    """The candidates of the query; after `settle` the best images so far."""

    @abstractmethod
    def propose(self, streams: Streams, query: int, share: float, progress: float) -> None:
        """Set `images` to the best images with a random change; with `query` 0 to a random start.

        Args:
            share: of what differs from the clean image, how much is changed.
            progress: share of all queries made before.
        """

    @abstractmethod
    def settle(self, better: Flags) -> None:
        """Keep the last change where it is `better`, and undo it elsewhere."""


@final
class _Values(AbstractProposal):
    """A fixed number of single values that differ from the clean image, each at a bound."""

    def __init__(self, clean: Images, bounds: Bounds, count: int, mask: Mask | None) -> None:
        self.clean, self.bounds, self.count = clean.flatten(1), bounds, count
        self.free = None if mask is None else mask.flatten(1)
        """Which values may change; None: all."""
        self.shape = tuple(clean.shape[1:])
        self.images = self.best = clean
        self.changed = self.tried = torch.zeros_like(self.clean, dtype=torch.bool)

    def propose(self, streams: Streams, query: int, share: float, progress: float) -> None:
        """Exchange a share of the changed values, at least one, for as many others; at the start choose all.

        Where a mask leaves fewer others, some of the values taken out come back, at bounds drawn anew.
        """
        del progress
        draws = streams.uniform((2, self.clean.shape[1]), "values", query)
        order, corner = draws.unbind(1)
        flat = self.best.flatten(1)
        if self.free is not None:
            order = order.masked_fill(~self.free, math.inf)
        if query:
            some = max(int(share * self.count), 1)
            some = min(some, self.clean.shape[1] - self.count if self.free is None else self.count)
            removed = order.masked_fill(~self.changed, math.inf).topk(some, largest=False).indices
            others = order.masked_fill(self.changed, math.inf)
            if self.free is not None:
                others = others.scatter(1, removed, order.gather(1, removed) + 1)  # after all others
            added = others.topk(some, largest=False).indices
            self.tried = self.changed.scatter(1, removed, value=False).scatter(1, added, value=True)
            flat = flat.scatter(1, removed, self.clean.gather(1, removed))
        else:
            added = order.topk(self.count, largest=False).indices
            self.tried = self.changed.scatter(1, added, value=True)
        low, high = self.bounds
        bound = torch.where(corner < 0.5, low, high).to(flat.dtype)
        bound = torch.where(bound == self.clean, low + high - bound, bound)  # the other one: a change it must be
        flat = flat.scatter(1, added, bound.gather(1, added))
        if self.free is not None:  # of an image with fewer free values than `count`, others were chosen too
            self.tried, flat = self.tried & self.free, flat.where(self.free, self.clean)
        self.images = flat.view(-1, *self.shape)

    def settle(self, better: Flags) -> None:
        """Keep the exchange where it is better."""
        self.changed = torch.where(better.unsqueeze(1), self.tried, self.changed)
        self.best = torch.where(better.view(-1, 1, 1, 1), self.images, self.best)
        self.images = self.best


@final
class _Patch(AbstractProposal):
    """A square in every image, of which each value is at a bound."""

    def __init__(self, clean: Images, bounds: Bounds, side: int, *, move_every: int, mask: Mask | None) -> None:
        self.clean, self.bounds, self.side, self.move_every = clean, bounds, side, move_every
        self.allowed = None if mask is None else places_of(mask, side)
        """Where the patch may lie; None: anywhere."""
        self.images = self.best = clean
        self.patch = self.tried_patch = clean[:, :, :side, :side]
        self.place = self.tried_place = torch.zeros(len(clean), 2, dtype=torch.int64, device=clean.device)

    def propose(self, streams: Streams, query: int, share: float, progress: float) -> None:
        """Give a square in the patch a new colour, or move the patch; at the start draw both."""
        height, width = self.clean.shape[2:]
        free = torch.tensor([height - self.side, width - self.side], device=self.clean.device)
        draws = streams.uniform((4 + self.clean.shape[1],), "patch", query)
        self.tried_patch, self.tried_place = self.patch, self.place
        reach = int(_FIRST_SHIFT * (1 - progress) * height)
        if not query:
            self.tried_place = self._allowed((draws[:, :2] * (free + 1)).long())
            self.tried_patch = self._first_patch(streams)
        elif query % self.move_every == 0 and reach:
            move = (draws[:, :2] * (2 * reach + 1)).long() - reach
            self.tried_place = self._allowed((self.place + move).clamp(min=0).minimum(free))
        else:
            side = max(int(math.sqrt(share) * self.side), 1)
            corner = (draws[:, :2] * (self.side - side + 1)).long()
            self.tried_patch = self._recoloured(self.patch, corner, side, draws[:, 4:], draws[:, 2])
        self.images = self._placed()

    def settle(self, better: Flags) -> None:
        """Keep colours and place where they are better."""
        wide = better.view(-1, 1, 1, 1)
        self.patch = torch.where(wide, self.tried_patch, self.patch)
        self.place = torch.where(better.unsqueeze(1), self.tried_place, self.place)
        self.best = torch.where(wide, self.images, self.best)
        self.images = self.best

    def _allowed(self, place: Int64[Tensor, "n 2"]) -> Int64[Tensor, "n 2"]:
        """The allowed place nearest to each of `place`, the first of several."""
        if self.allowed is None:
            return place
        down, across = (torch.arange(size, device=place.device) for size in self.allowed.shape[1:])
        away = (down - place[:, :1]).square().unsqueeze(2) + (across - place[:, 1:]).square().unsqueeze(1)
        nearest = away.masked_fill(~self.allowed, len(down) ** 2 + len(across) ** 2).flatten(1).argmin(1)
        return torch.stack([nearest // len(across), nearest % len(across)], 1)

    def _recoloured(self, patch: Images, corner: Int64[Tensor, "n 2"], side: int, draws: Tensor, one: Tensor) -> Images:
        """`patch` with one colour in a square at `corner`; a single pixel changes in one channel, which then
        differs.
        """
        low, high = self.bounds
        colour = torch.where(draws < 0.5, low, high).to(patch.dtype)[:, :, None, None]
        inside = _square(corner, side, self.side, self.side)
        if side > 1:
            return torch.where(inside, colour, patch)
        channels = patch.shape[1]
        number = torch.arange(channels, device=patch.device).view(-1, 1, 1)
        chosen = (one * channels).long().view(-1, 1, 1, 1) == number
        return torch.where(inside & chosen, low + high - patch, patch)

    def _first_patch(self, streams: Streams) -> Images:
        """Squares of random colours at random places, one over the other."""
        channels, side = self.clean.shape[1], self.side
        patch = torch.full_like(self.patch, self.bounds[0])
        largest = max(math.ceil(side**0.5) - 1, 1)
        draws = streams.uniform((_SQUARES, 3 + channels), "patch", "start")
        for one in draws.unbind(1):
            # one side for the whole batch would be faster, but a draw must not depend on the batch
            size = (one[:, 0] * largest).long() + 1
            corner = (one[:, 1:3] * (side - size + 1).unsqueeze(1)).long()
            colour = torch.where(one[:, 3:] < 0.5, *self.bounds).to(patch.dtype)[:, :, None, None]
            patch = torch.where(_square(corner, size, side, side), colour, patch)
        return patch

    def _placed(self) -> Images:
        """The clean images with the tried patch at the tried place."""
        height, width = self.clean.shape[2:]
        inside = _square(self.tried_place, self.side, height, width)
        rows = torch.arange(height, device=self.clean.device) - self.tried_place[:, :1]
        columns = torch.arange(width, device=self.clean.device) - self.tried_place[:, 1:]
        at = torch.arange(len(self.clean), device=self.clean.device).view(-1, 1, 1, 1)
        channels = torch.arange(self.clean.shape[1], device=self.clean.device).view(1, -1, 1, 1)
        limited = (each.clamp(0, self.side - 1) for each in (rows[:, None, :, None], columns[:, None, None, :]))
        return torch.where(inside, self.tried_patch[at, channels, *limited], self.clean)


def places_of(mask: Mask, side: int) -> Bool[Tensor, "n down across"]:
    """The first rows and columns of the squares of `side` pixels in which the mask is True everywhere."""
    fixed = (~mask).any(1, keepdim=True).float()
    return F.max_pool2d(fixed, side, stride=1).squeeze(1) == 0


def _square(corner: Int64[Tensor, "n 2"], side: int | Tensor, height: int, width: int) -> Tensor:
    """Which pixels of images lie in a square, booleans `(n, 1, height, width)`; `corner`: its first row and column."""
    first, last = corner, corner + (side.unsqueeze(1) if isinstance(side, Tensor) else side)
    rows, columns = (torch.arange(size, device=corner.device) for size in (height, width))
    within = (rows >= first[:, :1]) & (rows < last[:, :1]), (columns >= first[:, 1:]) & (columns < last[:, 1:])
    return (within[0].unsqueeze(2) & within[1].unsqueeze(1)).unsqueeze(1)


@final
@dataclass(frozen=True, kw_only=True)
class SparseRS(AbstractAttack):
    """Random search for a few values, or a patch, at the bounds of the pixels."""

    stream: ClassVar[str] = "SparseRS"

    eps: Eps
    """Largest number of values that change, pixels times channels."""
    norm: Annotated[Norm, one_of("l0", why="for other norms take Square")] = "l0"
    """Norm of the ball: L0."""
    n_queries: Annotated[int, at_least(1)] = 5000
    """Queries per image, the start included, each a forward pass."""
    p_init: Annotated[float, between(0, 1, "a share", without_low=True)] = 0.8
    """Share of the changed values that the first queries exchange; of a patch that they change (published: 0.8; 0.3 for
    single pixels on ImageNet, 0.4 for patches)."""
    shape: Annotated[Literal["values", "patch"], one_of("values", "patch")] = "values"
    """`values`: any that are best. `patch`: the largest square, of all channels, that has no more than eps values; with
    a mask it lies where the mask is True everywhere."""

    def share(self, query: int) -> float:
        """The share that a query changes."""
        scheduled = int(query / self.n_queries * _SCHEDULED)
        if self.shape == "patch":
            return self.p_init / 2 ** _passed(_PATCH_FROM, scheduled)
        return self.p_init / _VALUES_DIVISORS[_passed(_VALUES_FROM, scheduled)]

    def max_passes(self, classes: int) -> Passes:
        """Per image at most: a forward pass for the clean image, and one for each query."""
        del classes
        return Passes(forward=1 + self.n_queries)

    @torch.no_grad()
    def run(
        self, model: Classifier, clean: Images, criterion: Criterion, streams: Streams, advance: Advance
    ) -> RunResult:
        """Search on the examples that are classified correctly.

        The candidate of an example is its first image that fools, or else the one with the highest loss. Raises
        `SettingError` for a patch of less than one pixel, and for one that fits nowhere into the mask of an image.
        """
        logits = model(clean)
        best = BestCandidates(clean, criterion, logits)
        result = RunResult(best.images, best.finite, torch.ones_like(best.finite), Passes(forward=len(clean)))
        if not self.eps or not len(best.left):
            return result
        loss = stable_cross_entropy if criterion.targeted else margin  # as in the paper
        at = best.left
        criterion, streams = criterion[at], streams[at]
        proposal = self._proposal(model, clean[at], criterion)
        highest = torch.full((len(at),), -math.inf, dtype=logits.dtype, device=clean.device)
        for query in range(self.n_queries):
            proposal.propose(streams, query, self.share(query), query / self.n_queries)
            logits = model(proposal.images)
            result.passes.forward += len(at)
            advance(len(at) / self.n_queries, "")
            valid = is_valid(logits)
            fooled = criterion.is_adversarial(logits)
            value = criterion.objective(loss, logits).masked_fill(~valid, -math.inf)
            better = fooled | (value > highest)
            highest = value.where(better, highest)
            proposal.settle(better)
            if fooled.any() or query + 1 == self.n_queries or not valid.all():
                best.update(at, proposal.images, highest, fooled, valid)
            if fooled.any():
                going = ~fooled
                at, highest, proposal = at[going], highest[going], proposal[going]
                criterion, streams = criterion[going], streams[going]
                if not len(at):
                    break
        return result

    def _proposal(self, model: Classifier, clean: Images, criterion: Criterion) -> AbstractProposal:
        mask = criterion.mask
        if self.shape == "values":
            return _Values(clean, model.bounds, int(min(self.eps, clean[0].numel())), mask)
        channels, height, width = clean.shape[1:]
        side = min(math.isqrt(int(min(self.eps, clean[0].numel())) // channels), height, width)
        if not side:
            raise SettingError(
                f"eps = {self.eps:g} for a patch of images with {channels} channels; expected at least {channels}, the "
                "values of one pixel"
            )
        if mask is not None and (without := int((~places_of(mask, side).flatten(1).any(1)).sum())):
            raise SettingError(
                f"a patch of {side} x {side} pixels fits nowhere into the mask of {without} of {len(clean)} images; "
                f'expected a square of the mask that is True in all channels: a smaller eps, or shape="values"'
            )
        move_every = _MOVE_EVERY_TARGETED if criterion.targeted else _MOVE_EVERY
        return _Patch(clean, model.bounds, side, move_every=move_every, mask=mask)


def _passed(borders: tuple[int, ...], query: int) -> int:
    """How many of the ascending `borders` a query has reached."""
    return bisect_left(borders, query + 1)
