"""The search for the nearest adversarial image: what all attacks that do so by gradient record of each example.

`run_rounds` is the search as Carlini and Wagner set it up (2017, arXiv 1608.04644, section V). A round minimises
distance + c * loss for one weight c per example; the next round has another c, found by binary search. The nearest
image that fooled in any round is kept. Each attack has its own optimiser: Adam (`CarliniWagner`), iterative shrinkage
(`EAD`), L-BFGS (`LBFGS`). Attacks with a single run are in `_trajectory.py`. Distances are shares of the range of the
pixels, so that c, step sizes and weights of norms mean the same for all bounds.
"""

import math
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from casemate.attacks.criterion import Criterion
from casemate.attacks.differentiate import value_and_grad
from casemate.attacks.result import Passes, RunResult
from casemate.logits import is_valid, magnitude
from casemate.losses import margin
from casemate.models import Classifier
from casemate.rows import Rows
from casemate.types import Flags, Images, Logits, PerExample

CHECKS = 10
"""How many times per round finished examples are removed from the batch (the published code checks for stalled ones as
often)."""

_CLEAR = 100
"""Smallest logit margin at which an image counts as adversarial, as a multiple of the rounding error of the largest
logit: in a batch of another size the logits of an image differ by some rounding errors, and it must fool there too."""

_LARGEST = 1e10
"""Upper limit of c, the weight of the loss (the published code's)."""

_DECAY, _DECAY_SQUARES = 0.9, 0.999
"""Adam's default parameters beta_1 and beta_2 (Kingma and Ba 2015)."""

_STALLED = 0.9999
"""An example has stalled if its objective is above this share of its value at the last check (the published code)."""


def column(values: Tensor) -> Tensor:
    """One number per example in the shape `(n, 1, 1, 1)`, to multiply images by."""
    return values.view(-1, 1, 1, 1)


@final
class MinimumNormSearch:
    """The search on one batch: computes losses and gradients, and keeps each example's nearest image that fools."""

    def __init__(
        self,
        model: Classifier,
        clean: Images,
        criterion: Criterion,
        *,
        size: Callable[[Images], PerExample],
        loss: Callable[[Criterion, Logits], PerExample] | None = None,
        confidence: float = 0.0,
    ) -> None:
        """Classify the clean images; those that are misclassified already, or whose gradient is zero, are not attacked.

        Args:
            size: computes the distance to minimise, `(n,)`, from perturbations divided by the range of the pixels.
            loss: computes the loss, `(n,)`, that an image must lower in order to fool; `hinge` if None.
            confidence: smallest logit margin by which an adversarial image must be misclassified (kappa).
        """
        self.model, self.clean, self.criterion = model, clean, criterion
        self.width = model.bounds[1] - model.bounds[0]
        self.passes = Passes()
        self._size, self._confidence = size, confidence
        self.loss = loss or self.hinge
        """What `evaluate` computes the gradient of; see the argument."""
        logits, *first = self._pass(torch.arange(len(clean), device=clean.device), clean)
        self.first: tuple[PerExample, Images] = (first[0], first[1])
        """The loss of the clean images and its gradient."""
        gradient = self.first[1]
        fooled = criterion.is_adversarial(logits)
        self.images = clean.clone()
        self.distance = torch.where(fooled, 0.0, math.inf).to(clean.dtype)
        """The `size` of the perturbation in `images`; infinite where none fooled yet."""
        self.reached = torch.zeros_like(fooled)
        """An iterate fooled since the attack last reset this flag."""
        self.broken = ~(is_valid(logits) & gradient.flatten(1).isfinite().all(1))
        """Logits or a gradient were not finite; the example is not attacked any further."""
        self._has_gradient = gradient.flatten(1).ne(0).any(1)
        # from a clean image with a gradient of zero no optimiser would ever move
        self._attacked = (~fooled & self._has_gradient).nonzero().squeeze(1)

    def start_round(self) -> Tensor:
        """Reset `reached`, and return the positions of the examples to attack in a new round."""
        at = self._attacked[~self.broken[self._attacked]]
        self.reached[at] = False
        return at

    def value_and_grad(self, at: Tensor, images: Images) -> tuple[PerExample, Images]:
        """The loss and its gradient at `images`, as `evaluate` returns them, which also keeps the nearest."""
        _, loss, gradient = self.evaluate(at, images)
        return loss, gradient

    def evaluate(self, at: Tensor, images: Images, *, differentiate: bool = True) -> tuple[Flags, PerExample, Images]:
        """Which iterates of the examples at positions `at` fool, their loss, and its gradient.

        Iterates that fool and are nearer than any before are kept. Without `differentiate` the gradient is zero, and
        takes no pass.
        """
        logits, loss, gradient = self._pass(at, images, differentiate=differentiate)
        fooled = self._keep_nearest(at, images, logits)
        self.broken[at] |= ~gradient.flatten(1).isfinite().all(1)
        return fooled, loss, gradient

    def restricted(self, at: Tensor, images: Images) -> Images:
        """Images of the examples at positions `at`, with the clean values where the mask holds them fixed."""
        return self.criterion[at].restricted(images, self.clean[at])

    def hinge(self, criterion: Criterion, logits: Logits) -> PerExample:
        """By how much each example's logit margin is below kappa, or zero, `(n,)` (the paper's f_6, plus kappa)."""
        return self._shortfall(criterion, logits).clamp(min=0)

    def run_rounds(
        self, rounds: int, initial_const: float, minimize: Callable[[Tensor, PerExample], None]
    ) -> RunResult:
        """Run rounds with a binary search for the weight c of each example, and return the nearest images.

        Args:
            initial_const: the first c of every example.
            minimize: runs one round, for the examples at some positions with their weights c, `(n,)`.
        """
        constants = BinarySearchConst(self.clean, initial_const)
        for _ in range(rounds):
            at = self.start_round()
            if not len(at):
                break
            minimize(at, constants.value[at])
            constants.narrow(at, self.reached[at])
        return self.result()

    def result(self) -> RunResult:
        """The nearest adversarial images, as `AbstractAttack.run` returns them."""
        usable = ~self.broken | self.distance.isfinite()
        return RunResult(self.images, usable, self._has_gradient, self.passes)

    def _pass(self, at: Tensor, images: Images, *, differentiate: bool = True) -> tuple[Logits, PerExample, Images]:
        criterion = self.criterion[at]
        self.passes.add(Passes(len(at), len(at) if differentiate else 0))

        def loss(part: slice, logits: Logits) -> PerExample:
            return self.loss(criterion[part], logits)

        return value_and_grad(self.model, images, loss, differentiate=differentiate, mask=criterion.mask)

    def _shortfall(self, criterion: Criterion, logits: Logits) -> PerExample:
        clear = _CLEAR * torch.finfo(logits.dtype).eps * magnitude(logits)
        return self._confidence + clear - criterion.objective(margin, logits)

    def _keep_nearest(self, at: Tensor, images: Images, logits: Logits) -> Flags:
        criterion = self.criterion[at]
        fooled = criterion.is_adversarial(logits) & (self._shortfall(criterion, logits) <= 0)
        distance = self._size((images - self.clean[at]) / self.width)
        nearer = fooled & (distance < self.distance[at])
        self.images[at[nearer]] = images[nearer]
        self.distance[at[nearer]] = distance[nearer]
        self.reached[at] |= fooled
        self.broken[at] |= ~is_valid(logits)
        return fooled


@final
class AdamMoments(Rows):
    """The running means of Adam (Kingma and Ba 2015), with its default decays; one row per example."""

    def __init__(self, like: Images, tiny: float = 1e-8) -> None:
        self._steps, self._tiny = 0, tiny
        self._mean, self._squares = torch.zeros_like(like), torch.zeros_like(like)

    def add(self, gradient: Images, squares: Images | None = None) -> tuple[Images, Images]:
        """Add a gradient; return the unbiased mean of all gradients, and what Adam divides it by, to make a step.

        That is the root of the mean of `squares`, by default of the gradients' own, plus `tiny` (Adam's epsilon).
        """
        self._steps += 1
        squares = gradient.square() if squares is None else squares
        self._mean = _DECAY * self._mean + (1 - _DECAY) * gradient
        self._squares = _DECAY_SQUARES * self._squares + (1 - _DECAY_SQUARES) * squares
        mean, total = self._mean / (1 - _DECAY**self._steps), self._squares / (1 - _DECAY_SQUARES**self._steps)
        return mean, total.sqrt() + self._tiny


@final
class BinarySearchConst:
    """Binary search for the smallest weight c of each example's loss with which a round succeeds (the published code).

    c grows tenfold until a round succeeds, then it is bisected between the largest failure and the smallest success.
    """

    def __init__(self, clean: Images, first: float) -> None:
        self.value = torch.full_like(clean[:, 0, 0, 0], first)
        self._failed, self._sufficed = torch.zeros_like(self.value), torch.full_like(self.value, math.inf)

    def narrow(self, at: Tensor, reached: Flags) -> None:
        """Choose the next c of the examples at positions `at`; `reached`: their round with the last c succeeded."""
        value = self.value[at]
        failed = torch.where(reached, self._failed[at], torch.maximum(self._failed[at], value))
        sufficed = torch.where(reached, torch.minimum(self._sufficed[at], value), self._sufficed[at])
        self._failed[at], self._sufficed[at] = failed, sufficed
        self.value[at] = torch.where(sufficed.isinf(), (10 * value).clamp(max=_LARGEST), (failed + sufficed) / 2)


@final
class PlateauDetector(Rows):
    """Detects examples whose objective, averaged between two checks, fell by less than 0.01 % since the check before.

    The published code compares single values, which oscillating iterates mislead.
    """

    def __init__(self, like: PerExample) -> None:
        self._total, self._before = torch.zeros_like(like), torch.full_like(like, math.inf)

    def add(self, objective: PerExample, changed: Flags | None = None) -> None:
        """Add the objective of an iterate, `(n,)`.

        Where its definition has `changed`, the next two checks report no stall, since there is nothing to compare.
        """
        self._total = self._total + objective
        if changed is not None:
            self._total = self._total.masked_fill(changed, -math.inf)

    def check(self) -> Flags:
        """Mask of the examples that stalled since the last check; the objectives are added up from zero again."""
        stalled = self._total > _STALLED * self._before
        self._before = self._total.masked_fill(self._total.isinf(), math.inf)
        self._total = torch.zeros_like(self._total)
        return stalled
