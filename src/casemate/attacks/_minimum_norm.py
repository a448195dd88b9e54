"""The search for the nearest image that fools, as Carlini and Wagner set it up (2017, arXiv 1608.04644, section V).

A round minimises distance + c * loss for one weight c per example; from round to round c is searched for, and the
nearest image that fooled on the way is kept. What minimises is up to the attack: Adam (`CarliniWagner`), iterative
shrinkage (`EAD`), L-BFGS (`LBFGS`). Distances are in shares of the range of the pixels, so that c, step sizes and the
weights of norms mean the same for all bounds.
"""

import math
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from casemate.attacks.criterion import Criterion
from casemate.attacks.gradient import value_and_grad
from casemate.attacks.result import Passes, RunResult
from casemate.logits import is_valid, magnitude
from casemate.losses import margin
from casemate.models import Classifier
from casemate.rows import Rows
from casemate.types import Flags, Images, Logits, PerExample

CHECKS = 10
"""How often per round examples that are done leave the batch (the published code looks for stalled ones as often)."""

_CLEAR = 100
"""By how many units of rounding of the largest logit the lead must exceed zero: in a batch of another size the same
image gets logits that differ by some of them, and must fool there too."""

_LARGEST = 1e10
"""No c is larger (the published code)."""

_STALLED = 0.9999
"""An objective that has not fallen below this share of its value at the last check has stalled (the published code)."""


def column(values: Tensor) -> Tensor:
    """One number per example, shaped to go with images."""
    return values.view(-1, 1, 1, 1)


@final
class MinimumNormSearch:
    """A batch under attack, and per example the nearest image that fools of all that were looked at."""

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
        """Look at the clean images: which fool as they are, and which have a gradient to follow.

        Args:
            size: of perturbations in shares of the range of the pixels; the smallest is kept.
            loss: what has to fall for an image to fool; `hinge` if None.
            confidence: by how much the logits of what fools must lead (kappa).
        """
        self.model, self.clean, self.criterion = model, clean, criterion
        self.width = model.bounds[1] - model.bounds[0]
        self.passes = Passes()
        self._size, self._loss, self._confidence = size, loss or self.hinge, confidence
        logits, _, gradient = self._pass(torch.arange(len(clean), device=clean.device), clean)
        fooled = criterion.is_adversarial(logits)
        self.images = clean.clone()
        self.distance = torch.where(fooled, 0.0, math.inf).to(clean.dtype)
        """As `size` has it; infinite where nothing fooled yet."""
        self.reached = torch.zeros_like(fooled)
        """Fooled since an attack last cleared it."""
        self.broken = ~(is_valid(logits) & gradient.flatten(1).isfinite().all(1))
        """Logits or a gradient were not finite: the example takes no further part."""
        self._has_gradient = gradient.flatten(1).ne(0).any(1)
        # where the clean image has no gradient nothing would ever move it
        self._attacked = (~fooled & self._has_gradient).nonzero().squeeze(1)

    def open(self) -> Tensor:
        """The positions of the examples under attack; for a new round, none of them `reached`."""
        at = self._attacked[~self.broken[self._attacked]]
        self.reached[at] = False
        return at

    def value_and_grad(self, at: Tensor, images: Images) -> tuple[PerExample, Images]:
        """The loss at images of the examples `at`, and its gradient."""
        logits, loss, gradient = self._pass(at, images)
        self._note(at, images, logits)
        self.broken[at] |= ~gradient.flatten(1).isfinite().all(1)
        return loss, gradient

    def hinge(self, criterion: Criterion, logits: Logits) -> PerExample:
        """By how much the lead of what fools falls short of kappa (the paper's f_6, plus kappa), or zero."""
        return self._missing(criterion, logits).clamp(min=0)

    def result(self) -> RunResult:
        """What `AbstractAttack.run` returns."""
        usable = ~self.broken | self.distance.isfinite()
        return RunResult(self.images, usable, self._has_gradient, self.passes)

    def _pass(self, at: Tensor, images: Images) -> tuple[Logits, PerExample, Images]:
        criterion = self.criterion[at]
        self.passes.add(Passes(len(at), len(at)))
        return value_and_grad(self.model, images, lambda part, logits: self._loss(criterion[part], logits))

    def _missing(self, criterion: Criterion, logits: Logits) -> PerExample:
        clear = _CLEAR * torch.finfo(logits.dtype).eps * magnitude(logits)
        return self._confidence + clear - criterion.objective(margin, logits)

    def _note(self, at: Tensor, images: Images, logits: Logits) -> None:
        criterion = self.criterion[at]
        fooled = criterion.is_adversarial(logits) & (self._missing(criterion, logits) <= 0)
        distance = self._size((images - self.clean[at]) / self.width)
        nearer = fooled & (distance < self.distance[at])
        self.images[at[nearer]] = images[nearer]
        self.distance[at[nearer]] = distance[nearer]
        self.reached[at] |= fooled
        self.broken[at] |= ~is_valid(logits)


@final
class BinarySearchConst:
    """The weight c of each example's loss: the smallest that suffices (the published code).

    Ten times as much while none suffices, then bisection between the largest that failed and the smallest that did.
    """

    def __init__(self, clean: Images, first: float) -> None:
        self.value = torch.full_like(clean[:, 0, 0, 0], first)
        self._failed, self._sufficed = torch.zeros_like(self.value), torch.full_like(self.value, math.inf)

    def narrow(self, at: Tensor, reached: Flags) -> None:
        """Choose the next c of the examples `at`, given whether the last one sufficed."""
        value = self.value[at]
        failed = torch.where(reached, self._failed[at], torch.maximum(self._failed[at], value))
        sufficed = torch.where(reached, torch.minimum(self._sufficed[at], value), self._sufficed[at])
        self._failed[at], self._sufficed[at] = failed, sufficed
        self.value[at] = torch.where(sufficed.isinf(), (10 * value).clamp(max=_LARGEST), (failed + sufficed) / 2)


@final
class PlateauDetector(Rows):
    """Which examples no longer get anywhere: the mean of their objective between two checks did not fall.

    The published code compares single values; the mean is not fooled by an iterate that swings to and fro.
    """

    def __init__(self, like: PerExample) -> None:
        self._total, self._before = torch.zeros_like(like), torch.full_like(like, math.inf)

    def note(self, objective: PerExample, changed: Flags | None = None) -> None:
        """Take in the objective of an iterate; where it `changed` there is nothing to compare it with."""
        self._total = self._total + objective
        if changed is not None:
            self._total = self._total.masked_fill(changed, -math.inf)

    def check(self) -> Flags:
        """Who stalled since the last check."""
        stalled = self._total > _STALLED * self._before
        self._before = self._total.masked_fill(self._total.isinf(), math.inf)
        self._total = torch.zeros_like(self._total)
        return stalled
