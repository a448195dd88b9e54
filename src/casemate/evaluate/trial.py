"""Asking a model for the first time: does it take the images, does it return logits, does it answer at random?"""

import torch

from casemate.attacks import check_images
from casemate.data import LabelledImages
from casemate.errors import ModelError, ShapeError
from casemate.evaluate.findings.randomness import answers_at_random
from casemate.memory import batched, is_out_of_memory
from casemate.models import Classifier

TRIED = 64
"""Images that a model is asked about."""


def try_out(model: Classifier, images: LabelledImages) -> bool:
    """Whether a model, in evaluation mode, answers at random; it is left as it was.

    Raises:
        ShapeError: no images, or images and labels that the model does not take.
        ModelError: a model that fails, or returns something other than one logit per class.
    """
    if not len(images):
        raise ShapeError("no images; expected at least one")
    check_images(model, *images.unit())
    few, _ = images[:TRIED].unit(model.device)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            batched(len(few), len(few), lambda part: _ask(model, few[part]))
        return answers_at_random(model, few)
    finally:
        for module, mode in modes:
            module.training = mode


def _ask(model: Classifier, images: torch.Tensor) -> None:
    try:
        logits = model(images)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"the model fails on a batch of shape {tuple(images.shape)}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(logits, torch.Tensor) or logits.shape != (len(images), len(model.classes)):
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ModelError(
            f"the model returns {got} for {len(images)} images; expected one logit for each of its "
            f"{len(model.classes)} classes: ({len(images)}, {len(model.classes)})"
        )
