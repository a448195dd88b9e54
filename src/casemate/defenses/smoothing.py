"""Training for randomised smoothing: the base classifier learns to classify images under normal noise.

`GaussianTraining` trains on noisy images (Cohen, Rosenfeld and Kolter 2019, arXiv 1902.02918, section 3.3),
`SmoothAdversarialTraining` on noisy adversarial images of the smoothed classifier (Salman et al. 2019, arXiv
1906.04584), and `ConsistencyTraining` makes the predictions of an image's noisy copies alike (Jeong and Shin 2020,
arXiv 2006.04062). The noise is not clipped to the bounds of the pixels, since a certificate
(`casemate.certification.smoothing`) needs unclipped noise; train with the sigma that is certified.

All of them return the logarithms of the mean probabilities over the noisy copies as the logits: those of the smoothed
classifier, since the network is used under noise only. The accuracy that a training reports, which is computed from
them, is therefore the accuracy under noise. Not here: the regression on denoised images, MACER, and the DDN attack.
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Final, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from casemate.attacks import frozen
from casemate.attacks.differentiate import gradient_of
from casemate.losses import stable_cross_entropy
from casemate.models import Classifier, check_batch
from casemate.norms import Ball, Eps
from casemate.rng import Streams
from casemate.settings import at_least, between, expect, not_negative, positive
from casemate.training.objective import TrainingStep
from casemate.types import Images, Labels, Logits

_Noise = Float[Tensor, "n draws channels height width"]
_Drawn = Float[Tensor, "n draws classes"]
Sigma = Annotated[float, positive("in units of pixels")]
"""The standard deviation of normal noise."""
_LOWEST: Final = -1e4
"""Smallest logarithm of a probability, so that those of masked classes are finite; it is zero as a number anyway."""


@final
@dataclass(frozen=True, kw_only=True)
class GaussianTraining:
    """The training objective: the mean cross-entropy of noisy copies of the images (Cohen et al. 2019, section 3.3)."""

    sigma: Sigma = 0.25
    """Standard deviation of the noise, in pixel units; that of the smoothed classifier."""
    draws: Annotated[int, at_least(1)] = 1
    """Noisy copies of each image in a batch; the paper has one."""

    def __post_init__(self) -> None:
        expect(self)

    def __call__(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the mean cross-entropy of the noisy copies, and the logarithms of their mean probabilities."""
        check_batch(model, images, labels)
        drawn = _logits(model, images, _draw_noise(images, self.sigma, self.draws))
        return _cross_entropy(drawn, labels), _log_mean(_log_probabilities(drawn.detach()))

    @torch.no_grad()
    def validate(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the same of a validation batch, without gradients: the loss under noise."""
        return self(model, images, labels)


@final
@dataclass(frozen=True, kw_only=True)
class SmoothAdversarialTraining:
    """The training objective SmoothAdv: the cross-entropy of noisy adversarial images (Salman et al. 2019).

    From the clean image PGD in L2 maximises the cross-entropy of the mean softmax over `draws` noisy copies (section 2
    of the paper); the loss is the mean cross-entropy of the adversarial image with the same noise. As in the authors'
    code the model is in evaluation mode during PGD, and the weights learn from all copies. The loss is computed in the
    mode that the model was in. With `eps` 0 it is that of `GaussianTraining` with as many draws.
    """

    sigma: Sigma = 0.25
    """Standard deviation of the noise, in pixel units; that of the smoothed classifier."""
    eps: Eps = 0.25
    """Radius of the ball in L2 around the clean image, in pixel units, in which PGD searches."""
    steps: Annotated[int, at_least(1)] = 10
    """Gradient steps of PGD for every batch; each is one of all noisy copies."""
    step_size: Eps | None = None
    """Length of each step; 2 * eps / steps if None, as in the authors' code."""
    draws: Annotated[int, at_least(1)] = 4
    """Noisy copies of each image, the same for PGD and for training (m in the paper, which has 1 to 8)."""
    warmup: Annotated[float, between(0, 1)] = 0.0
    """Share of the training over which `eps`, and with it the length of the steps, rises linearly from zero."""

    def __post_init__(self) -> None:
        expect(self)

    def at_step(self, step: TrainingStep) -> "SmoothAdversarialTraining":
        """The objective for one batch: with the `eps` and the step size of that moment of the warm-up."""
        share = 1.0 if step.done >= self.warmup else step.done / self.warmup
        size = None if self.step_size is None else share * self.step_size
        return replace(self, eps=share * self.eps, step_size=size, warmup=0.0)

    def __call__(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the mean cross-entropy of the noisy adversarial images, and the clean images' logits under noise.

        The latter, from which training only computes the accuracy, are the logarithms of the mean probabilities over
        the same noise, of the model in evaluation mode and without a gradient: PGD has computed them already.
        """
        noise = _draw_noise(images, self.sigma, self.draws)
        moved, logits = self.adversarial(model, images, labels, noise)
        return _cross_entropy(_logits(model, moved, noise), labels), logits

    @torch.no_grad()
    def validate(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the same of a validation batch, without gradients, so that early stopping monitors robustness."""
        return self(model, images, labels)

    def adversarial(self, model: Classifier, images: Images, labels: Labels, noise: _Noise) -> tuple[Images, Logits]:
        """The last iterates of PGD under the given noise, and the clean images' logits under it, in evaluation mode.

        An image whose gradient is not finite is not changed.
        """
        check_batch(model, images, labels)
        clean = images.detach()
        ball = self.ball
        size = 2 * self.eps / self.steps if self.step_size is None else self.step_size
        moved, finite = clean, torch.ones_like(labels, dtype=torch.bool)
        outputs: list[Logits] = []
        with frozen(model):
            for _ in range(self.steps):
                leaf = moved.detach().requires_grad_(True)
                with torch.enable_grad():
                    mean = _log_mean(_log_probabilities(_logits(model, leaf, noise)))
                    gradient = gradient_of(stable_cross_entropy(mean, labels).sum(), leaf)
                outputs.append(mean.detach())
                finite = finite & gradient.flatten(1).isfinite().all(1)
                kept = finite.view(-1, 1, 1, 1)
                moved = ball.ascend(gradient.where(kept, 0.0), moved, clean, model.bounds, size).where(kept, clean)
        return moved, outputs[0]

    @property
    def ball(self) -> Ball:
        """The ball round each clean image in which PGD searches its adversarial image, before the noise."""
        return Ball(eps=self.eps, norm="l2")


@final
@dataclass(frozen=True, kw_only=True)
class ConsistencyTraining:
    """The training objective: cross-entropy of noisy copies + `weight` * divergence from their mean prediction.

    (Consistency regularisation, Jeong and Shin 2020, section 3.) `entropy` times the entropy of the mean prediction is
    added too. A smoothed classifier is the more robust the more the copies agree.
    """

    sigma: Sigma = 0.25
    """Standard deviation of the noise, in pixel units; that of the smoothed classifier."""
    draws: Annotated[int, at_least(2, "one copy agrees with itself")] = 2
    """Noisy copies of each image in a batch (m in the paper)."""
    weight: Annotated[float, not_negative()] = 20.0
    """Factor of the divergence KL(mean || copy), averaged over the copies (lambda in the paper)."""
    entropy: Annotated[float, not_negative()] = 0.5
    """Factor of the entropy of the mean probabilities (eta in the paper)."""

    def __post_init__(self) -> None:
        expect(self)

    def __call__(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the regularised mean loss, and the logarithms of the noisy copies' mean probabilities."""
        check_batch(model, images, labels)
        drawn = _logits(model, images, _draw_noise(images, self.sigma, self.draws))
        each = _log_probabilities(drawn)
        mean = _log_mean(each)
        divergence = (mean.exp() * (mean - each.mean(1))).sum(1)
        entropy = -(mean.exp() * mean).sum(1)
        regularisation = (self.weight * divergence + self.entropy * entropy).mean()
        return _cross_entropy(drawn, labels) + regularisation, mean.detach()

    @torch.no_grad()
    def validate(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the mean cross-entropy of a validation batch under noise, without regularisation, and the logits.

        The regularisation serves the training; models with other factors can be compared by this loss.
        """
        return GaussianTraining(sigma=self.sigma, draws=self.draws).validate(model, images, labels)


def _draw_noise(images: Images, sigma: float, draws: int) -> _Noise:
    """Normal noise for `draws` copies of each image; PyTorch's global generator gives the seed, as for dropout."""
    streams = Streams(int(torch.randint(1 << 62, ())), torch.arange(len(images), device=images.device))
    return sigma * streams.normal((draws, *images.shape[1:]), "noise").to(images.dtype)


def _logits(model: Classifier, images: Images, noise: _Noise) -> _Drawn:
    """The logits of the images with each of their noises; all copies pass together, as one batch."""
    return model((images.unsqueeze(1) + noise).flatten(0, 1)).unflatten(0, noise.shape[:2])


def _cross_entropy(drawn: _Drawn, labels: Labels) -> Tensor:
    """The mean cross-entropy of all copies."""
    return F.cross_entropy(drawn.flatten(0, 1), labels.repeat_interleave(drawn.shape[1]))


def _log_probabilities(drawn: _Drawn) -> _Drawn:
    return drawn.log_softmax(2).clamp(min=_LOWEST)


def _log_mean(each: _Drawn) -> Logits:
    """The logarithms of the mean, over the copies, of probabilities with these logarithms."""
    return each.logsumexp(1) - math.log(each.shape[1])
