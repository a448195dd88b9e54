"""The frozen model: a copy of a classifier to attack, with the same logits and less work.

Changes made in the copy, where they change no logit:

- dropout is removed, since it does nothing in evaluation mode;
- a batch norm after a convolution or dense layer is folded into it, and one before a dense layer, or before a
  convolution without zero padding, into that layer (with zero padding the shift would miss the border);
- a ReLU before a max-pooling moves behind it: the maximum commutes with the ReLU, with the same value and gradient, and
  the ReLU has a quarter of the work;
- a 2 x 2 pooling with its ReLU, and a small-input convolution before them, become one compiled loop
  (`relu_max_pool.py`);
- any other small-input convolution computes its input gradient by one matrix product (`small_input_conv.py`);
- a dense layer reads feature maps in channels-last order (`channels_last_linear.py`);
- a ReLU works in place where no other layer needs its input;
- weights are stored channels-last.

`optimize.py` finds and makes these changes. The copy's logits are compared with the model's before it is used; see
`Frozen.matches_original`. Copies in another precision are made in `precision.py`.
"""

import copy
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import final

import torch

from casemate.logits import magnitude
from casemate.models.accel.equivalence import TOLERANCE, logit_difference, relative_difference
from casemate.models.accel.optimize import optimize_for_inference
from casemate.models.accel.pass_size import DEFAULT_PASS_SIZE, fastest_pass_size, run_input_gradient
from casemate.models.accel.precision import Precision, faster_in_bfloat16, in_float32, is_half
from casemate.models.classifier import Classifier
from casemate.progress import NULL_OBSERVER, Observer
from casemate.rng import torch_forked
from casemate.types import Images, Logits

_ALWAYS_VERIFIED = 4
"""Number of images of every batch that `Frozen.classify` passes through the original too."""


@final
@dataclass(frozen=True, kw_only=True)
class Frozen:
    """A classifier, and the copy of it that attacks work on."""

    original: Classifier
    """The unmodified model; every success is verified on it."""
    copy: Classifier
    """The model that is attacked; it shares the original's layers if nothing was changed."""
    low_precision: Classifier | None = None
    """The copy in bfloat16, if it was requested, is accurate enough and faster on this machine."""
    changes: dict[str, int] = field(default_factory=dict)
    """How often each optimisation was made in the copy, by its name; empty if none was possible."""
    difference: float = 0.0
    """Largest logit difference between copy and original, relative to the largest logit."""
    exact: bool = True
    """Whether both compute in the same precision: False for a half-precision model with a float32 copy."""

    @property
    def precision(self) -> Precision:
        """Precision of the gradients in the first of the `precision_stages`."""
        return "float32" if self.low_precision is None else "bfloat16"

    def precision_stages(self, *, low_precision: bool) -> tuple[Classifier, ...]:
        """The models that an attack runs on in turn, in order of precision.

        The bfloat16 copy comes first, if there is one and `low_precision` is set; then the copy; then the original, if
        it computes in another precision than the copy. Each next stage runs on the failed examples that fooled the
        stage before, or on which that one had a zero gradient or numbers that are not finite (see `run_in_turn`).
        """
        first = () if self.low_precision is None or not low_precision else (self.low_precision,)
        return (*first, self.copy) if self.exact else (*first, self.copy, self.verifier)

    @property
    def differentiable(self) -> Classifier:
        """The original, or its float32 copy if it is in half precision, where small gradients are zero."""
        return self.original if self.exact else self.copy

    @property
    def verifier(self) -> Classifier:
        """The original, with the copy's pass size and observer."""
        same = copy.copy(self.original)
        same.pass_size, same.observer = self.copy.pass_size or DEFAULT_PASS_SIZE, self.copy.observer
        return same

    @torch.no_grad()
    def classify(self, images: Images) -> Logits:
        """Logits within `TOLERANCE` of the original's, with the same predictions, mostly from the faster copy.

        The original also classifies the first few images, and those whose two highest logits are closer than the copy's
        error; if it disagrees on the first few, it classifies all. (An attack counts these double passes once.)
        """
        verifier = self.verifier
        if self.copy.network is self.original.network or not self.exact:
            return verifier(images)
        logits = self.copy(images)
        first, second = logits.topk(2, dim=1).values.unbind(1)
        uncertain = first - second > 2 * TOLERANCE * magnitude(logits).max()
        uncertain.logical_not_()  # not `<=`, so that a gap that is NaN is uncertain too
        uncertain[:_ALWAYS_VERIFIED] = True
        verified = verifier(images[uncertain])
        pair = (part[:_ALWAYS_VERIFIED].double() for part in (verified, logits))
        same = relative_difference(*pair) <= TOLERANCE
        return logits.index_put((uncertain,), verified) if same else verifier(images)

    @property
    def matches_original(self) -> bool:
        """Whether the copy's logits are within `TOLERANCE` of the original's; if not, the original is attacked."""
        return self.difference <= TOLERANCE


def freeze(
    model: Classifier,
    images: Images,
    *,
    pass_size: int | None = DEFAULT_PASS_SIZE,
    precision: Precision = "float32",
    observer: Observer = NULL_OBSERVER,
) -> Frozen:
    """Make the optimised copy of a model, and compare its logits with the model's on `images`.

    The model is not changed. It must already be in evaluation mode with frozen weights (`attacks.frozen`).

    Args:
        images: a few, the first to be attacked, `(n, channels, height, width)` within the bounds.
        pass_size: images that pass through the copy at a time; measured if None.
        precision: "bfloat16" makes a bfloat16 copy too, if it is accurate and fast enough.
        observer: receives a message if memory runs out and the pass size is reduced, or if bfloat16 is not used.
    """
    found = freeze_unoptimized(model, pass_size or DEFAULT_PASS_SIZE, observer)
    with torch.no_grad():
        found = _optimized(found, images)
    if pass_size is None:
        found.copy.pass_size = fastest_pass_size(found.copy, images)
    if precision == "bfloat16":
        found = replace(found, low_precision=faster_in_bfloat16(found.copy, model, images))
    return found


def freeze_unoptimized(model: Classifier, pass_size: int, observer: Observer = NULL_OBSERVER) -> Frozen:
    """A `Frozen` whose copy shares the model's layers and weights, and has its own pass size.

    Half-precision weights, in which small gradients are zero, are copied to float32; so are weights created in
    inference mode, which cannot be differentiated.
    """
    same = in_float32(model) if is_half(model) or has_inference_tensors(model) else None
    exact = same is None or not is_half(model)
    same = copy.copy(model) if same is None else same
    same.pass_size, same.observer = pass_size, observer
    return Frozen(original=model, copy=same, exact=exact)


def has_inference_tensors(model: Classifier) -> bool:
    """Whether any weight or buffer was created in inference mode, so that autograd cannot use it."""
    return any(each.is_inference() for each in chain(model.parameters(), model.buffers()))


def _optimized(given: Frozen, images: Images) -> Frozen:
    """`given` with an optimised copy, or with its own if there is nothing to change or the logits do not match."""
    model = given.copy
    try:
        made = copy.deepcopy(model)
    except Exception:  # the user's own code may raise anything
        return given
    made.observer = model.observer
    made.requires_grad_(False)
    made.memory_format = torch.channels_last
    changes = dict(optimize_for_inference(made))
    if not changes:
        return given
    with torch_forked(model.device):
        try:
            difference = logit_difference(model, made, images)
        except Exception:  # the user's own code may use an attribute that a replaced layer lacks
            difference = float("inf")
        if not _has_input_gradient(made, images) and _has_input_gradient(model, images):
            difference = float("inf")
    return replace(given, copy=made if difference <= TOLERANCE else model, changes=changes, difference=difference)


def _has_input_gradient(model: Classifier, images: Images) -> bool:
    """Whether a backward pass to the images raises no error; the gradient itself is not checked.

    It raises one if a layer has overwritten values that the backward pass needs.
    """
    try:
        run_input_gradient(model, images[:2].to(model.device))
    except Exception:  # the user's own code may raise anything
        return False
    return True
