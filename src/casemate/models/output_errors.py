"""Errors for networks that do not return one logit per class and image, or whose backward pass fails."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from casemate.errors import ModelError


def backward_error(error: Exception) -> ModelError:
    """The `ModelError` to raise for an exception in a network's backward pass, with a message that says what to do."""
    return ModelError(
        f"the model's backward pass fails: {type(error).__name__}: {error}. Fix it, or replace the part of the model "
        "that cannot be differentiated by casemate.attacks.BPDA"
    )


def check_output(output: Any, count: int, classes: int) -> None:
    """Raise `ModelError` unless a network's output for `count` images is floating point of shape `(count, classes)`."""
    if isinstance(output, Tensor) and output.shape == (count, classes) and output.is_floating_point():
        return
    expected = f"expected one logit for each of its {classes} classes, of shape ({count}, {classes})"
    seen = f"the model returns {_described(output)} for {count} {'image' if count == 1 else 'images'}; {expected}"
    if not isinstance(output, Tensor):
        raise ModelError(f"{seen}. {_how_to_get_logits(output)}")
    shape = tuple(output.shape)
    if shape == (count, classes):
        raise ModelError(f"{seen}, as floating-point numbers. Return the logits, not the predicted classes")
    if shape in ((count, 1), (count,)) or (count == 1 and shape == ()):
        pair = "cat" if len(shape) == 2 else "stack"
        raise ModelError(
            f"{seen}. That is one logit z per image: return two, torch.{pair}([torch.zeros_like(z), z], 1), "
            "and name two classes"
        )
    if len(shape) == 2 and shape[0] == count:
        raise ModelError(f"{seen}. Name as many classes as there are logits, or return only the logits of those named")
    if shape[:2] == (count, classes) and output.numel() == count * classes:
        raise ModelError(f"{seen}. Return logits.flatten(1)")
    raise ModelError(
        f"{seen}. The first dimension of the output must be the number of images in every call: do not squeeze() it, "
        "use view() and reshape() with images.shape[0] instead of a fixed number, and keep nothing between calls"
    )


def _described(output: Any) -> str:
    if isinstance(output, Tensor):
        kind = "" if output.is_floating_point() else f" of type {output.dtype}"
        return f"a tensor of shape {tuple(output.shape)}{kind}"
    if isinstance(output, np.ndarray):
        return f"a NumPy array of shape {output.shape}"
    name = type(output).__name__
    if isinstance(output, Mapping):
        return f"a {name} with {', '.join(map(repr, output)) or 'nothing'}"
    if isinstance(output, Sequence) and not isinstance(output, str):
        return f"a {name} of {len(output)}"
    return "None" if output is None else f"a {name}"


def _how_to_get_logits(output: Any) -> str:
    """A sentence on how to return logits, for a network whose output is not a tensor."""
    if isinstance(output, np.ndarray):
        return "Return a tensor computed by PyTorch: attacks need its gradient"
    if output is None:
        return "Does its forward end in a return?"
    how = "output.logits"
    if isinstance(output, Mapping):
        how = f"output[{next((key for key in output if key == 'logits'), next(iter(output), 'logits'))!r}]"
    elif isinstance(output, Sequence):
        how = "output[0]"
    return (
        "Put the network into a module whose forward returns the logits alone, such as "
        f"`output = self.network(images); return {how}`"
    )
