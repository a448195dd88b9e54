"""EAD: exact L1 distances on a linear classifier, few pixels, its two decision rules, and what all searches must do."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from torch import Tensor

from casemate.attacks.carlini_wagner import CarliniWagner
from casemate.attacks.ead import EAD
from conftest import Listener
from oracles import small_task
from test_carlini_wagner import (
    black_and_white,
    check_beats_pgd,
    check_exact,
    check_holds_alone,
    check_leaves_unfound,
    check_misclassified,
    check_no_direction,
    check_other_bounds,
    check_passes,
    check_progress,
    check_refused,
    check_shifted_logits,
    check_split,
    check_targets,
    check_trouble,
    linear,
    unchecked,
)

FAST = EAD(steps=30, binary_search_steps=4, initial_const=1.0)


@pytest.mark.integration
@unchecked
@pytest.mark.parametrize(("seed", "scale", "targeted"), [(0, 1.0, True), (1, 30.0, False)])
def test_it_finds_the_exact_distance_on_a_linear_classifier(seed: int, scale: float, targeted: bool) -> None:
    check_exact(EAD(steps=200), linear(seed, scale=scale), targeted=targeted)


@pytest.mark.integration
@unchecked
def test_pixels_at_their_bounds_move_like_all_others() -> None:
    """These images are far from the boundary, and need a larger weight of L1 to come near the optimum in L1 alone."""
    check_exact(EAD(steps=150, beta=0.05), black_and_white(3))


@pytest.mark.integration
@unchecked
def test_confidence_is_the_lead_that_is_reached() -> None:
    problem, attack = linear(4), EAD(steps=150, beta=0.05, confidence=1.0)
    check_exact(attack, problem, beyond=1.0)
    assert (-problem.margin(attack(problem.model, problem.images, problem.labels).adversarial) >= 1).all()


@unchecked
def test_it_changes_fewer_pixels_and_less_in_l1_than_the_l2_attack() -> None:
    task = small_task(1, count=16)
    sparse = EAD(steps=60, initial_const=0.1, binary_search_steps=7)(task.model, task.images, task.labels)
    dense = CarliniWagner(steps=60, initial_const=0.1, binary_search_steps=7)(task.model, task.images, task.labels)
    fooled = sparse.distance > 0

    def pixels(images: Tensor) -> Tensor:
        return (images != task.images).flatten(1).sum(1)[fooled]

    assert sparse.success.all()
    assert (pixels(sparse.adversarial) <= 18).all()
    assert (pixels(dense.adversarial) > 30).all()
    in_l1 = (dense.adversarial - task.images).abs().flatten(1).sum(1)
    assert (sparse.distance <= 1.02 * in_l1).all()
    assert sparse.distance.sum() < 0.85 * in_l1.sum()


@pytest.mark.integration
def test_each_rule_keeps_what_is_nearest_by_its_own_measure() -> None:
    task = small_task(1, count=12)
    attack = EAD(steps=60, binary_search_steps=4, initial_const=1.0, beta=0.02)

    def measured(attack: EAD) -> tuple[Tensor, Tensor]:
        delta = attack(task.model, task.images, task.labels).adversarial - task.images
        size, squares = delta.abs().flatten(1).sum(1), delta.square().flatten(1).sum(1)
        return size, attack.beta * size + squares

    (size, net), (net_size, net_net) = measured(attack), measured(replace(attack, rule="en"))
    assert (size <= net_size).all()
    assert (net >= net_net).all()
    assert (size < net_size).any()


def test_without_shrinkage_it_is_plain_descent() -> None:
    task = small_task(1, count=8)
    result = replace(FAST, beta=0.0)(task.model, task.images, task.labels)
    assert result.success.all()
    assert ((result.adversarial != task.images).flatten(1).sum(1)[result.distance > 0] > 30).all()


@unchecked
def test_as_strong_as_pgd() -> None:
    check_beats_pgd(EAD(steps=80, initial_const=0.1, binary_search_steps=7), 80)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_any_number_of_classes_with_and_without_targets(classes: int) -> None:
    check_targets(FAST, classes)


@pytest.mark.parametrize(
    "check",
    [
        check_shifted_logits,
        check_other_bounds,
        check_split,
        check_holds_alone,
        check_misclassified,
        check_passes,
        check_no_direction,
        check_trouble,
        check_leaves_unfound,
    ],
)
def test_what_holds_for_all_searches(check: Callable[[EAD], None]) -> None:
    check(FAST)


def test_progress_adds_up(listener: Listener) -> None:
    check_progress(FAST, listener)


BAD_SETTINGS: list[Callable[[], object]] = [
    lambda: EAD(norm="l2"),
    lambda: EAD(norm="linf"),
    lambda: EAD(norm="l3"),  # type: ignore[arg-type]
    lambda: EAD(rule="l2"),  # type: ignore[arg-type]
    lambda: EAD(beta=-0.1),
    lambda: EAD(beta=math.nan),
    lambda: EAD(steps=0),
    lambda: EAD(binary_search_steps=0),
    lambda: EAD(confidence=-1.0),
    lambda: EAD(learning_rate=0.0),
    lambda: EAD(initial_const=math.inf),
]


@pytest.mark.parametrize("make", BAD_SETTINGS)
def test_settings_outside_their_values_are_refused(make: Callable[[], object]) -> None:
    check_refused(make)
