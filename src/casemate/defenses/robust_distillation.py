"""Adversarial distillation from a robust teacher: RSLAD (Zi et al. 2021, arXiv 2108.07969).

A small network learns the probabilities that a robust teacher gives to clean images, on clean images and on
adversarial ones. The labels are not used. Unlike defensive distillation, the adversarial images are searched on the
student, and no temperature hides its gradients.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor, nn

from casemate.attacks import PGD, frozen
from casemate.defenses.distillation import expect_alike
from casemate.defenses.divergence import divergence, most_divergent
from casemate.defenses.weight_perturbation import Network, at_perturbed_weights
from casemate.models import Classifier, as_classifier
from casemate.norms import AnyNorm, Ball, Eps
from casemate.settings import at_least, between, expect, not_negative
from casemate.types import Images, Labels, Logits


@final
@dataclass(frozen=True, kw_only=True)
class RobustDistillation:
    """The training objective: divergence of the student's predictions from a robust teacher's, on adversarial images.

    The loss is (1 - `clean`) times the divergence on adversarial images plus `clean` times that on the clean ones, both
    from the teacher's probabilities for the clean images (equation 7); the adversarial images maximise the former
    (equation 6).
    """

    takes_unlabelled: ClassVar[bool] = True
    teacher: nn.Module
    """The trained robust teacher, a `Classifier` or a module that maps images within [0, 1] to logits: used in
    evaluation mode and left as it was; it must be on the student's device."""
    eps: Eps = 0.1
    """Radius of the ball, in pixel units; the norm runs over all pixels of an image."""
    clean: Annotated[float, between(0, 1)] = 1 / 6
    """Weight of the clean images (the paper's is 1/6)."""
    steps: Annotated[int, at_least(1)] = 10
    """Gradient steps that find the adversarial images of a batch."""
    step_size: Eps | None = None
    """Length of each step; 2.5 * eps / steps if None."""
    norm: AnyNorm = "linf"
    """Norm of the ball and of the steps: Linf (as published), L2, L1 or L0."""
    weight_perturbation: Annotated[float, not_negative()] = 0.0
    """Perturb the weights too, each layer by this share of its norm (adversarial weight perturbation); 0 for none."""

    def __post_init__(self) -> None:
        expect(self)
        object.__setattr__(self, "teacher", as_classifier(self.teacher))

    def __call__(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the loss of the batch, and the student's logits of the clean images.

        Raises:
            ShapeError: teacher and student differ in classes, in image shape or in bounds.
        """
        del labels
        target = self._target(model, images)
        moved = self.adversarial(model, images, target)
        found: list[Logits] = []

        def loss(network: Network) -> Tensor:
            found.append(network(images))
            return self._distance(target, found[-1], network(moved))

        return at_perturbed_weights(model, loss, self.weight_perturbation), found[-1].detach()

    @torch.no_grad()
    def validate(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the loss and the logits of a validation batch, without gradients or perturbed weights."""
        del labels
        target, logits = self._target(model, images), model(images)
        return self._distance(target, logits, model(self.adversarial(model, images, target))), logits

    def adversarial(self, model: Classifier, images: Images, target: Logits) -> Images:
        """The images near the clean ones whose predictions are far from the teacher's, in evaluation mode."""
        pgd = PGD(eps=self.eps, steps=self.steps, step_size=self.step_size, norm=self.norm)
        return most_divergent(model, images, target, pgd)

    @property
    def ball(self) -> Ball:
        """The ball round each clean image in which its adversarial image is searched."""
        return Ball(eps=self.eps, norm=self.norm)

    def _distance(self, target: Logits, logits: Logits, moved: Logits) -> Tensor:
        return (1 - self.clean) * divergence(target, moved).mean() + self.clean * divergence(target, logits).mean()

    @torch.no_grad()
    def _target(self, model: Classifier, images: Images) -> Logits:
        teacher = as_classifier(self.teacher)
        expect_alike(teacher, model, images)
        with frozen(teacher):
            return teacher(images)
