"""Holding a model still while it is attacked: evaluation mode, frozen weights, and the copy that attacks work on."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from casemate.errors import ModelError
from casemate.models import Classifier, Frozen, Precision, freeze, freeze_unoptimized
from casemate.models.accel.pass_size import DEFAULT_PASS_SIZE, MEASURING_PASSES
from casemate.models.state import frozen
from casemate.progress import NULL_OBSERVER, Observer
from casemate.types import Images

_GROUP_BYTES, _MOST_BYTES = 1 << 25, 1 << 28
_FULL = 256
"""Images of a group, if `_MOST_BYTES` hold them, however large they are: so many fill the passes."""
_COPIES = 16
"""Images that an attack holds at most for each one it works on: iterates, gradients, the best so far."""
COMPARED = 32
"""Images on which the frozen copy is compared with the model."""
_WORTH_COPYING = 1000
"""Passes of one image from which on a copy saves more than it takes to make, with loops to load (a quarter of a
second, once)."""
_WORTH_MEASURING = 100 * MEASURING_PASSES
"""Passes of one image from which on measuring the best pass size saves more than it takes."""


def group_size(image_shape: tuple[int, ...]) -> int:
    """How many images an attack works on in step: as many as fit into 32 MB, or enough for full passes.

    Images that are decided leave, and the passes through the network, which are of a size of their own, stay full.
    """
    each = _COPIES * 4 * math.prod(image_shape)
    return max(1, _GROUP_BYTES // each, min(_FULL, _MOST_BYTES // each))


def prepare_images(images: Tensor, model: Classifier) -> Images:
    """Checked images as the loop takes them: on the model's device, channels-last, and exactly within the bounds.

    They are float32, since half precision would round perturbations away; float64 where the model's weights are too, or
    it has none.
    """
    double = images.dtype == torch.float64 and model.dtype in (None, torch.float64)
    numbers = images.detach().to(model.device, torch.float64 if double else torch.float32)
    return numbers.clamp(*model.bounds).contiguous(memory_format=torch.channels_last)


def model_of(given: Classifier | Frozen) -> Classifier:
    """The model itself, whether it is frozen already or not. Raises `ModelError` for anything else."""
    model = given.original if isinstance(given, Frozen) else given
    if not isinstance(model, Classifier):
        raise ModelError(
            f"the model is a {type(model).__name__}; expected a casemate.Classifier: Classifier(network, input_shape="
            "(channels, height, width), classes=(...)) around your network, with mean= and std= if it wants them"
        )
    return model


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
    """A model with its copy to be attacked; inside, the model is in evaluation mode with frozen weights.

    Args:
        images: what will be attacked; the first ones serve to check the copy.
        pass_size: images that pass through the network at a time; if None measured where that is worth while, else a
            usual one. A model that is frozen already keeps its own.
        passes: of one image, that will be made at most. For a few the model is taken as it is; None: not for a few.
        precision: of the gradients that attacks within a ball follow; see `casemate.models.accel.precision`.
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
            few = prepare_images(images[:COMPARED], model)
            yield freeze(model, few, pass_size=pass_size, precision=precision, observer=observer)
