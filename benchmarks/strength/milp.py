"""Whether a small ReLU network classifies every point of a box as it should, by mixed-integer linear programming.

The formulation is that of Tjeng, Xiao and Tedrake 2019 (arXiv 1711.07356, section 4.1): one binary variable for each
ReLU whose input may have either sign, bounds of these inputs from intervals, tightened by linear programs. SciPy's
`milp`, which is HiGHS, solves the programs.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp

Array = NDArray[np.float64]

TOLERANCE = 1e-4
"""A margin below minus this proves robustness. HiGHS keeps constraints to about 1e-6."""
SLACK = 1e-6
"""By how much the bounds that linear programs give are widened, because HiGHS rounds."""
OPTIMAL, INFEASIBLE = 0, 2
"""What `scipy.optimize.milp` returns as `status`."""


@final
@dataclass(frozen=True, kw_only=True)
class Layer:
    """A dense layer."""

    weight: Array
    """`(outputs, inputs)`."""
    bias: Array
    """`(outputs,)`."""


@final
@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is known of a box."""

    outcome: Literal["robust", "fooled", "undecided"]
    """`robust`: proved; `fooled`: `point` is misclassified; `undecided`: out of time, or the margin too near 0."""
    point: Array | None
    """The counterexample, `(inputs,)`."""


def logits(layers: Sequence[Layer], point: Array) -> Array:
    """The logits of a point, `(classes,)`: dense layers with a ReLU between any two."""
    for layer in layers[:-1]:
        point = np.maximum(layer.weight @ point + layer.bias, 0)
    return layers[-1].weight @ point + layers[-1].bias


def interval(layer: Layer, low: Array, high: Array) -> tuple[Array, Array]:
    """The least and greatest outputs of a layer whose inputs lie in a box, `(outputs,)` each."""
    middle, reach = layer.weight @ (high + low) / 2 + layer.bias, np.abs(layer.weight) @ (high - low) / 2
    return middle - reach, middle + reach


@final
class Program:
    """Hidden layers as constraints: inputs within a box, outputs that are those of the ReLUs.

    The variables are the inputs, and for each layer its outputs and one binary variable a neuron, which is 1 where the
    ReLU lets its input through and constant where the bounds leave no choice. The last variable is 1, so that an
    objective has its constant term, and gaps are relative to the whole.
    """

    def __init__(self, hidden: Sequence[Layer], low: Array, high: Array, bounds: Sequence[tuple[Array, Array]]) -> None:
        self.size = len(low) + 2 * sum(len(layer.bias) for layer in hidden) + 1
        self.outputs = slice(0, len(low))
        self.used = len(low)
        self.low, self.high = np.zeros(self.size), np.ones(self.size)
        self.low[self.outputs], self.high[self.outputs] = low, high
        self.low[-1] = 1
        self.integer = np.zeros(self.size)
        self.constraints: list[LinearConstraint] = []
        for layer, (least, greatest) in zip(hidden, bounds, strict=True):
            self._add(layer, least, greatest)

    def _add(self, layer: Layer, least: Array, greatest: Array) -> None:
        """Add a layer with ReLU: with z its input, a its output and d its binary variable,

        a >= z, a <= z - least (1 - d), a <= greatest d, a >= 0.
        """
        width = len(layer.bias)
        after, choice = slice(self.used, self.used + width), slice(self.used + width, self.used + 2 * width)
        self.low[after], self.high[after] = 0, np.maximum(greatest, 0)
        self.low[choice] = (least >= 0) & (greatest > 0)
        self.high[choice] = greatest > 0
        self.integer[choice] = 1
        rows = np.zeros((width, self.size))
        rows[:, self.outputs], rows[:, after] = -layer.weight, np.eye(width)
        self.constraints.append(LinearConstraint(rows.copy(), lb=layer.bias))
        rows[:, choice] = -np.diag(least)
        self.constraints.append(LinearConstraint(rows, ub=layer.bias - least))
        limit = np.zeros((width, self.size))
        limit[:, after], limit[:, choice] = np.eye(width), -np.diag(greatest)
        self.constraints.append(LinearConstraint(limit, ub=np.zeros(width)))
        self.outputs, self.used = after, choice.stop

    def relaxed(self, weight: Array, bias: float) -> float:
        """An upper bound of the outputs times `weight`, plus `bias`: binary variables may be anything from 0 to 1."""
        best = milp(-self._objective(weight, bias), bounds=Bounds(self.low, self.high), constraints=self.constraints)
        return SLACK - best.fun if best.status == OPTIMAL else np.inf

    def reach(self, weight: Array, bias: float, time_limit: float) -> OptimizeResult:
        """Look for a margin, outputs times `weight` plus `bias`, that is positive, within this number of seconds.

        Where the largest is below minus `TOLERANCE` the program is infeasible. Else the search ends once the largest
        is shown to exceed the one found by no more than half of it, which cannot be while that is negative and a
        positive one is possible.
        """
        objective = self._objective(weight, bias)
        return milp(
            -objective,
            integrality=self.integer,
            bounds=Bounds(self.low, self.high),
            constraints=[*self.constraints, LinearConstraint(objective[None], lb=-TOLERANCE)],
            options={"mip_rel_gap": 0.5, "time_limit": max(time_limit, 0.0)},
        )

    def _objective(self, weight: Array, bias: float) -> Array:
        objective = np.zeros(self.size)
        objective[self.outputs], objective[-1] = weight, bias
        return objective


def bounds_of(hidden: Sequence[Layer], low: Array, high: Array) -> list[tuple[Array, Array]]:
    """Bounds of the ReLUs' inputs, for each layer: exact in the first, of linear programs in the others."""
    found: list[tuple[Array, Array]] = []
    least, greatest = low, high
    for depth, layer in enumerate(hidden):
        inputs = (least, greatest) if depth == 0 else (np.maximum(least, 0), np.maximum(greatest, 0))
        least, greatest = interval(layer, *inputs)
        program = Program(hidden[:depth], low, high, found)
        for neuron in np.flatnonzero((least < 0) & (greatest > 0)) if depth else ():
            weight, bias = layer.weight[neuron], layer.bias[neuron]
            greatest[neuron] = min(greatest[neuron], program.relaxed(weight, bias))
            least[neuron] = max(least[neuron], -program.relaxed(-weight, -bias))
        found.append((least, greatest))
    return found


def verify(layers: Sequence[Layer], low: Array, high: Array, label: int, time_limit: float) -> Answer:
    """Whether a network assigns `label` to every point of a box, `(inputs,)`.

    One program for each wrong class that linear programming does not exclude, the likeliest first, asks for a point at
    which the logit of that class is the larger one. `time_limit` is in seconds, for all of them.
    """
    start = time.perf_counter()
    *hidden, last = layers
    program = Program(hidden, low, high, bounds_of(hidden, low, high))
    differences = {
        other: (last.weight[other] - last.weight[label], last.bias[other] - last.bias[label])
        for other in range(len(last.bias))
        if other != label
    }
    most = {other: program.relaxed(weight, bias) for other, (weight, bias) in differences.items()}
    outcome = "robust"
    for other in sorted(most, key=most.__getitem__, reverse=True):
        if most[other] < -TOLERANCE:
            break
        best = program.reach(*differences[other], time_limit - (time.perf_counter() - start))
        if best.status == INFEASIBLE:
            continue
        if best.x is not None:
            point = np.clip(best.x[: len(low)], low, high)
            if logits(layers, point).argmax() != label:
                return Answer(outcome="fooled", point=point)
        outcome = "undecided"
    return Answer(outcome=outcome, point=None)
