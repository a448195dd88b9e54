"""Randomised smoothing: certificates in L2 that hold with high probability (Cohen et al. 2019, arXiv 1902.02918).

The smoothed classifier returns the class that the base classifier returns most often under normal noise. `certify`
of the paper's section 3.2.2 is `certify_smoothed`, its `predict` (section 3.2.1) is `predict_smoothed`, and `smoothed`
is that classifier as a `Classifier`, with a finite number of draws, for attacks to be compared with the certificates.

The theorem is about real numbers. In floating-point arithmetic a network can be constructed for which a certificate
is false (Voracek and Hein 2023, arXiv 2207.07209); nothing is done about that here. Only L2 and only the certificate
from the most frequent class are covered: no bound on the second class, no other noise.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Final, Literal, final

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from casemate.data import Array, ImageSource, LabelledImages, as_labelled, as_tensor
from casemate.errors import ModelError, SettingError, ShapeError, kind_of
from casemate.float32_precision import full_precision
from casemate.logits import is_valid
from casemate.memory import batched
from casemate.models import (
    Classifier,
    as_classifier,
    check_labels,
    floats_within,
    is_randomised,
    judge_of,
    preserve_state,
    with_network,
)
from casemate.models.state import frozen
from casemate.progress import NULL_OBSERVER, Observer
from casemate.rng import Streams, derive
from casemate.rows import Rows
from casemate.settings import at_least, between, expect, not_negative, one_of, positive
from casemate.types import Flags, Images, Labels, Logits, PerExample

ABSTAINED: Final = -1
"""The predicted class where the smoothed classifier abstains: the draws do not decide which class is the right one."""
_BLOCK = 100
"""Draws of an example that share a key of random numbers; results depend on this number, not on the batch size."""
_COMPARED, _PASSES = 8, 20
"""Images and passes by which it is found that a network is random."""
CHECKED_IMAGES = _COMPARED * (2 + _PASSES)
"""Images that a call passes through the network for that, at most, before its votes."""
_TOGETHER = 1024
"""Noisy images that pass through the network of `smoothed` at a time."""
_BEYOND = 1e-6
"""By how much pixels may exceed the bounds, as rounding leaves them."""

SmoothedOutput = Literal["probabilities", "votes"]
_OUTPUT = one_of("probabilities", "votes")
_DRAWS = at_least(1)


@final
@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """The settings of randomised smoothing; the names are those of the paper."""

    sigma: Annotated[float, positive("in units of pixels")] = 0.25
    """Standard deviation of the noise, in pixel units. A larger one certifies larger radii of fewer images."""
    n0: Annotated[int, at_least(1)] = 100
    """Draws by which the class to certify is selected; others than those that certify it."""
    n: Annotated[int, at_least(1)] = 10_000
    """Draws by which the class is certified, or predicted. The default, a tenth of the paper's 100,000, limits the
    radius to 3.2 sigma, instead of 3.8 sigma, with the default alpha."""
    alpha: Annotated[float, between(0, 1, "a probability", without_low=True, without_high=True)] = 0.001
    """Probability, at most, that the certificate of an image is false, or that a prediction is another class than that
    of the smoothed classifier."""
    batch_size: Annotated[int, at_least(1)] = 1000
    """Noisy images that pass through the network at a time, halved when memory runs out."""

    def __post_init__(self) -> None:
        expect(self)

    @property
    def largest_radius(self) -> float:
        """The radius of an image whose `n` draws are all of one class: no certificate is larger."""
        lower = binomial_lower_bound(np.array([self.n]), self.n, self.alpha)
        return smoothing_radius(lower, self.sigma).item()


@final
@dataclass(frozen=True, kw_only=True)
class SmoothedCertificate(Rows):
    """The certificates of randomised smoothing, one per image; `certificate[chosen]` selects images.

    Each holds with probability 1 - alpha by itself, over the draws of the noise: of many certificates a share of alpha
    may be false. It is one of the smoothed classifier with infinitely many draws.
    """

    prediction: Labels
    """The certified class; -1 (`ABSTAINED`) where none could be certified."""
    radius: PerExample
    """Radius in L2, in pixel units, float64: within it the smoothed classifier predicts `prediction`; 0 where it
    abstains."""
    labels: Labels
    """The true classes."""
    selected: Labels
    """The class with the most votes of the first `n0` draws; -1 where no draw had finite logits."""
    votes: Labels
    """Number of the `n` draws whose class is `selected`."""
    not_finite: Labels
    """Number of the `n` draws whose logits were not finite; they count as a class of their own, which is never
    predicted."""
    smoothing: Smoothing
    seed: int
    """Of the noise."""

    @classmethod
    def from_votes(
        cls, *, labels: Labels, selected: Labels, votes: Labels, not_finite: Labels, smoothing: Smoothing, seed: int
    ) -> "SmoothedCertificate":
        """The certificates that follow from votes; arguments as the fields, all but the labels on the CPU."""
        lower = binomial_lower_bound(votes.numpy(), smoothing.n, smoothing.alpha)
        where = labels.device
        return cls(
            prediction=torch.where(torch.from_numpy(lower > 0.5), selected, ABSTAINED).to(where),
            radius=torch.from_numpy(smoothing_radius(lower, smoothing.sigma)).to(where),
            labels=labels,
            selected=selected.to(where),
            votes=votes.to(where),
            not_finite=not_finite.to(where),
            smoothing=smoothing,
            seed=seed,
        )

    @property
    def right(self) -> Flags:
        """Which images are certified to be predicted as their true class, at whatever radius."""
        return self.prediction == self.labels

    @property
    def abstained(self) -> Flags:
        """For which images no class could be certified."""
        return self.prediction == ABSTAINED

    def right_within(self, radius: float) -> Flags:
        """Which images are certified to be predicted as their true class everywhere within `radius` in L2.

        Raises `SettingError` for a radius that is negative, not finite or no number.
        """
        radius = not_negative("units of pixels").check(radius, "radius")
        return self.right & (self.radius >= radius)

    def certified_accuracy(self, radius: float = 0.0) -> float:
        """The share of all images of `right_within`; NaN if there are no images.

        Each of its images is counted rightly with probability at least 1 - alpha; see `statement`.
        """
        return self.right_within(radius).double().mean().item()

    def statement(self, radius: float = 0.0) -> str:
        """A sentence with the certified accuracy at a radius, and how certain it is.

        The bound for all images together is that of Bonferroni, over all of them: which are certified is itself random.
        """
        right, total, alpha = int(self.right_within(radius).sum()), len(self.labels), self.smoothing.alpha
        return (
            f"{right} of {total} images are certified to be classified correctly within {radius:g} in L2; each "
            f"certificate holds with probability {1 - alpha:.10g} (sigma {self.smoothing.sigma:g}, "
            f"{self.smoothing.n:,} draws), and all of them together with probability at least "
            f"{max(0.0, 1 - alpha * total):.3g}"
        )


def settings_of(given: Smoothing | None) -> Smoothing:
    """The settings that a caller gave, or the defaults. Raises `SettingError` for anything else."""
    if given is None or isinstance(given, Smoothing):
        return given or Smoothing()
    raise SettingError(f"smoothing is {kind_of(given)}; expected casemate.certification.Smoothing(sigma=0.25)")


def binomial_lower_bound(count: np.ndarray, n: int, alpha: float) -> np.ndarray:
    """The one-sided lower confidence bounds on probabilities, by Clopper and Pearson (1934), float64 `(m,)`.

    Each is at most the probability in a share of 1 - alpha of all experiments, or more.

    Args:
        count: how many of `n` independent draws were successes, whole numbers `(m,)`.
        n: number of draws.
        alpha: probability that the bound is too high.
    """
    from scipy import stats  # takes half a second, and attacks alone do not need it

    # the formula has no value for 0 successes, where the bound is 0
    return np.where(count > 0, stats.beta.ppf(alpha, np.maximum(count, 1), n - count + 1), 0.0)


def smoothing_radius(lower: np.ndarray, sigma: float) -> np.ndarray:
    """The certified radii sigma * Phi^-1(p) for lower bounds p on the probability of a class, `(m,)` (section 3.2.2).

    They are 0 for p up to 1/2, where nothing is certified.
    """
    from scipy import stats

    return sigma * np.maximum(stats.norm.ppf(np.maximum(lower, 0.5)), 0.0)


def certify_smoothed(
    model: nn.Module,
    images: ImageSource,
    labels: Array | None = None,
    smoothing: Smoothing | None = None,
    *,
    seed: int = 0,
    index: Labels | None = None,
    observer: Observer = NULL_OBSERVER,
) -> SmoothedCertificate:
    """Certify the smoothed version of a model at images: `certify` of Cohen et al. 2019, section 3.2.2.

    Args:
        model: the base classifier, a `Classifier` or a module that maps images within [0, 1] to logits; used in
            evaluation mode, and left as it was. Train it on noisy images, or hardly any image is certified.
        images: as for `certify`.
        labels: the true classes of images given alone, whole numbers `(n,)`.
        smoothing: the settings; the defaults if None.
        seed: of the noise. It is keyed by image and block of draws, so the batch size does not change it.
        index: the numbers of the images in their data set, which key their noise, int64 `(n,)`; from 0 if None.
        observer: receives the progress.

    Raises:
        ShapeError: images, labels or index that do not fit each other or the model.
        DataError: images or labels of a kind or type that is not understood, or of different lengths.
        ModelError: a network that fails, or whose logits are not those of one fixed function of an image.
        MachineError: not even one image at a time fits into memory.
    """
    smoothing = settings_of(smoothing)
    model, given = as_classifier(model), as_labelled(images, labels)
    found, truth = _images(given, model), given.labels
    draws = {"select": smoothing.n0, "certify": smoothing.n}
    first, votes = _count_votes(model, found, index, smoothing, draws, seed, observer, truth)
    most, chosen = first[:, :-1].max(1)
    count = votes.gather(1, chosen.unsqueeze(1)).squeeze(1)
    count = count.where(most > 0, 0)  # where no class has a vote, none is selected
    return SmoothedCertificate.from_votes(
        labels=truth.to(found.device),
        selected=torch.where(most > 0, chosen, ABSTAINED),
        votes=count,
        not_finite=votes[:, -1],
        smoothing=smoothing,
        seed=seed,
    )


def predict_smoothed(
    model: nn.Module,
    images: Array | LabelledImages,
    smoothing: Smoothing | None = None,
    *,
    seed: int = 0,
    index: Labels | None = None,
    observer: Observer = NULL_OBSERVER,
) -> Labels:
    """The classes that the smoothed version of a model predicts: `predict` of Cohen et al. 2019, section 3.2.1.

    It abstains (-1) unless a two-sided binomial test finds, at the level alpha, that the most frequent class of `n`
    draws is more frequent than the second one. Draws without finite logits are a class of their own; where it is the
    most frequent one, it abstains too. Arguments and errors as for `certify_smoothed`.
    """
    from scipy import stats

    smoothing = settings_of(smoothing)
    model = as_classifier(model)
    found = _images(images, model)
    (votes,) = _count_votes(model, found, index, smoothing, {"predict": smoothing.n}, seed, observer, None)
    top, place = votes.topk(2, dim=1)
    first, both = top[:, 0].numpy(), top.sum(1).numpy()
    # under the hypothesis each of the two is as likely: the test's p-value is twice that of its upper tail
    p = np.minimum(1.0, 2 * stats.binom.sf(first - 1, both, 0.5))
    decided = torch.from_numpy(p <= smoothing.alpha) & (place[:, 0] < votes.shape[1] - 1)
    return torch.where(decided, place[:, 0], ABSTAINED).to(found.device)


@final
class _SmoothedNetwork(nn.Module):
    """The network of `smoothed`."""

    def __init__(self, model: Classifier, sigma: float, draws: int, output: SmoothedOutput) -> None:
        super().__init__()
        self.model, self.sigma, self.draws, self.output = model, sigma, draws, output

    def forward(self, images: Images) -> Logits:
        logits = self._draw(images)
        usable = is_valid(logits.flatten(0, 1)).view(logits.shape[:2])
        known = usable.unsqueeze(2)
        log_shares = logits.where(known, 0.0).log_softmax(2).where(known, -math.inf)
        result = log_shares.logsumexp(1) - math.log(self.draws)
        shares = result.detach().exp()
        if self.output == "votes":
            votes = torch.zeros_like(shares).scatter_add_(1, logits.detach().argmax(2), usable.to(shares))
            # the values are those of the votes, the derivatives those of the mean probabilities
            counted = votes + self.draws * (result.exp() - shares)
            result = ((counted + 1) / (self.draws + votes.shape[1])).log()
            shares = votes / self.draws
        undecided = (~usable).to(shares).mean(1) > shares.amax(1)
        return result.masked_fill(undecided.unsqueeze(1), -math.inf)

    def _draw(self, images: Images) -> Tensor:
        """The base classifier's logits of all draws, `(n, draws, classes)`."""
        count = len(images)
        parts: list[Tensor] = []
        for draws in torch.arange(self.draws).split(max(1, _TOGETHER // max(1, count))):
            shape = (count, len(draws), *images.shape[1:])
            # not clipped to the bounds, as in a certificate
            noisy = images.unsqueeze(1) + self.sigma * torch.randn(shape, dtype=images.dtype, device=images.device)
            parts.append(self.model(noisy.flatten(0, 1)).unflatten(0, shape[:2]))
        return torch.cat(parts, 1)

    def extra_repr(self) -> str:
        return f"sigma={self.sigma}, draws={self.draws}, output={self.output!r}"


def smoothed(
    model: nn.Module,
    smoothing: Smoothing | None = None,
    *,
    draws: int = 16,
    output: SmoothedOutput = "probabilities",
) -> Classifier:
    """The smoothed version of a model as a `Classifier`, to be attacked and evaluated; it shares the model's weights.

    It approximates the classifier that `certify_smoothed` certifies by `draws` draws, which come from PyTorch's global
    generator and are others in every pass: a randomised model. Its gradients are means over the draws; `EOT` averages
    over more of them (Salman et al. 2019, arXiv 1906.04584).

    Args:
        model: the base classifier, as for `certify_smoothed`.
        smoothing: its `sigma` is used; the defaults if None.
        draws: number of noisy copies of each image; as many pass through the network for an image.
        output: "probabilities" returns the logarithms of the mean softmax over the draws, as Salman et al. attack.
            "votes" returns the logarithms of the shares of votes, with one added to each class's votes so that none is
            zero; its classes are those of a certificate. Votes have no derivative: backwards it is that of the mean
            softmax.

    A draw whose logits are not finite is a vote for no class; where these are the most frequent, all logits are minus
    infinity, which counts as no prediction.

    Raises:
        SettingError: less than one draw, or another `output`.
    """
    smoothing = settings_of(smoothing)
    draws, output = _DRAWS.check(draws, "draws"), _OUTPUT.check(output, "output")
    model = as_classifier(model)
    return with_network(model, _SmoothedNetwork(model, smoothing.sigma, draws, output))


def _images(given: Array | LabelledImages, model: Classifier) -> Images:
    """Images as floating-point tensors; bytes are scaled to [0, 1]. Raises `ShapeError` where the bounds are others."""
    images = given.pixels if isinstance(given, LabelledImages) else as_tensor(given, "images")
    return floats_within(images, model.bounds)


def _check(model: Classifier, images: Images, labels: Labels | None, index: Labels) -> None:
    """Raise `ShapeError` unless images, labels and index fit each other, and the images the model."""
    shape = model.interface["input_shape"]
    if images.ndim != 4 or not images.is_floating_point() or (shape is not None and tuple(images.shape[1:]) != shape):
        wanted = "channels, height, width" if shape is None else ", ".join(map(str, shape))
        raise ShapeError(
            f"images of type {images.dtype} and shape {tuple(images.shape)}; expected floating point, (n, {wanted})"
        )
    if not len(images):
        raise ShapeError("no images to certify; expected at least one")
    low, high = images.amin().item(), images.amax().item()
    if not (low >= model.bounds[0] - _BEYOND and high <= model.bounds[1] + _BEYOND):  # not so if a pixel is NaN
        raise ShapeError(
            f"pixels from {low:.4g} to {high:.4g}, but the model's bounds are {model.bounds}; expected clean images, "
            "within the bounds: the noise is added here"
        )
    model.infer(_on_device(images[:2], model))
    if index.shape != images.shape[:1] or index.dtype != torch.int64:
        raise ShapeError(f"index of type {index.dtype} and shape {tuple(index.shape)}; expected {len(images)} int64")
    if labels is not None:
        check_labels(labels, len(model.classes))


def _on_device(images: Images, model: Classifier) -> Images:
    """Images on the model's device: float32, or float64 where images and weights are, as attacks take them."""
    double = images.dtype == torch.float64 and model.dtype in (None, torch.float64)
    return images.detach().to(model.device, torch.float64 if double else torch.float32)


def _count_votes(
    model: Classifier,
    images: Images,
    index: Labels | None,
    smoothing: Smoothing,
    draws: dict[str, int],
    seed: int,
    observer: Observer,
    labels: Labels | None,
) -> list[Int64[Tensor, "n classes_and_none"]]:
    """The votes of noisy copies of the images, on the CPU, for each purpose in `draws`, with its number of draws.

    The last column are the copies whose logits are not finite. Raises as `certify_smoothed`.
    """
    numbers = torch.arange(len(images) if images.ndim else 0) if index is None else as_tensor(index, "index")
    _check(model, images, labels, numbers)
    judge = judge_of(model)
    votes = [torch.zeros(len(images), len(model.classes) + 1, dtype=torch.int64) for _ in draws]
    group = max(1, smoothing.batch_size // _BLOCK)
    size = smoothing.batch_size

    def shrink(smaller: int) -> None:
        nonlocal size
        size = smaller

    def classes_of(noisy: Images) -> Labels:
        # A `Classifier` neither clips nor refuses pixels beyond its bounds, unlike the attacks, which prepare their
        # images; so it is called directly. Clipped noise would not be normal, and the certificate false.
        return torch.cat(batched(len(noisy), size, lambda at: _class_of(judge(noisy[at])), observer, shrunk=shrink))

    with (
        preserve_state(judge, seed=seed),
        frozen(judge),
        full_precision(),
        torch.no_grad(),
        observer.work("Randomised smoothing", len(images)) as advance,
    ):
        for sentence in judge.examine(_on_device(images[:2], judge)):
            raise ModelError(f"{sentence}; a certificate needs one fixed function of a single image")
        if is_randomised(judge, _on_device(images[:_COMPARED], judge), _PASSES):
            raise ModelError(
                "the network returns other logits for the same image from pass to pass: it is random. The draws of a "
                "certificate must be independent, and of one fixed function of a single image"
            )
        for start in range(0, len(images), group):
            at = slice(start, start + group)
            some = _on_device(images[at], judge)
            streams = Streams(derive(seed, "smoothing"), numbers[at].to(judge.device))
            for (purpose, total), counts in zip(draws.items(), votes, strict=True):
                for block, first in enumerate(range(0, total, _BLOCK)):
                    shape = (min(_BLOCK, total - first), *some.shape[1:])
                    noise = streams.normal(shape, purpose, block).to(some.dtype)
                    noisy = (some.unsqueeze(1) + smoothing.sigma * noise).flatten(0, 1)
                    voted = classes_of(noisy).view(len(some), -1).cpu()
                    counts[at].scatter_add_(1, voted, torch.ones_like(voted))
                    advance(len(some) * shape[0] / sum(draws.values()), "")
    return votes


def _class_of(logits: Logits) -> Labels:
    """The predicted classes, or the number of classes where the logits are not valid."""
    return logits.argmax(1).where(is_valid(logits), logits.shape[1])
