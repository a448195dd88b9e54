"""Asking a model for the first time: does it take the images, does it return logits, does it answer at random?"""

from casemate.attacks import check_images, frozen
from casemate.data import LabelledImages
from casemate.errors import ShapeError
from casemate.evaluation.findings.randomness import answers_at_random
from casemate.models import Classifier

TRIED = 64
"""Images that a model is asked about."""


def probe_model(model: Classifier, images: LabelledImages) -> bool:
    """Whether a model, in evaluation mode, answers at random; it is left as it was.

    Raises:
        ShapeError: no images, or images and labels that the model does not take.
        ModelError: a model that fails, or returns something other than one logit per class.
    """
    if not len(images):
        raise ShapeError("no images; expected at least one")
    check_images(model, *images.tensors())
    few, _ = images[:TRIED].tensors(model.device)
    with frozen(model):
        model.examine(few)
        return answers_at_random(model, few)
