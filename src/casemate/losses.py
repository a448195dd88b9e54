"""The losses that attacks maximise, by name or as a user's function; one number per example, larger = more wrong.

`ce` and `torch-ce` are the same function with different float32 gradients: autograd computes the latter's derivative
for the true class as p - 1, which is exactly zero once the logit gap passes about 17. `ce` computes the gradient from
the gap itself, and it never vanishes however large the gap. `prob-ce` is the cross-entropy of float32 softmax
probabilities, as of a network that ends in a softmax; its gradient vanishes first.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor

from casemate.errors import SettingError, kind_of
from casemate.functions import qualified_name
from casemate.logits import all_unmasked, unmasked
from casemate.settings import Rule, one_of, unknown_name
from casemate.types import Labels, Logits, PerExample

Loss = Callable[[Logits, Labels], PerExample]
LossName = Literal["ce", "torch-ce", "prob-ce", "margin", "dlr"]

_CLIP = 1e-7
"""Keras' epsilon: probabilities are clipped to [1e-7, 1 - 1e-7]."""


def without(logits: Logits, labels: Labels) -> Tensor:
    """The logits with the logit of each example's label set to minus infinity."""
    return logits.scatter(1, labels.unsqueeze(1), float("-inf"))


def _own(logits: Logits, labels: Labels) -> PerExample:
    return logits.gather(1, labels.unsqueeze(1)).squeeze(1)


def stable_cross_entropy(logits: Logits, labels: Labels) -> PerExample:
    """Cross-entropy as softplus(d) with d = logsumexp over j != y of z_j, minus z_y.

    Its gradient is that of d times sigmoid(d), so d alone determines the direction. Before sigmoid(d) underflows (below
    d = -44 in float32, half the logarithm of the smallest normal number) the function continues as its tangent: value
    and gradient are below 1e-18 there, but the direction stays exact however confident the network is, and an attack
    that steps by direction moves as in exact arithmetic.
    """
    log_odds = without(logits, labels).logsumexp(1) - _own(logits, labels)
    start = math.log(torch.finfo(logits.dtype).tiny) / 2
    # from 40 on, softplus(x) is x in float64 too; PyTorch's own threshold of 20 would be wrong in the ninth digit
    value = F.softplus(log_odds.clamp(min=start), threshold=40)
    return value + math.exp(start) * (log_odds - start).clamp(max=0)


def torch_cross_entropy(logits: Logits, labels: Labels) -> PerExample:
    """PyTorch's `F.cross_entropy` of each example, `(n,)`, which Foolbox, torchattacks and AutoAttack use."""
    return F.cross_entropy(logits, labels, reduction="none")


def probability_cross_entropy(logits: Logits, labels: Labels) -> PerExample:
    """Minus the log of the float32 softmax probability of the label, clipped to [1e-7, 1 - 1e-7] as Keras does."""
    return -_own(logits.softmax(1), labels).clamp(_CLIP, 1 - _CLIP).log()


def margin(logits: Logits, labels: Labels) -> PerExample:
    """The largest other logit minus the label's: positive where misclassified, negative where correct, 0 at a tie.

    (Carlini and Wagner 2017.)
    """
    return without(logits, labels).amax(1) - _own(logits, labels)


_SMALLEST_SPREAD = 1e-12
"""Added to the denominators of the ratios, so that equal logits give a large number, not a division by zero."""


def dlr(logits: Logits, labels: Labels) -> PerExample:
    """Difference of logits ratio: `margin` divided by (largest logit minus third largest) (Croce and Hein 2020, eq. 6).

    Invariant to scaling and shifting of the logits. With two classes there is no third logit: it is the margin itself.
    Masked classes (see `casemate.logits`) do not count.
    """
    return margin(logits, labels) / _spread(logits, 3, 1)


def targeted_dlr(logits: Logits, labels: Labels, targets: Labels) -> PerExample:
    """(Target's logit minus the label's), divided by the spread of the largest logits (Croce and Hein 2020, eq. 7).

    The spread is the largest logit minus the mean of the third and fourth, or with three classes of the second and
    third, since with the third alone the ratio for the third class would be -1 everywhere. With two classes the
    difference is not divided.
    """
    return (_own(logits, targets) - _own(logits, labels)) / _spread(logits, 4, 2)


def _spread(logits: Logits, up_to: int, count: int) -> PerExample:
    """The largest logit minus the mean of the last `count` of the `up_to` largest unmasked ones; 1 for two classes."""
    if logits.shape[1] < 3:
        return torch.ones_like(logits[:, 0])
    top = logits.topk(min(up_to, logits.shape[1]), dim=1).values
    if all_unmasked(logits, top):
        return top[:, 0] - top[:, -count:].mean(1) + _SMALLEST_SPREAD
    playing = unmasked(logits).sum(1, keepdim=True)
    rank = torch.arange(1, top.shape[1] + 1, device=top.device)
    last = playing.clamp(max=top.shape[1])
    rest = top.where((rank > last - count) & (rank <= last), 0.0).sum(1) / count
    return (top[:, 0] - rest + _SMALLEST_SPREAD).where(playing.squeeze(1) > 2, 1.0)


LOSSES: Mapping[str, Loss] = {
    "ce": stable_cross_entropy,
    "torch-ce": torch_cross_entropy,
    "prob-ce": probability_cross_entropy,
    "margin": margin,
    "dlr": dlr,
}
_NAMED = one_of(*LOSSES)
AnyLoss = Annotated[
    LossName | Loss,
    Rule(
        f"{_NAMED.expected}, or a function of logits and labels that returns one number per image",
        lambda loss: loss in LOSSES if isinstance(loss, str) else callable(loss),
        _NAMED.read,
        _NAMED.choices,
    ),
]
"""The name of a loss, one of the keys of `LOSSES`, or a function of one's own (see `OwnLoss`)."""
TITLES: Mapping[str, str] = {
    "ce": "stable cross-entropy",
    "torch-ce": "F.cross_entropy",
    "prob-ce": "softmax probabilities",
    "margin": "logit margin",
    "dlr": "difference of logits ratio",
}


def loss_by_name(name: str) -> Loss:
    """The function of `LOSSES` called `name`. Raises `SettingError` with the known names for any other."""
    if name not in LOSSES:
        raise unknown_name("loss", name, LOSSES)
    return LOSSES[name]


@final
@dataclass(frozen=True)
class OwnLoss:
    """A loss of a user's own, `(logits, labels) -> (n,)`, whose result is checked at every call.

    Labels are the true classes, or the targets of a targeted attack, which then minimises the loss; under a criterion
    of the user's own its `classes`. Raises `SettingError` for a result that is not one differentiable number per image.
    """

    function: Callable[[Logits, Tensor], Any]

    def __call__(self, logits: Logits, labels: Tensor) -> PerExample:
        """The loss of each image."""
        return one_per_image(f"the loss {qualified_name(self.function)}", self.function(logits, labels), logits)


def as_loss(loss: LossName | Loss) -> Loss:
    """The function of a field `loss`, which is a name or a function. Raises `SettingError` for an unknown name."""
    return loss_by_name(loss) if isinstance(loss, str) else OwnLoss(loss)


def one_per_image(what: str, value: Any, logits: Logits) -> PerExample:
    """`value`, which a user's function computed from logits, if it is one number per image that can be differentiated.

    Raises `SettingError`, which begins with `what`, for anything else.
    """
    expected = f"expected one floating-point number per image, of shape ({len(logits)},)"
    if not isinstance(value, Tensor):
        raise SettingError(f"{what} returned {kind_of(value)}; {expected}, as a tensor")
    if not value.is_floating_point():
        raise SettingError(f"{what} returned a tensor of type {value.dtype}; {expected}: {_REMEDY}")
    if value.shape != logits.shape[:1]:
        seen = f"{what} returned a tensor of shape {tuple(value.shape)} for {len(logits)} images; {expected}"
        if not value.ndim:
            raise SettingError(f"{seen}: leave out the reduction (reduction='none', no mean or sum over the images)")
        raise SettingError(
            f"{seen}: take the sum, the mean or the largest over the classes, .sum(1), .mean(1), .amax(1)"
        )
    if torch.is_grad_enabled() and logits.requires_grad and not value.requires_grad:
        raise SettingError(f"{what} does not depend on the logits in a way that can be differentiated: {_REMEDY}")
    return value


_REMEDY = (
    "compute it from the logits by PyTorch, without argmax, comparisons, detach, item or NumPy; without a gradient "
    "take an attack that needs none, such as Square"
)
"""What to do about a function without a derivative."""
