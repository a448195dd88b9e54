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
- a convolution leaves out the rows and columns that the pooling behind it drops (`cropped.py`);
- a convolution of many channels goes by Winograd's filtering (`winograd.py`);
- another convolution of few channels passes its gradient back by one matrix product (`few_channels.py`);
- a dense layer takes feature maps as they lie in memory (`dense_on_maps.py`);
- a ReLU writes over what it was given, where nothing else needs that;
- weights lie channels-last.

How it is found is in `rearrange.py`. The copy's logits are compared with the model's before it is used; see
`Frozen.faithful`. It also knows how many images should pass through it at a time.

On a GPU, passes are replayed from CUDA graphs where that gives the same and is faster (`replayed.py`).

Where that is asked for there is a second, coarse copy in bfloat16, which some processors multiply several times as fast
as float32. Attacks look for their way with it; whether an image fools is said in float32.
"""

import copy
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Literal, final

import torch

from casemate.logits import magnitude
from casemate.models.accel.coarse import in_bfloat16
from casemate.models.accel.equivalence import TOLERANCE, answers, largest_difference, own_randomness
from casemate.models.accel.pass_size import DEFAULT, ask_for_gradient, fastest_pass_size, seconds_per_pass
from casemate.models.accel.rearrange import lighten
from casemate.models.accel.replayed import replaying
from casemate.models.classifier import Classifier
from casemate.progress import NULL_OBSERVER, Observer
from casemate.types import Images, Labels, Logits

Precision = Literal["float32", "bfloat16"]

_COARSE_TOLERANCE = 0.1
"""`TOLERANCE` for a copy in bfloat16, whose rounding is 0.4 %; many layers add up to some per cent."""
_WORTH_COARSE = 1.2
"""How many times as fast an input gradient in bfloat16 must be."""
_SAFETY = 4
"""So many times the difference seen in logits of a coarse copy is allowed for."""
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
    coarse: Classifier | None = None
    """The copy in bfloat16, if it was asked for, answers much as the model does, and is faster on this machine."""
    coarse_difference: float = float("inf")
    """The largest difference of a logit of that, as a share of the largest one; infinite if that is not known."""
    changes: dict[str, int] = field(default_factory=dict)
    """What was changed, and how often."""
    difference: float = 0.0
    """The largest difference of a logit, as a share of the largest one."""
    exact: bool = True
    """The copy computes in the precision of the original; not where that is a half one, and the copy float32."""

    @property
    def precision(self) -> Precision:
        """In which attacks may look for their way."""
        return "float32" if self.coarse is None else "bfloat16"

    @property
    def checking(self) -> Classifier:
        """The original, asked about as many images at a time as the copy."""
        same = copy.copy(self.original)
        same.pass_size, same.observer = self.copy.pass_size or DEFAULT, self.copy.observer
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

    @torch.no_grad()
    def doubted(self, images: Images, own: Labels, logits: Logits) -> Logits:
        """The coarse copy's logits where it is sure that images are taken for their own class, else as by `classify`.

        It is sure where its lead is more than twice, four times over, what its logits differed by when it was made.
        """
        others = logits.scatter(1, own.unsqueeze(1), float("-inf")).amax(1)
        lead = logits.gather(1, own.unsqueeze(1)).squeeze(1) - others
        doubt = (lead > 2 * _SAFETY * self.coarse_difference * magnitude(logits).max()).logical_not_()
        return logits.index_put((doubt,), self.classify(images[doubt]))

    @property
    def faithful(self) -> bool:
        """Whether the copy answered as the original did; where not, the original is attacked itself."""
        return self.difference <= TOLERANCE


def freeze(
    model: Classifier,
    images: Images,
    *,
    pass_size: int | None = DEFAULT,
    precision: Precision = "float32",
    observer: Observer = NULL_OBSERVER,
) -> Frozen:
    """Make the copy, and compare its logits with the model's on a few images.

    The model is left as it was. It has to be in the state in which it is to be attacked (`attacks.frozen`).

    Args:
        images: the first ones that will be attacked, `(n, channels, height, width)` within the bounds.
        pass_size: images that pass through the copy at a time; measured if None.
        precision: bfloat16 for a coarse copy too, if it turns out to be of use.
        observer: is told where the pass size has to become smaller for want of memory, and if bfloat16 is of no use.
    """
    found = as_it_is(model, pass_size or DEFAULT, observer)
    with torch.no_grad():
        found = _changed(found, images)
    plain = found.copy
    if model.device.type == "cuda":
        found = replace(found, copy=replaying(plain, images) or plain)
    if pass_size is None:
        plain.pass_size = found.copy.pass_size = fastest_pass_size(found.copy, images)
    if precision == "bfloat16":
        found = _with_coarse(found, plain, images)
    return found


def as_it_is(model: Classifier, pass_size: int, observer: Observer = NULL_OBSERVER) -> Frozen:
    """The model and another view of the same layers and weights, with a pass size of its own.

    Weights in half precision, in which small gradients are zero, are copied into float32, and so are weights that were
    made in inference mode, which have no gradients at all.
    """
    half = model.dtype in (torch.float16, torch.bfloat16)
    same = _in_float32(model) if half or made_in_inference(model) else None
    exact = same is None or not half
    same = copy.copy(model) if same is None else same
    same.pass_size, same.observer = pass_size, observer
    return Frozen(original=model, copy=same, exact=exact)


def made_in_inference(model: Classifier) -> bool:
    """Whether weights or buffers were made in inference mode, so that autograd refuses them."""
    return any(each.is_inference() for each in chain(model.parameters(), model.buffers()))


def _in_float32(model: Classifier) -> Classifier | None:
    """A copy in float32, if one can be made."""
    try:
        made = copy.deepcopy(model).float().requires_grad_(False)
        made.forget()
        with torch.no_grad():
            made(torch.zeros(1, *model.input_shape, device=model.device))
    except Exception:  # a model may hold what cannot be copied, or its code insist on half precision
        return None
    return made


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


def _with_coarse(given: Frozen, plain: Classifier, images: Images) -> Frozen:
    """The same with a copy of `plain` in bfloat16, unless it fails, answers too differently, or is no faster."""
    try:
        made = in_bfloat16(plain)
        if made.device.type == "cuda":
            made = replaying(made, images) or made
        with own_randomness(given.copy), torch.no_grad():
            difference = largest_difference(answers(given.original, images), answers(made, images))
            exact, coarse = (seconds_per_pass(each, images, len(images)) for each in (given.copy, made))
            gain = exact / coarse
    except Exception as error:  # the model's own code may not bear another precision, in whatever way
        given.copy.observer.message(f"bfloat16 is not used: the model fails in it ({type(error).__name__}: {error})")
        return given
    if difference > _COARSE_TOLERANCE:
        given.copy.observer.message(f"bfloat16 is not used: it changes logits by {difference:.0%} of the largest")
        return given
    if gain < _WORTH_COARSE:
        given.copy.observer.message(f"bfloat16 is not used: here it is {gain:.1f} times as fast as float32")
        return given
    return replace(given, coarse=made, coarse_difference=difference)


def _bears_gradient(model: Classifier, images: Images) -> bool:
    """Whether a gradient can be asked for: not where something that it needs was written over."""
    try:
        ask_for_gradient(model, images[:2].to(model.device))
    except Exception:  # whatever the model's own code raises
        return False
    return True
