"""Do the gradients that the attacks follow exist, and are they those of the model?"""

import copy

import torch
from torch import Tensor

from casemate.attacks import Criterion, frozen, input_gradient
from casemate.evaluate.findings.check import Measured, NotRun, check
from casemate.evaluate.findings.evidence import Evidence
from casemate.evaluate.findings.finding import Severity
from casemate.losses import LossName, margin
from casemate.models import Classifier
from casemate.rng import Streams, derive

_DIRECTIONS = 10
"""Random directions along which differences are taken."""
_ROOM = 64
"""Images on which gradients are compared with something."""


@check("zero-gradients", "Every image has a gradient to follow")
def zero_gradients(e: Evidence) -> Measured:
    """Where it is exactly zero, no attack by gradient took place."""
    losses: tuple[LossName, ...] = ("ce", "dlr")
    shares = {loss: (e.gradient(loss)[1].flatten(1) == 0).all(1).double().mean().item() for loss in losses}
    value = max(shares.values())
    severity = Severity.VOIDS if value > 0.1 else Severity.WEAKENS if value > 0.01 else None
    return Measured(
        value,
        0.01,
        severity,
        f"{100 * value:.1f} % of the images have a gradient of exactly zero: rounding, quantisation or another step "
        "without a derivative stands in the way. Attack through it (BPDA), or without gradients",
    )


@check("precision", "float32 is exact enough for the gradients")
def precision(e: Evidence) -> Measured | NotRun:
    """The signs of the gradient in float64, weighted by its size, must be those in float32."""
    if e.randomised:
        return NotRun("the model answers at random")
    images, labels = e.unit
    images, labels = images[:_ROOM], labels[:_ROOM]
    try:
        double = copy.deepcopy(e.model).double()
        with frozen(double):
            exact = input_gradient(double, images.double(), Criterion(labels), "ce")[1]
    except (RuntimeError, TypeError) as error:
        return NotRun(f"the model does not run in float64 ({str(error).splitlines()[0]})")
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
def finite_differences(e: Evidence) -> Measured | NotRun:
    """Along random directions the margin must change as the gradient says; the median relative error over images."""
    if e.randomised:
        return NotRun("the model answers at random")
    images, labels = (each[:_ROOM] for each in e.unit)
    model, step = e.model, 1e-2
    try:
        double = copy.deepcopy(e.model).double()
        with frozen(double), torch.no_grad():
            double(images[:1].double())
        model, images, step = double, images.double(), 1e-5
    except (RuntimeError, TypeError):
        pass  # then in float32, with a step that rounding does not drown
    streams = Streams(derive(e.seed, "directions"), torch.arange(len(labels), device=images.device))
    # flat parts of an image tie in max-pooling, where no derivative exists; half a grey level breaks the ties
    images = images + (streams.uniform(tuple(images.shape[1:]), "ties").to(images.dtype) - 0.5) / 255
    with frozen(model):
        said = _margin_gradient(model, images, labels).flatten(1)
        expected: list[Tensor] = []
        measured: list[Tensor] = []
        with torch.no_grad():
            for draw in range(_DIRECTIONS):
                along = (streams.uniform(tuple(images.shape[1:]), draw) < 0.5).to(images.dtype) * 2 - 1
                ahead, behind = (margin(model(images + way * step * along), labels) for way in (1, -1))
                measured.append((ahead - behind) / (2 * step))
                expected.append((said * along.flatten(1)).sum(1))
    found, told = torch.stack(measured, 1), torch.stack(expected, 1)
    size = torch.maximum(found.norm(dim=1), told.norm(dim=1))
    error = ((found - told).norm(dim=1) / size.clamp(min=1e-30))[size > 0]
    if not len(error):
        return NotRun("the model is constant around the images (see zero-gradients)")
    value = error.median().item()
    return Measured(
        value,
        0.05,
        Severity.VOIDS if value > 0.5 else Severity.WEAKENS if value > 0.05 else None,
        f"the gradient misses what the model does along random directions by {100 * value:.0f} % in the median: it is "
        "not the model's own, or the model jumps. Attacks that follow it go astray; use some that need no gradient",
    )


def _margin_gradient(model: Classifier, images: Tensor, labels: Tensor) -> Tensor:
    return input_gradient(model, images, Criterion(labels), "margin")[1]
