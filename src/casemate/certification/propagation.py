"""Bounds of a network that was taken apart: forward as intervals, backward as linear functions.

Intervals: Gowal et al. 2018 (arXiv 1810.12715). Linear bounds: CROWN (Zhang et al. 2018, arXiv 1811.00866), between
bounds of the layers that come from intervals (CROWN-IBP, Zhang et al. 2020, arXiv 1906.06316) or from CROWN itself. The
slopes of the lower bounds of ReLUs are fixed by the intervals; they are not optimised (no alpha-CROWN), and no ReLU is
split in two cases. All but CROWN between its own bounds can be differentiated.

With a `unit` of rounding the bounds hold for every evaluation of the network in which each addition and multiplication
errs by that relative error at most, in any order: such an evaluation is the exact network with an error added after
each operation, whose size follows from the bounds of the operation's inputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from casemate.certification.operations import (
    AbstractNonlinearOperation,
    AbstractOperation,
    Convolution,
    Dense,
    Interval,
    Rectifier,
    Reshape,
    Scaling,
    dual_radius,
    per_row,
)
from casemate.certification.region import Region
from casemate.types import Images, Labels, Logits

Margins = Float[Tensor, "n others"]
"""Lower bounds of the logit of the label minus each other logit, in the order of the other classes."""

_ROWS_BYTES = 1 << 27
"""Memory for the coefficients of the rows that go backward together."""


@final
@dataclass(frozen=True)
class Node:
    """One operation of a network, and the numbers of the values that it takes; value 0 are the images."""

    operation: AbstractOperation
    inputs: tuple[int, ...]


@final
@dataclass(frozen=True)
class OperationGraph:
    """A network as a list of operations; the result of the one at position k is value k + 1, the last the logits."""

    nodes: Sequence[Node]

    def logits(self, images: Images) -> Logits:
        """The logits of images, by the same operations as the bounds."""
        values: list[Tensor] = [images]
        for node in self.nodes:
            values.append(node.operation.value(*(values[place] for place in node.inputs)))
        return values[-1]


@final
@dataclass(frozen=True)
class LayerBounds:
    """Bounds of every value of a network, for the images of a region."""

    region: Region
    intervals: Sequence[Interval]
    """By the number of the value."""
    errors: Mapping[int, Tensor]
    """The largest rounding error of an operation, by the number of its result, where there is one."""


def bound_layers(graph: OperationGraph, region: Region, *, unit: float = 0.0, tighten: bool = False) -> LayerBounds:
    """Bounds of all values of a network.

    Args:
        graph: the network.
        region: the images.
        unit: relative rounding error of the evaluations that the bounds are for; 0 for exact ones.
        tighten: bounds before ReLUs and poolings from CROWN, where they matter, instead of intervals only; without
            gradients.
    """
    bounds = LayerBounds(region, intervals := [region.box], errors := {})
    users = _users(graph)
    images = _ImageLayers(region)
    for number, node in enumerate(graph.nodes, start=1):
        given = [intervals[place] for place in node.inputs]
        error = node.operation.rounding(unit, *given) if unit else None
        found = images.narrowed(number, node, node.operation.interval(*given), error)
        if error is not None:
            errors[number] = error
        intervals.append(found.widened(error))
        if tighten and not images.is_exact(number) and number in users:
            intervals[number] = _tightened(graph, bounds, number, users[number])
    return bounds


def interval_margins(graph: OperationGraph, bounds: LayerBounds, labels: Labels) -> Margins:
    """Margins from the intervals before the last dense layer or convolution, which is merged with the differences.

    (Gowal et al. 2018, section 3.) Exact, without rounding, for a network without other operations, in linf.
    """
    rows, owner = _differences(labels, bounds.intervals[-1].lower)
    return _backward(graph, bounds, len(graph.nodes), rows, owner, only_last=True).view(len(labels), -1)


def linear_margins(graph: OperationGraph, bounds: LayerBounds, labels: Labels) -> Margins:
    """Margins from linear bounds that go back to the images, with the layers' bounds as they are (CROWN)."""
    rows, owner = _differences(labels, bounds.intervals[-1].lower)
    return _backward(graph, bounds, len(graph.nodes), rows, owner).view(len(labels), -1)


def worst_logits(margins: Margins, labels: Labels) -> Logits:
    """The logits `(n, classes)` of the worst case, less that of the label, so that the label's is 0.

    Their cross-entropy bounds that of every image of the region from above (Gowal et al. 2018, section 4).
    """
    before = torch.arange(margins.shape[1], device=labels.device) < labels.unsqueeze(1)
    padded = torch.nn.functional.pad(-margins, (0, 1)), torch.nn.functional.pad(-margins, (1, 0))
    first = torch.nn.functional.pad(before, (0, 1))
    own = torch.nn.functional.one_hot(labels, margins.shape[1] + 1).bool()
    return torch.where(first, *padded).masked_fill(own, 0.0)


@final
class _ImageLayers:
    """Which values are the images but for scale and shape, and which have bounds that no method improves."""

    def __init__(self, region: Region) -> None:
        self._region = region
        ones = torch.ones_like(region.centre[:1])
        self._direct: dict[int, tuple[Tensor, Tensor, Tensor]] = {0: (region.centre, ones, torch.zeros_like(ones))}
        self._exact = {0}

    def is_exact(self, number: int) -> bool:
        """Whether each bound of a value is reached by some image of the region, as far as it is known."""
        return number in self._exact

    def narrowed(self, number: int, node: Node, found: Interval, error: Tensor | None) -> Interval:
        """The bounds `found` of a value, with those by the dual norm where it is affine in the images of a ball.

        They are for the operation without its own rounding `error`, and for inputs with all errors before it.
        """
        operation, place = node.operation, node.inputs[0]
        if isinstance(operation, Scaling | Reshape) and place in self._exact:
            self._exact.add(number)
        if place not in self._direct:
            return found
        centre, scale, before = self._direct[place]
        if isinstance(operation, Reshape):
            self._direct[number] = operation.value(centre), operation.value(scale), operation.value(before)
        elif isinstance(operation, Scaling) and len(operation.scale) == 1:
            after = operation.absolute(before) + (0.0 if error is None else error)
            self._direct[number] = operation.value(centre), operation.absolute(scale), after
        elif isinstance(operation, Dense | Convolution):
            self._exact.add(number)
            if self._region.radius is not None:
                middle = operation.value(centre)
                radius = self._region.radius * dual_radius(operation, scale, self._region.norm)
                radius = radius + operation.absolute(before)
                return found.within(Interval(middle - radius, middle + radius))
        return found


_Chain = tuple[Sequence[AbstractOperation], AbstractNonlinearOperation]
"""Operations on single numbers, one after the other, and one after them whose linear bounds depend on its input's."""


def _users(graph: OperationGraph) -> dict[int, list[_Chain]]:
    """The values whose bounds set linear bounds, with the operations that these are bounds of.

    Only the last value that mixes numbers is among them: bounds beyond it, up to a ReLU, a scale or a shape, follow
    from its own.
    """
    found: dict[int, list[_Chain]] = {}
    ends: dict[int, tuple[int, Sequence[AbstractOperation]]] = {}
    for number, node in enumerate(graph.nodes, start=1):
        start, chain = ends.get(node.inputs[0], (node.inputs[0], ()))
        if isinstance(node.operation, AbstractNonlinearOperation):
            found.setdefault(start, []).append((chain, node.operation))
        if isinstance(node.operation, Scaling | Reshape | Rectifier):
            ends[number] = start, (*chain, node.operation)
    return found


def _undecided(chain: _Chain, given: Interval) -> Tensor:
    """Which numbers have bounds that matter for the last operation of a chain, booleans `(n, *shape)`."""
    between, last = chain
    inside = given
    for each in between:
        inside = each.interval(inside)
    return last.undecided(inside).view_as(given.lower)


@torch.no_grad()
def _tightened(graph: OperationGraph, bounds: LayerBounds, number: int, users: Sequence[_Chain]) -> Interval:
    """The interval of value `number` from linear bounds, for the entries that are undecided in an operation."""
    given = bounds.intervals[number]
    open_ = per_row(torch.stack([_undecided(each, given) for each in users]).any(0))
    owner, entry = open_.nonzero(as_tuple=True)
    lower, upper = per_row(given.lower).clone(), per_row(given.upper).clone()
    largest = max(each.lower[0].numel() for each in bounds.intervals[: number + 1])
    size = max(1, _ROWS_BYTES // (2 * given.lower.element_size() * largest))
    for start in range(0, len(owner), size):
        image, place = owner[start : start + size], entry[start : start + size]
        positive = torch.nn.functional.one_hot(place, lower.shape[1]).to(lower.dtype)
        rows = torch.cat([positive, -positive]).view(-1, *given.lower.shape[1:])
        found = _backward(graph, bounds, number, rows, image.repeat(2))
        low, high = found[: len(image)], -found[len(image) :]
        lower[image, place] = lower[image, place].maximum(low)
        upper[image, place] = upper[image, place].minimum(high)
    return Interval(lower.view_as(given.lower), upper.view_as(given.upper))


def _differences(labels: Labels, like: Tensor) -> tuple[Tensor, Int64[Tensor, " r"]]:
    """Rows of the logit of the label minus each other one, `(n * (classes - 1), classes)`, and their images."""
    classes = like.shape[1]
    others = torch.arange(classes - 1, device=labels.device).repeat(len(labels), 1)
    others = others + (others >= labels.unsqueeze(1)).long()
    owner = torch.arange(len(labels), device=labels.device).repeat_interleave(classes - 1)
    hot = torch.nn.functional.one_hot(torch.stack([labels[owner], others.flatten()]), classes).to(like.dtype)
    return hot[0] - hot[1], owner


def _backward(
    graph: OperationGraph,
    bounds: LayerBounds,
    number: int,
    rows: Tensor,
    owner: Int64[Tensor, " r"],
    *,
    only_last: bool = False,
) -> Tensor:
    """Lower bounds `(r,)` of functions of value `number` that are linear, with coefficients `rows`.

    With `only_last` the functions go back only to the inputs of the last dense layer or convolution, and of what has
    no linear bound of one input; their minimum over the intervals there is taken.
    """
    pending: dict[int, Tensor] = {number: rows}
    ended: set[int] = set()
    total = rows.new_zeros(len(rows))
    for place in range(number, 0, -1):
        coefficients = pending.pop(place, None)
        if coefficients is None:
            continue
        operation, inputs = graph.nodes[place - 1].operation, graph.nodes[place - 1].inputs
        is_exact = isinstance(operation, Scaling | Reshape)  # the range of their inputs gives that of their outputs
        if only_last and (isinstance(operation, AbstractNonlinearOperation) or (place in ended and not is_exact)):
            total = total + bounds.intervals[place].lowest(coefficients, owner)
            continue
        if place in bounds.errors:
            error = bounds.errors[place].expand(len(bounds.region.centre), *coefficients.shape[1:])[owner]
            total = total - per_row(coefficients.abs() * error).sum(1)
        before, constant = operation.before(coefficients, owner, [bounds.intervals[each] for each in inputs])
        total = total + constant
        for each, made in zip(inputs, before, strict=True):
            pending[each] = pending[each] + made if each in pending else made
        if place in ended or isinstance(operation, Dense | Convolution):
            ended |= set(inputs)
    return total + bounds.region.lowest(pending[0], owner) if 0 in pending else total
