"""What to say of a network that does not return one logit for each class of each image, or no gradient of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from casemate.errors import ModelError


def backward_failed(error: Exception) -> ModelError:
    """What to say of a model that fails on the way back."""
    return ModelError(
        f"the model fails when its gradient is asked for: {type(error).__name__}: {error}. Mend its backward pass, "
        "or put casemate.attacks.BPDA in the place of the part that has none"
    )


def what_is_wrong(answer: Any, count: int, classes: int) -> str | None:
    """What was seen, what was expected and what to do, of the answer to `count` images; None if nothing is wrong."""
    if isinstance(answer, Tensor) and answer.shape == (count, classes) and answer.is_floating_point():
        return None
    expected = f"expected one logit for each of its {classes} classes, of shape ({count}, {classes})"
    seen = f"the model returns {_described(answer)} for {count} {'image' if count == 1 else 'images'}; {expected}"
    if not isinstance(answer, Tensor):
        return f"{seen}. {_instead(answer)}"
    shape = tuple(answer.shape)
    if shape == (count, classes):
        return f"{seen}, as floating-point numbers. Return the logits, not the predicted classes"
    if shape in ((count, 1), (count,)) or (count == 1 and shape == ()):
        pair = "cat" if len(shape) == 2 else "stack"
        return (
            f"{seen}. That is one logit z for an image: return two, torch.{pair}([torch.zeros_like(z), z], 1), "
            "and name two classes"
        )
    if len(shape) == 2 and shape[0] == count:
        return f"{seen}. Name as many classes as there are logits, or return those of the classes named"
    if shape[:2] == (count, classes) and answer.numel() == count * classes:
        return f"{seen}. Return logits.flatten(1)"
    return (
        f"{seen}. The shape of its answer must follow the number of images, whatever came before: no squeeze() of the "
        "first dimension, view() or reshape() with images.shape[0] and no fixed number, nothing kept from call to call"
    )


def _described(answer: Any) -> str:
    if isinstance(answer, Tensor):
        kind = "" if answer.is_floating_point() else f" of type {answer.dtype}"
        return f"a tensor of shape {tuple(answer.shape)}{kind}"
    if isinstance(answer, np.ndarray):
        return f"a NumPy array of shape {answer.shape}"
    name = type(answer).__name__
    if isinstance(answer, Mapping):
        return f"a {name} with {', '.join(map(repr, answer)) or 'nothing'}"
    if isinstance(answer, Sequence) and not isinstance(answer, str):
        return f"a {name} of {len(answer)}"
    return "None" if answer is None else f"a {name}"


def _instead(answer: Any) -> str:
    """How to get at the logits."""
    if isinstance(answer, np.ndarray):
        return "Return a tensor computed by PyTorch: attacks need its gradient"
    if answer is None:
        return "Does its forward end in a return?"
    how = "output.logits"
    if isinstance(answer, Mapping):
        how = f"output[{next((key for key in answer if key == 'logits'), next(iter(answer), 'logits'))!r}]"
    elif isinstance(answer, Sequence):
        how = "output[0]"
    return (
        "Put the network into a module whose forward returns the logits alone, such as "
        f"`output = self.network(images); return {how}`"
    )
