"""One row per example: objects whose tensors are all chosen from together."""

from copy import copy
from typing import TypeVar

from torch import Tensor

R = TypeVar("R", bound="Rows")
"""What is chosen from; `Self` would say so too, but is not checked at run time by beartype."""


class Rows:
    """An object whose tensors hold one row per example, such as the state of a batch under attack.

    Everything that is neither a tensor nor `Rows` itself is shared by all examples.
    """

    def __getitem__(self: R, chosen: Tensor | slice) -> R:
        """The rows of some of the examples: a boolean mask, positions or a range."""
        some = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor | Rows):
                object.__setattr__(some, name, value[chosen])
        return some

    def put(self: R, at: Tensor, other: R) -> R:
        """A copy whose rows at the positions `at` are those of `other`."""
        changed = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                object.__setattr__(changed, name, value.index_put((at,), getattr(other, name)))
            elif isinstance(value, Rows):
                object.__setattr__(changed, name, value.put(at, getattr(other, name)))
        return changed
