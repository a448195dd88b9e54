"""Virtual adversarial training (Miyato, Maeda, Koyama and Ishii 2019, arXiv 1704.03976), which needs few labels.

The loss is the cross-entropy of the labelled images plus `alpha` times the local distributional smoothness (LDS) of all
images (eq. 8): the Kullback-Leibler divergence from the prediction at an image x to that at x + r, where r of length
`eps` in L2 is the change of x that changes the prediction most (eq. 5 and 6). It is found without labels, so the LDS is
computed for unlabelled images too. The power method finds r: near x the divergence is a quadratic form, whose dominant
eigenvector is approximated by finite differences of gradients (section 3.3, algorithm 1).

The paper has separate batches of labelled and unlabelled images; here one batch mixes both. Where few images have
labels, repeat them among the training images, so that each batch has some.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
from torch import Tensor

from casemate.attacks.differentiate import gradient_of
from casemate.data import UNLABELLED
from casemate.defenses.divergence import divergence
from casemate.models import Classifier, check_batch
from casemate.models.state import restored
from casemate.norms import Ball, Eps, unit_length
from casemate.rng import Streams, all_forked, all_seeded
from casemate.settings import at_least, expect, not_negative, positive
from casemate.training import labelled_cross_entropy
from casemate.types import Images, Labels, Logits, PerExample


@final
@dataclass(frozen=True, kw_only=True)
class VirtualAdversarial:
    """The training objective: cross-entropy of the labelled images + `alpha` * divergence under small perturbations.

    All passes are in the mode that the model is in, as in the authors' code: in training mode batch normalisation uses
    the statistics of the batch. Only the pass of the clean images enters its running statistics; those of the moved
    images leave the model as it was (`casemate.models.state.restored`).

    All passes of a batch draw the same random numbers, so that dropout leaves out the same units: then the divergence
    is zero and smallest at r = 0, which the power method relies on. (In the authors' code every pass draws its own.)

    The power method computes in float32 where training computes in bfloat16, whose steps are larger than the finite
    differences; this takes one more pass.
    """

    takes_unlabelled: ClassVar[bool] = True
    """Images labelled `UNLABELLED` count in the LDS, not in the cross-entropy."""

    eps: Eps = 1.0
    """Length of r in L2 over all values of an image, in pixel units. The authors' values, 2.5 or 3.5 on SVHN, are in
    these units too (pixels from -0.5 to 0.5); theirs on CIFAR-10, 8 and 10, are in units of whitened images."""
    xi: Annotated[float, positive()] = 0.01
    """Length in L2 of the finite differences of the power method (eq. 12), in pixel units. The authors' 1e-6 changes
    probabilities of pixels in [0, 1] by hardly more than the rounding errors of float32."""
    power_iterations: Annotated[int, at_least(0)] = 1
    """Iterations of the power method (K); the paper uses 1. With 0, r has a random direction, which the paper compares
    with as random perturbation training."""
    alpha: Annotated[float, not_negative()] = 1.0
    """Weight of the LDS; the paper keeps it at 1 and chooses only `eps`."""
    entropy_weight: Annotated[float, not_negative()] = 0.0
    """Weight of the conditional entropy of the predictions on all clean images (section 4, after Grandvalet and
    Bengio 2005): 1 is the paper's VAT+EntMin."""
    clip: bool = False
    """Clip x + r to the model's bounds. The paper does not; pixels may then leave their range by up to `eps`."""

    def __post_init__(self) -> None:
        expect(self)

    @property
    def ball(self) -> Ball:
        """The ball round each image on whose surface x + r lies, or inside it with `clip`."""
        return Ball(eps=self.eps, norm="l2")

    def __call__(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the loss of the batch and the logits of the clean images.

        The cross-entropy is the mean over the labelled images (zero if there are none), the LDS and the conditional
        entropy are the means over all images.
        """
        check_batch(model, images, labels, unlabelled=UNLABELLED)
        smoothness, logits = self.smoothness(model, images)
        loss = labelled_cross_entropy(logits, labels) + self.alpha * smoothness
        if self.entropy_weight:
            loss = loss + self.entropy_weight * _entropies(logits).mean()
        return loss, logits

    @torch.no_grad()
    def validate(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the same loss of a validation batch, without gradients, and the logits of its clean images."""
        return self(model, images, labels)

    def smoothness(self, model: Classifier, images: Images) -> tuple[Tensor, Logits]:
        """The mean LDS of the images, zero or more, and their logits, both with gradients to the model's weights.

        The prediction at x is a constant in the LDS (the paper's theta-hat): its gradient is that of the prediction at
        x + r. PyTorch's global generator gives the seed of all draws. An image is not moved if its gradient in the
        power method is zero or not finite.
        """
        seed = int(torch.randint(1 << 62, ()))
        with all_seeded(images.device, seed):
            with all_forked(images.device):
                logits = model(images)
            with restored(model):
                moved = images.detach() + self.perturbations(model, images.detach(), logits.detach(), seed)
                if self.clip:
                    moved = moved.clamp(*model.bounds)
                moved_logits = model(moved)
        return divergence(logits.detach(), moved_logits).mean(), logits

    def perturbations(self, model: Classifier, images: Images, logits: Logits, seed: int) -> Images:
        """The virtual adversarial perturbations r of the images, without gradients (algorithm 1).

        The global generators are left as they were, so every pass draws the same numbers.

        Args:
            model: its running statistics may change (see `smoothness`).
            logits: those of `images`, with the same draws.
            seed: of the initial directions.
        """
        streams = Streams(seed, torch.arange(len(images), device=images.device))
        direction = unit_length(streams.normal(tuple(images.shape[1:]), "virtual adversarial").to(images.dtype))
        kind = images.device.type
        is_low_precision = self.power_iterations > 0 and torch.is_autocast_enabled(kind)
        with torch.autocast(kind, enabled=False):
            if is_low_precision:
                with torch.no_grad(), all_forked(images.device):
                    logits = model(images)
            for _ in range(self.power_iterations):
                step = (self.xi * direction).requires_grad_(True)
                with torch.enable_grad(), all_forked(images.device):
                    apart = divergence(logits, model(images + step)).sum()
                gradient = gradient_of(apart, step)
                direction = unit_length(gradient.where(gradient.isfinite(), 0.0))
        return self.eps * direction


def _entropies(logits: Logits) -> PerExample:
    """The entropy of the softmax of `logits`, of each image; a class of probability zero contributes nothing."""
    probabilities = logits.softmax(1)
    return -(probabilities * logits.log_softmax(1).where(probabilities > 0, 0.0)).sum(1)
