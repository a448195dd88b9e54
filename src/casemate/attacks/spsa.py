"""SPSA: gradients estimated from the logits of random neighbours (Uesato et al. 2018, arXiv 1802.05666).

Each step draws random signs v for every pixel, and compares the losses at x + delta v and x - delta v: the mean of v
times their difference, over 2 delta, is close to the gradient (simultaneous perturbation stochastic approximation,
Spall 1992). Adam follows it, and the iterate is projected onto the ball (algorithm 1 of the paper). The loss is the
margin of the logits. Differences: neighbours are clipped to the bounds, and the difference is divided by the distance
that is left of 2 delta; for L2, which the paper does not have, Adam divides all pixels of an image by the same root
mean square, since a division pixel by pixel would turn the step away from the gradient; an image leaves at its first
iterate that fools.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
from jaxtyping import Int64
from torch import Tensor

from casemate.attacks._minimum_norm import AdamMoments, column
from casemate.attacks._worst_case import BestCandidates, RunState
from casemate.attacks.base import AbstractAttack
from casemate.attacks.criterion import Criterion
from casemate.attacks.result import Passes, RunResult
from casemate.logits import is_valid
from casemate.losses import margin
from casemate.models import Classifier
from casemate.norms import Eps, Norm
from casemate.progress import Advance
from casemate.rng import Streams
from casemate.rows import Rows
from casemate.settings import at_least, between, one_of
from casemate.types import Flags, Images

_BLOCK = 16
"""Number of random directions per image that are drawn and classified together, to limit memory."""

_TINY = 1e-12


@final
@dataclass(frozen=True, kw_only=True)
class SPSA(AbstractAttack):
    """Adam along gradients that are estimated from the logits of random neighbours, without a backward pass."""

    stream: ClassVar[str] = "SPSA"

    eps: Eps
    """Radius of the ball, in pixel units."""
    norm: Annotated[Norm, one_of("linf", "l2")] = "linf"
    """Norm of the ball: Linf (as published) or L2."""
    steps: Annotated[int, at_least(1)] = 100
    """Largest number of steps of Adam. Each takes two forward passes for every sample, and one for the new iterate: 100
    steps of 128 samples are 25,700 queries."""
    samples: Annotated[int, at_least(1)] = 128
    """Random directions per step from which the gradient is estimated; each takes two queries."""
    delta: Annotated[float, between(0, 1, "a share of the range of the pixels", without_low=True)] = 0.01
    """Distance of the neighbours in every pixel, as a share of the range of the pixels."""
    learning_rate: Annotated[float, between(0, 1, "a share of the range of the pixels", without_low=True)] = 0.01
    """Adam's step size, as a share of the range of the pixels."""

    def max_passes(self, classes: int) -> Passes:
        """Per image at most: a forward pass for the clean image, and at each step two per sample and one more."""
        del classes
        return Passes(forward=1 + self.steps * (2 * self.samples + 1))

    @torch.no_grad()
    def run(
        self, model: Classifier, clean: Images, criterion: Criterion, streams: Streams, advance: Advance
    ) -> RunResult:
        """Ascend the estimated gradients from the clean images, on the examples not fooled yet.

        The candidate of an example is its first iterate that fools, or else the one with the highest loss. An example
        whose logits are not finite is not attacked further.
        """
        logits = model(clean)
        passes = Passes(forward=len(clean))
        best = BestCandidates(clean, criterion, logits)
        ball, at = self.ball(), best.left
        if not ball.eps or not len(at):
            return RunResult(best.images, best.finite, torch.ones_like(best.finite), passes)
        run = RunState(clean[at])
        run.loss = criterion[at].objective(margin, logits[at]).double()
        here = _Ascent(clean[at], criterion[at], streams[at])
        for step in range(self.steps):
            gradient, usable = self._gradient(model, here, step)
            passes.forward += 2 * self.samples * len(here.images)
            moved = here.images + self.learning_rate * _width(model) * here.adam(gradient, self.norm)
            here.images = ball.project(moved, here.clean, model.bounds)
            logits = model(here.images)
            passes.forward += len(here.images)
            usable &= is_valid(logits)
            fooled = here.criterion.is_adversarial(logits)
            loss = here.criterion.objective(margin, logits).double().masked_fill(~usable, -torch.inf)
            better = fooled | (loss > run.loss[here.place])
            place = here.place[better]
            run.images[place], run.loss[place] = here.images[better], loss[better]
            run.fooled[here.place], run.finite[here.place] = fooled, usable | fooled
            advance(len(at) / self.steps, "")
            here = here[usable & ~fooled]
            if not len(here.place):
                break
        best.update(at, run.images, run.loss, run.fooled, run.finite)
        return RunResult(best.images, best.finite, torch.ones_like(best.finite), passes)

    def _gradient(self, model: Classifier, here: "_Ascent", step: int) -> tuple[Images, Flags]:
        """Estimate the gradient of the loss at the iterates; also whether all logits that it took were finite."""
        low, high = model.bounds
        count, shape = len(here.images), tuple(here.images.shape[1:])
        reach = self.delta * _width(model)
        above, below = (here.images + reach).clamp(max=high), (here.images - reach).clamp(min=low)
        above, below = (here.criterion.restricted(each, here.images) for each in (above, below))
        total = torch.zeros_like(here.images)
        usable = torch.ones(count, dtype=torch.bool, device=total.device)
        for block in range(0, self.samples, _BLOCK):
            drawn = min(_BLOCK, self.samples - block)
            up = here.streams.uniform((drawn, *shape), "direction", step, block) < 0.5
            pair = [torch.where(each, above.unsqueeze(1), below.unsqueeze(1)) for each in (up, ~up)]
            logits = model(torch.stack(pair, 1).flatten(0, 2))
            criterion = here.criterion[torch.arange(count, device=total.device).repeat_interleave(2 * drawn)]
            loss = criterion.objective(margin, logits).view(count, 2, drawn)
            usable &= is_valid(logits).view(count, -1).all(1)
            rise = (loss[:, 0] - loss[:, 1]).to(total.dtype)
            total += torch.where(up, rise.view(count, drawn, 1, 1, 1), -rise.view(count, drawn, 1, 1, 1)).sum(1)
        return here.criterion.masked(total.div_(self.samples).div_(above - below)), usable


def _width(model: Classifier) -> float:
    """The range of the pixels."""
    return model.bounds[1] - model.bounds[0]


@final
class _Ascent(Rows):
    """The state of Adam on the images still attacked; every tensor has one row per image."""

    place: Int64[Tensor, " n"]
    """Positions of the images in the batch."""

    def __init__(self, clean: Images, criterion: Criterion, streams: Streams) -> None:
        self.place = torch.arange(len(clean), device=clean.device)
        self.clean, self.images = clean, clean
        self.criterion, self.streams = criterion, streams
        self.moments = AdamMoments(clean, tiny=0.0)

    def adam(self, gradient: Images, norm: Norm) -> Images:
        """Adam's direction of ascent, whose entries are about 1 or less."""
        squares = gradient.square()
        if norm == "l2":
            squares = column(squares.flatten(1).mean(1)).expand_as(squares)
        mean, size = self.moments.add(gradient, squares)
        return mean / size.clamp(min=_TINY)
