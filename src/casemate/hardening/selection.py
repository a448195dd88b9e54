"""The choice of an epoch by robust accuracy on validation images, under a fixed attack that costs little.

Adversarial training over-fits: robust accuracy on images that were not trained on falls in late epochs, which the clean
loss does not show (Rice, Wong and Kolter 2020, arXiv 2002.11569). They stop early by a PGD attack on validation images.
"""

from dataclasses import dataclass, replace
from typing import Annotated, final

import torch
from torch import Tensor

from casemate.attacks import PGD, Misclassification, frozen
from casemate.attacks.gradient import gradient_ascent
from casemate.data import LabelledImages
from casemate.logits import is_right
from casemate.models import Classifier
from casemate.norms import AnyNorm, Ball, Eps
from casemate.rng import Streams, derive
from casemate.settings import at_least, expect
from casemate.training import Objective, PreparedObjective, SteppedObjective, TrainingStep, takes_unlabelled
from casemate.types import Images, Labels, Logits

_BATCH = 500


@final
@dataclass(frozen=True, kw_only=True)
class SelectedByRobustness:
    """Another objective in training; in validation the share of images that a fixed attack fools, as the loss.

    The epoch of the lowest validation loss is then the one of the highest robust accuracy, the first one if several
    have it. The attack is PGD with the same random starts in every epoch, so that epochs differ by their weights only.
    """

    objective: Objective
    """The training objective."""
    eps: Eps
    """Radius of the attack's ball, in pixel units."""
    norm: AnyNorm = "linf"
    """Norm of the ball."""
    steps: Annotated[int, at_least(1)] = 10
    """Gradient steps of the attack; an image that is fooled takes no more."""
    seed: int = 0
    """Seed of the random starts."""

    def __post_init__(self) -> None:
        expect(self)

    def __call__(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the training loss and the logits of the objective."""
        return self.objective(model, images, labels)

    @torch.no_grad()
    def validate(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the share of the images that are misclassified after the attack, and the logits of the clean ones."""
        loop = PGD(eps=self.eps, steps=self.steps, norm=self.norm).loop()
        streams = Streams(derive(self.seed, "selection"), torch.arange(len(images), device=images.device))
        with frozen(model):
            logits = model(images)
            found = gradient_ascent(model, images, Misclassification(labels), loop, streams)
            attacked = model(found.images)
        return 1 - is_right(attacked, labels).float().mean(), logits

    @property
    def takes_unlabelled(self) -> bool:
        """Whether the training objective learns without labels."""
        return takes_unlabelled(self.objective)

    def at_step(self, step: TrainingStep) -> "SelectedByRobustness":
        """The selection with the training objective of a step, if that has one for each."""
        inner = self.objective
        return replace(self, objective=inner.at_step(step)) if isinstance(inner, SteppedObjective) else self

    def prepared_for(self, train: LabelledImages) -> "SelectedByRobustness":
        """The selection with the training objective prepared for the training images, if it can be."""
        inner = self.objective
        return replace(self, objective=inner.prepared_for(train)) if isinstance(inner, PreparedObjective) else self

    @property
    def ball(self) -> Ball:
        """The ball of the attack."""
        return Ball(eps=self.eps, norm=self.norm)

    def accuracies(self, model: Classifier, images: LabelledImages) -> tuple[float, float]:
        """Robust accuracy under the attack, and clean accuracy, of a model in evaluation mode, both from 0 to 1."""
        robust, clean = 0.0, 0
        for pixels, labels in images.batches(_BATCH, model.device):
            error, logits = self.validate(model, pixels, labels)
            robust += (1 - error.item()) * len(labels)
            clean += int((logits.argmax(1) == labels).sum())
        return robust / len(images), clean / len(images)
