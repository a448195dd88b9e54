"""A first pass of a few images: whether the model takes them, returns one logit per class, and is randomised."""

from casemate.attacks import check_images, frozen
from casemate.data import LabelledImages
from casemate.errors import ShapeError
from casemate.evaluation.findings.randomness import is_randomised
from casemate.models import Classifier, judge_of

PROBED = 32
"""Largest number of images that a model is tried on before its evaluation: logits that are random on a share of 10 % of
the images are found with probability 0.97."""


def probe_model(model: Classifier, images: LabelledImages) -> bool:
    """Check that a model can be evaluated on the images; return whether it is randomised in evaluation mode.

    The model itself does not change.

    Raises:
        ShapeError: no images, or images and labels that the model does not take.
        ModelError: a model that fails, returns something other than one logit per class, or is on Apple's MPS device
            and cannot be copied to the CPU.
    """
    if not len(images):
        raise ShapeError("no images; expected at least one")
    judge_of(model)  # raises, before any attack, for a model with which claims cannot be checked
    check_images(model, *images.tensors())
    few, _ = images[:PROBED].tensors(model.device)
    with frozen(model):
        model.examine(few)
        return is_randomised(model, few)
