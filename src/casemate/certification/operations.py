"""The operations that bounds pass through: their values, interval bounds, linear bounds and rounding errors.

An operation maps tensors with one row per image to such a tensor. Interval bounds are those of Gowal et al. 2018 (arXiv
1810.12715, section 3): an affine operation maps the centre of a box by W and its radius by |W|, a monotone one maps the
two ends. Linear bounds go backward (CROWN, Zhang et al. 2018, arXiv 1811.00866, theorem 3.2): a lower bound that is
linear in the output of an operation becomes one that is linear in its inputs.

Rows of coefficients, `(r, *shape)`, belong to images by `owner`, int64 `(r,)`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from casemate.norms import Norm

Pads = tuple[int, int, int, int]
"""Zeros added on the left, on the right, above and below, as `torch.nn.functional.pad` takes them."""


def per_row(values: Tensor) -> Tensor:
    """The numbers of each row one after the other, `(n, numbers)`; of `(n,)` it makes `(n, 1)`."""
    return values.flatten(1) if values.ndim > 1 else values.unsqueeze(1)


@final
class Interval:
    """Lower and upper bounds of a tensor, entry by entry, `(n, *shape)`; also its centre and half its width.

    Each pair is computed from the other when it is first needed: affine operations take one, the others the other.
    """

    def __init__(self, lower: Tensor, upper: Tensor) -> None:
        self._ends: tuple[Tensor, Tensor] | None = (lower, upper)
        self._middle: tuple[Tensor, Tensor] | None = None

    @classmethod
    def around(cls, centre: Tensor, radius: Tensor) -> "Interval":
        """The intervals from `centre` less `radius` to `centre` plus `radius`."""
        made = cls.__new__(cls)
        made._ends, made._middle = None, (centre, radius)
        return made

    def _lower_and_upper(self) -> tuple[Tensor, Tensor]:
        if self._ends is None:
            centre, radius = self._centre_and_radius()
            self._ends = centre - radius, centre + radius
        return self._ends

    def _centre_and_radius(self) -> tuple[Tensor, Tensor]:
        if self._middle is None:
            lower, upper = self._lower_and_upper()
            centre = (lower + upper) / 2
            self._middle = centre, upper - centre
        return self._middle

    @property
    def lower(self) -> Tensor:
        """The lower bounds."""
        return self._lower_and_upper()[0]

    @property
    def upper(self) -> Tensor:
        """The upper bounds."""
        return self._lower_and_upper()[1]

    @property
    def centre(self) -> Tensor:
        """The middle of each interval."""
        return self._centre_and_radius()[0]

    @property
    def radius(self) -> Tensor:
        """Half the width of each interval."""
        return self._centre_and_radius()[1]

    @property
    def magnitude(self) -> Tensor:
        """The largest absolute value in each interval."""
        return self.lower.abs().maximum(self.upper.abs())

    def widened(self, by: Tensor | None) -> "Interval":
        """The intervals with `by` more on both sides; None for no change."""
        return self if by is None else Interval.around(self.centre, self.radius + by)

    def within(self, other: "Interval") -> "Interval":
        """What is in both."""
        return Interval(self.lower.maximum(other.lower), self.upper.minimum(other.upper))

    def lowest(self, rows: Tensor, owner: Tensor) -> Tensor:
        """The smallest value of each linear function in `rows` over the box of its image, `(r,)`."""
        flat = per_row(rows)
        centre, radius = per_row(self.centre)[owner], per_row(self.radius)[owner]
        return (flat * centre).sum(1) - (flat.abs() * radius).sum(1)


def rounding_factor(terms: int, unit: float) -> float:
    """The largest relative error of a sum of products with `terms` roundings, each by a relative `unit` at most.

    That is n u / (1 - n u) for any order of the additions (Higham 2002, "Accuracy and Stability of Numerical
    Algorithms", section 3.1).
    """
    share = terms * unit
    return share / (1 - share) if share < 1 else float("inf")


class AbstractOperation(ABC):
    """An operation of a network, on values and on bounds."""

    @abstractmethod
    def value(self, *inputs: Tensor) -> Tensor:
        """The output for inputs `(n, *shape)`."""

    @abstractmethod
    def interval(self, *inputs: Interval) -> Interval:
        """Bounds of the output from bounds of the inputs."""

    @abstractmethod
    def before(self, rows: Tensor, owner: Tensor, inputs: Sequence[Interval]) -> tuple[list[Tensor], Tensor]:
        """A lower bound of the functions `rows` of the output that is linear in the inputs, which lie in the intervals.

        Returns the coefficients of each input, and the constants `(r,)`.
        """

    @abstractmethod
    def rounding(self, unit: float, *inputs: Interval) -> Tensor | None:
        """The largest rounding error of the output where every number is rounded by a relative `unit`; None for none.

        It is that of this operation alone, for inputs within the intervals.
        """


class AbstractAffineOperation(AbstractOperation):
    """An affine operation of one input, y = W x + b."""

    @property
    @abstractmethod
    def terms(self) -> int:
        """Roundings that enter one number of the output; 0 if none does."""

    @abstractmethod
    def absolute(self, radius: Tensor) -> Tensor:
        """|W| times `radius`."""

    @abstractmethod
    def spread(self) -> Tensor | float:
        """A bound of the absolute numbers that are added up in b, in a shape that broadcasts to the output's."""

    @abstractmethod
    def transposed(self, rows: Tensor, owner: Tensor) -> Tensor:
        """`rows` times W."""

    @abstractmethod
    def offset(self, rows: Tensor, owner: Tensor) -> Tensor:
        """`rows` times b, `(r,)`."""

    @final
    def interval(self, *inputs: Interval) -> Interval:
        """The exact range of each number of the output over the box (Gowal et al. 2018, eq. 6)."""
        (given,) = inputs
        return Interval.around(self.value(given.centre), self.absolute(given.radius))

    @final
    def before(self, rows: Tensor, owner: Tensor, inputs: Sequence[Interval]) -> tuple[list[Tensor], Tensor]:
        """The same functions, of the input."""
        del inputs
        return [self.transposed(rows, owner)], self.offset(rows, owner)

    @final
    def rounding(self, unit: float, *inputs: Interval) -> Tensor | None:
        """`rounding_factor` times |W| |x| + |b|, and what may underflow."""
        if not self.terms:
            return None
        size = self.absolute(inputs[0].magnitude) + self.spread()
        return rounding_factor(self.terms, unit) * size + self.terms * torch.finfo(torch.float32).tiny


@final
@dataclass(frozen=True)
class Dense(AbstractAffineOperation):
    """A dense layer: weights `(outputs, inputs)`, bias `(outputs,)` or None."""

    weight: Tensor
    bias: Tensor | None

    @property
    def terms(self) -> int:
        """The products and the bias."""
        return self.weight.shape[1] + 1

    def value(self, *inputs: Tensor) -> Tensor:
        """The output `(n, outputs)`."""
        return F.linear(inputs[0], self.weight, self.bias)

    def absolute(self, radius: Tensor) -> Tensor:
        """|W| times `radius`."""
        return F.linear(radius, self.weight.abs())

    def squared(self, square: Tensor) -> Tensor:
        """The squares of W times `square`."""
        return F.linear(square, self.weight.square())

    def spread(self) -> Tensor | float:
        """|b|."""
        return 0.0 if self.bias is None else self.bias.abs()

    def transposed(self, rows: Tensor, owner: Tensor) -> Tensor:
        """`rows` times W."""
        del owner
        return rows @ self.weight

    def offset(self, rows: Tensor, owner: Tensor) -> Tensor:
        """`rows` times b."""
        del owner
        return rows.new_zeros(len(rows)) if self.bias is None else rows @ self.bias


@final
@dataclass(frozen=True)
class Convolution(AbstractAffineOperation):
    """A convolution with zero padding; poolings by the mean are convolutions too."""

    weight: Tensor
    """`(outputs, inputs / groups, height, width)`."""
    bias: Tensor | None
    stride: tuple[int, int]
    pads: Pads
    dilation: tuple[int, int]
    groups: int
    size: tuple[int, int]
    """Height and width of the input."""

    @property
    def terms(self) -> int:
        """The products and the bias."""
        return self.weight[0].numel() + 1

    def value(self, *inputs: Tensor) -> Tensor:
        """The output `(n, outputs, height, width)`."""
        return self._convolved(inputs[0], self.weight, self.bias)

    def absolute(self, radius: Tensor) -> Tensor:
        """|W| times `radius`."""
        return self._convolved(radius, self.weight.abs())

    def squared(self, square: Tensor) -> Tensor:
        """The squares of W times `square`."""
        return self._convolved(square, self.weight.square())

    def spread(self) -> Tensor | float:
        """|b|."""
        return 0.0 if self.bias is None else self.bias.abs().view(1, -1, 1, 1)

    def transposed(self, rows: Tensor, owner: Tensor) -> Tensor:
        """`rows` times W: the transposed convolution."""
        del owner
        (left, right, top, bottom), (height, width) = self.pads, self.size
        sizes = ((height + bottom - top, 2 * top), (width + right - left, 2 * left))
        extra = [
            size + pad - (self.dilation[axis] * (self.weight.shape[2 + axis] - 1) + 1) - self._reach(rows, axis)
            for axis, (size, pad) in enumerate(sizes)
        ]
        made = F.conv_transpose2d(
            rows,
            self.weight,
            stride=self.stride,
            padding=(top, left),
            output_padding=extra,
            groups=self.groups,
            dilation=self.dilation,
        )
        return made[:, :, :height, :width]

    def offset(self, rows: Tensor, owner: Tensor) -> Tensor:
        """`rows` times b."""
        del owner
        return rows.new_zeros(len(rows)) if self.bias is None else rows.sum((2, 3)) @ self.bias

    def _convolved(self, maps: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        left, right, top, bottom = self.pads
        if (right, bottom) != (left, top):  # PyTorch's "same" with an even kernel adds one more on the right and below
            maps = F.pad(maps, (0, right - left, 0, bottom - top))
        return F.conv2d(maps, weight, bias, self.stride, (top, left), self.dilation, self.groups)

    def _reach(self, rows: Tensor, axis: int) -> int:
        """From the first to the last position of the kernel, along one axis."""
        return (rows.shape[2 + axis] - 1) * self.stride[axis]


@final
@dataclass(frozen=True)
class Scaling(AbstractAffineOperation):
    """A scale and a shift of each number, the same for all images, `(1, ...)`, or of each image, `(n, ...)`.

    Normalisation, batch normalisation, drawn dropout and drawn noise are of this kind.
    """

    scale: Tensor
    shift: Tensor
    size: Tensor
    """The sum of the absolute numbers that the shift is computed from."""
    roundings: int

    @property
    def terms(self) -> int:
        """Roundings of scale, shift, product and sum."""
        return self.roundings

    def value(self, *inputs: Tensor) -> Tensor:
        """The input times the scale, plus the shift."""
        return inputs[0] * self.scale + self.shift

    def absolute(self, radius: Tensor) -> Tensor:
        """`radius` times the absolute scale; times 1.2e-38 where that is smaller, since float32 then has few digits."""
        size = self.scale.abs()
        return radius * size.clamp(min=torch.finfo(torch.float32).tiny).where(size > 0, 0.0)

    def spread(self) -> Tensor | float:
        """The numbers that the shift is computed from."""
        return self.size

    def transposed(self, rows: Tensor, owner: Tensor) -> Tensor:
        """`rows` times the scale."""
        return rows * _of(self.scale, owner)

    def offset(self, rows: Tensor, owner: Tensor) -> Tensor:
        """`rows` times the shift, added up."""
        return per_row(rows * _of(self.shift, owner)).sum(1)


@final
@dataclass(frozen=True)
class Reshape(AbstractAffineOperation):
    """The same numbers of each image in another shape."""

    shape_before: tuple[int, ...]
    shape_after: tuple[int, ...]

    @property
    def terms(self) -> int:
        """Nothing is rounded."""
        return 0

    def value(self, *inputs: Tensor) -> Tensor:
        """The input in the new shape."""
        return inputs[0].reshape(len(inputs[0]), *self.shape_after)

    def absolute(self, radius: Tensor) -> Tensor:
        """`radius` in the new shape."""
        return self.value(radius)

    def spread(self) -> Tensor | float:
        """Nothing is added."""
        return 0.0

    def transposed(self, rows: Tensor, owner: Tensor) -> Tensor:
        """`rows` in the old shape."""
        del owner
        return rows.reshape(len(rows), *self.shape_before)

    def offset(self, rows: Tensor, owner: Tensor) -> Tensor:
        """Nothing is added."""
        del owner
        return rows.new_zeros(len(rows))


@final
@dataclass(frozen=True)
class Addition(AbstractOperation):
    """The sum of two tensors of one shape, as at the end of a residual block."""

    def value(self, *inputs: Tensor) -> Tensor:
        """The sum."""
        return inputs[0] + inputs[1]

    def interval(self, *inputs: Interval) -> Interval:
        """The sums of lower and upper bounds."""
        one, other = inputs
        return Interval(one.lower + other.lower, one.upper + other.upper)

    def before(self, rows: Tensor, owner: Tensor, inputs: Sequence[Interval]) -> tuple[list[Tensor], Tensor]:
        """The same functions of both inputs."""
        del owner, inputs
        return [rows, rows], rows.new_zeros(len(rows))

    def rounding(self, unit: float, *inputs: Interval) -> Tensor | None:
        """One rounding of the sum."""
        return unit * (inputs[0].magnitude + inputs[1].magnitude)


@final
@dataclass(frozen=True)
class Concatenation(AbstractOperation):
    """Tensors one after the other along dimension 1, of the sizes given."""

    sizes: tuple[int, ...]

    def value(self, *inputs: Tensor) -> Tensor:
        """All of them."""
        return torch.cat(inputs, 1)

    def interval(self, *inputs: Interval) -> Interval:
        """All bounds."""
        return Interval(torch.cat([each.lower for each in inputs], 1), torch.cat([each.upper for each in inputs], 1))

    def before(self, rows: Tensor, owner: Tensor, inputs: Sequence[Interval]) -> tuple[list[Tensor], Tensor]:
        """Each input has its part of the coefficients."""
        del owner, inputs
        return list(rows.split(list(self.sizes), 1)), rows.new_zeros(len(rows))

    def rounding(self, unit: float, *inputs: Interval) -> Tensor | None:
        """Nothing is rounded."""
        del unit, inputs
        return None


class AbstractNonlinearOperation(AbstractOperation):
    """An operation whose linear bounds depend on the bounds of its one input."""

    @abstractmethod
    def undecided(self, given: Interval) -> Tensor:
        """Which numbers of the input have bounds that matter, booleans `(n, *shape)`.

        The operation is linear for all inputs within the bounds of the others.
        """


@final
@dataclass(frozen=True)
class Rectifier(AbstractNonlinearOperation):
    """ReLU, or leaky ReLU with a slope from 0 to 1 for negative numbers."""

    slope: float = 0.0

    def value(self, *inputs: Tensor) -> Tensor:
        """The rectified input."""
        return F.leaky_relu(inputs[0], self.slope) if self.slope else F.relu(inputs[0])

    def interval(self, *inputs: Interval) -> Interval:
        """The rectified bounds."""
        return Interval(self.value(inputs[0].lower), self.value(inputs[0].upper))

    def undecided(self, given: Interval) -> Tensor:
        """Those that may have either sign."""
        return (given.lower < 0) & (given.upper > 0)

    def before(self, rows: Tensor, owner: Tensor, inputs: Sequence[Interval]) -> tuple[list[Tensor], Tensor]:
        """Upper bound: the line through both ends. Lower bound: of the two pieces the one that leaves less area.

        (Zhang et al. 2018, section 3.3.)
        """
        lower, upper = inputs[0].lower, inputs[0].upper
        open_, one = self.undecided(inputs[0]), torch.ones_like(lower)
        fixed = torch.where(lower >= 0, one, self.slope)
        width = torch.where(open_, upper - lower, 1.0)
        above = torch.where(open_, (upper - self.slope * lower) / width, fixed)
        intercept = torch.where(open_, upper * (1 - above), 0.0)
        below = torch.where(open_, torch.where(upper > -lower, one, self.slope), fixed)
        positive, negative = rows.clamp(min=0), rows.clamp(max=0)
        made = positive * below[owner] + negative * above[owner]
        return [made], per_row(negative * intercept[owner]).sum(1)

    def rounding(self, unit: float, *inputs: Interval) -> Tensor | None:
        """Those of the slope and of the product, and what may underflow."""
        if not self.slope:
            return None
        return rounding_factor(2, unit) * self.slope * inputs[0].magnitude + torch.finfo(torch.float32).tiny


@final
@dataclass(frozen=True)
class MaximumPooling(AbstractNonlinearOperation):
    """Max-pooling."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def value(self, *inputs: Tensor) -> Tensor:
        """The maxima."""
        return F.max_pool2d(inputs[0], self.kernel, self.stride, self.padding, self.dilation)

    def interval(self, *inputs: Interval) -> Interval:
        """The maxima of the bounds."""
        return Interval(self.value(inputs[0].lower), self.value(inputs[0].upper))

    def undecided(self, given: Interval) -> Tensor:
        """Those that may be the largest in a window where another one may be too."""
        _, decided, _ = self._windows(given)
        lowest = self.value(given.lower)
        windows = self._unfolded(given.upper, -torch.inf)
        chosen = (windows > lowest.flatten(2).unsqueeze(2)) & ~decided.flatten(2).unsqueeze(2)
        top, left = self.padding
        height, width = given.lower.shape[2:]
        size = (height + 2 * top, width + 2 * left)
        count = F.fold(chosen.to(given.lower.dtype).flatten(1, 2), size, self.kernel, self.dilation, 0, self.stride)
        return count[:, :, top : top + height, left : left + width] > 0

    def before(self, rows: Tensor, owner: Tensor, inputs: Sequence[Interval]) -> tuple[list[Tensor], Tensor]:
        """Lower bound: the number with the highest lower bound. Upper bound: the same if it is always the largest.

        Otherwise the upper bound is the largest upper bound, a constant.
        """
        place, decided, highest = self._windows(inputs[0])
        negative = rows.clamp(max=0)
        moved = torch.where(decided[owner], rows, rows.clamp(min=0))
        constant = per_row(torch.where(decided[owner], 0.0, negative * highest[owner])).sum(1)
        channels, height, width = inputs[0].lower.shape[1:]
        flat = rows.new_zeros(len(rows), channels, height * width)
        made = flat.scatter_add(2, place.flatten(2)[owner], moved.flatten(2))
        return [made.view(len(rows), channels, height, width)], constant

    def rounding(self, unit: float, *inputs: Interval) -> Tensor | None:
        """Nothing is rounded."""
        del unit, inputs
        return None

    def _windows(self, given: Interval) -> tuple[Tensor, Tensor, Tensor]:
        """Of each window the place of the highest lower bound, whether it is always the largest, and the highest bound.

        All are of the output's shape; a place is a position in the flattened map of a channel.
        """
        lower, upper = self._unfolded(given.lower, -torch.inf), self._unfolded(given.upper, -torch.inf)
        best, number = lower.max(2, keepdim=True)
        others = upper.scatter(2, number, -torch.inf).amax(2)
        decided = best.squeeze(2) >= others
        highest = self.value(given.upper)
        height, width = given.lower.shape[2:]
        places = torch.arange(height * width, device=lower.device, dtype=lower.dtype).view(1, 1, height, width)
        place = self._unfolded(places, 0.0).expand(len(lower), lower.shape[1], -1, -1).gather(2, number).squeeze(2)
        return place.long().view_as(highest), decided.view_as(highest), highest

    def _unfolded(self, maps: Tensor, filling: float) -> Tensor:
        """The numbers of each window, `(n, channels, window, windows)`; beyond the border is `filling`."""
        top, left = self.padding
        padded = F.pad(maps, (left, left, top, top), value=filling)
        count, channels, height, width = padded.shape
        # unfold would add up channels as one dimension; taken one by one, each window keeps its channel
        flat = F.unfold(padded.reshape(count * channels, 1, height, width), self.kernel, self.dilation, 0, self.stride)
        return flat.view(count, channels, *flat.shape[1:])


def dual_radius(operation: Dense | Convolution, scale: Tensor, norm: Norm) -> Tensor:
    """How far the outputs move at most where the inputs move within the unit ball of a norm, times `scale`.

    Args:
        operation: a dense layer or a convolution.
        scale: `(1, *shape)`, of the inputs.
        norm: l2 or l1.

    Returns:
        `(1, *shape)` of the output: the dual norm of each row of W. For a convolution and l1 it is that of the whole
        kernel, at the border too.
    """
    if norm == "l2":
        square = scale.square()
        found = (
            operation.squared(square) if isinstance(operation, Convolution) else square @ operation.weight.T.square()
        )
        return found.sqrt()
    if isinstance(operation, Dense):
        return (operation.weight.abs() * scale).amax(1).unsqueeze(0)
    largest = scale.flatten(2).amax(2).view(operation.groups, 1, -1, 1, 1)
    kernels = operation.weight.abs().view(operation.groups, -1, *operation.weight.shape[1:])
    return (kernels * largest).flatten(2).amax(2).view(1, -1, 1, 1)


def _of(values: Tensor, owner: Tensor) -> Tensor:
    """The values for each row's image, where they are not the same for all."""
    return values if len(values) == 1 else values[owner]
