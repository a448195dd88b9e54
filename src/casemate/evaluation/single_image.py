"""Asking a model about one image at a time: what a claim about an image must stand up to, whatever came with it."""

import torch

from casemate.attacks import frozen
from casemate.errors import ModelError
from casemate.logits import magnitude, top_gap
from casemate.models import Classifier, mean_over_samples
from casemate.progress import NULL_OBSERVER, Observer
from casemate.rng import seeded
from casemate.types import Flags, Images, Logits

_ROUNDING = 1e-5
"""Lead of the largest logit, as a share of its size, below which another machine may well round to another answer."""


@torch.no_grad()
def predict_singly(
    model: Classifier, images: Images, *, draws: int = 1, seed: int = 0, observer: Observer = NULL_OBSERVER
) -> Logits:
    """What a model says of each image in a batch of its own, `(n, classes)`, on the CPU.

    Args:
        draws: of a model that answers at random, how many answers the mean is taken of.
        seed: of its random numbers; those of the caller are left alone.

    A model that cannot answer about one image has logits that are not a number.
    """
    asked = mean_over_samples(model, draws) if draws > 1 else model
    found: list[torch.Tensor] = []
    with (
        frozen(asked),
        seeded(model.device, seed, "alone"),
        observer.work("Asking one by one", len(images)) as advance,
    ):
        for image in images.split(1):
            try:
                found.append(asked(image.to(model.device)).cpu())
            except ModelError:
                found.append(torch.full((1, len(model.classes)), torch.nan))
            advance(1, "")
    return torch.cat(found)


def has_margin(logits: Logits) -> Flags:
    """Where the answer does not hang on how a machine rounds."""
    return top_gap(logits) > _ROUNDING * magnitude(logits)
