"""The frozen model: a copy of a classifier for attacking, with the same logits and less work.

What is changed in the copy, where it changes no logit:

- dropout is taken out, since in evaluation mode it does nothing;
- a batch norm that follows a convolution or a dense layer is folded into it, and one that a dense layer, or a
  convolution without zero padding, follows into that (behind zero padding it would shift the border too: such a one
  is left);
- a ReLU in front of a max-pooling goes behind it: the largest of several does not care, value and gradient are the
  same, and a quarter of the numbers are left to look at;
- a convolution of few channels passes its gradient back by one matrix product (`few_channels.py`);
- a dense layer takes feature maps as they lie in memory (`dense_on_maps.py`);
- a ReLU writes over what it was given, where nothing else needs that;
- weights lie channels-last.

How it is found is in `rearrange.py`. The copy's logits are compared with the model's before it is used; see
`Frozen.faithful`. It also knows how many images should pass through it at a time.

Where that is asked for there is a second, coarse copy in bfloat16, which some processors multiply several times as fast
as float32. Attacks look for their way with it; whether an image fools is said in float32.
"""

import copy
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Literal, final

import torch
from torch import Tensor

from casemate.memory import batched
from casemate.models.classifier import Classifier
from casemate.models.coarse import in_bfloat16
from casemate.models.pass_size import DEFAULT, ask_for_gradient, fastest_pass_size, seconds_per_pass
from casemate.models.rearrange import lighten
from casemate.progress import SILENT, Observer
from casemate.types import Images, Logits

Precision = Literal["float32", "bfloat16"]

TOLERANCE = 1e-4
"""By how much a logit of the copy may differ, as a share of the largest logit of the images compared: some hundred
times what float32 rounds, and far below what an attack could make use of."""


_COARSE_TOLERANCE = 0.1
"""The same for a copy in bfloat16, whose rounding is 0.4 %; many layers add up to some per cent."""
_WORTH_COARSE = 1.2
"""How many times as fast an input gradient in bfloat16 must be."""
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
    changes: dict[str, int] = field(default_factory=dict)
    """What was changed, and how often."""
    difference: float = 0.0
    """The largest difference of a logit, as a share of the largest one."""

    @property
    def precision(self) -> Precision:
        """In which attacks may look for their way."""
        return "float32" if self.coarse is None else "bfloat16"

    @property
    def checking(self) -> Classifier:
        """The original, asked about as many images at a time as the copy."""
        size = self.copy.pass_size or DEFAULT
        return as_it_is(self.original, size, self.copy.observer).copy

    @torch.no_grad()
    def classify(self, images: Images) -> Logits:
        """The model's logits to within `TOLERANCE`, and its classes, mostly from the copy, which is faster.

        The model itself is asked where the copy's two highest logits are nearer to each other than its error may be,
        and about the first few images; if it answers those otherwise, about all. (What is asked twice is counted once
        among an attack's passes.)
        """
        checking = self.checking
        if self.copy.network is self.original.network:
            return checking(images)
        logits = self.copy(images)
        first, second = logits.topk(2, dim=1).values.unbind(1)
        asked = first - second > 2 * TOLERANCE * logits.abs().max()
        asked.logical_not_()  # so that a gap that is not a number is asked about too
        asked[:_ALWAYS_ASKED] = True
        told = checking(images[asked])
        same = _difference(told[:_ALWAYS_ASKED].double(), logits[:_ALWAYS_ASKED].double()) <= TOLERANCE
        return logits.index_put((asked,), told) if same else checking(images)

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
    observer: Observer = SILENT,
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
    if pass_size is None:
        found.copy.pass_size = fastest_pass_size(found.copy, images)
    if precision == "bfloat16":
        found = _with_coarse(found, images)
    return found


def as_it_is(model: Classifier, pass_size: int, observer: Observer = SILENT) -> Frozen:
    """The model and another view of the same layers and weights, with a pass size of its own."""
    same = copy.copy(model)
    same.pass_size, same.observer = pass_size, observer
    return Frozen(original=model, copy=same)


def _changed(given: Frozen, images: Images) -> Frozen:
    """The same with a copy, if there is anything to change and the copy answers as the model does."""
    try:
        made = copy.deepcopy(given.original)
    except Exception:  # a model may hold what cannot be copied; it is attacked as it is
        return given
    made.pass_size, made.observer = given.copy.pass_size, given.copy.observer
    made.requires_grad_(False)
    changes = dict(lighten(made))
    if not changes:
        return given
    model = given.original
    with _own_randomness(model):
        expected = _answers(model, images)
        try:
            difference = _difference(expected, _answers(made, images))
        except Exception:  # the model's own code may ask a layer for what the one in its place does not have
            difference = float("inf")
        if not _bears_gradient(made, images) and _bears_gradient(model, images):
            difference = float("inf")
    usable = made if difference <= TOLERANCE else given.copy
    return replace(given, copy=usable, changes=changes, difference=difference)


def _with_coarse(given: Frozen, images: Images) -> Frozen:
    """The same with a copy in bfloat16, unless it fails, answers too differently, or is no faster."""
    try:
        made = in_bfloat16(given.copy)
        with _own_randomness(given.copy), torch.no_grad():
            difference = _difference(_answers(given.original, images), _answers(made, images))
            gain = seconds_per_pass(given.copy, images) / seconds_per_pass(made, images)
    except Exception as error:  # the model's own code may not bear another precision, in whatever way
        given.copy.observer.say(f"bfloat16 is not used: the model fails in it ({type(error).__name__}: {error})")
        return given
    if difference > _COARSE_TOLERANCE:
        given.copy.observer.say(f"bfloat16 is not used: it changes logits by {difference:.0%} of the largest")
        return given
    if gain < _WORTH_COARSE:
        given.copy.observer.say(f"bfloat16 is not used: here it is {gain:.1f} times as fast as float32")
        return given
    return replace(given, coarse=made)


def _own_randomness(model: Classifier) -> AbstractContextManager[None]:
    """The caller's random numbers are left alone."""
    return torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else [])


def _bears_gradient(model: Classifier, images: Images) -> bool:
    """Whether a gradient can be asked for: not where something that it needs was written over."""
    try:
        ask_for_gradient(model, images[:2].to(model.device))
    except Exception:  # whatever the model's own code raises
        return False
    return True


def _answers(model: Classifier, images: Images) -> Tensor:
    """Logits, from the same random numbers for every model."""
    torch.manual_seed(0)
    return torch.cat(batched(len(images), len(images), lambda part: model(images[part].to(model.device)))).double()


def _difference(expected: Tensor, seen: Tensor) -> float:
    """The largest difference as a share of the largest number; infinite where only one of two is finite."""
    if expected.shape != seen.shape or not torch.equal(expected.isfinite(), seen.isfinite()):
        return float("inf")
    known = expected.isfinite()
    if not known.any():
        return 0.0
    largest = expected[known].abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return float((expected[known] - seen[known]).abs().max() / largest)
