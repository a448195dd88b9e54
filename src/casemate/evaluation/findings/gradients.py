"""Do the gradients that the attacks follow exist, and are they those of the model?"""

import copy
import math

import torch
from torch import Tensor

from casemate.attacks import Misclassification, Status, frozen, input_gradient
from casemate.errors import ModelError
from casemate.evaluation.findings.check import Measured, NotRun, check
from casemate.evaluation.findings.context import CheckContext
from casemate.evaluation.intervals import percent
from casemate.losses import LossName, margin
from casemate.models import Classifier
from casemate.rng import Streams, derive

_DIRECTIONS = 4
"""Number of random directions per image along which finite differences are taken."""
_MAX_DIFFERENCED = 16
"""Largest number of images of which finite differences are taken. The error of a right gradient is below 1e-4 on every
image, that of a wrong one of the order of 1 on most: a median over few images tells them apart."""
_MAX_COMPARED = 32
"""Largest number of images whose gradient is compared with that in float64: the share is a mean over all their pixels.
"""
_MAX_STEPPED, _RANDOM_STEPS = 32, 10
"""Largest number of images on which a step along the gradient of a model that rounds is compared with random steps, and
number of these: one image is a twentieth of the share above which the check is raised, or less."""
_TINY = {True: 1e-8, False: 1e-6}
"""Step of finite differences, in pixel units, so short that it crosses no kink of the network; by whether the model
runs in float64."""
_EXACT = 0.05
"""Median error up to which the gradient is right, so that no longer steps are tried."""
_ROUGH = (1e-3, 1e-4, 1e-5)
"""Longer steps, in pixel units, that are tried in turn where the model computes in float32: so long that a difference
exceeds rounding errors, so short that few kinks are crossed. Which one that is depends on the network."""
_STRIDES = (0.01, 0.03, 0.1)
"""Lengths of steps, as shares of the range of the pixels, that may reach the next level of a model that rounds."""


@check(
    "zero-gradients",
    "Every image has a gradient to follow",
    weakens=0.01,
    voids=0.1,
    why="An image whose gradient is exactly zero was not attacked by any method that follows gradients. The usual "
    "causes are rounding, thresholds and `detach` (shattered gradients: Athalye et al. 2018, arXiv 1802.00420).",
    advice="Attack through the step that has no derivative (`BPDA`), or without gradients.",
    only_flattery=True,
)
def zero_gradient(context: CheckContext) -> Measured:
    """Share of the images whose input gradient is exactly zero in every pixel, the largest of three.

    They are the shares for the gradient of the cross-entropy, for that of the difference-of-logits ratio, and for all
    steps of an attack by gradient (of several attacks, the smallest share).
    """
    losses: tuple[LossName, ...] = ("ce", "dlr")
    shares = [(context.gradient(loss)[1].flatten(1) == 0).all(1).double().mean().item() for loss in losses]
    value = max(*shares, _share_without_gradient(context))
    return Measured(
        value,
        f"{percent(value)} of the images have a gradient of exactly zero: rounding, quantisation or another step "
        "without a derivative blocks it",
    )


def _share_without_gradient(context: CheckContext) -> float:
    """Share of all images whose gradient was zero at every step of an attack by gradient; of several, the smallest."""
    name = Status.ZERO_GRADIENT.name.lower()
    attempts = context.cascade.attempts
    found = [each.status[name] for each in attempts if each.eps == context.eps and each.passes.backward]
    return min(found, default=0) / len(context.images)


@check(
    "precision",
    "float32 is precise enough for the gradients",
    weakens=0.01,
    voids=0.1,
    models="deterministic",
    why="Where float32 loses the gradient, an attack follows rounding errors (numerical instability is one way to "
    "shatter gradients: Athalye et al. 2018, arXiv 1802.00420).",
    advice="Attack the model in float64, or with a loss that does not vanish.",
    only_flattery=True,
)
def precision(context: CheckContext) -> Measured:
    """Share of the entries of the cross-entropy's gradient, weighted by size, whose sign is different in float64."""
    images, labels = context.sample_tensors
    images, labels = images[:_MAX_COMPARED], labels[:_MAX_COMPARED]
    double, runs = _in_float64(context.model, images)
    if not runs:
        raise ModelError("the model does not run in float64")
    with frozen(double):
        exact = input_gradient(double, images.double(), Misclassification(labels), "ce")[1]
    with frozen(context.model):
        rough = input_gradient(context.model, images, Misclassification(labels), "ce")[1]
    size = exact.abs().flatten(1)
    weight = size / size.sum(1, keepdim=True).clamp(min=torch.finfo(size.dtype).tiny)
    differs = (weight * (exact.sign() != rough.sign()).flatten(1)).sum(1)[size.amax(1) > 0]
    value = differs.mean().item() if len(differs) else 0.0
    return Measured(value, f"{percent(value)} of the gradient, by size, has another sign in float64: float32 loses it")


@check(
    "finite-differences",
    "The gradient is that of the model",
    weakens=_EXACT,
    voids=0.2,
    models="deterministic",
    why="A model's own gradient is right to the fourth digit in float64. One that is not leads attacks astray: it was "
    "replaced in the backward pass (Athalye et al. 2018, arXiv 1802.00420), or the model jumps, as with "
    "k-winners-take-all (Xiao et al. 2020, arXiv 1905.10510; broken by Tramer et al. 2020, arXiv 2002.08347).",
    advice="Use attacks that need no gradient.",
    only_flattery=True,
)
def finite_differences(context: CheckContext) -> Measured | NotRun:
    """Median relative error of the margin's gradient, compared with finite differences along random directions.

    Computed in float64 where the model runs in it. For a model that rounds, so that most differences are zero: the
    share of the images on which a step along the gradient raises the margin less than the best of several random steps.
    """
    images, labels = (each[:_MAX_DIFFERENCED] for each in context.sample_tensors)
    model, exact = _in_float64(context.model, images)
    images = images.double() if exact else images
    streams = Streams(derive(context.seed, "directions"), torch.arange(len(labels), device=images.device))
    # flat parts of an image tie in max-pooling, where no derivative exists; half a grey level breaks the ties
    images = images + (streams.uniform(tuple(images.shape[1:]), "ties").to(images.dtype) - 0.5) / 255
    with frozen(model), torch.no_grad():
        gradient = input_gradient(model, images, Misclassification(labels), "margin")[1]
        if not gradient.any():
            return NotRun("the gradient is zero everywhere (see zero-gradients)")
        slopes = _slopes(model, images, labels, _TINY[exact], streams)
        if (slopes == 0).double().mean() > 0.5:  # the model rounds; its gradient must at least lead upwards
            with frozen(context.model):
                value = _share_misled(context)
            words = (
                f"on {percent(value, 0)} of the images a step along the gradient raises the loss less than random steps"
            )
        else:
            # in float32 the difference of a tiny step is mostly rounding
            value = _median_error(slopes, gradient, streams) if exact else math.inf
            for length in _ROUGH:
                if value > _EXACT:
                    slopes = _slopes(model, images, labels, length, streams)
                    value = min(value, _median_error(slopes, gradient, streams))
            words = (
                f"the gradient differs from differences along random directions by {percent(value, 0)} in the median"
            )
    return Measured(
        value, f"{words}: it is not the model's own, or the model jumps, and attacks that follow it are misled"
    )


def _in_float64(model: Classifier, images: Tensor) -> tuple[Classifier, bool]:
    """A copy in float64 and True; the model itself and False if it cannot be copied or does not run in float64."""
    try:
        double = copy.deepcopy(model).double()
        with frozen(double), torch.no_grad():
            double(images[:1].double())
    except Exception:  # a model that cannot be copied, or whose code insists on float32
        return model, False
    return double, True


def _signs(images: Tensor, streams: Streams, draw: int) -> Tensor:
    """A random direction for each image, +1 or -1 in every pixel, in the shape of `images`; `draw` is its number."""
    return (streams.uniform(tuple(images.shape[1:]), draw) < 0.5).to(images.dtype) * 2 - 1


def _slopes(model: Classifier, images: Tensor, labels: Tensor, length: float, streams: Streams) -> Tensor:
    """Slopes of the margin along random directions, `(n, directions)`, by central differences with steps `length`."""
    found: list[Tensor] = []
    for draw in range(_DIRECTIONS):
        step = length * _signs(images, streams, draw)
        ahead, behind = (margin(model(images + sign * step), labels) for sign in (1, -1))
        found.append((ahead - behind) / (2 * length))
    return torch.stack(found, 1)


def _median_error(slopes: Tensor, gradient: Tensor, streams: Streams) -> float:
    """Median over the images of the relative error of the slopes that `gradient` predicts, compared with `slopes`."""
    directions = (_signs(gradient, streams, draw) for draw in range(_DIRECTIONS))
    predicted = torch.stack([(gradient * each).flatten(1).sum(1) for each in directions], 1)
    size = torch.maximum(slopes.norm(dim=1), predicted.norm(dim=1))
    return ((slopes - predicted).norm(dim=1) / size.clamp(min=1e-30))[size > 0].median().item()


def _share_misled(context: CheckContext) -> float:
    """Share of images on which a step along the signs of the gradient raises the margin less than the best random step.

    The smallest share over three lengths of step: a short one may not reach the next level of the model's rounding, a
    long one may leave the region in which the gradient holds.
    """
    model = context.model
    images, labels = (each[:_MAX_STEPPED] for each in context.sample_tensors)
    streams = Streams(derive(context.seed, "steps"), torch.arange(len(labels), device=images.device))
    gradient = input_gradient(model, images, Misclassification(labels), "margin")[1]
    low, high = model.bounds
    shares: list[float] = []
    for length in _STRIDES:
        stride = length * (high - low)

        def margin_after(direction: Tensor, stride: float = stride) -> Tensor:
            return margin(model((images + stride * direction).clamp(low, high)), labels)

        random = torch.stack([margin_after(_signs(images, streams, draw)) for draw in range(_RANDOM_STEPS)]).amax(0)
        shares.append((margin_after(gradient.sign()) <= random).double().mean().item())
        if shares[-1] <= _EXACT:
            break
    return min(shares)
