"""Detectors of adversarial images: a score for every image, and a threshold above which an image is rejected.

Three detectors: feature squeezing (Xu, Evans and Qi 2018, arXiv 1704.01155), logistic regression on the features of
clean and of adversarial images (a light version of Metzen et al. 2017, arXiv 1702.04267), and the Mahalanobis distance
of the features from those of the nearest class (Lee et al. 2018, arXiv 1807.03888). `calibrated` sets the threshold of
any of them by held-out clean images.

A detector is no defence before an attack that knows it has failed: nearly all published ones fall (Carlini and Wagner
2017, arXiv 1705.07263; Tramer et al. 2020, arXiv 2002.08347). `casemate.evaluation.detection` makes that attack, for
which scores have a gradient here, where necessary by backward pass differentiable approximation.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from operator import index
from typing import Annotated, Any, Protocol, final, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from casemate.attacks import frozen
from casemate.attacks.bpda import BPDA
from casemate.attacks.inputs import as_images, check_images, check_pixels
from casemate.attacks.prepare import prepare_images
from casemate.data import Array, ImageSource, LabelledImages, as_labelled
from casemate.defenses.preprocessing import MedianFilter, ReducedDepth
from casemate.errors import ModelError, SettingError, ShapeError, kind_of
from casemate.losses import stable_cross_entropy
from casemate.memory import batched
from casemate.models import Classifier, as_classifier, user_call
from casemate.norms import Bounds
from casemate.settings import Rule, at_least, between, expect, positive
from casemate.types import Flags, Images, PerExample

_BATCH = 256
"""Images per pass where all images of a data set are scored."""
_ROUNDING = 1e-5
"""By how much, as a share of the largest score, scores of one image may differ between batches."""


@runtime_checkable
class Detector(Protocol):
    """Interface of a detector; it may be used with several models, whose features it then has to fit."""

    def scores(self, model: Classifier, images: Images) -> PerExample:
        """Return one number per image, `(n,)`, higher for a more suspicious one.

        `model` is in evaluation mode, and `images` are within its bounds. It has to be differentiable, or an attack
        that knows the detector has nothing to follow; see also `RelaxedDetector`.
        """
        ...


@runtime_checkable
class RelaxedDetector(Detector, Protocol):
    """Interface of a detector whose score saturates, so that its gradient vanishes although it is easily evaded."""

    def relaxed(self, model: Classifier, images: Images) -> PerExample:
        """Return numbers `(n,)` to be lowered in place of the score, in units of logits.

        Their gradient does not vanish, and where they are low the score is low too. No decision depends on them.
        """
        ...


@final
@dataclass(frozen=True, kw_only=True)
class FeatureSqueezing:
    """Detects by how much the predicted probabilities change when details of the image are removed (section 5).

    The score is the largest L1 distance, from 0 to 2, between the softmax of the image and of each squeezed version of
    it: with fewer levels, and filtered by a median. The paper's third squeezer, non-local means, is left out.
    """

    bits: Annotated[int, Rule("a whole number of bits from 1 to 8", lambda bits: 1 <= index(bits) <= 8)] | None = None
    """Bits of a level in the first version; None for the paper's choice: 1 for grey images, 5 in colour."""
    window: Annotated[int, at_least(2)] = 2
    """Pixels along the side of the median's window in the second version."""

    def __post_init__(self) -> None:
        expect(self)

    def scores(self, model: Classifier, images: Images) -> PerExample:
        """The largest L1 distance between probabilities; squeezing has the derivative of the identity."""
        clean, versions = model(images).softmax(1), self.squeezed(images, model.bounds)
        return torch.stack([(model(each).softmax(1) - clean).abs().sum(1) for each in versions]).amax(0)

    def relaxed(self, model: Classifier, images: Images) -> PerExample:
        """The largest cross-entropy of a version under the class predicted for the image, its own included.

        Where it is zero all versions have the same class with probability 1, and the score is zero. The softmax of a
        confident network has no gradient, but this has (He et al. 2017, arXiv 1706.04701, evade it likewise).
        """
        logits = model(images)
        predicted = logits.detach().argmax(1)
        every = [logits, *(model(each) for each in self.squeezed(images, model.bounds))]
        return torch.stack([stable_cross_entropy(each, predicted) for each in every]).amax(0)

    def squeezed(self, images: Images, bounds: Bounds = (0.0, 1.0)) -> list[Images]:
        """The two versions of the images; that of fewer levels has the derivative of the images themselves (BPDA).

        The levels run from the smallest to the largest pixel of `bounds`.
        """
        bits = self.bits if self.bits is not None else (1 if images.shape[1] == 1 else 5)
        low, span = bounds[0], bounds[1] - bounds[0]
        fewer = low + span * BPDA(ReducedDepth(bits))((images - low) / span)
        return [fewer, MedianFilter(self.window)(images)]


@final
@dataclass(frozen=True, kw_only=True)
class LogisticDetector:
    """Logistic regression on the input of a layer of the model, from `fit_logistic`; the score is the log-odds."""

    layer: str
    """Name of the layer in the `Classifier`, as in `named_modules`."""
    weight: Tensor
    """The slope of the score for each feature, float64 `(features,)`."""
    bias: float
    """The score where all features are zero."""

    def scores(self, model: Classifier, images: Images) -> PerExample:
        """The log-odds that an image is adversarial. Raises `ModelError` for a model without the layer."""
        features = layer_input(model, images, self.layer)
        return (features.double() @ self.weight.to(features.device) + self.bias).to(images.dtype)


@final
@dataclass(frozen=True, kw_only=True)
class MahalanobisDetector:
    """Distance of the features from the nearest class, from `fit_mahalanobis` (Lee et al. 2018, eq. 2).

    One layer only; the paper's ensemble of layers and its perturbation of the input are left out.
    """

    layer: str
    """Name of the layer in the `Classifier`, as in `named_modules`, whose input are the features."""
    means: Tensor
    """Mean features of each class, float64 `(classes, features)`."""
    whitening: Tensor
    """A root of the inverse of the covariance that all classes share, float64 `(features, rank)`."""

    def scores(self, model: Classifier, images: Images) -> PerExample:
        """The smallest squared Mahalanobis distance. Raises `ModelError` for a model without the layer."""
        features = layer_input(model, images, self.layer).double()
        apart = features.unsqueeze(1) - self.means.to(features.device)
        return (apart @ self.whitening.to(features.device)).square().sum(2).amin(1).to(images.dtype)


@final
@dataclass(frozen=True, kw_only=True)
class CalibratedDetector:
    """A detector with its threshold, from `calibrated`; an image with a score above it is rejected."""

    detector: Detector
    """What computes the scores."""
    threshold: float
    """The largest score that is accepted."""
    spread: Annotated[float, positive("it divides the scores")] = 1.0
    """Standard deviation of the scores of clean images, the unit of `excess`."""
    false_positive_rate: float = math.nan
    """The share of clean images, at most, that the threshold was meant to reject; NaN for one set by hand."""

    def __post_init__(self) -> None:
        _check_detector(self.detector)
        expect(self)

    def excess(self, model: Classifier, images: Images) -> PerExample:
        """By how much each score exceeds the threshold, over `spread`; an image is rejected where it is positive.

        Raises `ShapeError` unless the detector returns one score per image.
        """
        scores = self.detector.scores(model, images)
        if scores.shape != images.shape[:1]:
            raise ShapeError(
                f"{type(self.detector).__name__} returns scores of shape {tuple(scores.shape)} for {len(images)} "
                f"images; expected ({len(images)},)"
            )
        return (scores - self.threshold) / self.spread

    def pursued(self, model: Classifier, images: Images) -> PerExample:
        """What an attack lowers to evade the detector: `relaxed` if it has that (`RelaxedDetector`), else `excess`."""
        if isinstance(self.detector, RelaxedDetector):
            return self.detector.relaxed(model, images)
        return self.excess(model, images)

    @torch.no_grad()
    def flags(self, model: nn.Module, images: Array | LabelledImages, *, batch_size: int = _BATCH) -> Flags:
        """Which images are rejected, booleans `(n,)` on the CPU; the model does not change.

        Raises `ShapeError` for images that the model does not take, and `ModelError` for a model that fails.
        """
        model = as_classifier(model)
        return _over_batches(model, images, batch_size, lambda part: self.excess(model, part) > 0)


def calibrated(
    detector: Detector,
    model: nn.Module,
    images: Array | LabelledImages,
    *,
    false_positive_rate: float = 0.05,
    batch_size: int = _BATCH,
) -> CalibratedDetector:
    """The detector with a threshold that rejects at most a share of clean images; fewer where scores are equal.

    It lies halfway between the highest score that is not rejected and the next, so that rounding, which differs with
    the batch, rejects no more.

    Args:
        images: clean images, of which neither the model nor the detector has seen any, and other ones than those of the
            evaluation: on others the rate differs by chance.
        false_positive_rate: largest share of these that is rejected, at least 0 and below 1.

    Raises:
        SettingError: no detector, a rate outside its range, or too few images for it: of fewer than 1 / rate none may
            be rejected.
        ShapeError: no images, or images that the model does not take, or scores that are not finite numbers.
    """
    between(0, 1, "a share", without_high=True).check(false_positive_rate, "false_positive_rate")
    _check_detector(detector)
    model = as_classifier(model)
    with torch.no_grad():
        scores = _over_batches(model, images, batch_size, lambda part: detector.scores(model, part))
    rejected = int(false_positive_rate * len(scores) + 1e-9)  # a share of 0.29 of 100 images is 29 of them, not 28
    if rejected == 0 < false_positive_rate:
        raise SettingError(
            f"{len(scores)} clean images for a false positive rate of {false_positive_rate:g}; expected at least "
            f"{math.ceil(1 / false_positive_rate)}, so that one of them may be rejected"
        )
    if not scores.isfinite().all():
        raise ShapeError(
            f"{int((~scores.isfinite()).sum())} of {len(scores)} scores of clean images are not finite numbers; look "
            "for logits and features that are not"
        )
    scores = scores.double()
    spread = scores.std(correction=0).item()
    kept = scores.sort(descending=True).values[rejected]
    rounding = _ROUNDING * scores.abs().max()
    above = scores[scores > kept + 2 * rounding]
    threshold = (kept + above.min()) / 2 if len(above) else kept + rounding
    return CalibratedDetector(
        detector=detector,
        threshold=threshold.item(),
        spread=spread if spread > 0 else 1.0,
        false_positive_rate=float(false_positive_rate),
    )


def _check_detector(detector: Any) -> None:
    """Raise `SettingError` for what is no detector, such as the class of one."""
    if isinstance(detector, type) or not callable(getattr(detector, "scores", None)):
        raise SettingError(
            f"{kind_of(detector)} as a detector; expected an object with a method scores(model, images), such as "
            "FeatureSqueezing()"
        )


def fit_logistic(
    model: nn.Module,
    clean: Array,
    adversarial: Array,
    *,
    layer: str | None = None,
    penalty: float = 1e-3,
    batch_size: int = _BATCH,
) -> LogisticDetector:
    """Fit logistic regression that separates the features of clean from those of adversarial images.

    Both count alike, whatever their numbers. Features are centred and scaled first; the fit is by L-BFGS in float64.

    Args:
        clean, adversarial: images within the model's bounds; adversarial ones only from an attack's successes. What
            other attacks make need not be detected.
        layer: name of the layer whose input are the features, as in `named_modules` of the `Classifier`; None for the
            last dense layer, whose input is called the penultimate features.
        penalty: weight of half the squared length of the slope.

    Raises:
        SettingError: a penalty that is not positive.
        ShapeError: no images, or images that the model does not take.
        ModelError: a model without the layer, or without a dense one.
    """
    positive("without a penalty separable features have no best fit").check(penalty, "penalty")
    model = as_classifier(model)
    both = []
    for images in (clean, adversarial):
        part, name = _features(model, images, layer, batch_size)
        both.append(part)
    features = torch.cat(both)
    targets = torch.cat([torch.zeros(len(both[0])), torch.ones(len(both[1]))]).double()
    share = torch.where(targets > 0, 0.5 / len(both[1]), 0.5 / len(both[0]))
    centre, scale = features.mean(0), features.std(0, correction=0)
    # a unit that is constant says nothing
    inverse = torch.where(scale > 1e-6 * scale.amax(), 1 / scale.clamp(min=torch.finfo(scale.dtype).tiny), 0.0)
    inputs = (features - centre) * inverse
    weight = torch.zeros(inputs.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight], max_iter=500, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        odds = inputs @ weight[1:] + weight[0]
        value = (share * F.binary_cross_entropy_with_logits(odds, targets, reduction="none")).sum()
        value = value + penalty / 2 * weight[1:].square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)
    slope = weight.detach()[1:] * inverse
    return LogisticDetector(layer=name, weight=slope, bias=(weight.detach()[0] - slope @ centre).item())


def fit_mahalanobis(
    model: nn.Module,
    images: ImageSource,
    labels: Array | None = None,
    *,
    layer: str | None = None,
    batch_size: int = _BATCH,
) -> MahalanobisDetector:
    """Fit the mean features of each class, and the covariance round them that all classes share (Lee et al., eq. 1).

    Directions in which the features do not vary are left out, as by the pseudo-inverse.

    Args:
        images, labels: clean images for the statistics, as for `casemate.evaluate`, usually those of the training, with
            at least one of each class that is meant to be accepted; classes without images are left out.
        layer: as for `fit_logistic`.

    Raises:
        ShapeError: no images, or images and labels that the model does not take, or features that do not vary.
        DataError: images or labels of a kind or type that is not understood, or of different lengths.
        ModelError: a model without the layer, or without a dense one.
    """
    model, given = as_classifier(model), as_labelled(images, labels)
    truth = given.labels.cpu()
    check_images(model, as_images(given.pixels, model), truth)
    features, name = _features(model, given.pixels, layer, batch_size)
    classes = truth.unique()
    means = torch.stack([features[truth == each].mean(0) for each in classes])
    apart = features - means[torch.searchsorted(classes, truth)]
    values, vectors = torch.linalg.eigh(apart.T @ apart / len(apart))
    varying = values > 1e-7 * values[-1]  # the rounding of float32 features, squared, is far below
    if values[-1] <= 0:
        raise ShapeError(f"the features of layer {name!r} do not vary within the classes; give more images, or a layer")
    return MahalanobisDetector(layer=name, means=means, whitening=vectors[:, varying] / values[varying].sqrt())


def layer_input(model: Classifier, images: Images, layer: str) -> Tensor:
    """The input of a layer when the model classifies the images, flattened to `(n, features)`, differentiable.

    Raises `ModelError` for a model without a layer of that name, or which does not call it once with a tensor with one
    row per image.
    """
    try:
        module = model.get_submodule(layer)
    except AttributeError as error:
        raise ModelError(f"the model has no layer {layer!r}; expected a name of model.named_modules()") from error
    if not model.training:
        model.examine(images.detach())  # or the first call would make several passes
    seen: list[Tensor] = []
    size, model.pass_size = model.pass_size, None  # parts of a batch would call the layer several times
    handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        model(images)
    finally:
        model.pass_size = size
        handle.remove()
    if len(seen) != 1 or len(seen[0]) != len(images):
        raise ModelError(
            f"the model calls its layer {layer!r} {len(seen)} times for {len(images)} images; expected once, with one "
            "row for each: choose another layer"
        )
    return seen[0].flatten(1)


def _last_dense(model: Classifier) -> str:
    """The name of the last dense layer. Raises `ModelError` if there is none."""
    dense = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not dense:
        raise ModelError("the model has no dense layer (nn.Linear); name the layer whose input are the features: layer")
    return dense[-1]


def _features(model: Classifier, images: Array, layer: str | None, batch_size: int) -> tuple[Tensor, str]:
    """The features of all images, float64 `(n, features)` on the CPU, and the name of their layer."""
    name = _last_dense(model) if layer is None else layer
    with torch.no_grad():
        found = _over_batches(model, images, batch_size, lambda part: layer_input(model, part, name))
    return found.double(), name


def _over_batches(
    model: Classifier, given: Array | LabelledImages, batch_size: int, compute: Callable[[Images], Tensor]
) -> Tensor:
    """What `compute` returns for all images, on the CPU, with the model in evaluation mode."""
    at_least(1).check(batch_size, "batch_size")
    images = as_images(given.pixels if isinstance(given, LabelledImages) else given, model)
    check_pixels(model, images)
    if not len(images):
        raise ShapeError("no images; expected at least one")
    with user_call(model), frozen(model):
        parts = batched(len(images), batch_size, lambda part: compute(prepare_images(images[part], model)).cpu())
    return torch.cat(parts)
