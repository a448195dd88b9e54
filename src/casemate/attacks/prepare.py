"""Preparing models and images for an attack: evaluation mode, frozen weights, and the copy that is attacked."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from casemate.models import Classifier, Frozen, Precision, freeze, freeze_unoptimized
from casemate.models.accel.pass_size import DEFAULT_PASS_SIZE, MEASURING_PASSES
from casemate.models.state import frozen
from casemate.progress import NULL_OBSERVER, Observer
from casemate.types import Images

_GROUP_BYTES, _MOST_BYTES = 1 << 25, 1 << 28
_FULL = 256
"""Number of images in a group that keeps the passes through the network full. Groups of large images have as many, if
their tensors fit into `_MOST_BYTES`."""
_COPIES = 16
"""Tensors of the size of the batch that an attack holds at most: iterates, gradients, the best images so far."""
COMPARED_IMAGES = 32
"""Number of images on which the logits of the frozen copy are compared with the model's."""
_WORTH_COPYING = 1000
"""From this many passes of one image on, a copy saves more time than making it takes (a quarter of a second, once, to
load the compiled loops)."""
_WORTH_MEASURING = 400 * MEASURING_PASSES
"""From this many passes of one image at most, measuring the best pass size saves more time than it takes, also if a
quarter of them is made: fooled images need no more."""


def group_size(image_shape: tuple[int, ...]) -> int:
    """Number of images that an attack processes together: as many as fit into 32 MB, or enough for full passes.

    It is larger than a pass through the network, so that passes stay full when fooled images leave the group.
    """
    each = _COPIES * 4 * math.prod(image_shape)
    return max(1, _GROUP_BYTES // each, min(_FULL, _MOST_BYTES // each))


def prepare_images(images: Tensor, model: Classifier) -> Images:
    """Images, which `check_images` has accepted, as attacks take them: on the model's device, channels-last.

    They are clamped to the bounds, and float32, since half precision would round perturbations away; float64 images
    stay float64 if the model's weights are float64 too, or it has none.
    """
    double = images.dtype == torch.float64 and model.dtype in (None, torch.float64)
    numbers = images.detach().to(model.device, torch.float64 if double else torch.float32)
    return numbers.clamp(*model.bounds).contiguous(memory_format=torch.channels_last)


@contextmanager
def prepare_for_attack(
    model: Classifier | Frozen,
    images: Images,
    *,
    pass_size: int | None = None,
    passes: int | None = None,
    precision: Precision = "float32",
    observer: Observer = NULL_OBSERVER,
) -> Iterator[Frozen]:
    """Context that yields the model and the optimised copy to attack; inside, the model is in evaluation mode, frozen.

    Args:
        images: images to be attacked; the copy's logits are compared with the model's on the first of them.
        pass_size: images that pass through the network at a time; if None it is measured where that is worth while,
            else `DEFAULT_PASS_SIZE`. A model that is frozen already keeps its own.
        passes: the most passes of one image that will be made. If few, no copy is made; None: unknown, treated as many.
        precision: of the gradients of attacks within a ball; see `casemate.models.accel.precision`.
        observer: receives messages, such as a pass size halved for lack of memory.
    """
    if isinstance(model, Frozen):
        with frozen(model.original):
            yield model
        return
    with frozen(model):
        model.examine(prepare_images(images[:2], model))
        if pass_size is None and (passes is None or passes < _WORTH_MEASURING):
            pass_size = DEFAULT_PASS_SIZE
        if passes is not None and passes < _WORTH_COPYING:
            yield freeze_unoptimized(model, pass_size or DEFAULT_PASS_SIZE, observer)
        else:
            few = prepare_images(images[:COMPARED_IMAGES], model)
            yield freeze(model, few, pass_size=pass_size, precision=precision, observer=observer)
