"""The frozen model: a copy of a classifier for attacking, with the same logits and less work.

What is changed in the copy, where it changes no logit:

- dropout is taken out, since in evaluation mode it does nothing;
- a batch norm that follows a convolution or a dense layer is folded into it, and one that a dense layer, or a
  convolution without zero padding, follows into that (behind zero padding it would shift the border too: such a one
  is left);
- a ReLU in front of a max-pooling goes behind it: the largest of several does not care, value and gradient are the
  same, and a quarter of the numbers are left to look at;
- a pooling over 2 x 2 and its ReLU are one compiled loop, with the convolution before them if that has few channels
  (`pooled.py`);
- another convolution of few channels passes its gradient back by one matrix product (`few_channels.py`);
- a dense layer takes feature maps as they lie in memory (`dense_on_maps.py`);
- a ReLU writes over what it was given, where nothing else needs that;
- weights lie channels-last.

How it is found is in `rearrange.py`. The copy's logits are compared with the model's before it is used; see
`Frozen.faithful`. It also knows how many images should pass through it at a time.

Copies in another precision are made in `precision.py`; `Frozen.in_turn` says what an attack runs on.
"""

import copy
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import final

import torch

from casemate.logits import magnitude
from casemate.models.accel.equivalence import TOLERANCE, answers, largest_difference, own_randomness
from casemate.models.accel.pass_size import DEFAULT_PASS_SIZE, ask_for_gradient, fastest_pass_size
from casemate.models.accel.precision import Precision, faster_in_bfloat16, in_float32, is_half
from casemate.models.accel.rearrange import lighten
from casemate.models.classifier import Classifier
from casemate.progress import NULL_OBSERVER, Observer
from casemate.types import Images, Logits

_ALWAYS_ASKED = 4
"""Images of every batch about which the model itself is asked too."""


@final
@dataclass(frozen=True, kw_only=True)
class Frozen:
    """A classifier, and the copy of it that attacks work on."""

    original: Classifier
    """As it was given; what is claimed of it is checked with it."""
    copy: Classifier
    """What is attacked; another view of the original where there is nothing to change, or no change can be used."""
    low_precision: Classifier | None = None
    """The copy in bfloat16, if it was asked for, answers much as the model does, and is faster on this machine."""
    changes: dict[str, int] = field(default_factory=dict)
    """What was changed, and how often."""
    difference: float = 0.0
    """The largest difference of a logit, as a share of the largest one."""
    exact: bool = True
    """The copy computes in the precision of the original; not where that is a half one, and the copy float32."""

    @property
    def precision(self) -> Precision:
        """Of the gradients that attacks within a ball follow first."""
        return "float32" if self.low_precision is None else "bfloat16"

    def in_turn(self, *, low_precision: bool) -> tuple[Classifier, ...]:
        """The models that an attack runs on, each on what only the one before is fooled by, or on which it is stuck.

        Of an attack that bears rounding the copy in low precision comes first, if there is one; then the copy; and last
        the original, if that computes in another precision than the copy.
        """
        first = () if self.low_precision is None or not low_precision else (self.low_precision,)
        return (*first, self.copy) if self.exact else (*first, self.copy, self.checking)

    @property
    def differentiable(self) -> Classifier:
        """The original, or its copy in float32, since in half precision small gradients are zero."""
        return self.original if self.exact else self.copy

    @property
    def checking(self) -> Classifier:
        """The original, asked about as many images at a time as the copy."""
        same = copy.copy(self.original)
        same.pass_size, same.observer = self.copy.pass_size or DEFAULT_PASS_SIZE, self.copy.observer
        return same

    @torch.no_grad()
    def classify(self, images: Images) -> Logits:
        """The model's logits to within `TOLERANCE`, and its classes, mostly from the copy, which is faster.

        The model itself is asked where the copy's two highest logits are nearer to each other than its error may be,
        and about the first few images; if it answers those otherwise, about all. (What is asked twice is counted once
        among an attack's passes.)
        """
        checking = self.checking
        if self.copy.network is self.original.network or not self.exact:
            return checking(images)
        logits = self.copy(images)
        first, second = logits.topk(2, dim=1).values.unbind(1)
        asked = first - second > 2 * TOLERANCE * magnitude(logits).max()
        asked.logical_not_()  # so that a gap that is not a number is asked about too
        asked[:_ALWAYS_ASKED] = True
        told = checking(images[asked])
        same = largest_difference(told[:_ALWAYS_ASKED].double(), logits[:_ALWAYS_ASKED].double()) <= TOLERANCE
        return logits.index_put((asked,), told) if same else checking(images)

    @property
    def faithful(self) -> bool:
        """Whether the copy answered as the original did; where not, the original is attacked itself."""
        return self.difference <= TOLERANCE


def freeze(
    model: Classifier,
    images: Images,
    *,
    pass_size: int | None = DEFAULT_PASS_SIZE,
    precision: Precision = "float32",
    observer: Observer = NULL_OBSERVER,
) -> Frozen:
    """Make the copy, and compare its logits with the model's on a few images.

    The model is left as it was. It has to be in the state in which it is to be attacked (`attacks.frozen`).

    Args:
        images: the first ones that will be attacked, `(n, channels, height, width)` within the bounds.
        pass_size: images that pass through the copy at a time; measured if None.
        precision: bfloat16 for a copy in it too, if it turns out to be of use.
        observer: hears where the pass size has to become smaller for want of memory, and if bfloat16 is of no use.
    """
    found = as_it_is(model, pass_size or DEFAULT_PASS_SIZE, observer)
    with torch.no_grad():
        found = _changed(found, images)
    if pass_size is None:
        found.copy.pass_size = fastest_pass_size(found.copy, images)
    if precision == "bfloat16":
        found = replace(found, low_precision=faster_in_bfloat16(found.copy, model, images))
    return found


def as_it_is(model: Classifier, pass_size: int, observer: Observer = NULL_OBSERVER) -> Frozen:
    """The model and another view of the same layers and weights, with a pass size of its own.

    Weights in half precision, in which small gradients are zero, are copied into float32, and so are weights that were
    made in inference mode, which have no gradients at all.
    """
    same = in_float32(model) if is_half(model) or made_in_inference(model) else None
    exact = same is None or not is_half(model)
    same = copy.copy(model) if same is None else same
    same.pass_size, same.observer = pass_size, observer
    return Frozen(original=model, copy=same, exact=exact)


def made_in_inference(model: Classifier) -> bool:
    """Whether weights or buffers were made in inference mode, so that autograd refuses them."""
    return any(each.is_inference() for each in chain(model.parameters(), model.buffers()))


def _changed(given: Frozen, images: Images) -> Frozen:
    """The same with a copy, if there is anything to change and the copy answers as the model does."""
    try:
        made = copy.deepcopy(given.copy)
    except Exception:  # a model may hold what cannot be copied; it is attacked as it is
        return given
    made.observer = given.copy.observer
    made.requires_grad_(False)
    made.memory_format = torch.channels_last
    changes = dict(lighten(made))
    if not changes:
        return given
    model = given.copy
    with own_randomness(model):
        expected = answers(model, images)
        try:
            difference = largest_difference(expected, answers(made, images))
        except Exception:  # the model's own code may ask a layer for what the one in its place does not have
            difference = float("inf")
        if not _bears_gradient(made, images) and _bears_gradient(model, images):
            difference = float("inf")
    usable = made if difference <= TOLERANCE else given.copy
    return replace(given, copy=usable, changes=changes, difference=difference)


def _bears_gradient(model: Classifier, images: Images) -> bool:
    """Whether a gradient can be asked for: not where something that it needs was written over."""
    try:
        ask_for_gradient(model, images[:2].to(model.device))
    except Exception:  # whatever the model's own code raises
        return False
    return True
