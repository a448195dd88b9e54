"""The worst case per example: over the runs or draws of one attack, and over several attacks run in order."""

import math
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from casemate.attacks.base import AbstractAttack
from casemate.attacks.criterion import Criterion
from casemate.attacks.result import Passes, RunResult
from casemate.attacks.verify import Verified, verify_candidates
from casemate.logits import is_valid
from casemate.models import Classifier
from casemate.norms import Ball
from casemate.progress import Advance
from casemate.rng import Streams
from casemate.types import Flags, Images, Logits, PerExample

Choice = Callable[[Tensor, Criterion, Verified], tuple[Flags, Flags]]
"""A function that returns which candidates of a run to keep, and which examples need no further run. Its arguments: the
positions of the examples in the batch, their criterion, and their verified candidates."""


@final
class RunState:
    """The state of one run of an attack on a batch, one entry per example."""

    def __init__(self, images: Images) -> None:
        none = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        self.images = images.clone()
        """The first iterate that fooled, or else the one with the highest loss."""
        self.loss = torch.full((len(images),), -math.inf, dtype=torch.float64, device=images.device)
        """The loss that the attack maximises, at `images`; not used where they fool."""
        self.fooled, self.has_gradient = none.clone(), none.clone()
        self.finite = ~none
        """All logits and gradients of the run were finite."""
        self.passes = Passes()


@final
class BestCandidates:
    """The best candidate of each example of a batch: the first that fools, or else the one with the highest loss."""

    def __init__(self, clean: Images, criterion: Criterion, logits: Logits | None = None) -> None:
        """Start with the clean images.

        Args:
            logits: of the clean images. Examples that count as fooled already, or whose logits are not finite, are not
                attacked. None: all examples are attacked.
        """
        self.images = clean.clone()
        attacked = torch.ones(len(clean), dtype=torch.bool, device=clean.device)
        self.finite = attacked if logits is None else is_valid(logits)
        """Logits and gradients were finite for all candidates of the example so far, or one of them fooled."""
        if logits is not None:
            attacked = self.finite & ~criterion.is_adversarial(logits)
        self.left = attacked.nonzero().squeeze(1)
        """Positions of the examples still to be attacked."""
        self._loss = torch.full((len(clean),), -math.inf, dtype=torch.float64, device=clean.device)

    def update(self, at: Tensor, images: Images, loss: PerExample, fooled: Flags, finite: Flags) -> None:
        """Make candidates the best of their examples where they fool or have a higher loss than the best so far.

        Args:
            at: positions of the examples in the batch. Fooled ones are removed from `left`.
            images: their candidates.
            loss: the loss that the attack maximises, at `images`; minus infinity where it is not finite.
            finite: whether all logits and gradients were finite in the search for each candidate; noted in `finite`.
        """
        better = fooled | (loss > self._loss[at])
        place = at[better]
        self.images[place], self._loss[place] = images[better], loss[better].double()
        self.finite[at] = fooled | (self.finite[at] & finite)
        self.left = self.left[~torch.isin(self.left, at[fooled])]


def run_on_survivors(
    runs: Sequence[tuple[AbstractAttack, int]],
    ball: Ball,
    model: Classifier,
    clean: Images,
    criterion: Criterion,
    index: Tensor,
    choose: Choice,
    advance: Advance,
) -> RunResult:
    """Run attacks in order on one batch, each on the examples that still need a run; verify every candidate.

    Args:
        runs: each attack with the seed of its random draws.
        ball: the ball that candidates are verified to lie in.
        index: numbers of the examples in their data set, which key the draws, int64 `(n,)`.
        choose: decides after each run which candidates to keep and which examples need no further run.
    """
    none = torch.zeros(len(clean), dtype=torch.bool, device=clean.device)
    result = RunResult(clean.clone(), finite=none, has_gradient=none.clone(), passes=Passes())
    left = torch.arange(len(clean), device=clean.device)
    for attack, seed in runs:
        if not len(left):
            break
        part = criterion[left]
        streams = Streams(seed, index[left])
        run = attack.run(model, clean[left], part, streams, lambda amount, note="": advance(amount / len(runs), note))
        found = verify_candidates(model, run.images, clean[left], ball, model.bounds, run.finite, mask=part.mask)
        result.passes.add(run.passes)
        result.passes.add(found.passes)
        result.has_gradient[left] |= run.has_gradient
        kept, done = choose(left, part, found)
        place = left[kept]
        result.images[place], result.finite[place] = found.images[kept], found.finite[kept]
        left = left[~done]
    return result
