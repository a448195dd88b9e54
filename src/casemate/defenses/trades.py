"""TRADES (Zhang et al. 2019, arXiv 1901.08573): accuracy and robustness as two terms of the loss.

The loss is the cross-entropy of the clean images plus `beta` times the divergence between the predictions on the clean
images and on images near them that make it large (equation 5 with the Kullback-Leibler divergence, algorithm 1).
"""

from dataclasses import dataclass
from typing import Annotated, final

import torch
import torch.nn.functional as F
from torch import Tensor

from casemate.attacks import PGD, frozen
from casemate.defenses.divergence import divergence, most_divergent
from casemate.defenses.weight_perturbation import Network, at_perturbed_weights
from casemate.models import Classifier, check_batch
from casemate.norms import AnyNorm, Ball, Eps
from casemate.settings import at_least, between, expect, not_negative
from casemate.types import Images, Labels, Logits

START = 0.01
"""Radius of the ball of random starts, as a share of eps: near the clean image, where the divergence is zero and has no
gradient. (The paper adds Gaussian noise of 0.001.)"""


@final
@dataclass(frozen=True, kw_only=True)
class TRADES:
    """The training objective: cross-entropy + `beta` * divergence of the predictions on adversarial images.

    The adversarial images are found in evaluation mode, as published.
    """

    eps: Eps = 0.1
    """Radius of the ball, in pixel units; the norm runs over all pixels of an image."""
    beta: Annotated[float, not_negative()] = 6.0
    """Weight of the divergence (1 / lambda in the paper, which uses 6 for the most robust networks)."""
    steps: Annotated[int, at_least(1)] = 10
    """Gradient steps that find the adversarial images of a batch."""
    step_size: Eps | None = None
    """Length of each step; 2.5 * eps / steps if None."""
    norm: AnyNorm = "linf"
    """Norm of the ball and of the steps: Linf (as published), L2, L1 or L0."""
    label_smoothing: Annotated[float, between(0, 1, without_high=True)] = 0.0
    """Target probability of the cross-entropy that is spread evenly over all classes."""
    weight_perturbation: Annotated[float, not_negative()] = 0.0
    """Perturb the weights too, each layer by this share of its norm (adversarial weight perturbation; 0.005 is usual
    with TRADES); 0 for none."""

    def __post_init__(self) -> None:
        expect(self)

    def __call__(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the loss of the batch, and the logits of the clean images in evaluation mode, without gradients."""
        check_batch(model, images, labels)
        moved, logits = self.adversarial(model, images)

        def loss(network: Network) -> Tensor:
            clean = network(images)
            entropy = F.cross_entropy(clean, labels, label_smoothing=self.label_smoothing)
            return entropy + self.beta * divergence(clean, network(moved)).mean()

        return at_perturbed_weights(model, loss, self.weight_perturbation), logits

    @torch.no_grad()
    def validate(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the loss of a validation batch, without label smoothing, and the logits of its clean images."""
        moved, logits = self.adversarial(model, images)
        apart = divergence(logits, model(moved)).mean()
        return F.cross_entropy(logits, labels) + self.beta * apart, logits

    def adversarial(self, model: Classifier, images: Images) -> tuple[Images, Logits]:
        """The images whose predictions are far from those of the clean ones, and the clean logits, in evaluation mode.

        They are found without the labels.
        """
        with torch.no_grad(), frozen(model):
            logits = model(images)
        pgd = PGD(eps=self.eps, steps=self.steps, step_size=self.step_size, norm=self.norm)
        start = Ball(eps=1 if self.norm == "l0" else START * self.eps, norm=self.norm)
        return most_divergent(model, images, logits, pgd, start), logits

    @property
    def ball(self) -> Ball:
        """The ball round each clean image in which its adversarial image is searched."""
        return Ball(eps=self.eps, norm=self.norm)
