"""Adversarial training against several norms at once (Tramèr and Boneh 2019, arXiv 1904.13000, section 4).

A network that is trained in one norm is usually not robust in another. Here PGD searches an adversarial image in each
of the balls, and the loss is that of the worst of them, their mean, or that of one ball at random for each batch, which
costs no more than one norm (Croce and Hein 2022, arXiv 2105.12508, who choose the ball by its robust error).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor

from casemate.attacks import frozen
from casemate.defenses.adversarial_training import AdversarialTraining
from casemate.defenses.weight_perturbation import adversarial_cross_entropy
from casemate.errors import SettingError
from casemate.models import Classifier
from casemate.norms import Ball, Eps, Norm
from casemate.settings import at_least, between, expect, not_negative, one_of
from casemate.types import Images, Labels, Logits


@final
@dataclass(frozen=True, kw_only=True)
class SeveralNorms:
    """The training objective: cross-entropy on adversarial images by PGD in several balls, one for each norm.

    At least one radius must be set.
    """

    eps_linf: Eps | None = 0.1
    """Radius of the Linf ball, in pixel units; None for no such ball."""
    eps_l2: Eps | None = 1.5
    """Radius of the L2 ball over all pixels; None for no such ball."""
    eps_l1: Eps | None = 12.0
    """Radius of the L1 ball over all pixels; None for no such ball."""
    combine: Annotated[Literal["worst", "mean", "random"], one_of("worst", "mean", "random")] = "worst"
    """The loss of each image: that of the ball in which it is largest, the mean over the balls, or that of one ball
    drawn for the batch."""
    steps: Annotated[int, at_least(1)] = 10
    """Gradient steps of PGD in each ball."""
    label_smoothing: Annotated[float, between(0, 1, without_high=True)] = 0.0
    """Target probability that is spread evenly over all classes; PGD attacks the label itself."""
    weight_perturbation: Annotated[float, not_negative()] = 0.0
    """Perturb the weights too, each layer by this share of its norm (adversarial weight perturbation); 0 for none."""

    def __post_init__(self) -> None:
        expect(self)
        if not self.balls:
            raise SettingError("SeveralNorms without a radius; expected eps_linf, eps_l2 or eps_l1")

    def __call__(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the loss of the batch, and the logits of the clean images in evaluation mode, without gradients."""
        balls = self.balls
        if self.combine == "random":
            balls = (balls[int(torch.randint(len(balls), ()))],)
        found = [_pgd(ball, self.steps).adversarial(model, images, labels) for ball in balls]
        moved, logits = torch.stack([each for each, _ in found]), found[0][1]
        if self.combine != "worst":
            return self._loss(model, list(moved), labels), logits
        with torch.no_grad(), frozen(model):
            losses = torch.stack([F.cross_entropy(model(each), labels, reduction="none") for each in moved])
        worst = moved[losses.argmax(0), torch.arange(len(images), device=images.device)]
        return self._loss(model, [worst], labels), logits

    @torch.no_grad()
    def validate(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the mean over the images of their largest loss in any ball, and the logits of the clean ones."""
        found = [_pgd(ball, self.steps).adversarial(model, images, labels) for ball in self.balls]
        losses = [F.cross_entropy(model(moved), labels, reduction="none") for moved, _ in found]
        return torch.stack(losses).amax(0).mean(), found[0][1]

    def _loss(self, model: Classifier, batches: Sequence[Images], labels: Labels) -> Tensor:
        """The mean loss of batches of the same images, each of which batch normalisation sees on its own."""
        smoothing, gamma = self.label_smoothing, self.weight_perturbation
        return adversarial_cross_entropy(model, batches, labels, smoothing, gamma)

    @property
    def balls(self) -> tuple[Ball, ...]:
        """The balls round each clean image, in the order Linf, L2, L1."""
        radii: tuple[tuple[Norm, float | None], ...] = (
            ("linf", self.eps_linf),
            ("l2", self.eps_l2),
            ("l1", self.eps_l1),
        )
        return tuple(Ball(eps=eps, norm=norm) for norm, eps in radii if eps is not None)


def _pgd(ball: Ball, steps: int) -> AdversarialTraining:
    return AdversarialTraining(eps=ball.eps, norm=ball.norm, steps=steps)
