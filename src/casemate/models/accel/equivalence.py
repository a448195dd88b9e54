"""Whether two models answer alike: their logits for the same images, from the same random numbers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from casemate.logits import difference, is_valid, magnitude
from casemate.memory import batched
from casemate.models.classifier import Classifier
from casemate.types import Images

TOLERANCE = 1e-4
"""By how much a logit of a changed copy may differ, as a share of the largest logit of the images compared: some
hundred times what float32 rounds, and far below what an attack could make use of."""


@contextmanager
def own_randomness(model: Classifier) -> Iterator[None]:
    """The caller's random numbers are left alone."""
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        yield


def answers(model: Classifier, images: Images) -> Tensor:
    """Logits in float64, from the same random numbers for every model; inside `own_randomness`."""
    torch.manual_seed(0)
    return torch.cat(batched(len(images), len(images), lambda part: model(images[part].to(model.device)))).double()


def largest_difference(expected: Tensor, seen: Tensor) -> float:
    """The largest difference as a share of the largest logit in play; infinite where only one of two is an answer."""
    if expected.shape != seen.shape or not torch.equal(is_valid(expected), is_valid(seen)):
        return float("inf")
    known = is_valid(expected)
    if not known.any():
        return 0.0
    largest = magnitude(expected[known]).max().clamp(min=torch.finfo(torch.float32).tiny)
    return float(difference(expected[known], seen[known]).max() / largest)
