"""Training objectives: callables from model, images and labels to the mean loss and the logits.

An objective may depend on more than the batch: on how much of the training is done (`SteppedObjective`), or on all
training images (`PreparedObjective`). The training loop looks for the methods of these two interfaces.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Protocol, final, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from casemate.data import UNLABELLED, LabelledImages
from casemate.errors import ModelError, SettingError, kind_of
from casemate.functions import qualified_name, stable_repr
from casemate.memory import is_out_of_memory
from casemate.models import Classifier
from casemate.models.output_errors import backward_error
from casemate.norms import Ball
from casemate.settings import between, expect
from casemate.types import Images, Labels, Logits


@runtime_checkable
class Objective(Protocol):
    """Interface of the loss that training minimises, with its own loss for validation."""

    def __call__(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the mean loss of the batch, a differentiable scalar, and the logits of `images`."""
        ...

    def validate(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the mean validation loss of the batch, by which early stopping decides, and the logits.

        The model is in evaluation mode.
        """
        ...


@final
@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """Where a training is when an objective is called for a batch."""

    done: Annotated[float, between(0, 1)]
    """Share of all training steps that are done, from 0 at the first step."""
    index: Tensor
    """Positions of the batch's images among the training images, `(n,)`."""

    def __post_init__(self) -> None:
        expect(self)


@runtime_checkable
class SteppedObjective(Objective, Protocol):
    """Interface of an objective that changes during the training: a schedule, or one that knows each image's place."""

    def at_step(self, step: TrainingStep) -> Objective:
        """The objective for one batch. The training loop validates with the objective itself, as at the end."""
        ...


@runtime_checkable
class PreparedObjective(Objective, Protocol):
    """Interface of an objective that needs all training images before the training begins."""

    def prepared_for(self, train: LabelledImages) -> Objective:
        """The objective for a training on these images, in their order."""
        ...


def takes_unlabelled(objective: Objective | type[Any]) -> bool:
    """Whether an objective, or one of a class, can learn from images labelled `UNLABELLED`: the class says so by
    `takes_unlabelled`.
    """
    return bool(getattr(objective, "takes_unlabelled", False))


def labelled_cross_entropy(logits: Logits, labels: Labels) -> Tensor:
    """The mean cross-entropy of the images whose label is not `UNLABELLED`; zero, but differentiable, without any."""
    total = F.cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction="sum")
    return total / (labels != UNLABELLED).sum().clamp(min=1)


@final
@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """The objective of ordinary training: the cross-entropy of the labels on unperturbed images."""

    label_smoothing: Annotated[float, between(0, 1, without_high=True)] = 0.0
    """Target probability that is spread evenly over all classes (Szegedy et al. 2016, section 7)."""

    def __post_init__(self) -> None:
        expect(self)

    def __call__(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the mean cross-entropy of the batch and the logits."""
        logits = model(images)
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing), logits

    @torch.no_grad()
    def validate(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the mean cross-entropy of the batch, without label smoothing, and the logits."""
        logits = model(images)
        return F.cross_entropy(logits, labels), logits


def ball_of(objective: Objective) -> Ball | None:
    """The ball in which an objective trains robustness, by its attribute `ball`; None if it has none, or several."""
    ball = getattr(objective, "ball", None)
    return ball if isinstance(ball, Ball) else None


def balls_of(objective: Objective, why: str) -> tuple[Ball, ...]:
    """The balls in which an objective trains robustness: its attribute `balls`, or the one of `ball`.

    Raises `SettingError`, which says `why` they are needed, for an objective without.
    """
    balls, ball = getattr(objective, "balls", None), ball_of(objective)
    if isinstance(balls, tuple) and balls:
        return balls
    if ball is not None:
        return (ball,)
    raise SettingError(
        f"{why} with the objective {type(objective).__name__}, which has no ball to measure robustness in; expected an "
        "adversarial one, such as AdversarialTraining"
    )


@final
@dataclass(frozen=True)
class _FunctionObjective:
    """The objective of a plain function, whose loss is that of the validation too."""

    function: Callable[..., Any]

    def __call__(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return what the function returns."""
        return self.function(model, images, labels)

    @torch.enable_grad()  # for a function that differentiates by the images
    def validate(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the same of a validation batch, without gradients."""
        loss, logits = loss_and_logits(self, model, images, labels)
        return loss.detach(), logits.detach()

    def __repr__(self) -> str:
        return stable_repr(self.function)


def as_objective(given: Objective | Callable[..., Any] | None) -> Objective:
    """The objective that a caller gave: an `Objective`, or a function of model, images and labels; None: cross-entropy.

    Raises `SettingError` for anything else.
    """
    if given is None:
        return CrossEntropy()
    if isinstance(given, type):
        raise SettingError(f"the objective is the class {given.__name__}; expected an object of it: {given.__name__}()")
    if isinstance(given, Objective):
        return given
    if callable(given) and not isinstance(given, nn.Module):
        return _FunctionObjective(given)
    raise SettingError(
        f"the objective is {kind_of(given)}; expected an object such as casemate.defenses.TRADES(eps=0.1), or a "
        "function of model, images and labels that returns the mean loss and the logits"
    )


def loss_and_logits(objective: Objective, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
    """What an objective returns. Raises `SettingError` unless that is a single number and the logits."""
    found: Any = objective(model, images, labels)
    name = objective.function if isinstance(objective, _FunctionObjective) else objective
    if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(each, Tensor) for each in found)):
        raise SettingError(
            f"the objective {qualified_name(name)} returned {kind_of(found)}; expected two tensors: the mean loss and "
            "the logits"
        )
    if found[0].ndim:
        raise SettingError(
            f"the objective {qualified_name(name)} returned a loss of shape {tuple(found[0].shape)}; expected the mean "
            "over the batch, a single number, and the logits after it"
        )
    return found


def differentiate_loss(loss: Tensor) -> None:
    """Run the backward pass from the loss to the weights. Raises `ModelError` if it cannot be differentiated."""
    if not loss.requires_grad:
        raise ModelError(
            "the loss has no gradient with respect to the model's weights: its forward runs without autograd (no_grad, "
            "inference_mode, detach), or no weight requires a gradient"
        )
    try:
        loss.backward()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise backward_error(error) from error
