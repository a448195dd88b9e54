"""Certificates: images for which no image in a ball round them is classified otherwise, proven by bounds.

The bounds are computed in float64, and hold for the network as it is evaluated in float32: whatever the order of the
additions, if every addition, multiplication, division and root errs by a relative 2^-24 at most (IEEE 754), which
`casemate.certification.propagation` adds up operation by operation, doubled to cover the bounds' own rounding. Not
covered are evaluations of lower precision (TF32, half precision, autocast), and convolutions by Winograd's or Fourier
transforms, whose errors are larger. The ball includes the tolerance by which the images of attacks may exceed it
(`Ball.reach`).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from casemate.certification.operations import Interval, per_row
from casemate.certification.propagation import bound_layers, interval_margins, linear_margins
from casemate.certification.region import Region, region_around
from casemate.certification.taking_apart import TakenApart, check_executed, take_apart
from casemate.certification.tracing import calls_as_text, forget_calls
from casemate.data import Array, ImageSource, as_labelled
from casemate.errors import ModelError, SettingError, ShapeError
from casemate.float32_precision import full_precision
from casemate.intervals import Estimate, share
from casemate.logits import is_right
from casemate.memory import batched
from casemate.models import (
    Classifier,
    as_classifier,
    check_labels,
    check_range,
    check_shape,
    floats_within,
    judge_of,
    user_call,
)
from casemate.models.state import frozen
from casemate.norms import Ball, Bounds, Norm, format_eps, parse_eps, parse_norm
from casemate.progress import NULL_OBSERVER, Observer
from casemate.rng import Streams
from casemate.rows import Rows
from casemate.settings import at_least, one_of
from casemate.types import Flags, Images, Labels, Logits, PerExample

Method = Literal["interval", "crown-ibp", "crown"]
_METHOD = one_of("interval", "crown-ibp", "crown")
_LARGEST = 1e30
"""The largest number inside a network up to which no sum of the network overflows in float32."""
_UNIT = torch.finfo(torch.float32).eps
"""Relative rounding error of an operation that bounds allow for, twice the largest one in float32. Of a float64 model
too, since `Classifier` may round its logits to float32: ties there could be decided either way."""
_UNITS = 8
"""Roundings of exponentials, logarithms and quotients at the end of a model, in units of 1."""


@final
@dataclass(frozen=True, kw_only=True)
class Certificate(Rows):
    """What is proven for each image; `certificate[mask]` is it for some of the images."""

    margin: PerExample
    """A lower bound of the logit of the label minus the largest other logit, over the ball within the model's bounds;
    float64. Rounding of the model in float32 is taken off."""
    certified: Flags
    """Whether every image of the ball is classified as the label: the margin is above zero."""
    clean: Flags
    """Whether the image itself is classified as the label."""
    method: str
    """interval, crown-ibp or crown."""
    eps: float
    """Radius of the ball."""
    norm: Norm
    """Norm of the ball."""

    @property
    def certified_accuracy(self) -> Estimate:
        """Share of the images that are certified."""
        return share(self.certified.cpu().numpy())

    @property
    def clean_accuracy(self) -> Estimate:
        """Share of the images that are classified as the label."""
        return share(self.clean.cpu().numpy())

    def __repr__(self) -> str:
        return (
            f"Certificate({self.certified_accuracy:.1%n} certified at eps = {format_eps(self.eps)} in {self.norm} by "
            f"{self.method}; {self.clean_accuracy.value:.1%} correct)"
        )


@torch.no_grad()
def certify(
    model: nn.Module,
    images: ImageSource,
    labels: Array | None = None,
    *,
    eps: float | str,
    norm: Norm = "linf",
    method: Method = "crown",
    batch_size: int = 50,
    observer: Observer = NULL_OBSERVER,
) -> Certificate:
    """Bound the margins of images over a ball; the model is judged in evaluation mode and does not change.

    A certificate is a proof, an image without one is not proven to have an adversarial image: the bounds are loose, and
    looser the more layers a network has and the less it was trained for them.

    Args:
        model: a `Classifier`, or a module that maps images within [0, 1] to logits; in float32 or float64.
        images: as for `casemate.evaluate`: `(n, channels, height, width)` within the model's bounds, or bytes (uint8),
            which are scaled to [0, 1]; or `LabelledImages`, a DataLoader or Dataset.
        labels: the true classes of images given alone, whole numbers `(n,)`.
        eps: radius of the ball, in pixel units, as a number or a text such as "8/255".
        norm: linf, l2 or l1.
        method: "interval" propagates intervals (Gowal et al. 2018). "crown-ibp" propagates linear functions back to the
            images, between bounds of the layers from intervals (Zhang et al. 2020), and takes the better bound of the
            two. "crown" computes those of the layers by linear functions too (Zhang et al. 2018), for images that are
            classified correctly and not proven robust without: much tighter for networks not trained for bounds, and
            slower, by the number of ReLUs whose sign is not decided.
        batch_size: images at a time, halved when memory runs out; it does not change the result, up to rounding.
        observer: receives the progress.

    Raises:
        ShapeError: no images, or images and labels that the model does not take.
        DataError: images or labels of a kind or type that is not understood, or of different lengths.
        SettingError: an eps, norm, method or batch size outside its range.
        ModelError: a model with layers that there are no bounds for (named in the message), in half precision, or that
            fails.
        MachineError: not even one image at a time fits into memory.
    """
    method = _METHOD.check(method, "method")
    batch_size = at_least(1).check(batch_size, "batch_size")
    model, ball, pixels, truth = _checked(model, images, labels, eps, norm)
    reached = Ball(eps=ball.reach(model.bounds), norm=ball.norm)
    with _prepared(model, pixels, ball), observer.work(f"Certifying ({method})", len(pixels)) as advance:

        def work(part: slice) -> tuple[Tensor, ...]:
            found = _margins(model, pixels[part].to(model.device), truth[part].to(model.device), reached, method)
            advance(len(truth[part]), "")
            return found

        parts = batched(len(pixels), batch_size, work, observer)
    margin, clean = (torch.cat(column).to(pixels.device) for column in zip(*parts, strict=True))
    return Certificate(
        margin=margin, certified=(margin > 0) & clean, clean=clean, method=method, eps=ball.eps, norm=ball.norm
    )


@torch.no_grad()
def confirm(
    model: nn.Module,
    images: ImageSource,
    labels: Array | None = None,
    *,
    eps: float | str,
    norm: Norm = "linf",
    batch_size: int = 50,
    observer: Observer = NULL_OBSERVER,
) -> Flags:
    """Which images are classified correctly, after all checks that `certify` makes, but without bounds.

    For images whose bounds are known from an earlier call, for a model with the same weights and the same
    `operations_text`. For the arguments and errors see `certify`.
    """
    model, ball, pixels, truth = _checked(model, images, labels, eps, norm)
    reached = Ball(eps=ball.reach(model.bounds), norm=ball.norm)
    with _prepared(model, pixels, ball):

        def work(part: slice) -> tuple[Tensor, ...]:
            own = pixels[part].to(model.device)
            logits, apart = model(own), take_apart(model, own, dtype=torch.float64)
            _check_operations(model, own, logits, apart, reached, _UNIT)
            return (is_right(logits, truth[part].to(model.device)),)

        parts = batched(len(pixels), batch_size, work, observer)
    return torch.cat([right for (right,) in parts]).to(pixels.device)


def operations_text(model: nn.Module, images: Images) -> str:
    """What a model computes for images, but for its weights, as text. Raises `ModelError` for one without bounds."""
    model = judge_of(as_classifier(model))
    with _prepared(model, images, None):
        return calls_as_text(model)


@contextmanager
def _prepared(model: Classifier, images: Images, ball: Ball | None) -> Iterator[None]:
    """The model in evaluation mode, frozen and examined; restored at the end."""
    with user_call(model, ball), frozen(model), full_precision():
        model.examine(images[:2].to(model.device))
        forget_calls(model)
        yield


def _margins(model: Classifier, images: Images, labels: Labels, ball: Ball, method: Method) -> tuple[Tensor, ...]:
    """Bounds of the margins, float64 `(n,)`, and which images are classified correctly."""
    logits = model(images)
    apart = take_apart(model, images, dtype=torch.float64)
    _check_operations(model, images, logits, apart, ball, _UNIT)
    graph, right = apart.graph, is_right(logits, labels)
    region = region_around(images.double(), ball, model.bounds)
    bounds = bound_layers(graph, region, unit=_UNIT)
    margins = interval_margins(graph, bounds, labels)
    if method != "interval":
        margins = margins.fmax(linear_margins(graph, bounds, labels))
    # what overflows in float32 has no bound; where large numbers cancel, their rounding makes the interval as large
    largest = torch.stack([per_row(each.magnitude).amax(1) for each in bounds.intervals]).amax(0)
    finite = logits.isfinite().all(1) & (largest < _LARGEST)
    ending = _ending_rounding(apart, bounds.intervals[-1], _UNIT)
    lowest = (margins.amin(1) - ending).where(finite, -torch.inf)
    if method == "crown":
        open_ = (right & finite & ~(lowest > 0)).nonzero().squeeze(1)  # elsewhere these slow bounds prove nothing new
        if len(open_):
            region = region_around(images[open_].double(), ball, model.bounds)
            bounds = bound_layers(graph, region, unit=_UNIT, tighten=True)
            found = interval_margins(graph, bounds, labels[open_]).fmax(linear_margins(graph, bounds, labels[open_]))
            lowest[open_] = (found.amin(1) - ending[open_]).fmax(lowest[open_])
    return lowest, right


def _check_operations(
    model: Classifier, images: Images, logits: Logits, apart: TakenApart, ball: Ball, unit: float
) -> None:
    """Raise `ModelError` unless the model executes the calls that its operations were made from, and they its logits.

    That is looked at for the images, and for points of the balls: corners in Linf, some with all pixels at the same end
    and some at random; else points drawn at random. Logits may differ by the rounding that is allowed for.
    """
    moved = tuple(_points(images, ball, model.bounds))
    check_executed(model, apart.calls, (images, *moved))
    compared = [(images, logits), *((each, model(each)) for each in moved)]
    if not all(_is_rounded(found, apart, points, unit) for points, found in compared):
        raise ModelError(
            "the operations found in the model compute other logits than the model on some images of the balls: its "
            "forward is random, depends on the images in Python code, or computes in lower precision than float32 "
            "(convolutions on a GPU also by Winograd's or Fourier transforms). Write that part without if and loops "
            "over values, and without autocast"
        )


def _points(images: Images, ball: Ball, bounds: Bounds) -> Iterator[Images]:
    """Two points of the ball around each image."""
    if ball.norm != "linf":
        streams = Streams(0, torch.arange(len(images), device=images.device))
        for number in range(2):
            yield ball.sample(images, bounds, streams, "compared", number)
        return
    low, high = (each.to(images.dtype) for each in ball.limits(images, bounds))
    generator = torch.Generator().manual_seed(0)
    for shape in ((len(images), 1, 1, 1), images.shape):  # all pixels of an image at the same end, or at any
        upwards = torch.randint(2, shape, generator=generator, dtype=torch.bool)
        yield torch.where(upwards.to(images.device), high, low)


def _is_rounded(logits: Logits, apart: TakenApart, images: Images, unit: float) -> bool:
    """Whether logits differ from those of the operations by no more than the rounding that the bounds allow for.

    Images for which the logits are not finite do not count: nothing is claimed about them.
    """
    point = Interval(images.double(), images.double())
    allowed = bound_layers(apart.graph, Region(box=point, centre=point.lower), unit=unit).intervals[-1]
    slack = _ending_rounding(apart, allowed, unit)
    least, most = (logits - allowed.upper).amax(1) - slack, (logits - allowed.lower).amin(1) + slack
    # a log-softmax shifts all logits of an image by one number
    agree = least <= most if apart.ending == "log_softmax" else (least <= 0) & (most >= 0)
    return bool((agree | ~logits.isfinite().all(1)).all())


def _ending_rounding(apart: TakenApart, logits: Interval, unit: float) -> Tensor:
    """How much the ending of the model can change which class is the largest by rounding in float32, `(n,)`; 0 if none.

    A softmax takes off the largest logit, a log-softmax also a logarithm of at most the number of classes. A sigmoid of
    one logit rounds to 1/2 where that is a few units.
    """
    largest = logits.magnitude.amax(1)
    if not apart.ending:
        return torch.zeros_like(largest)
    return 2 * unit * (4 * largest + math.log(logits.lower.shape[1]) + _UNITS)


def _checked(
    model: nn.Module, images: ImageSource, labels: Array | None, eps: float | str, norm: Norm
) -> tuple[Classifier, Ball, Images, Labels]:
    """The model that judges, the ball, and images within the bounds, in float32 or float64, with labels.

    Raises as `certify`.
    """
    model, norm = judge_of(as_classifier(model)), parse_norm(norm)
    if norm == "l0":
        raise SettingError("norm = 'l0'; expected linf, l2 or l1: there are no certificates in l0")
    ball = Ball(eps=parse_eps(eps), norm=norm)
    given = as_labelled(images, labels)
    pixels, truth = floats_within(given.pixels, model.bounds), given.labels
    check_shape(model, pixels)
    if not len(pixels):
        raise ShapeError("no images to certify; expected at least one")
    check_range(pixels, model.bounds)
    if model.dtype not in (None, torch.float32, torch.float64):
        raise ModelError(f"a model in {model.dtype}; expected float32 or float64: certify model.float()")
    double = pixels.dtype == torch.float64 and model.dtype in (None, torch.float64)
    pixels = pixels.to(torch.float64 if double else torch.float32).clamp(*model.bounds)
    model.infer(pixels[:2])
    check_labels(truth, len(model.classes))
    return model, ball, pixels, truth
