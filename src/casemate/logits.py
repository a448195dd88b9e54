"""What logits say and what they do not: which are numbers, which classes are in play, how far two answers are apart.

Networks that serve a part of their classes mask the others: their logits are minus infinity, or a number such as -1e9.
A masked class is one that is not there. Losses and gradients of the others do not change by it; what would change is a
scale taken from the largest number, a rank among the classes, and the difference of two infinities. So those are taken
here, of the classes in play alone. NaN and plus infinity are no answers at all.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from casemate.types import Flags, Logits, PerExample

_Top = Float[Tensor, "n largest"]

_OUT_OF_PLAY = 100.0
"""So many times the size of the two largest logits, plus one, must a class lie below the largest to count as masked."""


def is_valid(logits: Logits) -> Flags:
    """Which examples have an answer: no logit is NaN or plus infinity, and not all are minus infinity."""
    return logits.amax(1).isfinite()  # the largest is NaN if any is


def in_play(logits: Logits) -> Bool[Tensor, "n classes"]:
    """Which classes of which examples are not masked, booleans `(n, classes)`; always at least the largest two."""
    logits = logits.detach()
    lowest = _lowest_in_play(logits.topk(2, dim=1).values)
    return (logits >= lowest.unsqueeze(1)) & (logits > -torch.inf)


def all_in_play(logits: Logits, top: _Top) -> bool:
    """Whether no class of any example is masked; `top` are each example's largest logits in order, at least two."""
    lowest = logits.detach().amin(1)
    return bool(((lowest >= _lowest_in_play(top.detach())) & (lowest > -torch.inf)).all())


def _lowest_in_play(top: _Top) -> PerExample:
    """Below which a class counts as masked, from the largest logits in order."""
    first, second = top[:, 0], top[:, 1]
    return first - _OUT_OF_PLAY * (1 + first.abs() + second.abs().where(second.isfinite(), 0.0))


def magnitude(logits: Logits) -> PerExample:
    """The size of the largest logit of the classes in play, `(n,)`: what rounding is a share of."""
    logits = logits.detach()
    return logits.abs().where(in_play(logits), 0.0).amax(1)


def difference(logits: Logits, others: Logits) -> PerExample:
    """The largest difference between two answers to the same images, `(n,)`, over classes in play in either.

    Two infinities are no difference; NaN where either has one.
    """
    apart = (logits - others).abs().masked_fill(logits == others, 0.0)
    out_of_play = ~(in_play(logits) | in_play(others)) & ~apart.isnan()
    return apart.masked_fill(out_of_play, 0.0).amax(1)


def top_gap(logits: Logits) -> PerExample:
    """The largest logit minus the second largest: how far from any other class the network says it is."""
    top = torch.topk(logits, 2, dim=1).values
    return top[:, 0] - top[:, 1]
