"""HopSkipJump: a decision-based attack for the nearest image (Chen, Jordan and Wainwright 2020, arXiv 1904.02144).

It uses predicted classes only, no gradients and no scores. Starting from a random image that fools, each step finds the
boundary between that image and the clean one by bisection, estimates the boundary's normal there from random probes,
and moves along the normal (algorithm 2 of the paper). Differences: starts are noise of all spatial scales, because many
networks give all pixel-wise noise the same class; the nearest image of all steps is returned, a little beyond the
boundary; and an image without a start fails without affecting the others. A targeted attack starts from noise too,
which often is never classified as the target.
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch

from casemate.attacks._decisions import BEYOND, BLENDS, Oracle, Positions, find_starts, to_boundary
from casemate.attacks._minimum_norm import column
from casemate.attacks.base import AbstractMinimumNormAttack
from casemate.attacks.criterion import Criterion
from casemate.attacks.result import Passes, RunResult
from casemate.models import Classifier
from casemate.norms import Norm, norm_of
from casemate.progress import Advance
from casemate.rng import Streams
from casemate.settings import at_least, one_of
from casemate.types import Images, PerExample

_BLOCK = 16
"""Number of random probes per image that are drawn and classified together."""

_SHRINKS = 20
"""Halvings of the step along the normal before the step is abandoned; each is a query."""


@final
@dataclass(frozen=True, kw_only=True)
class HopSkipJump(AbstractMinimumNormAttack):
    """Walk along the decision boundary towards the clean image, using predicted classes only."""

    stream: ClassVar[str] = "HopSkipJump"

    norm: Annotated[Norm, one_of("l2", "linf")] = "l2"
    """Norm of the perturbation that is minimised: L2 or Linf; the paper defines no other."""
    n_queries: Annotated[int, at_least(100, "finding a start alone takes as many")] = 10_000
    """Largest number of forward passes (queries) per image. The paper shows 1,000 to 25,000; its 50 steps take about
    25,000. A step for which too few queries are left is not started."""
    steps: Annotated[int, at_least(1)] = 50
    """Largest number of steps, each of which finds the boundary, estimates its normal and moves along it."""
    evaluations: Annotated[int, at_least(1)] = 100
    """Random probes from which the first step estimates the boundary's normal; step t takes sqrt(t) times as many (the
    paper's B_0)."""
    max_evaluations: Annotated[int, at_least(1)] = 10_000
    """Largest number of probes in a step."""
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
        """Find a start for each image, then step along the boundary; the candidates are the nearest images that fooled.

        `finite` is False where no image fooled and some logits were not finite.
        """
        oracle = Oracle(model, criterion, len(clean))
        pixels = clean[0].numel()
        # the paper's precisions are d^-1.5 and d^-2 for d pixels; float32 resolves 2^-22, and even for a few pixels the
        # precision should be 2^-10
        bisections = min(22, max(10, math.ceil((1.5 if self.norm == "l2" else 2.0) * math.log2(pixels))))
        active = torch.arange(len(clean), device=clean.device)
        active = active[~oracle(clean, active) & oracle.finite]
        tries = min(self.starts, self.n_queries - BLENDS - bisections - 2)
        starts, started = find_starts(oracle, clean, active, streams, tries)
        active = started.nonzero().squeeze(1)
        images = starts[active]
        nearest, distance = clean.clone(), torch.full((len(clean),), math.inf, dtype=clean.dtype, device=clean.device)
        nearest[active] = images
        distance[active] = norm_of(images - clean[active], self.norm)
        if len(active):
            # along the line for Linf too: much nearer than what clipping noise to boxes round the clean image gives
            images = to_boundary(oracle, images, clean[active], active, "l2", BLENDS)
        for step in range(1, self.steps + 2):
            if not len(active):
                break
            images = to_boundary(oracle, images, clean[active], active, self.norm, bisections)
            length = norm_of(images - clean[active], self.norm)
            beyond = torch.lerp(clean[active], images, 1 + BEYOND).clamp(*model.bounds)
            reach = norm_of(beyond - clean[active], self.norm)
            closer = oracle(beyond, active) & (reach < distance[active])
            nearest[active[closer]] = beyond[closer]
            distance[active[closer]] = reach[closer]
            advance(len(clean) / (self.steps + 1), "")

            probes = min(int(self.evaluations * math.sqrt(step)), self.max_evaluations)
            going = oracle.spent[active] + probes + _SHRINKS + bisections + 1 <= self.n_queries
            if step > self.steps or not going.any():
                break
            active, images, length = active[going], images[going], length[going]
            first = torch.full_like(length, 0.1 * (model.bounds[1] - model.bounds[0]))  # as in the original code
            radius = first if step == 1 else length / pixels
            normal = _normal(oracle, images, active, radius, streams[active], step, probes)
            if self.norm == "linf":
                normal = normal.sign()
            images = _walk(oracle, images, active, normal, length / math.sqrt(step))
        usable = oracle.finite | distance.isfinite()
        return RunResult(nearest, usable, torch.ones_like(usable), Passes(forward=int(oracle.spent.sum())))


def _normal(
    oracle: Oracle, images: Images, who: Positions, radius: PerExample, streams: Streams, step: int, probes: int
) -> Images:
    """Estimate the normal of the boundary, of length 1 and towards the images that fool, at images that lie on it.

    Args:
        who: positions of their examples in the batch.
        radius: distance of the probes from the image, per example.
        streams: of the examples `who`.
        step: number of the step, which keys the random probes.
        probes: number of probes per image.
    """
    low, high = oracle.model.bounds
    shape = tuple(images.shape[1:])
    weighted, plain, agreed = torch.zeros_like(images), torch.zeros_like(images), torch.zeros_like(radius)
    for block in range(0, probes, _BLOCK):
        count = min(_BLOCK, probes - block)
        direction = streams.normal((count, *shape), "probe", step, block).to(images.dtype)
        mask = oracle.criterion[who].mask
        direction = direction if mask is None else direction.where(mask.unsqueeze(1), 0.0)
        direction /= direction.flatten(2).norm(dim=2).view(len(who), count, 1, 1, 1)
        centre, reach = images.unsqueeze(1), radius.view(-1, 1, 1, 1, 1)
        probe = (centre + reach * direction).clamp(low, high)
        direction = (probe - centre) / reach  # shorter where the bounds clipped the probe
        answer = torch.where(oracle(probe.flatten(0, 1), who.repeat_interleave(count)), 1.0, -1.0)
        answer = answer.to(images.dtype).view(len(who), count)
        weighted += (answer.view(len(who), count, 1, 1, 1) * direction).sum(1)
        plain += direction.sum(1)
        agreed += answer.sum(1)
    mean = column(agreed / probes)
    # the mean answer is subtracted as a baseline that reduces the variance, unless all answers are the same
    normal = torch.where(mean.abs() == 1, mean * plain, weighted - mean * plain)
    return normal / column(normal.flatten(1).norm(dim=1).clamp(min=torch.finfo(normal.dtype).tiny))


def _walk(oracle: Oracle, images: Images, who: Positions, normal: Images, length: PerExample) -> Images:
    """Move images along the normal by `length`, halved until they fool; an image that never does is not moved.

    `who` are the positions of their examples in the batch.
    """
    low, high = oracle.model.bounds
    moved, left = images.clone(), torch.arange(len(who), device=images.device)
    for _ in range(_SHRINKS):
        tried = (images[left] + column(length[left]) * normal[left]).clamp(low, high)
        fooled = oracle(tried, who[left])
        moved[left[fooled]] = tried[fooled]
        left, length = left[~fooled], length / 2
        if not len(left):
            break
    return moved
