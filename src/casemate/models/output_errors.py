"""Errors for networks that do not return one logit per class and image, or whose backward pass fails."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from casemate.errors import ModelError

_SHOWN = 8
"""Largest number of an output's parts that an error lists."""


def backward_error(error: Exception) -> ModelError:
    """The `ModelError` to raise for an exception in a network's backward pass, with a message that says what to do."""
    return ModelError(
        f"the model's backward pass fails: {type(error).__name__}: {error}. Fix it, or replace the part of the model "
        "that cannot be differentiated by casemate.attacks.BPDA"
    )


def sigmoid_error() -> ModelError:
    """The `ModelError` to raise for a network with one output per image, which is a probability, not a logit."""
    return ModelError(
        "the model returns one number per image, the result of a sigmoid: a probability; expected a logit, which is "
        "above zero for the second class. Leave the sigmoid out, or write "
        "Classifier(network, output=lambda p: torch.logit(p, 1e-6))"
    )


def check_output(output: Any, count: int, classes: int | None) -> None:
    """Raise `ModelError` unless a network's output for `count` images is floating point of shape `(count, classes)`.

    For two classes, or if their number is not known (None), one number per image will do too.
    """
    number = isinstance(output, Tensor) and output.is_floating_point()
    shape = tuple(output.shape) if isinstance(output, Tensor) else ()
    single = isinstance(output, Tensor) and (shape in ((count, 1), (count,)) or (count == 1 and shape == ()))
    if number and single and classes in (None, 2):
        return
    if number and len(shape) == 2 and shape[0] == count and (shape[1] == classes or (classes is None and shape[1] > 1)):
        return
    per_class = "class" if classes is None else f"of its {classes} classes"
    expected = f"expected one logit for each {per_class}, of shape ({count}, {classes or 'classes'})"
    seen = f"the model returns {described(output)} for {count} {'image' if count == 1 else 'images'}; {expected}"
    if not isinstance(output, Tensor):
        raise ModelError(f"{seen}. {_how_to_get_logits(output)}")
    if not number and (single or shape == (count, classes)):
        raise ModelError(f"{seen}, as floating-point numbers. Return the logits, not the predicted classes")
    if single:
        raise ModelError(f"{seen}. One logit per image stands for two classes: name two, or classes=2")
    if len(shape) == 2 and shape[0] == count:
        raise ModelError(f"{seen}. Name as many classes as there are logits, or return only the logits of those named")
    if len(shape) > 2 and shape[0] == count and output.numel() == count * (classes or shape[1]):
        raise ModelError(f"{seen}. Return logits.flatten(1)")
    raise ModelError(
        f"{seen}. The first dimension of the output must be the number of images in every call: do not squeeze() it, "
        "use view() and reshape() with images.shape[0] instead of a fixed number, and keep nothing between calls"
    )


def described(output: Any) -> str:
    """What a network returned, in words, with the shapes of its parts."""
    if isinstance(output, Tensor):
        kind = "" if output.is_floating_point() else f" of type {output.dtype}"
        return f"a tensor of shape {tuple(output.shape)}{kind}"
    if isinstance(output, np.ndarray):
        return f"a NumPy array of shape {output.shape}"
    name = type(output).__name__
    parts = _parts(output)
    if isinstance(output, Mapping) or (parts and not isinstance(output, Sequence)):
        listed = [f"{key!r}{_shape_of(value)}" for key, value in parts.items()]
        return f"a {name} with {', '.join(listed[:_SHOWN]) or 'nothing'}{', ...' if len(listed) > _SHOWN else ''}"
    if isinstance(output, Sequence) and not isinstance(output, str):
        listed = [f"{_shape_of(value).strip() or type(value).__name__}" for value in parts.values()]
        shapes = f": {', '.join(listed[:_SHOWN])}{', ...' if len(listed) > _SHOWN else ''}" if listed else ""
        return f"a {name} of {len(output)}{shapes}"
    return "None" if output is None else f"a {name}"


def _parts(output: Any) -> dict[Any, Any]:
    """The parts of a network's output by what `Classifier`'s `output` takes: keys, indices, names of tensors."""
    if isinstance(output, Mapping):
        return dict(output)
    if isinstance(output, Sequence) and not isinstance(output, str):
        return dict(enumerate(output))
    return {name: value for name, value in getattr(output, "__dict__", {}).items() if isinstance(value, Tensor)}


def _shape_of(value: Any) -> str:
    return f" {tuple(value.shape)}" if isinstance(value, Tensor) else ""


def _how_to_get_logits(output: Any) -> str:
    """A sentence on how to return logits, for a network whose output is not a tensor."""
    if isinstance(output, np.ndarray):
        return "Return a tensor computed by PyTorch: attacks need its gradient"
    if output is None:
        return "Does its forward end in a return?"
    ways = [f"output={key!r}" for key, value in _parts(output).items() if isinstance(value, Tensor)][:_SHOWN]
    if ways:
        return f"Say which part are the logits: Classifier(network, {' or '.join(ways)})"
    return "Give Classifier a function that takes the logits from it: Classifier(network, output=lambda output: ...)"
