"""Adversarial training with PGD (Madry et al. 2018, arXiv 1706.06083).

The network is trained only on the adversarial images that PGD finds within a ball round each image of the batch. This
is the plain method that others are compared with: no clean loss, no schedule of eps, one eps for all images.
"""

from dataclasses import dataclass
from typing import Annotated, final

import torch
import torch.nn.functional as F
from torch import Tensor

from casemate.attacks import PGD, Misclassification, frozen
from casemate.attacks.gradient import Loop, gradient_ascent
from casemate.defenses.weight_perturbation import adversarial_cross_entropy
from casemate.models import Classifier, check_batch
from casemate.norms import AnyNorm, Ball, Eps
from casemate.rng import Streams
from casemate.settings import at_least, between, expect, not_negative
from casemate.types import Images, Labels, Logits


@final
@dataclass(frozen=True, kw_only=True)
class AdversarialTraining:
    """The training objective: cross-entropy on adversarial images by PGD (Madry et al. 2018, eq. 2.1).

    During PGD the model is in evaluation mode: neither dropout nor batch statistics change the gradient, the attack is
    on the network as it will be used, and the iterates do not enter the running averages of batch normalisation. The
    paper's own code used training mode; TRADES (Zhang et al. 2019) and the authors' later library use evaluation mode,
    which is about as robust and better on clean images (Pang et al. 2021, arXiv 2010.00467). The loss of the images
    found is computed in the mode that the model was in.
    """

    eps: Eps = 0.1
    """Radius of the ball, in pixel units; the norm runs over all pixels of an image."""
    steps: Annotated[int, at_least(1)] = 7
    """Gradient steps of PGD for every batch (the default is the paper's number on CIFAR-10)."""
    step_size: Eps | None = None
    """Length of each step; 2.5 * eps / steps if None."""
    norm: AnyNorm = "linf"
    """Norm of the ball and of the steps: Linf (as published), L2 or L1."""
    random_start: bool = True
    """Start from a random point of the ball. Without it, and with few steps, training may end in a network that only
    masks its gradients."""
    label_smoothing: Annotated[float, between(0, 1, without_high=True)] = 0.0
    """Target probability that is spread evenly over all classes; PGD attacks the label itself."""
    weight_perturbation: Annotated[float, not_negative()] = 0.0
    """Perturb the weights too, each layer by this share of its norm (adversarial weight perturbation, Wu et al. 2020,
    who use 0.01); 0 for none."""

    def __post_init__(self) -> None:
        expect(self)

    def __call__(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the mean cross-entropy of the adversarial images, and the logits of the clean ones.

        The latter, from which training only computes the accuracy, are those of the model in evaluation mode, without a
        gradient: a second batch in training mode would enter the running averages of batch normalisation.
        """
        moved, logits = self.adversarial(model, images, labels)
        smoothing, gamma = self.label_smoothing, self.weight_perturbation
        return adversarial_cross_entropy(model, [moved], labels, smoothing, gamma), logits

    @torch.no_grad()
    def validate(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the mean cross-entropy of a validation batch's adversarial images, and the logits of its clean ones.

        Early stopping then monitors robustness: adversarial training over-fits, which the clean loss does not show
        (Rice, Wong and Kolter 2020, arXiv 2002.11569).
        """
        moved, logits = self.adversarial(model, images, labels)
        return F.cross_entropy(model(moved), labels), logits

    def adversarial(self, model: Classifier, images: Images, labels: Labels) -> tuple[Images, Logits]:
        """The last iterates of PGD, and the logits of the clean images, both with the model in evaluation mode.

        PyTorch's global generator gives the seed of the random starts, as it does for dropout. An image whose gradient
        is not finite is not changed.
        """
        check_batch(model, images, labels)
        streams = Streams(int(torch.randint(1 << 62, ())), torch.arange(len(images), device=images.device))
        with frozen(model):
            with torch.no_grad():
                logits = model(images)
            found = gradient_ascent(model, images.detach(), Misclassification(labels), self._loop(), streams)
        return found.images, logits

    @property
    def ball(self) -> Ball:
        """The ball round each clean image in which PGD searches its adversarial image."""
        return self._loop().ball

    def _loop(self) -> Loop:
        """The settings of PGD, which does not stop when an image fools.

        Raises `SettingError` for a setting outside its range.
        """
        settings = {"eps": self.eps, "steps": self.steps, "step_size": self.step_size, "norm": self.norm}
        return PGD(**settings, random_start=self.random_start, keep="last").loop()
