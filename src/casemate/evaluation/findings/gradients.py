"""Do the gradients that the attacks follow exist, and are they those of the model?"""

import copy

import torch
from torch import Tensor

from casemate.attacks import Criterion, Status, frozen, input_gradient
from casemate.errors import ModelError
from casemate.evaluation.findings.check import Measured, NotRun, check
from casemate.evaluation.findings.context import CheckContext
from casemate.evaluation.findings.finding import Severity
from casemate.losses import LossName, margin
from casemate.models import Classifier
from casemate.rng import Streams, derive

_DIRECTIONS = 10
"""Random directions along which differences are taken."""
_ROOM = 64
"""Images on which gradients are compared with something."""
_TINY = {True: 1e-8, False: 1e-6}
"""Length of a step within which no two grey levels, activations or weights change places, in float64 or not."""
_ROUGH = 1e-3
"""Length of a step that rounding in float32 does not drown."""
_MISLEADS = 0.2
"""Error of the gradient from which on it is not the model's: a model's own is right to the fourth digit in float64."""
_STRIDES = (0.01, 0.03, 0.1)
"""Lengths of steps that reach the next stair of a model that moves in steps, as shares of the range of the pixels."""


@check("zero-gradients", "Every image has a gradient to follow")
def zero_gradients(e: CheckContext) -> Measured:
    """Where it is exactly zero, no attack by gradient took place."""
    losses: tuple[LossName, ...] = ("ce", "dlr")
    shares = {loss: (e.gradient(loss)[1].flatten(1) == 0).all(1).double().mean().item() for loss in losses}
    value = max(*shares.values(), _never_had_one(e))
    severity = Severity.VOIDS if value > 0.1 else Severity.WEAKENS if value > 0.01 else None
    return Measured(
        value,
        0.01,
        severity,
        f"{100 * value:.1f} % of the images have a gradient of exactly zero: rounding, quantisation or another step "
        "without a derivative stands in the way. Attack through it (BPDA), or without gradients",
    )


def _never_had_one(e: CheckContext) -> float:
    """The share of all images on which even the luckiest of the attacks by gradient never had one other than zero."""
    name = Status.ZERO_GRADIENT.name.lower()
    found = [each.status[name] for each in e.cascade.attempts if each.eps == e.eps and each.passes.backward]
    return min(found, default=0) / len(e.images)


@check("precision", "float32 is exact enough for the gradients")
def precision(e: CheckContext) -> Measured | NotRun:
    """The signs of the gradient in float64, weighted by its size, must be those in float32."""
    if e.randomised:
        return NotRun("the model answers at random")
    images, labels = e.few_tensors
    images, labels = images[:_ROOM], labels[:_ROOM]
    double, runs = _in_float64(e.model, images)
    if not runs:
        raise ModelError("the model does not run in float64")
    with frozen(double):
        exact = input_gradient(double, images.double(), Criterion(labels), "ce")[1]
    with frozen(e.model):
        rough = input_gradient(e.model, images, Criterion(labels), "ce")[1]
    size = exact.abs().flatten(1)
    weight = size / size.sum(1, keepdim=True).clamp(min=torch.finfo(size.dtype).tiny)
    differs = (weight * (exact.sign() != rough.sign()).flatten(1)).sum(1)[size.amax(1) > 0]
    value = differs.mean().item() if len(differs) else 0.0
    return Measured(
        value,
        0.01,
        Severity.VOIDS if value > 0.1 else Severity.WEAKENS if value > 0.01 else None,
        f"{100 * value:.1f} % of the gradient, by size, has another sign in float64: float32 loses it. Attack the "
        "model in float64 or with a loss that does not vanish",
    )


@check("finite-differences", "The gradient is that of the model")
def finite_differences(e: CheckContext) -> Measured | NotRun:
    """Along random directions the margin must change as the gradient says; in a model of stairs, rise at least."""
    if e.randomised:
        return NotRun("the model answers at random")
    images, labels = (each[:_ROOM] for each in e.few_tensors)
    model, exact = _in_float64(e.model, images)
    images = images.double() if exact else images
    streams = Streams(derive(e.seed, "directions"), torch.arange(len(labels), device=images.device))
    # flat parts of an image tie in max-pooling, where no derivative exists; half a grey level breaks the ties
    images = images + (streams.uniform(tuple(images.shape[1:]), "ties").to(images.dtype) - 0.5) / 255
    with frozen(model), torch.no_grad():
        gradient = input_gradient(model, images, Criterion(labels), "margin")[1]
        if not gradient.any():
            return NotRun("the gradient is zero everywhere (see zero-gradients)")
        tiny = _TINY[exact]
        still = (_slopes(model, images, labels, tiny, streams) == 0).double().mean().item()
        if (
            still > 0.5
        ):  # something inside rounds, and the gradient is an approximation, which must at least lead uphill
            value = _downhill(e.model, e.few_tensors[0][:_ROOM], labels, gradient, streams)
            words = (
                f"on {100 * value:.0f} % of the images a step along the gradient raises the loss less than blind ones"
            )
        else:
            lengths = {tiny, _ROUGH} if exact else {_ROUGH}  # rounding inside the model may drown the tiny one
            value = min(_error(model, images, labels, gradient, length, streams) for length in lengths)
            words = (
                f"the gradient misses what the model does along random directions by {100 * value:.0f} % in the median"
            )
    return Measured(
        value,
        0.05,
        Severity.VOIDS if value > _MISLEADS else Severity.WEAKENS if value > 0.05 else None,
        f"{words}: it is not the model's own, or the model jumps. Attacks that follow it go astray; use some that need "
        "no gradient",
    )


def _in_float64(model: Classifier, images: Tensor) -> tuple[Classifier, bool]:
    """A copy in float64, if the model runs in it."""
    try:
        double = copy.deepcopy(model).double()
        with frozen(double), torch.no_grad():
            double(images[:1].double())
    except Exception:  # a model that cannot be copied, or whose code insists on float32
        return model, False
    return double, True


def _signs(images: Tensor, streams: Streams, draw: int) -> Tensor:
    """A random direction for each image: every pixel up or down."""
    return (streams.uniform(tuple(images.shape[1:]), draw) < 0.5).to(images.dtype) * 2 - 1


def _slopes(model: Classifier, images: Tensor, labels: Tensor, length: float, streams: Streams) -> Tensor:
    """How steeply the margin rises along each of the random directions, `(n, directions)`."""
    found: list[Tensor] = []
    for draw in range(_DIRECTIONS):
        along = length * _signs(images, streams, draw)
        ahead, behind = (margin(model(images + way * along), labels) for way in (1, -1))
        found.append((ahead - behind) / (2 * length))
    return torch.stack(found, 1)


def _error(
    model: Classifier, images: Tensor, labels: Tensor, gradient: Tensor, length: float, streams: Streams
) -> float:
    """How far the slopes are from those that the gradient tells of: the median relative error over images."""
    found = _slopes(model, images, labels, length, streams)
    along = (_signs(images, streams, draw) for draw in range(_DIRECTIONS))
    told = torch.stack([(gradient * each).flatten(1).sum(1) for each in along], 1)
    size = torch.maximum(found.norm(dim=1), told.norm(dim=1))
    return ((found - told).norm(dim=1) / size.clamp(min=1e-30))[size > 0].median().item()


def _downhill(model: Classifier, images: Tensor, labels: Tensor, gradient: Tensor, streams: Streams) -> float:
    """Share of images on which a step along the gradient's signs leads less far up than the best of random ones.

    At the best of several lengths: a short step may not reach the next stair, a long one leave the hill.
    """
    low, high = model.bounds
    shares: list[float] = []
    for length in _STRIDES:
        stride = length * (high - low)

        def reached(along: Tensor, stride: float = stride) -> Tensor:
            return margin(model((images + stride * along).clamp(low, high)), labels)

        blind = torch.stack([reached(_signs(images, streams, draw)) for draw in range(_DIRECTIONS)]).amax(0)
        shares.append((reached(gradient.sign().to(images.dtype)) <= blind).double().mean().item())
    return min(shares)
