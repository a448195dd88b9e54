"""L-BFGS: exact L2 distances on a linear classifier, the optimiser against scipy's, and what all searches must do."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor

from casemate.attacks import Misclassification
from casemate.attacks.lbfgs import LBFGS, _Minimizer, improbability
from conftest import Listener
from oracles import generator
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
)

FAST = LBFGS(steps=12, binary_search_steps=8, initial_const=0.1)


@pytest.mark.integration
@pytest.mark.parametrize(("seed", "scale", "targeted"), [(0, 1.0, True), (1, 1.0, False), (2, 30.0, False)])
def test_it_finds_the_exact_distance_on_a_linear_classifier(seed: int, scale: float, targeted: bool) -> None:
    check_exact(LBFGS(), linear(seed, scale=scale), targeted=targeted, share=0.01)


def test_pixels_at_their_bounds_move_like_all_others() -> None:
    check_exact(LBFGS(), black_and_white(3), share=0.01)


@pytest.mark.integration
def test_as_strong_as_pgd() -> None:
    check_beats_pgd(LBFGS(), 30)


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
def test_what_holds_for_all_searches(check: Callable[[LBFGS], None]) -> None:
    check(FAST)


def test_progress_adds_up(listener: Listener) -> None:
    check_progress(FAST, listener)


BAD_SETTINGS: list[Callable[[], object]] = [
    lambda: LBFGS(norm="linf"),
    lambda: LBFGS(norm="l1"),
    lambda: LBFGS(norm="l3"),  # type: ignore[arg-type]
    lambda: LBFGS(steps=0),
    lambda: LBFGS(binary_search_steps=0),
    lambda: LBFGS(initial_const=0.0),
    lambda: LBFGS(initial_const=math.nan),
]


@pytest.mark.parametrize("make", BAD_SETTINGS)
def test_settings_outside_their_values_are_refused(make: Callable[[], object]) -> None:
    check_refused(make)


# ---------------------------------------------------------------------------------------------------- loss, optimiser


def test_the_loss_is_cross_entropy_and_has_a_gradient_however_sure_the_network() -> None:
    logits = 3 * torch.randn(50, 5, generator=generator(0), dtype=torch.float64)
    classes = torch.arange(50) % 5
    expected = F.cross_entropy(logits, classes, reduction="none")
    assert torch.allclose(improbability(Misclassification(classes, True), logits), expected)
    rival = logits.scatter(1, classes.unsqueeze(1), -math.inf).argmax(1)
    pair = torch.stack([logits[torch.arange(50), rival], logits[torch.arange(50), classes]], 1)
    expected = F.cross_entropy(pair, torch.zeros_like(classes), reduction="none")
    assert torch.allclose(improbability(Misclassification(classes), logits), expected)
    sure = torch.tensor([[300.0, 0.0, -1.0]], requires_grad=True)
    for criterion in (Misclassification(torch.tensor([0])), Misclassification(torch.tensor([1]), True)):
        (gradient,) = torch.autograd.grad(improbability(criterion, sure).sum(), sure)
        assert gradient.tolist() == [[1.0, -1.0, 0.0]]


def bowls(count: int, pixels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random quadratics of very different curvature, and a box round zero in which few of their minima lie."""
    random = generator(1)
    factor = torch.randn(count, pixels, pixels, generator=random, dtype=torch.float64)
    steep = 10 ** torch.linspace(-2, 1, count, dtype=torch.float64).view(-1, 1, 1)
    curvature = steep * factor @ factor.transpose(1, 2) / pixels + 0.05 * torch.eye(pixels, dtype=torch.float64)
    pull = torch.randn(count, pixels, generator=random, dtype=torch.float64) * steep.squeeze(2)
    high = torch.rand(count, pixels, generator=random, dtype=torch.float64)
    return curvature, pull, high - 1, high


def test_the_optimizer_meets_the_minimum_within_the_box_as_scipy_does() -> None:
    curvature, pull, low, high = bowls(12, 20)
    minimizer = _Minimizer(low, high)
    reached = torch.full((12,), math.inf, dtype=torch.float64)
    for _ in range(80):
        at = minimizer.trial
        assert ((at >= low) & (at <= high)).all()
        bent = (curvature @ at.unsqueeze(2)).squeeze(2)
        value = (at * (bent / 2 - pull)).sum(1)
        taken = minimizer.arrive(value, bent - pull)
        assert (value[taken] <= reached[taken]).all(), "a step that was taken went up"
        reached = torch.where(taken, value, reached)
    for number in range(12):
        matrix, vector = curvature[number].numpy(), pull[number].numpy()
        best = minimize(
            lambda x, m=matrix, v=vector: (x @ m @ x / 2 - v @ x, m @ x - v),
            np.zeros(20),
            jac=True,
            method="L-BFGS-B",
            bounds=list(zip(low[number].tolist(), high[number].tolist(), strict=True)),
            options={"maxiter": 2000, "ftol": 1e-14, "gtol": 1e-10},
        )
        assert reached[number].item() <= best.fun + 1e-4 * abs(best.fun)


def test_the_optimizer_keeps_examples_apart() -> None:
    curvature, pull, low, high = bowls(6, 10)

    def run(rows: list[int], keep_after: int | None) -> Tensor:
        minimizer = _Minimizer(low[rows], high[rows])
        for step in range(12):
            if step == keep_after:
                minimizer = minimizer[torch.tensor([row < 3 for row in rows])]
                rows = [row for row in rows if row < 3]
            bent = (curvature[rows] @ minimizer.trial.unsqueeze(2)).squeeze(2)
            minimizer.arrive((minimizer.trial * (bent / 2 - pull[rows])).sum(1), bent - pull[rows])
        return minimizer.trial

    together, alone = run([0, 1, 2, 3, 4, 5], 5), run([0, 1, 2], None)
    assert torch.allclose(together, alone, atol=1e-9)
