"""The input of the checks: the evaluation, a sample of its images, and measurements that several checks share."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import numpy as np
import torch
from torch import Tensor

from casemate.attacks import PGD, AbstractGradientAttack, Misclassification, frozen, input_gradient
from casemate.data import LabelledImages, ReadableImages
from casemate.evaluation.cascade_result import Cascade
from casemate.evaluation.clean import CleanResult
from casemate.evaluation.curves import Curve, LastIterates, eps_curve, steps_curve
from casemate.evaluation.findings.outputs import Gathering, Outputs
from casemate.float32_precision import full_precision
from casemate.logits import is_right
from casemate.losses import LossName
from casemate.memory import batched
from casemate.models import Classifier, Frozen
from casemate.norms import Norm
from casemate.progress import NULL_OBSERVER, Observer
from casemate.types import Flags, Images, Labels, Logits

SAMPLE_SIZE = 128
"""Largest number of images that most checks use, so that all checks of an ordinary evaluation take seconds together."""
STEPS = 20
"""Number of steps of PGD in the checks; some run it with a multiple of them. For a randomised model half of them, since
each of its gradients is a mean over several passes already, and checks compare runs with each other."""


@final
@dataclass(kw_only=True)
class CheckContext:
    """What the checks of an evaluation work on: models, images, results of the attacks, and shared measurements.

    Args:
        original_model: the model as it was given, possibly randomised.
        model: the model that was attacked: `original_model`, or its mean over several draws if it is randomised.
        images: all images of the evaluation; those that are not in memory are read with `images.read` only.
        norm, eps: the threat model; `eps` is the largest of the evaluation.
        clean: the predictions before any attack.
        attacked: the results of the attacks; None before them.
        frozen: the attacked model together with its optimized copy.
        as_given: a copy of `original_model` in the modes in which it was given, if any of its modules was in training
            mode and it can be copied.
        in_training: whether any of its modules was given in training mode.
        randomised: whether its logits are random in evaluation mode.
        draws: number of passes over whose logits `model` takes the mean; 1 for a model that is not randomised.
        substitute: an undefended model for the same images.
        seed: of all random draws.
        batch_size: images per pass.
    """

    original_model: Classifier
    model: Classifier
    images: ReadableImages
    norm: Norm
    eps: float
    clean: CleanResult
    attacked: Cascade | None = None
    frozen: Frozen
    as_given: Classifier | None
    in_training: bool
    randomised: bool
    draws: int = 1
    substitute: Classifier | None = None
    seed: int = 0
    batch_size: int | None = None
    observer: Observer = NULL_OBSERVER

    @property
    def cascade(self) -> Cascade:
        """The results of the attacks. Raises `RuntimeError` before they are known."""
        if self.attacked is None:
            raise RuntimeError("no attack has been run yet")
        return self.attacked

    @cached_property
    def outputs(self) -> Outputs:
        """What one pass of all images through the model shows, before the attacks."""
        found = Gathering(self.images.labels, self.clean, SAMPLE_SIZE)
        self.pass_over(found.add)
        return found.outputs()

    @property
    def right(self) -> np.ndarray:
        """Whether each image is classified correctly without an attack, booleans `(n,)`."""
        return self.outputs.right

    @cached_property
    def robust(self) -> np.ndarray:
        """Whether each image is classified correctly under every attack at `eps`, booleans `(n,)`."""
        return self.cascade.robust[:, self.cascade.values.index(self.eps)]

    @cached_property
    def sample(self) -> LabelledImages:
        """The first `SAMPLE_SIZE` correctly classified images; if there is none, the first images."""
        chosen = np.flatnonzero(self.right)[:SAMPLE_SIZE]
        return self.images.read(torch.from_numpy(chosen) if len(chosen) else slice(0, SAMPLE_SIZE))

    @cached_property
    def sample_tensors(self) -> tuple[Images, Labels]:
        """Images (float32) and labels of `sample`, on the model's device."""
        return self.sample.tensors(self.model.device)

    @property
    def steps(self) -> int:
        """Number of steps of PGD: `STEPS`, or half of them for a randomised model."""
        return STEPS // 2 if self.randomised else STEPS

    @cached_property
    def pgd(self) -> Curve:
        """One run of PGD on `sample`, recorded after half as many steps as `steps`, as many, and twice as many."""
        steps = [self.steps // 2, self.steps, 2 * self.steps]
        attack = PGD(eps=self.eps, norm=self.norm, steps=steps[-1], step_size=2.5 * self.eps / self.steps, keep="last")
        return steps_curve(self.target, attack, self.sample, steps, seed=self.seed)

    @cached_property
    def pgd_iterates(self) -> LastIterates:
        """The results at the iterates of `pgd` after each of its three numbers of steps, whether these fool or not."""
        return _last_iterates(self.pgd)

    @property
    def right_after_pgd(self) -> np.ndarray:
        """Whether each image of `sample` is classified correctly at the last iterate of `steps` steps, `(n,)`."""
        return self.pgd_iterates.right[:, 1]

    @cached_property
    def target(self) -> Frozen:
        """The attacked model with the copy that the attacks ran on, for the attacks of the checks, in float32."""
        return replace(self.frozen, low_precision=None)

    def gradient(self, loss: LossName) -> tuple[Logits, Images]:
        """Logits of `sample`, and the gradient of `loss` with respect to its images, in the images' shape."""
        images, labels = self.sample_tensors
        model = self.frozen.differentiable
        with frozen(model):
            parts = batched(
                len(labels),
                self.batch_size or len(labels),
                lambda part: input_gradient(model, images[part], Misclassification(labels[part]), loss),
            )
        logits, gradient = (torch.cat(each) for each in zip(*parts, strict=True))
        return logits, gradient

    def right_after(self, attack: AbstractGradientAttack, most: int = SAMPLE_SIZE) -> np.ndarray:
        """Run an attack on the first `most` images of `sample`; return whether each is still classified correctly."""
        images, labels = (each[:most] for each in self.sample_tensors)
        return (~attack(self.target, images, labels, seed=self.seed).success).cpu().numpy()

    def over_eps(self, attack: AbstractGradientAttack, values: list[float], part: slice) -> np.ndarray:
        """Run an attack on a part of `sample` at each eps of `values`; return whether each last iterate does not fool.

        Booleans `(n, values)`, a column per eps.
        """
        return _last_iterates(eps_curve(self.target, attack, self.sample[part], values, seed=self.seed)).right

    def reproduces(self, images: Images, labels: Labels) -> Flags:
        """Whether each adversarial image fools a randomised model in most of 5 more passes; True for other models."""
        if not self.randomised:
            return torch.ones_like(labels, dtype=torch.bool)
        fooled = [
            ~is_right(self.logits_from(self.model, len(images), lambda part: images[part]), labels.cpu())
            for _ in range(5)
        ]
        return torch.stack(fooled).double().mean(0).gt(0.5).to(labels.device)

    def logits_of(self, model: Classifier, images: ReadableImages) -> Logits:
        """The logits of a model in evaluation mode for all of `images`, `(n, classes)`, on the CPU."""
        return self.logits_from(model, len(images), lambda part: images.read(part).tensors(model.device)[0])

    @torch.no_grad()
    def pass_over(self, use: Callable[[slice, Logits], None]) -> None:
        """Pass all images through the model, in evaluation mode and full float32.

        `use` gets the positions of some images and their logits, on the CPU, one part of the images after the other.
        """

        def run(part: slice) -> None:
            images, _ = self.images.read(part).tensors(self.model.device)
            use(part, self.model(images).cpu())

        count = len(self.images)
        with frozen(self.model), full_precision():
            batched(count, self.batch_size or count, run)

    @torch.no_grad()
    def logits_from(self, model: Classifier, count: int, pixels: Callable[[slice], Tensor]) -> Logits:
        """The logits of a model in evaluation mode for `count` images, in full float32, `(count, classes)`, on the CPU.

        `pixels` returns the images of a slice of them as a tensor on the model's device, with values in any range.
        """
        with frozen(model), full_precision():
            return torch.cat(batched(count, self.batch_size or count, lambda part: model(pixels(part)).cpu()))


def _last_iterates(curve: Curve) -> LastIterates:
    if curve.last is None:
        raise RuntimeError("a curve with only_worst=False has last iterates")
    return curve.last
