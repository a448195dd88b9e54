"""SPSA, SurFree and curves against queries: closed forms on linear classifiers, budgets, and what they may see."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from casemate.attacks import PGD, SPSA, AbstractAttack, HopSkipJump, Square, SurFree, spsa
from casemate.errors import SettingError
from casemate.evaluation import query_curve
from casemate.norms import Norm
from oracles import (
    Counting,
    as_installed,
    check_claims,
    check_inside,
    classifier,
    linear_problem,
    room,
    small_task,
    steepest_descent,
)
from test_carlini_wagner import check_exact, check_refused, linear

ATTACKS: dict[str, AbstractAttack] = {
    "spsa": SPSA(eps=0.2, steps=5, samples=8),
    "spsa-l2": SPSA(eps=0.6, norm="l2", steps=5, samples=8),
    "sur-free": SurFree(n_queries=150),
}
each = pytest.mark.parametrize("name", ATTACKS)


class OneHot(nn.Module):
    """The decisions of a network as its logits."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        """1 for the predicted class, 0 for the others."""
        logits = self.inner(images)
        return torch.zeros_like(logits).scatter(1, logits.argmax(1, keepdim=True), 1.0)


def share_of_the_optimum(attack: SPSA) -> Tensor:
    """Of the most that the margin can fall within the ball, what the attack reaches on images that withstand it."""
    problem = linear_problem(1, low=0.35, high=0.65, count=16, gap=6.0)
    result = attack(problem.model, problem.images, problem.labels)
    rooms = room(problem.images.flatten(1).double(), problem.slope)
    most = steepest_descent(problem.slope, rooms, attack.norm, attack.eps)
    held = ~result.success
    assert held.sum() >= 4
    fall = problem.margin(problem.images) - problem.margin(result.adversarial)
    return (fall / most).detach()[held]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_spsa_reaches_the_optimum_of_a_linear_classifier(norm: Norm) -> None:
    share = share_of_the_optimum(SPSA(eps={"linf": 0.03, "l2": 0.15}[norm], norm=norm, steps=60))
    assert share.min() > 0.97
    assert share.max() <= 1 + 1e-4


def test_spsa_whose_step_goes_the_other_way_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    right = spsa._Ascent.adam
    monkeypatch.setattr(spsa._Ascent, "adam", lambda self, *given: -right(self, *given))
    assert share_of_the_optimum(SPSA(eps=0.03, steps=20)).max() < 0.5


def test_surfree_comes_near_the_exact_distance_of_a_linear_classifier() -> None:
    check_exact(SurFree(n_queries=3000, frequencies=1.0), linear(2), share=0.05)


def test_surfree_sees_decisions_only() -> None:
    task = small_task(3, count=8)
    expected = ATTACKS["sur-free"](task.model, task.images, task.labels)
    found = ATTACKS["sur-free"](classifier(OneHot(task.model.network), classes=4), task.images, task.labels)
    assert torch.allclose(found.adversarial, expected.adversarial)


@each
def test_claims_ball_and_bounds(name: str) -> None:
    task = small_task(2, count=12)
    result = ATTACKS[name](task.model, task.images, task.labels)
    check_inside(ATTACKS[name], result, task.images)
    check_claims(result, task)


@each
@pytest.mark.filterwarnings("ignore:.*found nothing that fools")
def test_queries_are_counted_and_within_the_budget(name: str) -> None:
    task = small_task(1, count=6)
    counting = Counting(task.model.network)
    result = ATTACKS[name](classifier(counting, classes=4), task.images, task.labels)
    assert (result.passes.forward, result.passes.backward) == (counting.forwards, 0)
    most = ATTACKS[name].max_passes(4)
    assert most is not None
    assert result.passes.forward <= 6 * (most.forward + 1)  # one to verify


@each
def test_the_batch_split_changes_nothing(name: str) -> None:
    task = small_task(5, count=7)
    whole = ATTACKS[name](task.model, task.images, task.labels)
    parts = ATTACKS[name](task.model, task.images, task.labels, batch_size=3)
    assert torch.equal(parts.status, whole.status)
    assert torch.allclose(parts.adversarial, whole.adversarial, atol=1e-6)


@pytest.mark.parametrize(
    "make",
    [lambda: SPSA(eps=0.1, norm="l1"), lambda: SPSA(eps=0.1, samples=0), lambda: SurFree(frequencies=0.0)],
)
def test_settings_outside_their_values_are_refused(make: Callable[[], object]) -> None:
    check_refused(make)


# ------------------------------------------------------------------------------------------- curves against queries

CURVED: dict[str, AbstractAttack] = {
    **ATTACKS,
    "square": Square(eps=0.1, n_queries=60),
    "square-l2": Square(eps=0.4, norm="l2", n_queries=60),
    "hop-skip-jump": HopSkipJump(n_queries=200, starts=10, evaluations=20),
    "pgd": PGD(eps=0.1, steps=60),
}


@pytest.mark.parametrize("name", CURVED)
@pytest.mark.filterwarnings("ignore:.*found nothing that fools")
def test_a_curve_ends_where_one_run_of_the_attack_does(name: str) -> None:
    """At the last number of queries the same images are fooled, and none is farther than what the run returns."""
    task, attack = small_task(4, count=12, dtype=torch.float32), CURVED[name]
    most = attack.max_passes(4)
    assert most is not None
    curve = query_curve(task.model, attack, task.images, [1, 10, 50, most.forward], labels=task.labels)
    run = attack(task.model, task.images, task.labels)
    assert np.array_equal(curve.worst[:, -1], ~run.success.numpy())
    assert (curve.distance[:, -1] <= run.distance.numpy() + 1e-5).all()
    assert (np.diff(curve.distance.clip(max=1e9), axis=1) <= 0).all()
    assert (curve.queries <= most.forward).all()
    wrong = (task.model(task.images).argmax(1) != task.labels).numpy()
    if name != "pgd":  # the others query the clean image first
        assert np.array_equal(curve.distance[:, 0] == 0, wrong)


@pytest.mark.parametrize("values", [[], [0, 5], [5, 5], [9, 3]])
def test_queries_that_do_not_ascend_from_one_are_refused(values: list[int]) -> None:
    task = small_task(count=4)
    with as_installed(), pytest.raises(SettingError, match="queries that ascend"):
        query_curve(task.model, ATTACKS["spsa"], task.images, values, labels=task.labels)


def test_the_points_of_a_curve() -> None:
    task = small_task(4, count=12)
    curve = query_curve(task.model, ATTACKS["sur-free"], task.images, [20, 150], labels=task.labels)
    first, last = curve.points(eps=0.5)
    assert first["queries"] == 20
    assert last["worst"]["value"] == float((curve.distance[:, 1] > 0.5).mean())
    assert last["median"] is None or math.isfinite(last["median"])
    assert "robust accuracy" in repr(curve)
