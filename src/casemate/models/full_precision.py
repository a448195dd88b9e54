"""Full precision for claims about single images: no TensorFloat-32 on NVIDIA GPUs, and no Metal kernels of Apple's.

TensorFloat-32 rounds the factors of products and convolutions to 10 bits, which changes predictions near a decision
boundary, where adversarial examples lie.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from casemate.errors import ModelError
from casemate.models.classifier import Classifier

_BACKENDS: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)


@contextmanager
def full_precision() -> Iterator[None]:
    """Context in which products and convolutions of float32 numbers do not use TensorFloat-32.

    The settings of PyTorch are as before at the end.
    """
    before = [backend.allow_tf32 for backend in _BACKENDS]
    try:
        for backend in _BACKENDS:
            backend.allow_tf32 = False
        yield
    finally:
        for backend, allowed in zip(_BACKENDS, before, strict=True):
            backend.allow_tf32 = allowed


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
