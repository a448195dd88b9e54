"""The stored results of the originals in `benchmarks/strength` are whole and consistent."""

import importlib
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from casemate.models import registry

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "strength"
LUCK = 2
"""Images by which independent random runs of AutoAttack may differ."""


@pytest.fixture(scope="module")
def originals() -> Iterator[ModuleType]:
    """`originals.py`, as a module. The architectures that it registers are forgotten afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))
        patch.syspath_prepend(FOLDER)
        yield importlib.import_module("originals")
        for name in ("originals", "networks"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def networks(originals: ModuleType) -> ModuleType:
    """`networks.py`, as a module."""
    return sys.modules[originals.Network.__module__]


@pytest.fixture(scope="module")
def cells(originals: ModuleType) -> list[tuple[Any, dict[str, Any]]]:
    """The cells that are stored, with their results."""
    found = [(cell, originals.read(cell)) for cell in originals.plan()]
    return [(cell, results) for cell, results in found if results is not None]


def test_every_stored_file_is_a_cell_of_the_plan(originals: ModuleType) -> None:
    stored = {path.name for path in originals.RESULTS.glob("*")}
    assert stored
    assert stored <= {cell.path.name for cell in originals.plan()}


def test_a_cell_says_what_it_is_of(cells: list[tuple[Any, dict[str, Any]]]) -> None:
    for cell, found in cells:
        assert (found["network"], found["norm"], found["eps"]) == (cell.network.name, cell.norm, cell.eps)
        assert (found["first"], found["first"] + found["n"]) == (cell.images.start, cell.images.stop)
        assert found["threads"] == 1
        assert found["processor_seconds" if cell.eps else "attacks"]


def test_each_image_classified_correctly_has_one_result(originals: ModuleType, cells: list[Any]) -> None:
    for cell, found in cells:
        assert len(found["clean"]) == found["n"]
        assert set(found["clean"]) <= {0, 1}
        count = sum(found["clean"])
        if cell.eps is None:
            assert list(found["attacks"]) == list(originals.ATTACKS[cell.norm])
            for each in found["attacks"].values():
                assert len(each["distance"]) == count
                assert all(value is None or value > 0 for value in each["distance"])
        else:
            assert len(found["robust"]) == count
            assert set(found["robust"]) <= {0, 1}
            assert all(found["robust"][place] == 0 for place in found["unconfirmed"])


def test_cells_of_one_network_have_the_same_weights_and_images(cells: list[tuple[Any, dict[str, Any]]]) -> None:
    seen = defaultdict(set)
    for cell, found in cells:
        seen[cell.network.name].add((found["weights"], tuple(found["clean"])))
    assert all(len(each) == 1 for each in seen.values()), {name for name, each in seen.items() if len(each) > 1}


def test_a_larger_eps_leaves_no_more_images(originals: ModuleType, cells: list[tuple[Any, dict[str, Any]]]) -> None:
    for chosen in originals.EPS.values():
        for radii in chosen.values():
            assert list(radii) == sorted(set(radii))
    before: dict[tuple[str, str], int] = {}
    for cell, found in cells:
        if cell.eps is not None:
            key, left = (cell.network.name, cell.norm), sum(found["robust"])
            assert left <= before.get(key, left) + LUCK, cell.name
            before[key] = left


def test_the_networks_set_aside_are_none_of_the_reported(originals: ModuleType) -> None:
    seen = {True: set(), False: set()}
    images = {True: set(), False: set()}
    for cell in originals.plan():
        seen[cell.network.reported].add((cell.network.architecture, cell.network.recipe.seed))
        images[cell.network.reported] |= set(range(cell.images.start, cell.images.stop))
    assert len(seen[True]) >= 6
    assert len(seen[False]) >= 3
    for part in (0, 1):
        assert not {each[part] for each in seen[True]} & {each[part] for each in seen[False]}
    assert not images[True] & images[False]


@given(seed=st.integers(0, 1000), eps=st.floats(0, 0.3))
def test_worst_logits_bound_those_of_every_image_in_the_ball(networks: ModuleType, seed: int, eps: float) -> None:
    """On a random network: at corners of the ball and at the image itself, and exactly where the ball is a point."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = networks.strided(1, 8, 3, widths=(2, 3), hidden=4).double()
    images = torch.rand(4, 1, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        bound = networks.worst_logits(network, images, labels, eps)
        for _ in range(5):
            sign = torch.randint(-1, 2, images.shape, generator=generator)
            logits = network((images + eps * sign).clamp(0, 1))
            assert (logits - logits.gather(1, labels[:, None]) <= bound + 1e-12).all()
        exact = networks.worst_logits(network, images, labels, 0.0)
        logits = network(images)
    torch.testing.assert_close(exact, logits - logits.gather(1, labels[:, None]))


def test_what_leaves_the_bounds_or_fools_nobody_has_no_distance(originals: ModuleType) -> None:
    images = torch.tensor([0.4, 0.4, 0.4, 0.4, 0.4]).view(5, 1, 1, 1)
    moved = torch.tensor([0.6, 1.0 + 1e-7, 1.0 + 1e-5, 0.49, float("nan")]).view(5, 1, 1, 1)

    class Threshold(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([0.5 - x.flatten(1), x.flatten(1) - 0.5], dim=1)

    found = originals.fooled(Threshold(), moved, torch.zeros(5, dtype=torch.int64))
    assert found.tolist() == [True, True, False, False, False]
    for norm, far in (("linf", 0.2), ("l2", 0.2), ("l1", 0.2), ("l0", 1)):
        assert originals.distances(moved[:1], images[:1], norm).item() == pytest.approx(far)


# What is computed from the files --------------------------------------------------------------------------------------
@pytest.fixture
def module(originals: ModuleType) -> Iterator[Callable[[str], ModuleType]]:
    """Another script of the folder as a module, by its name."""
    assert originals  # the folder is on the path
    yield importlib.import_module
    for name in ("ablation", "optimality", "run"):
        sys.modules.pop(name, None)


def test_the_page_of_the_ablation_is_of_its_files(module: Callable[[str], ModuleType]) -> None:
    ablation = module("ablation")
    assert ablation.PAGE.read_text(encoding="utf-8") == ablation.page()
    for norm in ablation.NORMS:
        assert ablation.chosen(norm), norm


def test_the_ablation_looks_at_no_reported_network(module: Callable[[str], ModuleType]) -> None:
    ablation = module("ablation")
    assert ablation.plan()
    assert not any(cell.network.reported for cell in ablation.plan())
    assert {path.name for path in ablation.RESULTS.glob("*")} <= {cell.path.name for cell in ablation.plan()}


def test_optimality_is_one_for_the_best_and_zero_where_nothing_is_found(module: Callable[[str], ModuleType]) -> None:
    optimality = module("optimality").optimality
    best = np.array([1.0, 2.0, 3.0])
    assert optimality(best, best) == pytest.approx(1)
    assert optimality(np.full(3, np.inf), best) == pytest.approx(0)
    # areas under the steps: 2 for the best, 8/3 for the attack, 3 where nothing is found
    assert optimality(np.array([2.0, 3.0, 5.0]), best) == pytest.approx(1 - (8 / 3 - 2) / (3 - 2))


def test_a_row_is_worse_only_where_more_images_are_left_than_by_chance(module: Callable[[str], ModuleType]) -> None:
    row = module("run").Row
    same = {"network": "n", "norm": "l2", "eps": 1.0, "n": 60, "together": None, "seconds": 1.0}
    left, none = np.ones(60, dtype=bool), np.zeros(60, dtype=bool)
    few = none.copy()
    few[:3] = True
    assert row(ours=left, original=none, **same).is_worse
    assert not row(ours=few, original=none, **same).is_worse
    assert not row(ours=none, original=left, **same).is_worse
