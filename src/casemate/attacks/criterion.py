"""The criterion of an attack: which examples count as fooled, and the objective that leads there."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int64
from torch import Tensor

from casemate.logits import is_valid
from casemate.losses import Loss
from casemate.rows import Rows
from casemate.types import Flags, Images, Labels, Logits, Mask, PerExample


@final
@dataclass(frozen=True)
class Watched(Rows):
    """Reports whose logits a `Criterion` judges, for counting queries per image without a change in any attack."""

    positions: Int64[Tensor, " n"]
    """Positions of the examples in the batch."""
    report: Callable[[Tensor, Logits], None]
    """Called with the positions and the logits whenever logits are judged; the same logits may be judged again."""


@final
@dataclass(frozen=True)
class Criterion(Rows):
    """What counts as fooled: misclassification, or with `targeted` classification as the target.

    `criterion[mask]` is the criterion of some of the examples.
    """

    classes: Labels
    """The true labels, or with `targeted` the target classes."""
    targeted: bool = False
    never: bool = False
    """No example counts as fooled, so that an attack uses its whole budget, as `Transfer` needs on a substitute."""
    watched: Watched | None = None
    """Is given all logits that are judged; None: nobody watches."""
    mask: Mask | None = None
    """Which values of each image the attack may change; None: all."""

    def masked(self, gradient: Images) -> Images:
        """A gradient, or a change of the images, with zero for the values that the mask holds fixed."""
        return gradient if self.mask is None else gradient.where(self.mask, 0.0)

    def restricted(self, images: Images, clean: Images) -> Images:
        """The images with the values of the clean ones where the mask holds them fixed."""
        return images if self.mask is None else images.where(self.mask, clean)

    def is_adversarial(self, logits: Logits) -> Flags:
        """Which examples are fooled; False where a logit is not finite."""
        self._report(logits)
        hit = logits.argmax(1) == self.classes
        if self.never:
            return torch.zeros_like(hit)
        return (hit if self.targeted else ~hit) & is_valid(logits)

    def objective(self, loss: Loss, logits: Logits) -> PerExample:
        """What an attack maximises, `(n,)`: `loss` under the label, or if targeted minus `loss` under the target."""
        self._report(logits)
        value = loss(logits, self.classes)
        return -value if self.targeted else value

    def _report(self, logits: Logits) -> None:
        if self.watched is not None:
            self.watched.report(self.watched.positions, logits)
