"""The model that claims about single images are checked with: none of Apple's Metal kernels, which round otherwise."""

import copy

from casemate.errors import ModelError
from casemate.models.classifier import Classifier


def judge_of(model: Classifier) -> Classifier:
    """The model to check claims with: the model itself, or its copy on the CPU if it is on Apple's MPS device.

    Raises `ModelError` for a model on MPS that cannot be copied to the CPU.
    """
    if model.device.type != "mps":
        return model
    try:
        return copy.deepcopy(model).cpu()
    except Exception as error:  # a model may hold a lock, an open file, a generator
        raise ModelError(
            f"the model is on Apple's MPS device, whose kernels do not round as float32 arithmetic does, and cannot be "
            f"copied to the CPU, where claims are checked ({type(error).__name__}: {error}). Move it there: "
            "model.cpu(), or --device cpu"
        ) from error
