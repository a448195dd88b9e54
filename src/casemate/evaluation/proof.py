"""What the images of an evaluation prove at batch size 1: the columns of its record, one entry per image."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from casemate.attacks import Misclassification, check_first
from casemate.evaluation.evaluation import Evaluation
from casemate.evaluation.shards import shards_of
from casemate.evaluation.single_image import has_margin, predict_parts_singly
from casemate.logits import is_right
from casemate.models import as_classifier
from casemate.norms import Ball, norm_of
from casemate.progress import NULL_OBSERVER, Observer
from casemate.types import Flags, Images, Labels, PerExample


@final
@dataclass(frozen=True, kw_only=True)
class Proof:
    """What holds for each image of an evaluation, and for its adversarial image, at batch size 1; on the CPU."""

    right: Flags
    """Whether the clean image is classified correctly, `(n,)`."""
    proven: Flags
    """Whether the adversarial image fools, by more than rounding."""
    prediction: Labels
    """The class predicted for the adversarial image, or for the clean one where no attack succeeded."""
    distance: PerExample
    """Distance of the adversarial image where it is proven, else 0; float64."""
    largest: float
    """The largest absolute value in a clean image."""

    def allowed(self, found: Evaluation) -> tuple[float, ...]:
        """At each eps the highest robust accuracy that the adversarial images leave possible; see `Record.allowed`."""
        reach = [Ball(eps=each, norm=found.norm).reach((-self.largest, self.largest)) for each in found.values]
        return tuple((self.right & ~(self.proven & (self.distance <= each))).double().mean().item() for each in reach)


def prove(found: Evaluation, model: nn.Module, observer: Observer = NULL_OBSERVER) -> Proof:
    """Classify the clean and the adversarial images of an evaluation at batch size 1; a shard is in memory at a time.

    Args:
        found: the evaluation.
        model: the model that was evaluated.
        observer: is informed of every image.
    """
    model = as_classifier(model)
    labels, shards = found.images.labels.cpu(), shards_of(found.images)
    check_first(model, found.images, 1)
    moved = torch.from_numpy(found.cascade.first_success) >= 0
    count, largest = len(labels), 0.0
    right, proven = torch.zeros(count, dtype=torch.bool), torch.zeros(count, dtype=torch.bool)
    prediction, distance = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.float64)
    options = {"draws": found.draws, "seed": found.seed, "observer": observer}

    def clean(at: slice) -> Images:
        nonlocal largest
        images = found.images.read(at).tensors()[0].cpu()
        largest = max(largest, images.abs().max().item())
        return images

    for at, logits in zip(shards, predict_parts_singly(model, map(clean, shards), count, **options), strict=True):
        right[at], prediction[at] = is_right(logits, labels[at]), logits.argmax(1)
    if not moved.any():
        return Proof(right=right, proven=proven, prediction=prediction, distance=distance, largest=largest)
    places = [at.start + moved[at].nonzero().squeeze(1) for at in shards]
    made: list[Images] = []

    def adversarial() -> Iterator[Images]:
        for some in places:
            made[:] = [found.cascade.examples.read(some)]
            yield made[0]

    parts = predict_parts_singly(model, adversarial(), int(moved.sum()), **options)
    for some, logits in zip(places, parts, strict=True):
        fools = Misclassification(labels[some]).is_adversarial(logits) & has_margin(logits)
        change = made[0].double() - found.images.read(some).tensors()[0].cpu().double()
        proven[some], prediction[some] = fools, logits.argmax(1)
        distance[some] = norm_of(change, found.norm).where(fools, 0.0)
    return Proof(right=right, proven=proven, prediction=prediction, distance=distance, largest=largest)
