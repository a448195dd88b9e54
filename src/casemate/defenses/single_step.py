"""Adversarial training with one gradient step: FGSM-RS and N-FGSM, at twice the cost of ordinary training.

Both may collapse: within an epoch the network learns to fool the single step, and PGD finds adversarial images of
nearly all (catastrophic overfitting, Wong, Rice and Kolter 2020, arXiv 2001.03994, section 5). Train them with
`TrainConfig.guard`.
"""

from dataclasses import dataclass
from typing import Annotated, final

import torch
import torch.nn.functional as F
from torch import Tensor

from casemate.attacks import Misclassification, frozen
from casemate.attacks.differentiate import input_gradient
from casemate.defenses.weight_perturbation import adversarial_cross_entropy
from casemate.models import Classifier, check_batch
from casemate.norms import Ball, Eps
from casemate.rng import Streams
from casemate.settings import between, expect, not_negative, positive
from casemate.types import Images, Labels, Logits


@final
@dataclass(frozen=True, kw_only=True)
class FGSMRS:
    """The training objective: cross-entropy on adversarial images by FGSM from a random start (Wong et al. 2020).

    Algorithm 3: from a random point of the Linf ball one step along the sign of the gradient, back into the ball.
    """

    eps: Eps = 0.1
    """Radius of the Linf ball, in pixel units."""
    step: Annotated[float, positive()] = 1.25
    """Length of the step, as a multiple of eps."""
    label_smoothing: Annotated[float, between(0, 1, without_high=True)] = 0.0
    """Target probability that is spread evenly over all classes; the step attacks the label itself."""
    weight_perturbation: Annotated[float, not_negative()] = 0.0
    """Perturb the weights too, each layer by this share of its norm (adversarial weight perturbation); 0 for none."""

    def __post_init__(self) -> None:
        expect(self)

    def __call__(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the mean cross-entropy of the adversarial images, and the logits at the random starts.

        The latter, from which training only computes the accuracy, have no gradient.
        """
        moved, logits = self.adversarial(model, images, labels)
        smoothing, gamma = self.label_smoothing, self.weight_perturbation
        return adversarial_cross_entropy(model, [moved], labels, smoothing, gamma), logits

    @torch.no_grad()
    def validate(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the mean cross-entropy of the adversarial images, and the logits of the clean ones."""
        moved, _ = self.adversarial(model, images, labels)
        return F.cross_entropy(model(moved), labels), model(images)

    def adversarial(self, model: Classifier, images: Images, labels: Labels) -> tuple[Images, Logits]:
        """The images that the step finds, and the logits at the random starts, both in evaluation mode."""
        start, gradient, logits = _at_random_start(model, images, labels, self.ball)
        return self.ball.project(start + self.step * self.eps * gradient.sign(), images, model.bounds), logits

    @property
    def ball(self) -> Ball:
        """The ball round each clean image that the adversarial image lies in."""
        return Ball(eps=self.eps, norm="linf")


@final
@dataclass(frozen=True, kw_only=True)
class NFGSM:
    """The training objective: cross-entropy on adversarial images by FGSM from stronger noise (de Jorge et al. 2022).

    N-FGSM (arXiv 2202.01181, algorithm 1): noise from a ball of `noise` times the radius, then one step of length eps
    along the sign of the gradient, and no projection. The adversarial images may therefore lie outside the ball of
    radius eps; they are clipped to the pixels' range.
    """

    eps: Eps = 0.1
    """Radius that the network is to withstand in Linf, and length of the step, in pixel units."""
    noise: Annotated[float, positive()] = 2.0
    """Radius of the noise, as a multiple of eps (the paper's k)."""
    label_smoothing: Annotated[float, between(0, 1, without_high=True)] = 0.0
    """Target probability that is spread evenly over all classes; the step attacks the label itself."""
    weight_perturbation: Annotated[float, not_negative()] = 0.0
    """Perturb the weights too, each layer by this share of its norm (adversarial weight perturbation); 0 for none."""

    def __post_init__(self) -> None:
        expect(self)

    def __call__(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the mean cross-entropy of the adversarial images, and the logits of the noisy ones.

        The latter, from which training only computes the accuracy, have no gradient.
        """
        moved, logits = self.adversarial(model, images, labels)
        smoothing, gamma = self.label_smoothing, self.weight_perturbation
        return adversarial_cross_entropy(model, [moved], labels, smoothing, gamma), logits

    @torch.no_grad()
    def validate(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the mean cross-entropy of the adversarial images, and the logits of the clean ones."""
        moved, _ = self.adversarial(model, images, labels)
        return F.cross_entropy(model(moved), labels), model(images)

    def adversarial(self, model: Classifier, images: Images, labels: Labels) -> tuple[Images, Logits]:
        """The images that the step finds, and the logits of the noisy ones, both in evaluation mode."""
        start, gradient, logits = _at_random_start(model, images, labels, Ball(eps=self.noise * self.eps, norm="linf"))
        low, high = model.bounds
        return (start + self.eps * gradient.sign()).clamp(low, high), logits

    @property
    def ball(self) -> Ball:
        """The ball of radius eps round each clean image, in which robustness is measured."""
        return Ball(eps=self.eps, norm="linf")


def _at_random_start(model: Classifier, images: Images, labels: Labels, ball: Ball) -> tuple[Images, Images, Logits]:
    """Random points of the ball, the gradient of the loss there (zero where not finite), and the logits there.

    PyTorch's global generator gives the seed. The model is in evaluation mode, as in `AdversarialTraining`.
    """
    check_batch(model, images, labels)
    streams = Streams(int(torch.randint(1 << 62, ())), torch.arange(len(images), device=images.device))
    start = ball.sample(images.detach(), model.bounds, streams, "start")
    with frozen(model):
        logits, gradient = input_gradient(model, start, Misclassification(labels), "ce")
    return start, gradient.where(gradient.isfinite(), 0.0), logits
