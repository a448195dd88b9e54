"""Certified training in Linf: the network is trained on bounds of its outputs over a ball, so that they become tight.

- `IBPTraining`: interval bounds (Gowal et al. 2018, arXiv 1810.12715), with the regularisers of Shi et al. 2021 (arXiv
  2103.17268, section 4) while the radius grows;
- `CROWNIBPTraining`: linear bounds between interval bounds (Zhang et al. 2020, arXiv 1906.06316), less and less;
- `SABRTraining`: interval bounds of a small box round an adversarial image (Mueller et al. 2023, arXiv 2210.04871);
- `MTLIBPTraining`: a convex combination of the adversarial loss and that of interval bounds (De Palma et al. 2024,
  arXiv 2305.13991).

The radius grows linearly during a part of the training, as training on the whole ball from the start fails. In training
mode batch normalisation uses the statistics of the clean images for all images and bounds. What is proven in the end is
found by `casemate.certification.certify`. Not included: L1 regularisation of the weights, which two of the papers use
(see `TrainConfig.weight_decay` for L2), and smoother growth of the radius.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from casemate.certification.operations import Convolution, Dense, Interval, Rectifier
from casemate.certification.propagation import (
    LayerBounds,
    Margins,
    OperationGraph,
    bound_layers,
    interval_margins,
    linear_margins,
    worst_logits,
)
from casemate.certification.region import Region, region_around
from casemate.certification.taking_apart import TakenApart, take_apart
from casemate.defenses.adversarial_training import AdversarialTraining
from casemate.errors import ModelError, SettingError
from casemate.models import Classifier, as_classifier, check_batch
from casemate.norms import Ball, Eps
from casemate.settings import at_least, between, expect, not_negative, positive
from casemate.training import Objective, TrainingStep
from casemate.types import Images, Labels, Logits

_BALANCE = 0.5
"""Tolerance tau of the regularisers (Shi et al. 2021): ratios above it cost nothing."""

_Share = Annotated[float, between(0, 1)]


@final
@dataclass(frozen=True, kw_only=True)
class _Batch:
    """A batch of images, with the model taken apart for it."""

    model: Classifier
    images: Images
    labels: Labels
    apart: TakenApart
    eps: float
    """The radius at this step."""

    def region(self, eps: float, centre: Images | None = None) -> Region:
        """The images within `eps` of `centre`, or of the batch's images if None."""
        around = self.images if centre is None else centre
        return region_around(around, Ball(eps=eps), self.model.bounds)

    def clean_loss(self) -> Tensor:
        """The mean cross-entropy of the images."""
        return F.cross_entropy(self.apart.logits, self.labels)

    def bound_loss(self, margins: Margins) -> Tensor:
        """The mean cross-entropy of the worst logits that the margins allow."""
        return F.cross_entropy(worst_logits(margins, self.labels), self.labels)


@dataclass(frozen=True, kw_only=True)
class AbstractCertifiedTraining(ABC):
    """Base of the objectives of certified training: the growth of the radius, the regularisers and the validation.

    They implement `SteppedObjective`; called without a step, an objective computes the loss at the end of the training.
    """

    eps: Eps = 0.1
    """Radius of the Linf ball that is to be certified, in pixel units."""
    train_eps_factor: Annotated[float, positive()] = 1.0
    """The radius of the training divided by `eps`; somewhat above 1 the certified accuracy at `eps` is often higher."""
    ramp_start: _Share = 0.0
    """Share of the training after which the radius begins to grow from 0."""
    ramp_end: _Share = 0.5
    """Share of the training after which the radius is that of the training."""
    regularization: Annotated[float, not_negative()] = 0.5
    """Weight of the two regularisers of Shi et al. 2021 at the start; it falls to 0 as the radius grows. The one
    for tight bounds has no effect while the radius is 0."""

    def __post_init__(self) -> None:
        expect(self)
        if self.ramp_end < self.ramp_start:
            raise SettingError(
                f"ramp_start = {self.ramp_start:g} and ramp_end = {self.ramp_end:g}; expected an end at or after the "
                "start"
            )

    @final
    def at_step(self, step: TrainingStep) -> Objective:
        """The objective with the radius and the weights of a step."""
        if step.done >= self.ramp_end:
            return _AtRamp(self, 1.0)
        # ramp_end lies beyond ramp_start wherever this is above 0
        return _AtRamp(self, max(0.0, step.done - self.ramp_start) / (self.ramp_end - self.ramp_start or 1.0))

    @final
    def __call__(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the loss at the end of the training, and the logits of the clean images.

        Raises:
            ModelError: a model with layers that there are no bounds for.
        """
        return self.loss_at(model, images, labels, 1.0)

    @final
    @torch.no_grad()
    def validate(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the mean certified loss of a batch, and its logits.

        That is the cross-entropy of the worst logits by interval bounds, over the whole ball of radius `eps`, whatever
        the objective is: early stopping then monitors what interval bounds certify.
        """
        with torch.autocast(images.device.type, enabled=False):
            apart = take_apart(model, images)
            batch = _Batch(model=model, images=images, labels=labels, apart=apart, eps=self.eps)
            margins = interval_margins(apart.graph, bound_layers(apart.graph, batch.region(self.eps)), labels)
            return batch.bound_loss(margins), apart.logits

    @property
    @final
    def ball(self) -> Ball:
        """The ball round each clean image that is to be certified."""
        return Ball(eps=self.eps)

    @final
    def loss_at(self, model: Classifier, images: Images, labels: Labels, ramp: float) -> tuple[Tensor, Logits]:
        """The loss where the share `ramp` of the growth is done, and the logits of the clean images."""
        check_batch(model, images, labels)
        eps = self.eps * self.train_eps_factor * ramp
        with torch.autocast(images.device.type, enabled=False):  # bounds in bfloat16 would be wider than the ball
            moved = self.moved(model, images, labels, eps) if eps else images
            apart = take_apart(model, images)
            batch = _Batch(model=model, images=images, labels=labels, apart=apart, eps=eps)
            weight = self.regularization * (1 - ramp)
            if not (eps or weight):
                return batch.clean_loss(), apart.logits
            loss, bounds = self.bounded_loss(batch, moved, ramp)
            if weight:
                loss = loss + weight * (tightness_loss(apart.graph, bounds) + balance_loss(apart.graph, bounds))
            return loss, apart.logits

    @abstractmethod
    def moved(self, model: Classifier, images: Images, labels: Labels, eps: float) -> Images:
        """The adversarial images that the loss needs, or the images themselves."""

    @abstractmethod
    def bounded_loss(self, batch: _Batch, moved: Images, ramp: float) -> tuple[Tensor, LayerBounds]:
        """The loss without the regularisers, and the interval bounds that it is computed from."""


@final
@dataclass(frozen=True)
class _AtRamp:
    """The objective of one step."""

    training: AbstractCertifiedTraining
    ramp: float
    """Share of the growth of the radius that is done."""

    def __call__(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the loss and the logits of the clean images."""
        return self.training.loss_at(model, images, labels, self.ramp)

    def validate(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the certified loss at the full radius, and the logits."""
        return self.training.validate(model, images, labels)


@final
@dataclass(frozen=True, kw_only=True)
class IBPTraining(AbstractCertifiedTraining):
    """Interval bound propagation: `kappa` * clean loss + (1 - `kappa`) * loss of the worst-case logits.

    (Gowal et al. 2018, eq. 12; with the regularisers of Shi et al. 2021.)
    """

    kappa_end: _Share = 0.0
    """Weight of the clean loss when the radius has grown; it falls from 1. Gowal et al. 2018 take 0.5, Shi et al. 2021
    0, for more certified and fewer correct images."""

    def moved(self, model: Classifier, images: Images, labels: Labels, eps: float) -> Images:
        """The images themselves."""
        del model, labels, eps
        return images

    def bounded_loss(self, batch: _Batch, moved: Images, ramp: float) -> tuple[Tensor, LayerBounds]:
        """The loss at a share of the growth."""
        bounds = bound_layers(batch.apart.graph, batch.region(batch.eps, moved))
        worst = batch.bound_loss(interval_margins(batch.apart.graph, bounds, batch.labels))
        return _combined(batch, worst, _falling(self.kappa_end, ramp)), bounds


@final
@dataclass(frozen=True, kw_only=True)
class CROWNIBPTraining(AbstractCertifiedTraining):
    """CROWN-IBP: loss of `beta` * margins by linear bounds + (1 - `beta`) * margins by intervals (Zhang et al. 2020).

    It costs about as many times more than `IBPTraining` as there are classes, while beta is above 0.
    """

    kappa_end: _Share = 0.0
    """Weight of the clean loss when the radius has grown; it falls from 1."""
    beta_end: _Share = 0.0
    """Weight of the linear bounds when the radius has grown; it falls from 1."""

    def moved(self, model: Classifier, images: Images, labels: Labels, eps: float) -> Images:
        """The images themselves."""
        del model, labels, eps
        return images

    def bounded_loss(self, batch: _Batch, moved: Images, ramp: float) -> tuple[Tensor, LayerBounds]:
        """The loss at a share of the growth."""
        graph, beta = batch.apart.graph, _falling(self.beta_end, ramp)
        bounds = bound_layers(graph, batch.region(batch.eps, moved))
        margins = interval_margins(graph, bounds, batch.labels)
        if beta:
            margins = torch.lerp(margins, linear_margins(graph, bounds, batch.labels), beta)
        return _combined(batch, batch.bound_loss(margins), _falling(self.kappa_end, ramp)), bounds


@final
@dataclass(frozen=True, kw_only=True)
class SABRTraining(AbstractCertifiedTraining):
    """SABR: loss of the worst-case logits in a small box around an adversarial image (Mueller et al. 2023, section 3).

    The image is the one that PGD finds in the ball, moved inwards until the box lies in the ball and within the model's
    bounds, as in the authors' code: at a black or white pixel too the box has its full width, if the ball has. The
    networks are certified by `method="crown"` or better, as intervals over the whole ball are loose for small `tau`;
    `validate` uses these all the same.
    """

    tau: Annotated[float, between(0, 1, without_low=True)] = 0.4
    """Radius of the box divided by that of the ball (lambda in the paper); 1 is `IBPTraining`."""
    kappa_end: _Share = 0.0
    """Weight of the clean loss when the radius has grown; it falls from 1."""
    steps: Annotated[int, at_least(1)] = 8
    """Gradient steps of PGD."""
    step_size: Eps | None = None
    """Length of each step, at the full radius; 2.5 * eps / steps if None."""

    def moved(self, model: Classifier, images: Images, labels: Labels, eps: float) -> Images:
        """The centres of the boxes."""
        if self.tau == 1:
            return images
        found = _adversarial(self, model, images, labels, eps)
        low, high = Ball(eps=eps).limits(images, model.bounds)
        radius = ((high - low) / 2).clamp(max=self.tau * eps)  # at a bound less than half the ball may be left
        return torch.maximum(torch.minimum(found, high - radius), low + radius)

    def bounded_loss(self, batch: _Batch, moved: Images, ramp: float) -> tuple[Tensor, LayerBounds]:
        """The loss at a share of the growth."""
        low, high = Ball(eps=batch.eps).limits(batch.images, batch.model.bounds)
        reach = self.tau * batch.eps
        box = Interval((moved - reach).maximum(low), (moved + reach).minimum(high))
        bounds = bound_layers(batch.apart.graph, Region(box=box, centre=moved))
        worst = batch.bound_loss(interval_margins(batch.apart.graph, bounds, batch.labels))
        return _combined(batch, worst, _falling(self.kappa_end, ramp)), bounds


@final
@dataclass(frozen=True, kw_only=True)
class MTLIBPTraining(AbstractCertifiedTraining):
    """MTL-IBP: (1 - `alpha`) * loss on adversarial images + `alpha` * loss of the worst-case logits.

    (De Palma et al. 2024.) For small `alpha` networks are certified by `method="crown"` or better.
    """

    alpha: _Share = 0.5
    """Weight of the bounds; 1 is `IBPTraining` without the clean loss, 0 adversarial training."""
    steps: Annotated[int, at_least(1)] = 8
    """Gradient steps of PGD."""
    step_size: Eps | None = None
    """Length of each step, at the full radius; 2.5 * eps / steps if None."""

    def moved(self, model: Classifier, images: Images, labels: Labels, eps: float) -> Images:
        """The images that PGD finds."""
        return images if self.alpha == 1 else _adversarial(self, model, images, labels, eps)

    def bounded_loss(self, batch: _Batch, moved: Images, ramp: float) -> tuple[Tensor, LayerBounds]:
        """The loss at a share of the growth."""
        del ramp
        graph = batch.apart.graph
        bounds = bound_layers(graph, batch.region(batch.eps))
        worst = batch.bound_loss(interval_margins(graph, bounds, batch.labels))
        if self.alpha == 1:
            return worst, bounds
        adversarial = F.cross_entropy(graph.logits(moved), batch.labels)
        return torch.lerp(adversarial, worst, self.alpha), bounds


def tightness_loss(graph: OperationGraph, bounds: LayerBounds) -> Tensor:
    """How much wider intervals are before the ReLUs than before the first layer (Shi et al. 2021, section 4).

    The mean over the ReLUs of max(0, tau - ratio) / tau, where the ratio is the mean width before the first dense layer
    or convolution, divided by that before the ReLU. Zero where no interval has a width.
    """
    places = [node.inputs[0] for node in graph.nodes if isinstance(node.operation, Dense | Convolution)]
    first = bounds.intervals[places[0] if places else 0].radius.mean().detach()
    tiny = torch.finfo(first.dtype).tiny
    ratios = [first / each.radius.mean().clamp(min=tiny) for each in _before_relus(graph, bounds)]
    return _mean_shortfall(ratios, first) * (first > 0)


def balance_loss(graph: OperationGraph, bounds: LayerBounds) -> Tensor:
    """How unequal active and inactive ReLUs are (Shi et al. 2021, section 4).

    Of the inputs that are positive, and of those that are negative, over the whole ball, the absolute middles are added
    up, and their squared distances from the mean of all middles. The mean over the ReLUs of max(0, tau - ratio) / tau,
    for the ratio of the smaller to the larger sum of both kinds.
    """
    ratios: list[Tensor] = []
    for each in _before_relus(graph, bounds):
        middle = each.centre
        active, inactive = each.lower > 0, each.upper < 0
        for values in (middle.abs(), (middle - middle.mean()).square()):
            one, other = (values.where(chosen, 0.0).sum() for chosen in (active, inactive))
            larger = torch.maximum(one, other)
            ratios.append(torch.minimum(one, other) / larger.where(larger > 0, 1.0) + (larger == 0))
    return 2 * _mean_shortfall(ratios, bounds.intervals[0].lower)


def _before_relus(graph: OperationGraph, bounds: LayerBounds) -> Sequence[Interval]:
    return [bounds.intervals[node.inputs[0]] for node in graph.nodes if isinstance(node.operation, Rectifier)]


def _mean_shortfall(ratios: Sequence[Tensor], like: Tensor) -> Tensor:
    """The mean of max(0, tau - ratio) / tau; zero without ratios."""
    return F.relu(_BALANCE - torch.stack(list(ratios))).mean() / _BALANCE if ratios else like.new_zeros(())


def _falling(end: float, ramp: float) -> float:
    """From 1 to `end`, linearly."""
    return 1 - ramp * (1 - end)


def _combined(batch: _Batch, worst: Tensor, kappa: float) -> Tensor:
    """The clean loss with weight kappa, and the loss of bounds with the rest (Gowal et al. 2018, eq. 12)."""
    return torch.lerp(worst, batch.clean_loss(), kappa) if kappa else worst


def _adversarial(
    training: SABRTraining | MTLIBPTraining, model: Classifier, images: Images, labels: Labels, eps: float
) -> Images:
    """What PGD finds within `eps`, with the model in evaluation mode; the step size shrinks as the radius does."""
    full = training.eps * training.train_eps_factor
    size = None if training.step_size is None else training.step_size * eps / full
    return AdversarialTraining(eps=eps, steps=training.steps, step_size=size).adversarial(model, images, labels)[0]


@torch.no_grad()
def initialize_for_bounds(model: nn.Module) -> None:
    """Draw the weights of dense layers and convolutions again, in place, so that intervals keep their width.

    They are normal with a standard deviation of sqrt(2 pi) / fan-in (Shi et al. 2021, section 4.1), with which a layer
    and its ReLU neither widen nor narrow intervals in the mean; biases become 0. For the start of certified training:
    with the usual initialisation intervals grow by orders of magnitude from layer to layer. The draws are those of
    PyTorch's global generator.

    Raises:
        ModelError: a model without such layers, or with weights that are computed from others.
    """
    layers = [
        each
        for each in as_classifier(model).modules()
        if isinstance(each, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    ]
    if not layers:
        raise ModelError("a model without dense layers and convolutions; expected some to initialise")
    if any(parametrize.is_parametrized(each) for each in layers):
        raise ModelError("a layer's weights are computed from others (parametrisation); remove that before")
    for layer in layers:
        layer.weight.normal_(0, math.sqrt(2 * math.pi) / layer.weight[0].numel())
        if layer.bias is not None:
            layer.bias.zero_()
