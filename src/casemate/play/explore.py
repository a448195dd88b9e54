"""What an attack does to one image: predictions, losses and perturbation, as numbers."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, final

import torch
from torch import Tensor
from torch.nn import functional

from casemate.attacks import BIM, FGSM, FMN, MIFGSM, PGD, frozen, sweep_steps
from casemate.attacks.criterion import Misclassification
from casemate.attacks.differentiate import input_gradient
from casemate.attacks.gradient import AbstractGradientAttack
from casemate.attacks.result import Status
from casemate.defenses import at_temperature
from casemate.losses import LossName
from casemate.models import Classifier, user_call
from casemate.norms import Eps, Norm
from casemate.settings import between, expect, one_of
from casemate.types import Images

ATTACKS: Mapping[str, type[AbstractGradientAttack]] = {"FGSM": FGSM, "BIM": BIM, "PGD": PGD, "MI-FGSM": MIFGSM}
"""By the names that the page shows."""
NORMS: Mapping[str, Norm] = {"Linf": "linf", "L2": "l2"}
"""By the names that the page shows."""
MOST_STEPS = 50
"""Largest number of iterations, which bounds what one request costs."""
_FMN_STEPS, _PGD_STEPS, _BISECTIONS = 40, 20, 6


@final
@dataclass(frozen=True, kw_only=True)
class AttackChoice:
    """The settings of an attack. Raises `SettingError` for an unknown name or a number outside its range."""

    attack: Annotated[str, one_of(*ATTACKS)] = "FGSM"
    norm: Annotated[Norm, one_of(*NORMS.values())] = "linf"
    eps: Eps = 0.1
    steps: Annotated[int, between(1, MOST_STEPS)] = 10
    """Iterations; FGSM makes one, whatever this says."""
    loss: LossName = "ce"

    def __post_init__(self) -> None:
        expect(self)

    @property
    def made(self) -> AbstractGradientAttack:
        """The attack; it makes all its steps, which have the default size for their number."""
        settings: dict[str, Any] = {"eps": self.eps, "norm": self.norm, "loss": self.loss, "keep": "last"}
        if self.attack == "FGSM":
            return FGSM(**settings)
        attack = ATTACKS[self.attack](**settings | {"steps": self.steps})
        return replace(attack, step_size=attack.loop().step_size)  # now the same for all smaller numbers of steps


@final
@dataclass(frozen=True, kw_only=True)
class Exploration:
    """What an attack did to one image."""

    choice: AttackChoice
    label: int
    clean: Images
    """`(1, channels, height, width)`, as is `adversarial`."""
    adversarial: Images
    before: Tensor
    """The probability of each class without the attack, `(classes,)`."""
    after: Tensor
    losses: tuple[float, ...]
    """Cross-entropy of the clean image, and after each iteration."""
    predictions: tuple[int, ...]
    """The predicted class of the clean image, and after each iteration."""
    size: float
    """Norm of the perturbation, in the attack's norm."""
    status: Status
    """How the attack ended: an image may withstand it because it had no gradient to follow."""

    @property
    def wrong(self) -> tuple[bool, ...]:
        """Whether the clean image, and that after each iteration, is misclassified."""
        return tuple(each != self.label for each in self.predictions)

    @property
    def was_right(self) -> bool:
        """Whether the clean image is classified correctly."""
        return not self.wrong[0]

    @property
    def fooled(self) -> bool:
        """Whether the adversarial image is misclassified, though the clean one is not."""
        return self.was_right and self.wrong[-1]


def explore(model: Classifier, image: Images, label: int, choice: AttackChoice, *, seed: int = 0) -> Exploration:
    """Attack one image, `(1, channels, height, width)` within the model's bounds, with its true class `label`.

    Raises `ModelError` for a model that does not take the image or has no gradient, `SettingError` for a radius in
    another unit than the pixels.
    """
    labels, attack = torch.tensor([label]), choice.made
    with user_call(model):  # what it would warn of is in the result's status
        result = attack(model, image, labels, seed=seed)
    with torch.no_grad():
        logits = model(torch.cat([result.clean, result.adversarial]).to(model.device)).cpu()
    losses = functional.cross_entropy(logits.double(), labels.repeat(2), reduction="none").tolist()
    predictions = logits.argmax(1).tolist()
    if choice.attack != "FGSM":  # what happens between the two
        last = sweep_steps(attack, model, image, labels, list(range(1, choice.steps + 1)), seed=seed).last
        assert last is not None, "sweep_steps makes complete runs"
        losses[1:], predictions[1:] = last.loss[0].tolist(), last.prediction[0].tolist()
    before, after = logits.double().softmax(1)
    return Exploration(
        choice=choice,
        label=label,
        clean=result.clean.cpu(),
        adversarial=result.adversarial.cpu(),
        before=before,
        after=after,
        losses=tuple(losses),
        predictions=tuple(predictions),
        size=result.norm.item(),
        status=Status(result.status.item()),
    )


def smallest_eps(model: Classifier, image: Images, label: int, norm: Norm) -> float | None:
    """The norm of the smallest perturbation that was found to fool the model, an upper bound of the true one.

    Zero for an image that is misclassified as it is; None if none was found. By FMN (Pintor et al. 2021), and by PGD
    from random starts with radii that bisect what is left, since robust networks mislead FMN's single run.
    """
    labels, (low, high) = torch.tensor([label]), model.bounds
    furthest = (high - low) * (1.0 if norm == "linf" else image.numel() ** 0.5)
    with user_call(model):  # what each of the attacks warns of says nothing of the result
        best, withstood = FMN(norm=norm, steps=_FMN_STEPS)(model, image, labels).distance.item(), 0.0
        for _ in range(_BISECTIONS if best > 0 else 0):
            eps = (withstood + min(best, furthest)) / 2
            found = PGD(eps=eps, norm=norm, steps=_PGD_STEPS)(model, image, labels).distance.item()
            best, withstood = min(best, found), eps if math.isinf(found) else withstood
    return None if math.isinf(best) else best


@final
@dataclass(frozen=True, kw_only=True)
class Masking:
    """The same attack on the same image with two losses, on a model whose logits were multiplied."""

    factor: float
    logits: Exploration
    """With the cross-entropy computed from logits, whose gradient does not vanish."""
    probabilities: Exploration
    """With that of float32 probabilities, clipped to [1e-7, 1 - 1e-7]."""
    zero: float
    """Share of the pixels in which the latter's gradient at the clean image is exactly zero."""


def masking(model: Classifier, image: Images, label: int, choice: AttackChoice, factor: float) -> Masking:
    """Attack one image through two losses, after multiplying the logits by `factor`.

    Multiplied logits predict the same classes, with more confidence: what defensive distillation does. Raises as
    `explore`, and `SettingError` for a factor that is not positive.
    """
    sure = at_temperature(model, 1 / factor)
    with user_call(sure):  # of zero gradients, which are the subject here
        logits = explore(sure, image, label, replace(choice, loss="ce"))
        probabilities = explore(sure, image, label, replace(choice, loss="prob-ce"))
        with frozen(sure):
            _, gradient = input_gradient(sure, image, Misclassification(torch.tensor([label])), "prob-ce")
    zero = (gradient == 0).double().mean().item()
    return Masking(factor=factor, logits=logits, probabilities=probabilities, zero=zero)
