"""DDN, FMN, ALMA, PDGD, PDPGD and sigma-zero: exact distances on linear classifiers, odd input, and their parts."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from torch import Tensor

from casemate.attacks import ALMA, DDN, FMN, PDGD, PDPGD, AbstractMinimumNormAttack, SigmaZero
from casemate.attacks._iterates import Iterate, Room
from casemate.attacks._refine import refining_rule
from casemate.attacks.alma import penalty_slope
from casemate.attacks.pdpgd import approach_proximal, proximal
from casemate.norms import Ball, Norm, dual_norm_of, norm_of, project_onto_balls
from casemate.rng import Streams, derive
from conftest import Listener
from oracles import PIXELS, SHAPE, UNIT, Linear, check_inside, distance, generator, room, small_task
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
    check_targets,
    check_trouble,
    linear,
)

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1", "l0")
ATTACKS: dict[str, Callable[..., AbstractMinimumNormAttack]] = {
    "ddn": DDN,
    **{f"fmn-{norm}": lambda norm=norm, **settings: FMN(norm=norm, **settings) for norm in NORMS},
    **{f"alma-{norm}": lambda norm=norm, **settings: ALMA(norm=norm, **settings) for norm in ("l2", "l1")},
    "pdgd": PDGD,
    **{f"pdpgd-{norm}": lambda norm=norm, **settings: PDPGD(norm=norm, **settings) for norm in NORMS},
    "sigma-zero": SigmaZero,
}
seeds = st.integers(0, 10_000)
each = pytest.mark.parametrize("name", ATTACKS)
unchecked = pytest.mark.usefixtures("unchecked")


def few(name: str, steps: int = 60) -> AbstractMinimumNormAttack:
    """An attack with few steps."""
    return ATTACKS[name](steps=steps)


# ------------------------------------------------------------------------------------ exact distances in four norms


def check_fewest(attack: AbstractMinimumNormAttack, problem: Linear, *, targeted: bool = False) -> None:
    """In L0: as many values as the steepest need that go to their bounds, which is the fewest."""
    gains = (problem.slope.abs() * room(problem.images.flatten(1).double(), problem.slope)).sort(1, descending=True)
    fewest = (gains.values.cumsum(1) < problem.margin(problem.images).detach().unsqueeze(1)).sum(1) + 1
    targets = 1 - problem.labels if targeted else None
    result = attack(problem.model, problem.images, problem.labels, targets=targets)
    assert result.success.all()
    check_inside(attack, result, problem.images)
    assert torch.equal(result.distance.long(), fewest)


@each
@pytest.mark.parametrize(("seed", "scale", "targeted"), [(1, 1.0, False), (2, 100.0, True), (3, 0.01, False)])
@unchecked
def test_the_exact_distance_on_a_linear_classifier(name: str, seed: int, scale: float, targeted: bool) -> None:
    """With the bounds, which many pixels meet; whatever the scale of the logits."""
    attack, problem = few(name, 150), linear(seed, scale=scale)
    if attack.norm == "l0":
        check_fewest(attack, problem, targeted=targeted)
    else:
        check_exact(attack, problem, share=0.005, targeted=targeted)


@each
@unchecked
def test_pixels_at_their_bounds_move_like_all_others(name: str) -> None:
    attack = few(name, 150)
    problem = black_and_white(5)
    check_fewest(attack, problem) if attack.norm == "l0" else check_exact(attack, problem, share=0.02)


@each
@unchecked
def test_without_the_last_steps_the_published_algorithm_comes_near(name: str) -> None:
    """Within a tenth, by their own rule alone, so that the refinement does not hide a rule that leads nowhere."""
    attack = ATTACKS[name](steps=300, refining_steps=0)
    problem = linear(7)
    if attack.norm == "l0":
        result = attack(problem.model, problem.images, problem.labels)
        assert result.success.all()
        assert (result.distance.median() <= 2).all()
    else:
        check_exact(attack, problem, share=0.15)


# --------------------------------------------------------------------------------------- what holds for all of them


@each
def test_negative_logits_change_nothing(name: str) -> None:
    check_shifted_logits(few(name))


@each
def test_bounds_other_than_zero_and_one(name: str) -> None:
    if few(name).norm == "l0":
        task = small_task(2, count=8)
        result = few(name)(task.model, task.images, task.labels)
        assert result.success.all()
    else:
        check_other_bounds(few(name))


@each
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_any_number_of_classes_with_and_without_targets(name: str, classes: int) -> None:
    if few(name).norm != "l0":  # a count may differ by one from run to run of the same quality
        check_targets(few(name, 150), classes)


@each
def test_the_batch_split_changes_nothing(name: str) -> None:
    """Up to rounding: whether an iterate on the boundary fools may hang on the last bit, and decides what follows."""
    task = small_task(5, count=11)
    whole = few(name)(task.model, task.images, task.labels)
    parts = few(name)(task.model, task.images, task.labels, batch_size=4)
    assert torch.equal(parts.status, whole.status)
    assert torch.allclose(parts.distance, whole.distance, rtol=0.01)


@each
def test_what_fools_in_a_batch_fools_alone(name: str) -> None:
    check_holds_alone(few(name))


@each
def test_the_misclassified_need_no_work(name: str) -> None:
    check_misclassified(few(name))


@each
@pytest.mark.filterwarnings("ignore:.*found nothing that fools")
def test_passes_are_counted(name: str) -> None:
    check_passes(few(name))


@each
def test_no_gradient_is_a_status(name: str) -> None:
    check_no_direction(few(name))


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "sigma-zero"])
def test_numbers_that_are_not_finite_are_a_status(name: str) -> None:
    """Not sigma-zero, whose steps lead most images to where this network's logits are no numbers."""
    check_trouble(few(name))


@each
def test_what_cannot_be_fooled_stays_clean(name: str) -> None:
    check_leaves_unfound(few(name))


@each
def test_progress_adds_up(name: str, listener: Listener) -> None:
    check_progress(few(name), listener)


@pytest.mark.parametrize("name", [name for name in ATTACKS if not name.endswith("l0") and name != "sigma-zero"])
def test_as_strong_as_pgd(name: str) -> None:
    check_beats_pgd(few(name, 80), 80)


@each
def test_an_example_is_finished_within_the_distance_wanted(name: str) -> None:
    """It costs fewer passes, and everything within the distance is still found."""
    task = small_task(3, count=24)
    whole = few(name)(task.model, task.images, task.labels)
    wanted = float(whole.distance.median())
    part = ATTACKS[name](steps=60, stop_at_distance=wanted)(task.model, task.images, task.labels)
    assert part.passes.total < whole.passes.total
    assert torch.equal(part.distance <= wanted, whole.distance <= wanted)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DDN(norm="l1"),
        lambda: ALMA(norm="linf"),
        lambda: PDGD(norm="l0"),
        lambda: SigmaZero(norm="l2"),
        lambda: FMN(norm="l3"),  # type: ignore[arg-type]
        lambda: FMN(steps=0),
        lambda: FMN(refining_steps=-1),
        lambda: DDN(gamma=1.0),
        lambda: PDPGD(initial_ratio=0.0),
        lambda: SigmaZero(threshold=2.0),
        lambda: ALMA(stop_at_distance=-1.0),
    ],
)
def test_settings_outside_their_values_are_refused(make: Callable[[], object]) -> None:
    check_refused(make)


# --------------------------------------------------------------------------------------------------------- the parts


def objective(point: np.ndarray, metric: np.ndarray, weight: float, norm: Norm) -> Callable[[np.ndarray], float]:
    """What a proximal operator minimises."""
    size: dict[Norm, Callable[[np.ndarray], float]] = {
        "linf": lambda z: float(np.abs(z).max()),
        "l2": lambda z: float(np.sqrt((z**2).sum())),
        "l1": lambda z: float(np.abs(z).sum()),
        "l0": lambda z: float((np.abs(z) ** (2 / 3)).sum()),
    }
    return lambda z: weight * size[norm](z) + 0.5 * float((metric * (z - point) ** 2).sum())


@given(seeds, st.sampled_from(NORMS), st.floats(1e-3, 3.0))
def test_no_other_point_is_better_than_the_proximal_one(seed: int, norm: Norm, weight: float) -> None:
    """Neither one found by SciPy, nor one next to it, nor zero."""
    random = generator(seed)
    point = torch.randn(1, 1, 1, 4, generator=random, dtype=torch.float64)
    metric = 0.1 + torch.rand(point.shape, generator=random, dtype=torch.float64)
    near = proximal(point, metric, torch.tensor([weight], dtype=torch.float64), norm).flatten().numpy()
    value = objective(point.flatten().numpy(), metric.flatten().numpy(), weight, norm)
    found = [optimize.minimize(value, start, method="Nelder-Mead").x for start in (near, point.flatten().numpy())]
    noise = 1e-3 * np.random.default_rng(seed).standard_normal((50, 4))
    for other in [*found, np.zeros(4), *(near + noise)]:
        assert value(near) <= value(other) + 1e-9


@given(seeds, st.sampled_from(["l1", "l0"]))
def test_five_inner_steps_in_the_plain_metric_are_exact(seed: int, norm: Norm) -> None:
    """Where all values have the same metric, the first inner step is the operator; five come back to it."""
    point = torch.randn(3, 1, 2, 4, generator=generator(seed), dtype=torch.float64)
    metric, weight = torch.full_like(point, 2.0), torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    assert torch.allclose(approach_proximal(point, metric, weight, norm), proximal(point, metric, weight, norm))


@given(seeds, st.floats(-3, 3), st.floats(0.1, 5), st.floats(0.1, 5))
def test_the_slope_of_the_penalty_is_its_derivative(seed: int, constraint: float, rho: float, mu: float) -> None:
    """P2 as the paper writes it, differentiated by PyTorch."""
    del seed
    y = torch.tensor([constraint], dtype=torch.float64, requires_grad=True)
    penalty = torch.where(y >= 0, mu * y + mu * rho * y**2 + rho**2 * y**3 / 6, mu * y / (1 - rho * y.clamp(max=0)))
    (slope,) = torch.autograd.grad(penalty.sum(), y)
    numbers = (torch.tensor([each], dtype=torch.float64) for each in (rho, mu))
    assert torch.allclose(penalty_slope(y.detach(), *numbers), slope)


@given(seeds, st.sampled_from(NORMS), st.floats(0.1, 6.0))
def test_a_projection_onto_balls_of_several_radii(seed: int, norm: Norm, size: float) -> None:
    """Without bounds it is what `Ball.project` does for each radius alone."""
    random = generator(seed)
    delta = torch.randn(3, *SHAPE, generator=random, dtype=torch.float64)
    radius = size * torch.rand(3, generator=random, dtype=torch.float64) + 1e-3
    if norm == "l0":
        radius = (10 * radius).floor()
    clean = torch.zeros_like(delta)
    found = project_onto_balls(delta, radius, norm)
    for row, (eps, image) in enumerate(zip(radius.tolist(), delta, strict=True)):
        alone = Ball(eps=eps, norm=norm).project(image.unsqueeze(0), clean[:1], (-1e6, 1e6))
        assert torch.allclose(found[row], alone[0], atol=1e-9)


@given(seeds, st.sampled_from(["linf", "l2", "l1"]))
def test_the_dual_norm_is_the_most_that_a_step_of_length_one_rises(seed: int, norm: Norm) -> None:
    gradient = torch.randn(3, *SHAPE, generator=generator(seed), dtype=torch.float64)
    middle = torch.full_like(gradient, 0.5)
    step = Ball(eps=1.0, norm=norm).steepest_step(gradient, middle, UNIT)
    assert torch.allclose(dual_norm_of(gradient, norm), (gradient * step).flatten(1).sum(1))


def test_fewer_values_than_those_that_can_be_left_out_are_found_by_exchanging_one() -> None:
    """Values 0 to 2 fool together, and none of them can go; 0 and 3 suffice, since they raise each other's effect."""
    effect = torch.tensor([1.0, 1.05, 1.05, 0.6])

    def at(delta: Tensor) -> Iterate:
        one = delta.flatten().detach().requires_grad_()
        value = (effect * one).sum() + one[0] * one[3] - 2.5
        (gradient,) = torch.autograd.grad(value, one)
        return Iterate(delta, (value > 0).view(1), value.detach().view(1), gradient.view_as(delta))

    here = at(torch.tensor([1.0, 1.0, 1.0, 0.0]).view(1, 1, 1, 4))
    assert here.fooled.all()
    rule = refining_rule(here, Room(torch.zeros(1, 1, 1, 4), torch.ones(1, 1, 1, 4)), "l0")
    fewest = 3
    for number in range(8):
        here = at(rule.step(here, number, number / 8))
        if here.fooled:
            fewest = min(fewest, int(here.delta.count_nonzero()))
    assert fewest == 2


# ---------------------------------------------------------------------------------------------------------- L0 balls


def l0_images(seed: int, count: int = 6) -> tuple[Tensor, Tensor]:
    """Clean images, and points around them inside and outside the bounds."""
    random = generator(seed)
    clean = (1.6 * torch.rand(count, *SHAPE, generator=random, dtype=torch.float64) - 0.3).clamp(0, 1)
    return clean, clean + torch.randn(clean.shape, generator=random, dtype=torch.float64)


@given(seeds, st.integers(0, PIXELS + 3))
def test_an_l0_projection_is_inside_and_projecting_twice_changes_nothing(seed: int, eps: int) -> None:
    clean, images = l0_images(seed)
    ball = Ball(eps=float(eps), norm="l0")
    projected = ball.project(images, clean, UNIT)
    assert distance(projected, clean, "l0").max() <= eps
    assert projected.min() >= 0
    assert projected.max() <= 1
    assert torch.equal(ball.project(projected, clean, UNIT), projected)


@given(seeds, st.integers(0, 3))
def test_no_choice_of_values_comes_nearer_than_the_l0_projection(seed: int, eps: int) -> None:
    """All choices of up to three of six values are tried."""
    random = generator(seed)
    clean = torch.rand(1, 1, 2, 3, generator=random, dtype=torch.float64)
    images = clean + torch.randn(clean.shape, generator=random, dtype=torch.float64)
    projected = Ball(eps=float(eps), norm="l0").project(images, clean, UNIT)
    best = np.inf
    for chosen in combinations(range(6), eps):
        other = clean.clone().flatten()
        other[list(chosen)] = images.flatten()[list(chosen)].clamp(0, 1)
        best = min(best, float((other - images.flatten()).norm()))
    assert float((projected - images).norm()) == pytest.approx(best, abs=1e-12)


@given(seeds, st.integers(1, 5))
def test_an_l0_step_ends_at_the_best_corner_of_a_linear_function(seed: int, eps: int) -> None:
    """From the clean image, and from a worse image of the ball: in as many steps as values."""
    clean, images = l0_images(seed)
    gradient = torch.randn(clean.shape, generator=generator(seed + 1), dtype=torch.float64)
    ball = Ball(eps=float(eps), norm="l0")
    room_up = torch.where(gradient > 0, 1 - clean, -clean)
    best = (gradient * room_up).flatten(1).sort(1, descending=True).values[:, :eps].sum(1)
    at_once = ball.ascend(gradient, clean, clean, UNIT, float(eps))
    assert torch.allclose((gradient * (at_once - clean)).flatten(1).sum(1), best)
    now = ball.project(images, clean, UNIT)
    for _ in range(3 * eps):
        now = ball.ascend(gradient, now, clean, UNIT, 1.0)
        assert distance(now, clean, "l0").max() <= eps
    assert torch.allclose((gradient * (now - clean)).flatten(1).sum(1), best)


def test_an_l0_sample_changes_eps_values_that_are_drawn_evenly() -> None:
    clean = torch.full((4000, 1, 2, 3), 0.5)
    ball = Ball(eps=2.0, norm="l0")
    drawn = ball.sample(clean, UNIT, Streams(derive(1), torch.arange(4000)), "start", 0)
    changed = drawn != clean
    assert changed.flatten(1).sum(1).max() == 2
    share = changed.flatten(1).double().mean(0)
    assert (share - 1 / 3).abs().max() < 0.03
    values = drawn[changed]
    assert abs(values.mean().item() - 0.5) < 0.02
    assert values.min() < 0.01
    assert values.max() > 0.99


def test_the_l0_norm_counts_values_whatever_their_size() -> None:
    delta = torch.zeros(2, 3, 2, 2)
    delta[0, 0, 0, 0], delta[0, 1, 0, 0], delta[0, 2, 1, 1] = 1e-30, -5.0, 1.0
    assert norm_of(delta, "l0").tolist() == [3.0, 0.0]


def test_part_of_a_value_is_no_radius_in_l0() -> None:
    check_refused(lambda: Ball(eps=0.5, norm="l0"))
    assert replace(Ball(eps=0.5), eps=3.0, norm="l0").eps == 3
