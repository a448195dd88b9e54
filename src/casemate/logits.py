"""What logits say: valid examples, unmasked classes, magnitude and differences, with masked classes left out.

Networks that serve only some of their classes mask the others: their logits are minus infinity, or a number such as
-1e9. A masked class counts as absent. It affects neither losses nor gradients of the others, but would affect a scale
taken from the largest absolute logit, a rank among the classes, and the difference of two infinities; so these are
computed here from the unmasked classes. NaN and plus infinity are not valid logits.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from casemate.types import Flags, Labels, Logits, PerExample

_Top = Float[Tensor, "n largest"]

_MASKING_FACTOR = 100.0
"""A class counts as masked if its logit is below the largest by more than this factor times (1 + the absolute values
of the two largest logits)."""


def is_valid(logits: Logits) -> Flags:
    """Which examples have valid logits: none is NaN or plus infinity, and not all are minus infinity."""
    return logits.amax(1).isfinite()  # the largest is NaN if any is


def is_right(logits: Logits, labels: Labels) -> Flags:
    """Whether each image is classified correctly, booleans `(n,)`; False where its logits are not valid."""
    return (logits.argmax(1) == labels) & is_valid(logits)


def unmasked(logits: Logits) -> Bool[Tensor, "n classes"]:
    """Which classes are not masked, booleans `(n, classes)`.

    The classes of each example's two largest logits are never masked, unless these are minus infinity.
    """
    logits = logits.detach()
    lowest = _lowest_unmasked(logits.topk(2, dim=1).values)
    return (logits >= lowest.unsqueeze(1)) & (logits > -torch.inf)


def all_unmasked(logits: Logits, top: _Top) -> bool:
    """Whether no class of any example is masked; `top` are each example's two or more largest logits, descending."""
    lowest = logits.detach().amin(1)
    return bool(((lowest >= _lowest_unmasked(top.detach())) & (lowest > -torch.inf)).all())


def _lowest_unmasked(top: _Top) -> PerExample:
    """The logit below which a class of each example counts as masked, `(n,)`; `top` as in `all_unmasked`."""
    first, second = top[:, 0], top[:, 1]
    return first - _MASKING_FACTOR * (1 + first.abs() + second.abs().where(second.isfinite(), 0.0))


def magnitude(logits: Logits) -> PerExample:
    """The largest absolute logit among the unmasked classes, `(n,)`: rounding errors are relative to it."""
    logits = logits.detach()
    return logits.abs().where(unmasked(logits), 0.0).amax(1)


def difference(logits: Logits, others: Logits) -> PerExample:
    """The largest absolute difference between two outputs for the same images, `(n,)`, over classes unmasked in either.

    Equal infinities do not differ; NaN where either is NaN.
    """
    apart = (logits - others).abs().masked_fill(logits == others, 0.0)
    masked = ~(unmasked(logits) | unmasked(others)) & ~apart.isnan()
    return apart.masked_fill(masked, 0.0).amax(1)


def top_gap(logits: Logits) -> PerExample:
    """The largest logit minus the second largest, `(n,)`."""
    top = torch.topk(logits, 2, dim=1).values
    return top[:, 0] - top[:, 1]
