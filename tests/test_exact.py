"""The exact check in `benchmarks/strength`: programs against enumeration and closed forms, and the stored result."""

import importlib
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from casemate.models import registry

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "strength"


@pytest.fixture(scope="module")
def exact() -> Iterator[ModuleType]:
    """`exact.py`, as a module. The architectures that it registers are forgotten afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))
        patch.syspath_prepend(FOLDER)
        yield importlib.import_module("exact")
        for name in ("exact", "milp", "originals", "networks"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def milp(exact: ModuleType) -> ModuleType:
    """`milp.py`, as a module."""
    return sys.modules[exact.verify.__module__]


def _random_layers(milp: ModuleType, random: np.random.Generator, sizes: Sequence[int]) -> list[Any]:
    return [
        milp.Layer(weight=random.normal(size=(outputs, inputs)), bias=random.normal(size=outputs) / 2)
        for inputs, outputs in itertools.pairwise(sizes)
    ]


def _largest_margin(layers: Sequence[Any], low: np.ndarray, high: np.ndarray, label: int) -> float:
    """The largest margin over a box: a linear program for each pattern of ReLUs and each wrong class."""
    *hidden, last = layers
    best = -np.inf
    for pattern in itertools.product((0.0, 1.0), repeat=sum(len(layer.bias) for layer in hidden)):
        left = list(pattern)
        weight, bias = np.eye(len(low)), np.zeros(len(low))
        rows, limits = [], []
        for layer in hidden:
            weight, bias = layer.weight @ weight, layer.weight @ bias + layer.bias
            on, left = np.array(left[: len(bias)]), left[len(bias) :]
            sign = 1 - 2 * on  # inputs of a ReLU that is on are at least 0: minus the input is at most 0
            rows.append(sign[:, None] * weight)
            limits.append(-sign * bias)
            weight, bias = weight * on[:, None], bias * on
        for other in {*range(len(last.bias))} - {label}:
            row = last.weight[other] - last.weight[label]
            found = linprog(
                -row @ weight,
                A_ub=np.vstack(rows),
                b_ub=np.concatenate(limits),
                bounds=list(zip(low, high, strict=True)),
            )
            if found.status == 0:
                best = max(best, -found.fun + row @ bias + last.bias[other] - last.bias[label])
    return best


def test_the_outcome_is_that_of_enumerating_all_patterns(milp: ModuleType) -> None:
    random = np.random.default_rng(0)
    outcomes = []
    for _ in range(16):
        layers = _random_layers(milp, random, (2, 3, 2, 3))
        centre, eps = random.uniform(size=2), random.uniform(0.2, 1.5)
        low, high = centre - eps, centre + eps
        label = int(milp.logits(layers, centre).argmax())
        margin = _largest_margin(layers, low, high, label)
        found = milp.verify(layers, low, high, label, 60.0)
        assert found.outcome == ("fooled" if margin > 0 else "robust"), margin
        if found.point is not None:
            assert ((low <= found.point) & (found.point <= high)).all()
            assert milp.logits(layers, found.point).argmax() != label
        outcomes.append(found.outcome)
    assert min(outcomes.count("fooled"), outcomes.count("robust")) >= 4


@pytest.mark.parametrize(("eps", "outcome"), [(0.299, "robust"), (0.301, "fooled")])
def test_the_threshold_of_a_valley(milp: ModuleType, eps: float, outcome: str) -> None:
    """Class 1 wins where |x - 0.5| > 0.3, in one dimension, with the absolute value made of two ReLUs and two more."""
    layers = [
        milp.Layer(weight=np.array([[1.0], [-1.0]]), bias=np.array([-0.5, 0.5])),
        milp.Layer(weight=np.array([[1.0, 1.0], [-1.0, -1.0]]), bias=np.array([0.0, 1.0])),
        milp.Layer(weight=np.array([[0.0, 0.0], [1.0, 0.0]]), bias=np.array([0.3, 0.0])),
    ]
    centre = np.array([0.5])
    assert milp.verify(layers, centre - eps, centre + eps, 0, 60.0).outcome == outcome


def test_bounds_hold_at_points_of_the_box(milp: ModuleType) -> None:
    random = np.random.default_rng(1)
    layers = _random_layers(milp, random, (3, 6, 6, 6, 2))
    low, high = random.uniform(size=3) - 0.3, random.uniform(size=3) + 0.9
    bounds = milp.bounds_of(layers[:-1], low, high)
    apart = milp.interval(layers[1], *(np.maximum(each, 0) for each in bounds[0]))
    assert (bounds[1][1] - bounds[1][0]).sum() < (apart[1] - apart[0]).sum()  # the linear programs tighten
    for point in random.uniform(low, high, size=(300, 3)):
        values = point
        for layer, (least, greatest) in zip(layers[:-1], bounds, strict=True):
            values = layer.weight @ values + layer.bias
            assert (least - 1e-9 <= values).all()
            assert (values <= greatest + 1e-9).all()
            values = np.maximum(values, 0)


def test_without_time_nothing_is_decided_that_needs_a_search(milp: ModuleType) -> None:
    random = np.random.default_rng(3)
    layers = _random_layers(milp, random, (4, 12, 12, 3))
    low, high = np.full(4, -2.0), np.full(4, 2.0)
    label = int(milp.logits(layers, np.zeros(4)).argmax())
    assert milp.verify(layers, low, high, label, 0.0).outcome == "undecided"


@pytest.mark.parametrize("seed", [0, 6, 13])
def test_images_are_decided_as_their_means(exact: ModuleType, milp: ModuleType, seed: int) -> None:
    """An image is decided as the box of its pixels' means is; at the larger eps two of the three are fooled."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = exact.averaged(1, 4, 3, widths=(3,), hidden=2)
        image = torch.rand(1, 4, 4)
    label = int(network(image[None]).argmax())
    for eps in (0.01, 0.9):
        low, high = (image[0].double().numpy() + each for each in (-eps, eps))
        box = exact.means(low.clip(0, 1)), exact.means(high.clip(0, 1))
        margin = _largest_margin(exact.dense_layers(network), *box, label)
        assert exact.decide(network, image, label, eps, 60.0)["outcome"] == ("fooled" if margin > 0 else "robust")


def test_a_counterexample_counts_only_within_eps_and_misclassified(exact: ModuleType) -> None:
    class Threshold(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            high = x.flatten(1).mean(1, keepdim=True)
            return torch.cat([0.5 - high, high - 0.5], dim=1)

    image, moved = torch.full((1, 2, 2), 0.4), torch.full((1, 2, 2), 0.55, dtype=torch.float64)
    assert exact.misclassified(Threshold(), moved, image, 0, 0.15)
    assert not exact.misclassified(Threshold(), moved, image, 0, 0.1)
    assert not exact.misclassified(Threshold(), moved, image, 1, 0.15)


def test_the_stored_result_agrees_with_itself(exact: ModuleType) -> None:
    found = json.loads(exact.RESULT.read_text(encoding="utf-8"))
    assert found["summary"] == exact.summary(found)
    assert found["summary"]["undecided"] == 0
    for name in exact.ATTACKS:
        assert len(found[name]["robust"]) == len(found["images"])
        assert found["summary"][f"{name}_contradicts"] == []
        assert found["summary"][f"{name}_leaves"] >= found["summary"]["robust"]
