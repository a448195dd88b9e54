"""Objects whose tensors all have one row per example, and are indexed together."""

from copy import copy
from typing import TypeVar

from torch import Tensor

R = TypeVar("R", bound="Rows")
"""The class of the object itself; used instead of `Self`, which beartype does not check at run time."""


class Rows:
    """An object whose tensors have one row per example, such as the state of an attack on a batch.

    Attributes that are neither tensors nor `Rows` are shared by all examples.
    """

    def __getitem__(self: R, chosen: Tensor | slice) -> R:
        """A copy with only some examples, chosen by a boolean mask, positions or a slice."""
        some = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor | Rows):
                object.__setattr__(some, name, value[chosen])
        return some

    def put(self: R, at: Tensor, other: R) -> R:
        """A copy whose rows at the positions `at` are replaced by the rows of `other`, one for each position."""
        changed = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                object.__setattr__(changed, name, value.index_put((at,), getattr(other, name)))
            elif isinstance(value, Rows):
                object.__setattr__(changed, name, value.put(at, getattr(other, name)))
        return changed
