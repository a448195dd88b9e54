"""Projection, steepest step, random points and the reading of eps, against slow independent answers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats
from torch import Tensor

from casemate.errors import SettingError
from casemate.norms import Ball, Norm, format_eps, norm_of, parse_eps
from casemate.rng import Streams, derive
from oracles import SHAPE, UNIT, as_installed, distance, generator, room, steepest_descent

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
seeds = st.integers(0, 10_000)
radii = st.one_of(st.just(0.0), st.floats(1e-4, 8.0))


def clean_images(seed: int, count: int = 6, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pixels in [0, 1], a good part of them exactly at 0 or 1."""
    return (1.6 * torch.rand(count, *SHAPE, generator=generator(seed), dtype=dtype) - 0.3).clamp(0, 1)


def displaced(clean: Tensor, seed: int, reach: float = 1.0) -> Tensor:
    """Points inside and outside of ball and bounds: each example moved by a random size up to `reach`."""
    random = generator(seed + 77)
    size = reach * torch.rand(len(clean), 1, 1, 1, generator=random) ** 3
    return clean + (size * torch.randn(clean.shape, generator=random)).to(clean.dtype)


# ------------------------------------------------------------------------------------------------------- projection


@given(seeds, radii, st.sampled_from(NORMS), st.sampled_from([torch.float32, torch.float64]))
def test_a_projected_image_is_inside_ball_and_bounds(seed: int, eps: float, norm: Norm, dtype: torch.dtype) -> None:
    clean = clean_images(seed, dtype=dtype)
    ball = Ball(eps=eps, norm=norm)
    projected = ball.project(displaced(clean, seed), clean, UNIT)
    assert projected.dtype == dtype
    assert distance(projected, clean, norm).max() <= eps + ball.tolerance
    assert projected.min() >= 0
    assert projected.max() <= 1


@given(seeds, radii, st.sampled_from(NORMS))
def test_projecting_twice_is_projecting_once(seed: int, eps: float, norm: Norm) -> None:
    clean = clean_images(seed)
    ball = Ball(eps=eps, norm=norm)
    once = ball.project(displaced(clean, seed), clean, UNIT)
    assert torch.allclose(ball.project(once, clean, UNIT), once, rtol=0, atol=1e-7)


@given(seeds, st.floats(1e-3, 4.0), st.sampled_from(NORMS))
def test_what_is_inside_stays_where_it_is(seed: int, eps: float, norm: Norm) -> None:
    clean = clean_images(seed)
    step = torch.rand(clean.shape, generator=generator(seed)) - 0.5
    inside = clean + step * (0.9 * eps / norm_of(step, norm)).view(-1, 1, 1, 1)
    inside = inside.clamp(0, 1)
    assert torch.allclose(Ball(eps=eps, norm=norm).project(inside, clean, UNIT), inside, rtol=0, atol=6e-8)


@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (2, 3, 32, 32), (1, 3, 224, 224)])
@pytest.mark.parametrize(("norm", "eps"), [("l2", 0.5), ("l2", 3.0), ("l2", 20.0), ("l1", 1.0), ("l1", 10.0)])
def test_rounding_never_adds_up_to_more_than_the_tolerance(shape: tuple[int, ...], norm: Norm, eps: float) -> None:
    """Where all pixels are alike, all round alike: the float32 sum of a plain clean + delta would leave the ball."""
    clean = torch.full(shape, 0.9)
    for target in (clean - 0.5, torch.rand(shape, generator=generator(0)), clean + 0.05):
        projected = Ball(eps=eps, norm=norm).project(target, clean, UNIT)
        assert distance(projected, clean, norm).max() <= eps * (1 + 1e-12)


@given(seeds, radii)
def test_the_linf_projection_is_the_nearest_point_of_every_pixels_interval(seed: int, eps: float) -> None:
    clean = clean_images(seed)
    images = displaced(clean, seed)
    low, high = np.maximum(clean.numpy() - eps, 0), np.minimum(clean.numpy() + eps, 1)
    expected = np.clip(images.numpy(), low, high)
    assert np.allclose(Ball(eps=eps).project(images, clean, UNIT).numpy(), expected, rtol=0, atol=1e-7)


@given(seeds, radii)
def test_the_l2_projection_scales_into_the_ball_and_then_clips(seed: int, eps: float) -> None:
    clean = clean_images(seed)
    images = displaced(clean, seed)
    delta = images.double().numpy() - clean.double().numpy()
    length = np.sqrt((delta**2).sum(axis=(1, 2, 3), keepdims=True))
    expected = np.clip(clean.numpy() + delta * np.minimum(1, eps / np.maximum(length, 1e-300)), 0, 1)
    assert np.allclose(Ball(eps=eps, norm="l2").project(images, clean, UNIT).numpy(), expected, rtol=0, atol=2e-7)


def bisected_l1(images: np.ndarray, clean: np.ndarray, eps: float, low: float, high: float) -> np.ndarray:
    """The L1 projection of one example by 200 halvings of the threshold, in float64."""
    delta = images - clean
    size, rooms = np.abs(delta), np.where(delta >= 0, high - clean, clean - low)

    def moved(threshold: float) -> np.ndarray:
        return np.minimum(np.maximum(size - threshold, 0), rooms)

    below, above = 0.0, float(size.max())
    if moved(0.0).sum() > eps:
        for _ in range(200):
            middle = (below + above) / 2
            below, above = (middle, above) if moved(middle).sum() > eps else (below, middle)
        below = above
    return clean + np.sign(delta) * moved(below)


@given(seeds, radii)
def test_the_l1_projection_with_bounds_agrees_with_bisection(seed: int, eps: float) -> None:
    clean = clean_images(seed, dtype=torch.float64)
    images = displaced(clean, seed)
    projected = Ball(eps=eps, norm="l1").project(images, clean, UNIT).flatten(1).numpy()
    for row, image, centre in zip(projected, images.flatten(1).numpy(), clean.flatten(1).numpy(), strict=True):
        assert np.allclose(row, bisected_l1(image, centre, eps, 0, 1), rtol=0, atol=1e-12)


@given(seeds, st.floats(1e-3, 8.0))
def test_the_l1_projection_without_active_bounds_is_the_textbook_soft_threshold(seed: int, eps: float) -> None:
    """Duchi et al. 2008, figure 1: sort, find the last index with a positive remainder, shrink by its mean."""
    clean = torch.zeros(4, *SHAPE, dtype=torch.float64)
    images = displaced(clean, seed)
    projected = Ball(eps=eps, norm="l1").project(images, clean, (-1e6, 1e6)).flatten(1).numpy()
    for row, image in zip(projected, images.flatten(1).numpy(), strict=True):
        expected = image
        if np.abs(image).sum() > eps:
            size = np.sort(np.abs(image))[::-1]
            remainder = size - (np.cumsum(size) - eps) / np.arange(1, len(size) + 1)
            last = np.nonzero(remainder > 0)[0].max()
            threshold = (size[: last + 1].sum() - eps) / (last + 1)
            expected = np.sign(image) * np.maximum(np.abs(image) - threshold, 0)
        assert np.allclose(row, expected, rtol=0, atol=1e-12)


@given(seeds, st.floats(1e-3, 8.0), st.sampled_from(["linf", "l1"]))
def test_no_point_of_ball_and_bounds_is_nearer(seed: int, eps: float, norm: Norm) -> None:
    """The condition that makes p the nearest point to x: (x - p) . (q - p) <= 0 for all q of the set.

    The worst q is a linear program with a closed form: the steepest rise along x - p within ball and bounds.
    """
    clean = clean_images(seed, dtype=torch.float64)
    images = displaced(clean, seed)
    projected = Ball(eps=eps, norm=norm).project(images, clean, UNIT)
    outward = (images - projected).flatten(1)
    rise = steepest_descent(-outward, room(clean.flatten(1), -outward), norm, eps)
    at_projection = (outward * (projected - clean).flatten(1)).sum(1)
    assert (rise - at_projection <= 1e-9).all()


@pytest.mark.parametrize("seed", range(4))
def test_the_l1_projection_agrees_with_a_general_solver(seed: int) -> None:
    """SciPy's SLSQP on the parts above and below the clean image, 4 pixels."""
    random = np.random.default_rng(seed)
    clean, target, eps = random.uniform(0, 1, 4), random.normal(0.5, 1, 4), 0.6

    def squares(parts: np.ndarray) -> float:
        return float(((clean + parts[:4] - parts[4:] - target) ** 2).sum())

    found = optimize.minimize(
        squares,
        np.full(8, 0.01),
        bounds=[*((0, high) for high in 1 - clean), *((0, low) for low in clean)],
        constraints={"type": "ineq", "fun": lambda parts: eps - parts.sum()},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    ).x
    images, centre = (torch.tensor(values).view(1, 1, 2, 2) for values in (target, clean))
    projected = Ball(eps=eps, norm="l1").project(images, centre, UNIT).flatten().numpy()
    assert np.allclose(projected, clean + found[:4] - found[4:], atol=1e-5)


@given(seeds, st.floats(1e-3, 8.0), st.sampled_from(NORMS))
def test_a_true_projection_brings_no_two_points_further_apart(seed: int, eps: float, norm: Norm) -> None:
    """Linf and L1 project on ball and bounds together; L2 does where the bounds are far away."""
    bounds = (-1e3, 1e3) if norm == "l2" else UNIT
    clean = clean_images(seed, dtype=torch.float64)
    first, second = displaced(clean, seed), displaced(clean, seed + 1)
    ball = Ball(eps=eps, norm=norm)
    after = distance(ball.project(first, clean, bounds), ball.project(second, clean, bounds), "l2")
    assert (after <= distance(first, second, "l2") + 1e-9).all()


@given(seeds, st.floats(1e-3, 8.0))
def test_the_l2_projection_stays_in_the_ball_when_it_clips(seed: int, eps: float) -> None:
    """Clipping moves every pixel towards the clean one, which is within the bounds."""
    clean = clean_images(seed, dtype=torch.float64)
    free = Ball(eps=eps, norm="l2").project(displaced(clean, seed), clean, (-1e3, 1e3))
    clipped = Ball(eps=eps, norm="l2").project(displaced(clean, seed), clean, UNIT)
    assert ((clipped - clean).abs() <= (free - clean).abs() + 1e-12).all()


@pytest.mark.parametrize("norm", NORMS)
def test_numbers_that_are_not_finite_are_not_hidden(norm: Norm) -> None:
    clean = torch.full((1, 1, 2, 2), 0.5)
    images = clean.clone()
    images[0, 0, 0, 0] = float("nan")
    assert not Ball(eps=0.1, norm=norm).project(images, clean, UNIT).isfinite().all()


# --------------------------------------------------------------------------------------------------- steepest step


def unit_steps(norm: Norm, count: int, pixels: int, seed: int) -> Tensor:
    """Random steps of length 1, corners of the ball among them, float64 `(count, pixels)`."""
    random = generator(seed)
    steps = torch.randn(count, pixels, generator=random, dtype=torch.float64)
    if norm == "linf":
        steps = torch.cat([steps.sign(), steps])
    if norm == "l1":
        steps = torch.cat([steps * (torch.rand(steps.shape, generator=random) < 0.05), steps])
        steps = steps[steps.ne(0).any(1)]
    return steps / torch.linalg.vector_norm(steps, {"linf": math.inf, "l2": 2, "l1": 1}[norm], dim=1, keepdim=True)


@given(seeds, st.sampled_from(NORMS), st.sampled_from([1.0, 1e-6, 1e-12, 1e-30]))
def test_the_step_has_length_one_and_no_other_rises_faster(seed: int, norm: Norm, size: float) -> None:
    """At 36 pixels one per cent is one pixel, so the L1 step too is the steepest one."""
    gradient = size * torch.randn(2, *SHAPE, generator=generator(seed))
    middle = torch.full_like(gradient, 0.5)
    step = Ball(eps=0.1, norm=norm).steepest_step(gradient, middle, UNIT)
    assert norm_of(step, norm).numpy() == pytest.approx(np.ones(2), rel=1e-5)
    slope = gradient.flatten(1).double() / size
    rise = (slope * step.flatten(1).double()).sum(1, keepdim=True)
    others = slope @ unit_steps(norm, 300, slope.shape[1], seed).T
    assert (others <= rise + 1e-5).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_gradient_of_1e_30_still_gives_a_whole_step(norm: Norm) -> None:
    """In float32 the squares of such a gradient are zero."""
    gradient = torch.full((1, 1, 2, 2), 1e-30)
    gradient[0, 0, 0, 0] = -2e-30
    step = Ball(eps=1.0, norm=norm).steepest_step(gradient, torch.full_like(gradient, 0.5), UNIT)
    assert norm_of(step, norm).item() == pytest.approx(1, rel=1e-6)
    assert step[0, 0, 0, 0] < 0


@pytest.mark.parametrize("norm", NORMS)
def test_no_gradient_gives_no_step(norm: Norm) -> None:
    nothing = torch.zeros(2, *SHAPE)
    assert Ball(eps=1.0, norm=norm).steepest_step(nothing, nothing + 0.5, UNIT).eq(0).all()


def test_the_l1_step_spreads_over_one_per_cent_of_the_pixels_that_can_still_move() -> None:
    gradient = torch.arange(1.0, 401.0).view(1, 1, 20, 20)
    images = torch.full_like(gradient, 0.5)
    images.view(-1)[-3:] = 1.0  # the three steepest are at the bound towards which they would go
    step = Ball(eps=1.0, norm="l1").steepest_step(gradient, images, UNIT).flatten()
    assert step.nonzero().flatten().tolist() == [393, 394, 395, 396]
    assert step[393:397].tolist() == pytest.approx([0.25] * 4)


# ---------------------------------------------------------------------------------------------------- random points


def drawn(norm: Norm, eps: float, count: int, shape: tuple[int, int, int], clean: Tensor | None = None) -> Tensor:
    """`count` samples round the middle of the bounds, as perturbations in float64."""
    clean = torch.full((count, *shape), 0.5) if clean is None else clean
    streams = Streams(derive(3, "test"), torch.arange(count))
    return Ball(eps=eps, norm=norm).sample(clean, UNIT, streams, "start", 0).double() - clean.double()


@given(seeds, radii, st.sampled_from(NORMS))
def test_a_sample_lies_in_ball_and_bounds(seed: int, eps: float, norm: Norm) -> None:
    clean = clean_images(seed)
    ball = Ball(eps=eps, norm=norm)
    images = ball.sample(clean, UNIT, Streams(derive(seed), torch.arange(len(clean))), "start", 0)
    assert distance(images, clean, norm).max() <= eps + ball.tolerance
    assert images.min() >= 0
    assert images.max() <= 1


@pytest.mark.parametrize("norm", NORMS)
def test_samples_fill_the_ball_evenly(norm: Norm) -> None:
    """Of a point drawn evenly from a ball in d dimensions, (radius / eps)^d is uniform."""
    pixels = 9
    radius = norm_of(drawn(norm, 0.5, 4000, (1, 3, 3)), norm).numpy() / 0.5
    assert stats.kstest(radius**pixels, "uniform").pvalue > 0.01


@pytest.mark.parametrize("norm", NORMS)
def test_the_direction_of_a_sample_says_nothing_of_its_radius(norm: Norm) -> None:
    """In two dimensions: four equal parts of the ball, cut by a smaller ball and by the diagonals."""
    delta = drawn(norm, 0.5, 8000, (1, 1, 2))
    inner = norm_of(delta, norm) < 0.5 / math.sqrt(2)
    flat = delta.flatten(1)
    level = flat[:, 0].abs() > flat[:, 1].abs()
    counts = [[int((inner & level).sum()), int((inner & ~level).sum())]]
    counts.append([int((~inner & level).sum()), int((~inner & ~level).sum())])
    assert stats.chisquare(np.ravel(counts)).pvalue > 0.01
    assert flat.mean(0).abs().max() < 0.01


@pytest.mark.parametrize("norm", NORMS)
def test_a_sample_does_not_depend_on_the_batch_it_is_drawn_in(norm: Norm) -> None:
    clean = clean_images(1, count=10)
    ball = Ball(eps=0.3, norm=norm)
    streams = Streams(derive(0), torch.arange(10))
    whole = ball.sample(clean, UNIT, streams, "start", 1)
    chosen = torch.tensor([7, 2, 5])
    assert torch.equal(ball.sample(clean[chosen], UNIT, streams[chosen], "start", 1), whole[chosen])
    assert not torch.equal(ball.sample(clean, UNIT, streams, "start", 2), whole)


# ------------------------------------------------------------------------------------------------------ reading eps


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), ("0.1", 0.1), ("0", 0.0), (0.25, 0.25), (" 2/255 ", 2 / 255), ("1e-3", 1e-3)],
)
def test_eps_is_read(text: str | float, value: float) -> None:
    assert parse_eps(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "-0.1",
        "-1/255",
        "nan",
        "inf",
        "-inf",
        "x/0",
        "1/0",
        "abc",
        "",
        "8/",
        "1e400",
        "1" + 400 * "0" + "/3",
        math.nan,
        True,
    ],
)
def test_an_eps_that_is_no_radius_is_refused(text: str | float) -> None:
    with pytest.raises(SettingError):
        parse_eps(text)


@pytest.mark.parametrize("eps", [-1e-9, math.nan])
def test_a_ball_without_a_radius_is_refused(eps: float) -> None:
    with pytest.raises(SettingError):
        Ball(eps=eps)


def test_a_ball_in_an_unknown_norm_is_refused() -> None:
    with as_installed(), pytest.raises(SettingError, match="linf, l2, l1 or l0"):
        Ball(eps=0.1, norm="l3")  # type: ignore[arg-type]


def test_a_radius_beyond_all_pixels_has_a_text() -> None:
    assert format_eps(1e308) == "1e+308"
