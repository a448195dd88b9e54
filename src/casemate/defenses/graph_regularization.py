"""Graph regularisation of TensorFlow's Neural Structured Learning (NSL; Bui, Ravi and Ramavajjala 2018, "Neural graph
learning", WSDM): images that are alike should get similar predictions, whether or not they have labels.

The loss is the cross-entropy of the labelled images of a batch plus `multiplier` times the weighted mean distance
between each image's prediction and those of its neighbours. Neighbours are the training images of largest cosine
similarity, which is also their weight, as from NSL's `build_graph` and `pack_nbrs`; they are found once, by their
pixels, before the training. As in NSL's `GraphRegularization`, neighbours pass through the network separately, in its
current mode, so they enter the running statistics of batch normalisation; gradients flow through both predictions.

Otherwise than with NSL's tools, unlabelled images have neighbours too, as in the paper, whose objective has a term for
the edges between unlabelled images. There is no locality-sensitive hashing: all pairs are compared.
"""

from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar, Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from casemate.data import ImageSource, as_labelled, to_float
from casemate.errors import SettingError, TrainingError
from casemate.models import Classifier
from casemate.settings import at_least, between, expect, not_negative, one_of
from casemate.training import TrainingStep, labelled_cross_entropy
from casemate.types import Images, Labels, Logits, Pixels

_BLOCK = 2048
"""Images that are compared with as many others at once: 16 MiB of similarities."""
_EXACT = 2**22
"""Pixels of candidates that are compared exactly at once: 32 MiB in float64."""
_SPARE = 8
"""Candidates kept beyond the neighbours wanted. Similarities in float32, whose last digits depend on the block, then
only select candidates: which of them are neighbours is decided in float64."""


@final
@dataclass(frozen=True, kw_only=True)
class GraphRegularization:
    """The training objective: cross-entropy of the labelled images + `multiplier` * distance to the neighbours.

    The distance is NSL's: the sum of weight times distance over all pairs of an image of the batch and a neighbour,
    divided by the number of pairs whose weight is not zero. (The paper's sum is this times the mean number of
    neighbours.) Augmentation changes the images of the batch, not their neighbours.
    """

    takes_unlabelled: ClassVar[bool] = True
    """Images labelled `UNLABELLED` count in the distances, not in the cross-entropy."""

    multiplier: Annotated[float, not_negative()] = 0.01
    """Weight of the distance, which is added to the cross-entropy."""
    max_neighbors: Annotated[int, at_least(1)] = 3
    """Largest number of neighbours of an image. Each is one more image to pass through the network. (NSL's default, 0,
    disables the regularisation.)"""
    similarity_threshold: Annotated[float, between(0, 1)] = 0.8
    """Smallest cosine similarity of the pixels, as stored, at which an image counts as a neighbour; others have weight
    zero."""
    distance: Annotated[Literal["l2", "l1", "kl"], one_of("l2", "l1", "kl")] = "l2"
    """Distance between two predictions: the mean over the classes of the squared (l2) or absolute (l1) difference, or
    the Kullback-Leibler divergence from the image's to the neighbour's, which needs probabilities."""
    compare: Annotated[Literal["logits", "probabilities"], one_of("logits", "probabilities")] = "logits"
    """What is compared: logits (NSL's default for a network that ends in logits), or their softmax."""

    def __post_init__(self) -> None:
        expect(self)
        if self.distance == "kl" and self.compare == "logits":
            raise SettingError("distance = 'kl' of logits; expected compare='probabilities' with it")

    def prepared_for(self, train: ImageSource) -> "_OnGraph":
        """The objective with the neighbours of each training image, on the device of the images.

        60,000 images of 28 x 28 take some minutes on one core; the time grows with the square of their number. Raises
        `DataError` for what are no labelled images.
        """
        train = as_labelled(train)
        # among distinct images: a copy of an image, as of those whose labels are repeated, says nothing new of it
        distinct, place = train.pixels.flatten(1).unique(dim=0, return_inverse=True)
        first = torch.full((len(distinct),), len(place)).to(place.device)
        first.scatter_reduce_(0, place, torch.arange(len(place), device=place.device), "amin")
        order = first.argsort()
        rank = order.argsort()[place]
        found, likeness = nearest_neighbours(train.pixels[first[order]], self.max_neighbors)
        neighbours, similarity = first[order][found][rank], likeness[rank]
        weights = similarity.where(similarity >= self.similarity_threshold, 0.0)
        return _OnGraph(settings=self, pixels=train.pixels, neighbours=neighbours, weights=weights)

    def __call__(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Raise `TrainingError`: the loss is that of `prepared_for(train).at_step(step)`, as `fit` calls it."""
        raise TrainingError(
            "graph regularisation without the training images; train with fit, or call prepared_for(train) and then "
            "at_step(step) with the positions of the batch's images among them"
        )

    @torch.no_grad()
    def validate(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the mean cross-entropy of the labelled images of a validation batch, which has no neighbours, and the
        logits (NSL evaluates without neighbours too).
        """
        logits = model(images)
        return labelled_cross_entropy(logits, labels), logits

    def mean_distance(
        self, logits: Logits, others: Float[Tensor, "n neighbours classes"], weights: Float[Tensor, "n neighbours"]
    ) -> Tensor:
        """The weighted mean distance between images and their neighbours; zero if all weights are.

        Args:
            logits: of the images.
            others: logits of each image's neighbours.
            weights: of the neighbours, zero for those that do not count.
        """
        own = logits.unsqueeze(1).expand_as(others)
        if self.distance == "kl":
            both = others.log_softmax(2), own.log_softmax(2)
            distances = F.kl_div(*both, reduction="none", log_target=True).sum(2)
        else:
            gap = own.softmax(2) - others.softmax(2) if self.compare == "probabilities" else own - others
            distances = (gap.square() if self.distance == "l2" else gap.abs()).mean(2)
        return (weights * distances).sum() / weights.count_nonzero().clamp(min=1)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class _OnGraph:
    """The objective `settings` with the neighbours of all training images, and for one batch with their positions."""

    settings: GraphRegularization
    pixels: Pixels | Images = field(repr=False)
    """The training images, as stored."""
    neighbours: Int64[Tensor, "n neighbours"] = field(repr=False)
    """Positions of each one's neighbours."""
    weights: Float[Tensor, "n neighbours"] = field(repr=False)
    index: Int64[Tensor, " batch"] | None = field(repr=False, default=None)
    """Positions of the images of the batch; None before `at_step`."""

    def at_step(self, step: TrainingStep) -> "_OnGraph":
        """The objective for the batch of the images at `step.index`."""
        return replace(self, index=step.index.to(self.neighbours.device))

    def __call__(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the loss of the batch and the logits of its images.

        Raises `TrainingError` without `at_step`, whose positions say which neighbours the images have.
        """
        if self.index is None:
            return self.settings(model, images, labels)
        neighbours, weights = self.neighbours[self.index], self.weights[self.index]
        logits = model(images)
        others = model(to_float(self.pixels[neighbours.flatten()], images.device).to(images.dtype))
        distance = self.settings.mean_distance(
            logits, others.view(*neighbours.shape, -1), weights.to(images.device, logits.dtype)
        )
        return labelled_cross_entropy(logits, labels) + self.settings.multiplier * distance, logits

    def validate(self, model: Classifier, images: Images, labels: Labels) -> tuple[Tensor, Logits]:
        """Return the mean cross-entropy of the labelled images of a validation batch, and the logits."""
        return self.settings.validate(model, images, labels)


@torch.no_grad()
def nearest_neighbours(
    pixels: Pixels | Images, count: int, block: int = _BLOCK
) -> tuple[Int64[Tensor, "n neighbours"], Float[Tensor, "n neighbours"]]:
    """The images of largest cosine similarity to each image, by their pixels as stored, the most similar first.

    An image is no neighbour of itself. Of equally similar images the first in order comes first, unless more than
    8 too many tie for the last places. The similarity to an image of zeros is zero.

    Args:
        pixels: the images, uint8 or floating point.
        count: neighbours of each image; all others, if there are not that many.
        block: images that are compared at once with as many others, which bounds the memory.

    Returns:
        positions of the neighbours, int64, and their similarities, float32, both `(n, min(count, n - 1))`.
    """
    flat = pixels.flatten(1)
    total, count = len(flat), min(count, len(flat) - 1)
    kept = min(count + _SPARE, total - 1)
    similarity = torch.full((total, kept), -torch.inf, device=flat.device)
    candidates = torch.zeros((total, kept), dtype=torch.int64, device=flat.device)

    def consider(rows: slice, found: Tensor, start: int) -> None:
        """Update the candidates of images `rows` with their similarities to the images from `start` on."""
        best, place = found.topk(min(kept, found.shape[1]), dim=1)
        joined = torch.cat([similarity[rows], best], 1)
        similarity[rows], chosen = joined.topk(kept, dim=1)
        candidates[rows] = torch.cat([candidates[rows], place + start], 1).gather(1, chosen)

    starts = range(0, total, block)
    for first in starts:
        rows = _directions(flat[first : first + block])
        for second in starts[first // block :]:
            columns = _directions(flat[second : second + block])
            found = rows @ columns.T
            if first == second:
                found.fill_diagonal_(-torch.inf)
            else:
                consider(slice(second, second + block), found.T, first)
            consider(slice(first, first + block), found, second)
    size = max(1, _EXACT // max(1, kept * flat.shape[1]))
    ranked = [_ranked(flat, rows, candidates[rows], count) for rows in torch.arange(total).split(size)]
    return torch.cat([index for index, _ in ranked]), torch.cat([exact for _, exact in ranked])


def _directions(flat: Tensor) -> Float[Tensor, "n values"]:
    """Images, one in a row, divided by their length."""
    return F.normalize(flat.float(), dim=1)


def _ranked(flat: Tensor, rows: Tensor, candidates: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` most similar of the candidates of images `rows`, and their similarities.

    Scalar products of bytes are exact in float64, so images that are equally similar are found to be.
    """
    candidates = candidates.sort(dim=1).values
    own, others = flat[rows].double(), flat[candidates].double()
    product = (others @ own.unsqueeze(2)).squeeze(2)
    lengths = own.square().sum(1, keepdim=True) * others.square().sum(2)
    cosine = (product / lengths.sqrt().clamp(min=torch.finfo(torch.float64).tiny)).clamp(-1, 1)
    best, order = cosine.sort(dim=1, descending=True, stable=True)
    return candidates.gather(1, order)[:, :count], best[:, :count].float()
