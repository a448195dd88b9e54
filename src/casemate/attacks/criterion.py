"""The criterion of an attack: which examples count as fooled, and the objective that leads there."""

from dataclasses import dataclass
from typing import final

import torch

from casemate.logits import is_valid
from casemate.losses import Loss
from casemate.rows import Rows
from casemate.types import Flags, Labels, Logits, PerExample


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

    def is_adversarial(self, logits: Logits) -> Flags:
        """Which examples are fooled; False where a logit is not finite."""
        hit = logits.argmax(1) == self.classes
        if self.never:
            return torch.zeros_like(hit)
        return (hit if self.targeted else ~hit) & is_valid(logits)

    def objective(self, loss: Loss, logits: Logits) -> PerExample:
        """What an attack maximises, `(n,)`: `loss` under the label, or if targeted minus `loss` under the target."""
        value = loss(logits, self.classes)
        return -value if self.targeted else value
