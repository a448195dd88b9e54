"""What attacks share that use predicted classes only: counted decisions, starts, and the way to the boundary."""

import math
from typing import final

import torch
from jaxtyping import Int64
from torch import Tensor

from casemate.attacks._minimum_norm import column
from casemate.attacks.criterion import Criterion
from casemate.logits import is_valid
from casemate.models import Classifier
from casemate.norms import Norm, norm_of
from casemate.rng import Streams
from casemate.types import Flags, Images

Positions = Int64[Tensor, " m"]

_ROWS = 512
"""Largest number of images per forward pass, to limit memory: a batch has many probes per image."""

BLENDS = 10
"""Bisection steps from the start, a noise image, towards the clean image: to a thousandth of the distance, as in the
original HopSkipJump."""

BEYOND = 1e-4
"""How far beyond the boundary returned images lie, as a share of the perturbation: on the boundary, rounding alone
would decide their class."""


@final
class Oracle:
    """Decides whether images fool, and counts the queries of each example in `spent`."""

    def __init__(self, model: Classifier, criterion: Criterion, count: int) -> None:
        self.model, self.criterion = model, criterion
        self.spent = torch.zeros(count, dtype=torch.int64, device=model.device)
        self.finite = torch.ones(count, dtype=torch.bool, device=model.device)

    def __call__(self, images: Images, who: Positions) -> Flags:
        """Whether each image fools; `who` are the positions in the batch of the examples that the images belong to."""
        logits = torch.cat([self.model(part) for part in images.split(_ROWS)])
        self.spent.index_add_(0, who, torch.ones_like(who))
        self.finite[who[~is_valid(logits)]] = False
        return self.criterion[who].is_adversarial(logits)


def find_starts(oracle: Oracle, clean: Images, who: Positions, streams: Streams, tries: int) -> tuple[Images, Flags]:
    """A noise image that fools for each example at the positions `who`, and whether one was found within `tries`.

    Both are for the whole batch: clean images and False for all other examples. The noise is constant over squares of
    1, 2, 4, ... pixels in turn; first uniform, as in the paper, then also with values at the bounds only, which reaches
    classes that uniform noise does not.
    """
    channels, height, width = clean.shape[1:]
    low, high = oracle.model.bounds
    coarsenesses = math.ceil(math.log2(max(height, width))) + 1
    images, started = clean.clone(), torch.zeros(len(clean), dtype=torch.bool, device=clean.device)
    for number in range(tries):
        if not len(who):
            break
        side = 2 ** (number % coarsenesses)
        shape = (channels, math.ceil(height / side), math.ceil(width / side))
        noise = streams[who].uniform(shape, "start", number).to(clean.dtype)
        if number // coarsenesses % 2:
            noise = noise.round()
        noise = (
            (low + (high - low) * noise)
            .repeat_interleave(side, 2)
            .repeat_interleave(side, 3)[:, :, :height, :width]
            .clamp(low, high)
        )
        noise = oracle.criterion[who].restricted(noise, clean[who])
        fooled = oracle(noise, who)
        images[who[fooled]] = noise[fooled]
        started[who[fooled]] = True
        who = who[~fooled]
    return images, started


def to_boundary(oracle: Oracle, images: Images, clean: Images, who: Positions, norm: Norm, bisections: int) -> Images:
    """Move `images`, which fool, to the boundary, where they still fool, by bisection between them and the clean ones.

    For L2 it is along the line between them, for Linf by clipping to boxes round the clean images.
    """
    largest = column(norm_of(images - clean, norm))
    far, low, high = images, torch.zeros_like(largest), torch.ones_like(largest)
    for _ in range(bisections):
        middle = (low + high) / 2
        if norm == "l2":
            tried = torch.lerp(clean, far, middle)
        else:
            tried = far.maximum(clean - middle * largest).minimum(clean + middle * largest)
        fooled = column(oracle(tried, who))
        images = torch.where(fooled, tried, images)
        low, high = torch.where(fooled, low, middle), torch.where(fooled, middle, high)
    return images
