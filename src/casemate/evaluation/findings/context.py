"""What the checks look at: the model, a few images, and the measures that several checks share, each made once."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
import torch
from torch import Tensor

from casemate.attacks import FGSM, PGD, AbstractGradientAttack, Criterion, frozen, input_gradient
from casemate.data import LabelledImages
from casemate.evaluation.cascade import Cascade
from casemate.evaluation.clean import CleanResult, is_right
from casemate.evaluation.curves import Curve, eps_curve, steps_curve
from casemate.losses import LossName
from casemate.memory import batched
from casemate.models import Classifier, Frozen
from casemate.norms import Norm
from casemate.progress import NULL_OBSERVER, Observer
from casemate.types import Flags, Images, Labels, Logits

FEW = 128
"""Images that the checks look at, so that all of the cheap ones together take seconds."""
STEPS = 20
"""Steps of PGD in the checks."""


@final
@dataclass(kw_only=True)
class CheckContext:
    """An evaluation as the checks see it.

    Args:
        original_model: the model as it was given, which may answer at random.
        model: the model that was attacked: the same, or its mean over several draws.
        images: all the images of the evaluation.
        norm, eps: the threat; `eps` is the one the verdict is about.
        clean: what the model said before it was attacked.
        cascade: what the attacks left.
        frozen: the model with the copy of it that was attacked.
        as_given: a copy of `original_model` in the modes in which it was given, if any part of it was in training
            mode and it can be copied.
        in_training: any part of it was in training mode.
        seed: of all draws.
    """

    original_model: Classifier
    model: Classifier
    images: LabelledImages
    norm: Norm
    eps: float
    clean: CleanResult
    cascade: Cascade
    frozen: Frozen
    as_given: Classifier | None
    in_training: bool
    randomised: bool
    substitute: Classifier | None = None
    seed: int = 0
    batch_size: int | None = None
    observer: Observer = NULL_OBSERVER

    @cached_property
    def logits(self) -> Logits:
        """Logits of all images, `(n, classes)`, on the CPU."""
        return self.logits_of(self.model, self.images)

    @cached_property
    def right(self) -> np.ndarray:
        """Classified correctly without an attack, `(n,)`."""
        return is_right(self.logits, self.images.labels).numpy()

    @cached_property
    def robust(self) -> np.ndarray:
        """Withstood every attack at `eps`, `(n,)`."""
        return self.cascade.robust[:, self.cascade.values.index(self.eps)]

    @cached_property
    def few(self) -> LabelledImages:
        """The first images that are classified correctly (any images, if none is)."""
        chosen = np.flatnonzero(self.right)[:FEW]
        return self.images[torch.from_numpy(chosen)] if len(chosen) else self.images[:FEW]

    @cached_property
    def few_tensors(self) -> tuple[Images, Labels]:
        """The few images and their labels, as the model takes them."""
        return self.few.tensors(self.model.device)

    @cached_property
    def fgsm(self) -> Flags:
        """Of the few, right after one step of FGSM, whatever came before (the raw last iterate)."""
        return self.last(FGSM(eps=self.eps, norm=self.norm, keep="last"))

    @cached_property
    def pgd(self) -> Curve:
        """PGD on the few, all iterates of one run; the last iterates after `STEPS` - 10, `STEPS` and 2 `STEPS`."""
        attack = PGD(eps=self.eps, norm=self.norm, steps=2 * STEPS, step_size=2.5 * self.eps / STEPS, keep="last")
        steps = [STEPS - 10, STEPS, 2 * STEPS]
        return steps_curve(self.model, attack, self.few, steps, seed=self.seed, batch_size=self.batch_size)

    def gradient(self, loss: LossName) -> tuple[Logits, Images]:
        """Logits and input gradient of the few."""
        images, labels = self.few_tensors
        model = self.frozen.differentiable
        with frozen(model):
            parts = batched(
                len(labels),
                self.batch_size or len(labels),
                lambda part: input_gradient(model, images[part], Criterion(labels[part]), loss),
            )
        logits, gradient = (torch.cat(each) for each in zip(*parts, strict=True))
        return logits, gradient

    def last(self, attack: AbstractGradientAttack) -> Flags:
        """Of the few, whether each is right at the raw last iterate of an attack."""
        images, labels = self.few_tensors
        result = attack(self.model, images, labels, seed=self.seed, batch_size=self.batch_size)
        return ~result.success

    def over_eps(self, attack: AbstractGradientAttack, values: list[float]) -> Curve:
        """An attack on the few over several eps."""
        return eps_curve(self.model, attack, self.few, values, seed=self.seed, batch_size=self.batch_size)

    def reproduces(self, images: Images, labels: Labels) -> Flags:
        """Whether images that fooled a model which answers at random do so in most further answers (else: surely)."""
        if not self.randomised:
            return torch.ones_like(labels, dtype=torch.bool)
        answers = [
            ~is_right(self.ask(self.model, len(images), lambda part: images[part]), labels.cpu()) for _ in range(5)
        ]
        return torch.stack(answers).double().mean(0).gt(0.5).to(labels.device)

    def logits_of(self, model: Classifier, images: LabelledImages) -> Logits:
        """What a model says of images, in evaluation mode, on the CPU."""
        return self.ask(model, len(images), lambda part: images[part].tensors(model.device)[0])

    @torch.no_grad()
    def ask(self, model: Classifier, count: int, pixels: Callable[[slice], Tensor]) -> Logits:
        """What a model says of pixels, which may be of any scale, in evaluation mode, on the CPU."""
        with frozen(model):
            return torch.cat(batched(count, self.batch_size or count, lambda part: model(pixels(part)).cpu()))
