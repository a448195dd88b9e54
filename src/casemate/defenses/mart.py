"""MART (Wang et al. 2020, "Improving adversarial robustness requires revisiting misclassified examples").

The loss is a cross-entropy of the adversarial images with an additional margin (equation 9) plus `beta` times the
divergence between the predictions on clean and adversarial images, weighted per image by how unsure the network is of
the clean one (equation 11): misclassified images get more weight.
"""

from dataclasses import dataclass
from typing import Annotated, final

import torch
import torch.nn.functional as F
from torch import Tensor

from casemate.defenses.adversarial_training import AdversarialTraining
from casemate.defenses.divergence import divergence
from casemate.defenses.weight_perturbation import Network, at_perturbed_weights
from casemate.losses import without
from casemate.models import Classifier
from casemate.norms import AnyNorm, Ball, Eps
from casemate.settings import at_least, expect, not_negative
from casemate.types import Images, Labels, Logits, PerExample


@final
@dataclass(frozen=True, kw_only=True)
class MART:
    """The training objective: boosted cross-entropy on adversarial images + `beta` * weighted divergence from clean.

    PGD is that of `AdversarialTraining`, in evaluation mode.
    """

    eps: Eps = 0.1
    """Radius of the ball, in pixel units; the norm runs over all pixels of an image."""
    beta: Annotated[float, not_negative()] = 5.0
    """Weight of the divergence (lambda in the paper)."""
    steps: Annotated[int, at_least(1)] = 10
    """Gradient steps of PGD for every batch."""
    step_size: Eps | None = None
    """Length of each step; 2.5 * eps / steps if None."""
    norm: AnyNorm = "linf"
    """Norm of the ball and of the steps: Linf (as published), L2, L1 or L0."""
    weight_perturbation: Annotated[float, not_negative()] = 0.0
    """Perturb the weights too, each layer by this share of its norm (adversarial weight perturbation); 0 for none."""

    def __post_init__(self) -> None:
        expect(self)

    def __call__(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the loss of the batch, and the logits of the clean images in evaluation mode, without gradients."""
        moved, logits = self._pgd.adversarial(model, images, labels)

        def loss(network: Network) -> Tensor:
            return self._loss(network(images), network(moved), labels)

        return at_perturbed_weights(model, loss, self.weight_perturbation), logits

    @torch.no_grad()
    def validate(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the loss of a validation batch, and the logits of its clean images."""
        moved, logits = self._pgd.adversarial(model, images, labels)
        return self._loss(logits, model(moved), labels), logits

    @property
    def ball(self) -> Ball:
        """The ball round each clean image in which PGD searches its adversarial image."""
        return Ball(eps=self.eps, norm=self.norm)

    @property
    def _pgd(self) -> AdversarialTraining:
        return AdversarialTraining(eps=self.eps, steps=self.steps, step_size=self.step_size, norm=self.norm)

    def _loss(self, clean: Logits, moved: Logits, labels: Labels) -> Tensor:
        """The mean loss of a batch from the logits of its clean and of its adversarial images."""
        right = F.softmax(clean, dim=1).gather(1, labels.unsqueeze(1)).squeeze(1)
        return (boosted_cross_entropy(moved, labels) + self.beta * divergence(clean, moved) * (1 - right)).mean()


def boosted_cross_entropy(logits: Logits, labels: Labels) -> PerExample:
    """The cross-entropy plus -log(1 - p) for p the largest probability of another class, `(n,)` (MART, equation 9).

    Both logarithms are taken of logits, so that neither overflows.
    """
    runner_up = without(logits, labels).argmax(1)
    rest = logits.logsumexp(1) - without(logits, runner_up).logsumexp(1)  # -log of one minus its probability
    return F.cross_entropy(logits, labels, reduction="none") + rest
