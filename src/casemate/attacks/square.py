"""Square: random search with squares, no gradients (Andriushchenko et al. 2020, arXiv 1912.00049).

Each query changes one square window of the best image so far and is kept if it is more wrong. For Linf the window goes
to a corner of the ball (algorithm 2 of the paper), for L2 two bumps of opposite sign are added to it, and it takes the
size that another window gives up (algorithm 3); L1 is the variant of Croce and Hein 2021 (arXiv 2103.01208).
Windows shrink on a schedule. Parameters are those of the original code (github.com/fra31/auto-attack), with these
differences: every example draws its own windows, signs and turns (there one window serves the whole batch), so that the
batch split does not matter; windows also reach the last row and column; images need not be square.

What a query changes is in `windows.py`.

For Linf a query that leaves the best image as it is takes no pass: its answer is known.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Int64
from torch import Tensor

from casemate.attacks.base import Attack, Criterion, Passes
from casemate.attacks.windows import Bumps, Corners, Moves
from casemate.errors import SettingError
from casemate.logits import is_valid
from casemate.losses import margin, stable_cross_entropy
from casemate.models import Classifier
from casemate.norms import Ball, Norm, parse_eps
from casemate.progress import Advance
from casemate.rng import Streams
from casemate.types import Flags, Images, Logits, PerExample

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Steps of 10,000 after each of which the share of changed pixels is halved."""

_SCHEDULED = 10_000

_BLOCK = 64
"""Steps whose random numbers are drawn together: a draw costs much the same for one step as for many."""


@final
@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """Random search with square windows, within a fixed number of queries."""

    stream: ClassVar[str] = "Square"

    eps: float
    """Radius of the ball, in pixel units."""
    norm: Norm = "linf"
    """Linf, L2 or L1."""
    queries: int = 5000
    """Images tried per image and restart, the start included (AutoAttack: 5000 besides the start). Each takes a forward
    pass, unless it is the best one over again (Linf)."""
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
        finite = is_valid(logits)
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
                logits.dtype,
            )
            passes.forward += run.forward
            better = run.fooled | (run.highest > highest[left])
            found[left[better]] = run.images[better]
            highest[left[better]] = run.highest[better]
            finite[left] = run.fooled | (finite[left] & run.finite)
            left = left[~run.fooled]
        return found.where(finite.view(-1, 1, 1, 1), torch.nan), torch.ones_like(finite), passes

    def _search(
        self,
        model: Classifier,
        clean: Images,
        criterion: Criterion,
        streams: Streams,
        restart: int,
        advance: Advance,
        dtype: torch.dtype,
    ) -> "_Run":
        """One run from one start, for images that are not fooled; `advance` is told shares of the whole run.

        `dtype` is that of the model's logits.
        """
        loss = stable_cross_entropy if criterion.targeted else margin  # as in the paper
        channels, height, width = clean.shape[1:]
        moves = (Corners if self.norm == "linf" else Bumps)(clean, self.ball(), model.bounds)
        moves.start(streams, restart)
        run = _Run(
            images=clean.clone(),
            highest=torch.empty(len(clean), dtype=dtype, device=clean.device),
            fooled=torch.zeros(len(clean), dtype=torch.bool, device=clean.device),
            finite=torch.empty(len(clean), dtype=torch.bool, device=clean.device),
        )
        on = _Standing(
            place=torch.arange(len(clean), device=clean.device),
            logits=clean.new_full((len(clean), len(model.classes)), torch.nan, dtype=dtype),
            highest=torch.full_like(run.highest, -torch.inf),
            finite=torch.ones_like(run.finite),
        )
        for query in range(self.queries):
            asked = moves.step((query - 1) % _BLOCK) if query else slice(None)  # the first is the start's
            if query % _BLOCK == 0:
                draws = streams.uniform((_BLOCK, 5 + channels), "square", restart, query // _BLOCK)
                moves.plan(draws.transpose(0, 1), [self.side(query + i, height, width) for i in range(_BLOCK)])
                advance(_BLOCK / self.queries, "")
            if isinstance(asked, Tensor) and not len(asked):
                continue
            answer = model(moves.images(asked))
            run.forward += len(answer)
            logits = on.logits.clone()  # an image that did not change has those of the best
            logits[asked] = answer
            fooled = criterion.met(logits)
            valid = is_valid(logits)
            value = criterion.rising(loss, logits).masked_fill(~valid, -torch.inf)
            better = fooled | (value > on.highest)
            if query:
                moves.settle(better)
            on.settle(better, logits, value, valid)
            if fooled.any():
                run.fooled[on.place] = fooled
                run.take(on, moves, fooled)
                going = ~fooled
                on.keep(going)
                moves.keep(going)
                criterion, streams = criterion.take(going), streams.take(going)
            if not len(on.place):
                break
        run.take(on, moves, slice(None))
        return run


@dataclass
class _Standing:
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

    def keep(self, going: Flags) -> None:
        """Drop the others."""
        for name, rows in vars(self).items():
            setattr(self, name, rows[going])


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

    def take(self, on: _Standing, moves: Moves, chosen: Flags | slice) -> None:
        """Note the state of some of the images still searched."""
        place = on.place[chosen]
        self.images[place] = moves.images(chosen)
        self.highest[place], self.finite[place] = on.highest[chosen], on.finite[chosen]
