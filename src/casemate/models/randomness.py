"""Whether a model is randomised: whether its logits of the same images differ from pass to pass."""

import torch

from casemate.logits import difference, magnitude
from casemate.memory import batched
from casemate.models.classifier import Classifier
from casemate.models.state import frozen
from casemate.types import Images

_REPEATED = 8
"""Number of images in each of the repeated passes."""
_SAME = 1e-4
"""Relative difference of logits between passes up to which it is attributed to the rounding of kernels."""


def is_randomised(model: Classifier, images: Images, repeats: int = 4) -> bool:
    """Whether the logits of the same images differ by more than rounding between passes in evaluation mode.

    All images pass twice, and the first few `repeats` times, each time in the same batch. Of a model that draws one of
    two answers in each pass, `repeats` passes show no difference with the probability 2^(1 - `repeats`).
    """

    def changes(few: Images, passes: int) -> bool:
        found = [torch.cat(batched(len(few), len(few), lambda part: model(few[part]))) for _ in range(passes)]
        tolerance = _SAME * magnitude(found[0]).clamp(min=1e-6)
        return any(bool((difference(each, found[0]) > tolerance).any()) for each in found[1:])

    with frozen(model), torch.no_grad():
        return changes(images, 2) or changes(images[:_REPEATED], repeats)
