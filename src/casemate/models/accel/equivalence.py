"""Comparison of the logits of two models on the same images, with the same random numbers."""

import torch
from torch import Tensor

from casemate.logits import difference, is_valid, magnitude
from casemate.memory import batched
from casemate.models.classifier import Classifier
from casemate.rng import torch_forked
from casemate.types import Images

TOLERANCE = 1e-4
"""Largest accepted logit difference of an optimised copy, relative to the largest logit on the compared images: about a
hundred times float32 rounding, and far too small for an attack to exploit."""


def logit_difference(model: Classifier, other: Classifier, images: Images) -> float:
    """The `relative_difference` of the logits of two models for `images`, both run with the same random numbers.

    PyTorch's random state is restored.
    """
    with torch_forked(model.device), torch.no_grad():
        return relative_difference(*(_seeded_logits(each, images) for each in (model, other)))


def relative_difference(expected: Tensor, seen: Tensor) -> float:
    """The largest difference between two batches of logits, relative to the largest logit.

    Infinite if the shapes differ or an example has valid logits in only one of the batches.
    """
    if expected.shape != seen.shape or not torch.equal(is_valid(expected), is_valid(seen)):
        return float("inf")
    known = is_valid(expected)
    if not known.any():
        return 0.0
    largest = magnitude(expected[known]).max().clamp(min=torch.finfo(torch.float32).tiny)
    return float(difference(expected[known], seen[known]).max() / largest)


def _seeded_logits(model: Classifier, images: Images) -> Tensor:
    """Logits in float64, computed from a fixed seed of PyTorch's global generators."""
    torch.manual_seed(0)
    return torch.cat(batched(len(images), len(images), lambda part: model(images[part].to(model.device)))).double()
