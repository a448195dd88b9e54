"""Adversarial regularisation of TensorFlow's Neural Structured Learning (NSL), used in the study's section 3.5.2.

The loss is that of the batch plus `multiplier` times that of its adversarial neighbours, found by `iterations` steps
along the gradient. Algorithm, settings and defaults are those of NSL's `AdversarialRegularization` (Bui, Ravi and
Ramavajjala 2018, "Neural graph learning"; Goodfellow et al. 2015, section 6). With the defaults neighbours hardly
differ from their images; the study uses a step size of 0.2 in Linf. As in NSL, neighbours may leave the range of the
pixels; they are clipped only to `clip_min` and `clip_max`, if given. Images without labels are an addition.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from casemate.attacks.differentiate import gradient_of
from casemate.data import UNLABELLED
from casemate.errors import SettingError, ShapeError, kind_of
from casemate.models import Classifier, check_batch
from casemate.models.state import restored
from casemate.norms import Ball, Eps, Norm
from casemate.rng import Streams, all_forked
from casemate.settings import Rule, at_least, expect, not_negative, one_of
from casemate.training import labelled_cross_entropy
from casemate.types import Images, Labels, Logits

MeanLoss = Callable[[Tensor, Tensor], Tensor]
_EVERYWHERE = (-math.inf, math.inf)
_NUMBER = Rule("a number", lambda value: -math.inf <= value <= math.inf)


@final
@dataclass(frozen=True, kw_only=True)
class AdversarialRegularization:
    """The training objective: cross-entropy + `multiplier` * cross-entropy of the batch's adversarial neighbours.

    A neighbour is an image moved along the gradient of its loss. Neighbours need no labels: an image labelled
    `UNLABELLED` takes the model's own prediction as the label of its neighbour, and has no part in the cross-entropy.
    """

    takes_unlabelled: ClassVar[bool] = True
    """Images labelled `UNLABELLED` count in the loss of the neighbours, not in the cross-entropy."""

    multiplier: Annotated[float, not_negative()] = 0.2
    """Weight of the adversarial loss, which is added to the clean loss."""
    step_size: Eps = 0.001
    """Length of each step in `norm`, in pixel units."""
    norm: Annotated[Norm, one_of("linf", "l2", "l1")] = "l2"
    """Norm of step, projection and random start: Linf steps along the sign of the gradient, L2 along the gradient, L1
    along its largest entries."""
    clip_min: Annotated[float, _NUMBER] | None = None
    """Smallest pixel value of a neighbour; None for no limit."""
    clip_max: Annotated[float, _NUMBER] | None = None
    """Largest pixel value of a neighbour; None for no limit."""
    iterations: int = 1
    """Number of gradient steps from an image (or its random start) to its neighbour."""
    pgd_eps: Eps | None = None
    """Radius of the ball in `norm`, round each image, onto which its neighbour is projected after every step; None for
    no projection."""
    random_start: bool = False
    """Start from a random point of the ball of radius `pgd_eps` (`step_size` if that is None) instead of the image."""
    feature_mask: Sequence[Any] | None = None
    """Factors from 0 to 1 for the gradient, nested lists that broadcast to an image; None for 1 everywhere."""

    def __post_init__(self) -> None:
        expect(self)
        least = at_least(0) if self.random_start else at_least(1, "0 with random_start")
        object.__setattr__(self, "iterations", least.check(self.iterations, "iterations"))
        low = -math.inf if self.clip_min is None else self.clip_min
        if not low < (math.inf if self.clip_max is None else self.clip_max):
            raise SettingError(f"clip_min = {self.clip_min!r}; expected less than clip_max, {self.clip_max}")
        if self.norm == "l1" and self.pgd_eps is not None:
            raise SettingError("pgd_eps with norm l1: NSL defines no projection there; use linf or l2, or no pgd_eps")
        _mask_of(self.feature_mask)

    @property
    def ball(self) -> Ball:
        """The ball of radius `pgd_eps`, or if that is None of the length of all steps, for the warning about its unit.

        Without a random start all neighbours lie in it.
        """
        return Ball(eps=self.step_size * self.iterations if self.pgd_eps is None else self.pgd_eps, norm=self.norm)

    def __call__(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the regularised mean loss of the batch and the logits of the clean images.

        Raises `ShapeError` for images and labels that the model does not take, or a mask that does not fit the images.
        """
        check_batch(model, images, labels, unlabelled=UNLABELLED)
        known = labels != UNLABELLED
        if bool(known.all()):
            loss, adversarial, logits = self.losses(model, images, labels)
        else:
            _, adversarial, logits = self.losses(model, images, labels.where(known, _predicted(model, images)))
            loss = labelled_cross_entropy(logits, labels)
        return loss + self.multiplier * adversarial, logits

    def validate(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the mean loss of a validation batch's neighbours, which the study's early stopping monitors, and the
        logits of its clean images, both without gradients.
        """
        _, adversarial, logits = self.losses(model, images, labels)
        return adversarial.detach(), logits.detach()

    def losses(
        self, model: nn.Module, images: Tensor, labels: Tensor, loss: MeanLoss = F.cross_entropy
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The mean loss of the clean images, that of their neighbours, and the clean logits, all with gradients."""
        with torch.enable_grad():
            images = images.detach().requires_grad_(True)
            logits = model(images)
            clean = loss(logits, labels)
            neighbours = self.neighbours(model, images, labels, loss, clean)
            return clean, loss(model(neighbours), labels), logits

    def neighbours(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        loss: MeanLoss = F.cross_entropy,
        clean: Tensor | None = None,
    ) -> Tensor:
        """The adversarial neighbours of a batch, detached from the graph.

        Args:
            model: maps `images` (examples along the first dimension) to predictions for `loss`; its mode is kept.
            loss: the *mean* loss of predictions and labels: its factor 1 / n is part of NSL's L2 step.
            clean: the loss at `images`, if known already; `images` must then require gradients.
        """
        if self.random_start:
            moved = self._start(images.detach())
            left = self.iterations
        else:
            if clean is None:
                with torch.enable_grad():
                    images = images.detach().requires_grad_(True)
                    clean = loss(model(images), labels)
            gradient = gradient_of(clean, images, retain=True)
            moved = self._step(images.detach(), images.detach(), gradient)
            left = self.iterations - 1
        for _ in range(left):
            moved.requires_grad_(True)
            with torch.enable_grad():
                again = loss(model(moved), labels)
            gradient = gradient_of(again, moved)
            moved = self._step(moved.detach(), images.detach(), gradient)
        return moved

    def _start(self, images: Tensor) -> Tensor:
        """A random point of the ball round each image, clipped; PyTorch's global generator gives the seed."""
        ball = Ball(eps=self.step_size if self.pgd_eps is None else self.pgd_eps, norm=self.norm)
        index = torch.arange(len(images), device=images.device)
        streams = Streams(int(torch.randint(1 << 62, ())), index)
        return self._clip(ball.sample(images, _EVERYWHERE, streams, "start"))

    def _step(self, moved: Tensor, images: Tensor, gradient: Tensor) -> Tensor:
        """One step from `moved` along the gradient there, projected onto the ball round `images` and clipped."""
        gradient = gradient.where(gradient.isfinite(), 0.0)
        mask = _mask_of(self.feature_mask)
        if mask is not None:
            gradient = gradient * _fitting(mask, gradient).to(gradient)
        target = moved + self.step_size * _direction(gradient, self.norm)
        if self.pgd_eps is not None:
            target = Ball(eps=self.pgd_eps, norm=self.norm).project(target, images, _EVERYWHERE)
        return self._clip(target)

    def _clip(self, images: Tensor) -> Tensor:
        if self.clip_min is None and self.clip_max is None:
            return images
        return images.clamp(self.clip_min, self.clip_max)


def _mask_of(factors: Sequence[Any] | None) -> Tensor | None:
    """The factors of `feature_mask` as a float64 tensor; None for none. Raises `SettingError` for anything else."""
    if factors is None:
        return None
    expected = "expected factors from 0 to 1 only, as nested lists that broadcast to an image, such as [[[0.0, 1.0]]]"
    try:
        mask = torch.tensor(factors, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SettingError(f"feature_mask is {kind_of(factors)} that is no array of numbers; {expected}") from error
    if not bool(((mask >= 0) & (mask <= 1)).all()):
        raise SettingError(f"feature_mask: {expected}")
    return mask


def _fitting(mask: Tensor, images: Tensor) -> Tensor:
    """The mask. Raises `ShapeError` unless it broadcasts to the images."""
    try:
        fits = torch.broadcast_shapes(mask.shape, images.shape) == images.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ShapeError(
            f"feature_mask of shape {tuple(mask.shape)} for images of shape {tuple(images.shape[1:])}; expected one "
            "that broadcasts to an image"
        )
    return mask


@torch.no_grad()
def _predicted(model: nn.Module, images: Images) -> Labels:
    """The predicted classes; model and random generators are left as they were, so the next pass draws the same."""
    with restored(model), all_forked(images.device):
        return model(images).argmax(1)


def _direction(gradient: Tensor, norm: Norm) -> Tensor:
    """The step of norm 1 that Neural Structured Learning (NSL) takes for each image.

    Linf: the sign of the gradient. L2: the gradient divided by its norm, or by 1e-6 if that is larger. L1: the sign in
    the entry of largest absolute value, shared equally if there are several. Zero where the gradient is zero.
    """
    if norm == "linf":
        return gradient.sign()
    flat = gradient.flatten(1)
    if norm == "l2":
        unit = flat * flat.pow(2).sum(1, keepdim=True).clamp_min(1e-12).rsqrt()
    else:
        size = flat.abs()
        largest = (size == size.amax(1, keepdim=True)) & (size > 0)
        unit = flat.sign() * largest / largest.sum(1, keepdim=True).clamp_min(1)
    return unit.view_as(gradient)
