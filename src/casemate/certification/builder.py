"""Collecting the operations of a model one by one, with their values for a batch of images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from casemate.certification.operations import AbstractOperation, Pads
from casemate.certification.propagation import Node
from casemate.types import Images


class RefusedError(Exception):
    """A setting of a layer or call that there are no bounds for; its message becomes part of a `ModelError`."""


@final
@dataclass(frozen=True)
class Value:
    """The number of a tensor among the values of the graph."""

    number: int


@final
class BatchSize:
    """The number of images, wherever a model reads it."""


BATCH = BatchSize()


@final
class GraphBuilder:
    """Collects operations and their values for the images, call by call.

    `training` says whether the model as a whole is in training mode.
    """

    def __init__(self, images: Images, *, training: bool) -> None:
        self.nodes: list[Node] = []
        self._training = training
        self.values: list[Tensor] = [images]

    def add(self, operation: AbstractOperation, *inputs: Value, value: Tensor | None = None) -> Value:
        """Add an operation; `value` is its result for the images if it is known."""
        self.nodes.append(Node(operation, tuple(each.number for each in inputs)))
        known = operation.value(*(self.value(each) for each in inputs)) if value is None else value
        self.values.append(known)
        return Value(len(self.values) - 1)

    def value(self, of: Value) -> Tensor:
        """The value for the images."""
        return self.values[of.number]

    def need_training(self, what: str) -> None:
        """Raise `RefusedError` for a part that trains, whose outputs are drawn or of the batch, in evaluation mode."""
        if not self._training:
            raise RefusedError(f"{what}, although the model is in evaluation mode")

    def cast(self, weight: Tensor) -> Tensor:
        """A weight in the type of the computation."""
        return weight.to(self.values[0].dtype)


Build = Callable[..., Any]
"""Adds the operations of a layer (builder, layer, input) or of a function (builder, its arguments); returns the result.
Raises `RefusedError`."""


def pair_of(size: Any) -> tuple[int, int]:
    """Height and width of a setting that may be one number."""
    if isinstance(size, int):
        return size, size
    high, wide = size if len(size) == 2 else (size[0], size[0])
    return int(high), int(wide)


def zero_pads(padding: Any, kernel: Sequence[int], dilation: tuple[int, int]) -> Pads:
    """The zeros that a convolution with this setting adds."""
    if padding == "valid":
        return 0, 0, 0, 0
    if padding == "same":
        high, wide = (step * (size - 1) for step, size in zip(dilation, kernel, strict=True))
        return wide // 2, wide - wide // 2, high // 2, high - high // 2
    high, wide = pair_of(padding)
    return wide, wide, high, high


def map_size(builder: GraphBuilder, given: Value) -> tuple[int, int]:
    """Height and width of a value. Raises `RefusedError` for one that is not `(n, channels, height, width)`."""
    shape = builder.value(given).shape
    if len(shape) != 4:
        raise RefusedError(f"its input has the shape {tuple(shape)}; expected (n, channels, height, width)")
    return int(shape[2]), int(shape[3])
