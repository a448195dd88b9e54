"""The logits in what a user's network returns: a tensor, a part of something larger, or one number per image."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from casemate.errors import ModelError
from casemate.models.output_errors import described

Output = int | str | Callable[[Any], Any]
"""Which part of a network's output are the logits: an index, a key or attribute, or a function that returns them."""


def select_logits(output: Any, part: Output | None) -> Any:
    """The part of a network's output that holds the logits; the output itself if that is not clear.

    Args:
        output: what the network returned.
        part: see `Classifier`; None for the only element of a sequence, or what is called `logits`.

    Raises:
        ModelError: the output has no such part, or the function fails.
    """
    if callable(part):
        try:
            return part(output)
        except Exception as error:
            raise ModelError(
                f"the function given as output= fails on {described(output)}, which the network returned: "
                f"{type(error).__name__}: {error}"
            ) from error
    if isinstance(output, Tensor):
        return output
    if part is None:
        return _found(output)
    try:
        by_name = isinstance(part, str) and not isinstance(output, Mapping)
        return getattr(output, part) if by_name else output[part]  # pyright: ignore[reportArgumentType]
    except (LookupError, TypeError, AttributeError) as error:
        raise ModelError(
            f"output={part!r}, but the network returns {described(output)}, which has no such part"
        ) from error


def _found(output: Any) -> Any:
    if isinstance(output, Mapping):
        return output.get("logits", output)
    if isinstance(getattr(output, "logits", None), Tensor):
        return output.logits
    if isinstance(output, Sequence) and not isinstance(output, str) and len(output) == 1:
        return _found(output[0]) if not isinstance(output[0], Tensor) else output[0]
    return output


def is_one_logit(logits: Tensor, count: int) -> bool:
    """Whether a network's output for `count` images is one number for each, `(count, 1)` or `(count,)`."""
    return tuple(logits.shape) in ((count, 1), (count,)) or (count == 1 and logits.ndim == 0)


def two_logits(logit: Tensor) -> Tensor:
    """The logits `(n, 2)` of two classes, 0 and z, for one logit z per image, `(n, 1)` or `(n,)`.

    Their softmax is the sigmoid of z, and their cross-entropy the binary one.
    """
    column = logit.reshape(-1, 1)
    return torch.cat([torch.zeros_like(column), column], 1)


def ends_in_sigmoid(logits: Tensor) -> bool:
    """Whether logits from `two_logits`, with their autograd graph, were made from the result of a sigmoid."""
    nodes = [logits.grad_fn]
    while nodes:
        node = nodes.pop()
        name = "" if node is None else node.name()
        if name.startswith("Sigmoid"):
            return True
        if node is not None and name.startswith(_SAME_NUMBERS):
            nodes += [each for each, _ in node.next_functions]
    return False


_SAME_NUMBERS = ("Cat", "Reshape", "View", "UnsafeView", "Squeeze", "Unsqueeze", "Select", "Slice", "Clone", "ToCopy")
"""Beginnings of the names of autograd's nodes that only rearrange or copy numbers."""
