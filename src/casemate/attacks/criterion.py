"""When an example counts as fooled."""

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
    """When an example counts as fooled: not classified as its label, or, `targeted`, classified as its target.

    `criterion[mask]` is the criterion of some of the examples.
    """

    classes: Labels
    targeted: bool = False
    never: bool = False
    """Nothing counts as fooled, so that an attack uses its whole budget: for one on a substitute (see `Transfer`)."""

    def is_adversarial(self, logits: Logits) -> Flags:
        """Which examples are fooled; never where a logit is not finite."""
        hit = logits.argmax(1) == self.classes
        if self.never:
            return torch.zeros_like(hit)
        return (hit if self.targeted else ~hit) & is_valid(logits)

    def objective(self, loss: Loss, logits: Logits) -> PerExample:
        """What to ascend: the loss of the label, or minus the loss of the target."""
        value = loss(logits, self.classes)
        return -value if self.targeted else value
