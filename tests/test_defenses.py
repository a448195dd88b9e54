"""The defences: Neural Structured Learning's golden values, distillation by hand, recipes, answers at random."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor, nn

from casemate.data import LabelledImages, digits, split, subset, to_float
from casemate.data import augment as augment_module
from casemate.data.augment import Affine, AlternatingFlip, Augmentation, Flip, GaussianBlur, Shift
from casemate.data.noise import GaussianNoise
from casemate.defenses import (
    AdversarialRegularization,
    Distillation,
    Recipe,
    RobustDistillation,
    StochasticAffine,
    TemperatureCrossEntropy,
    at_temperature,
    preprocessed,
    with_noise,
)
from casemate.engine.store import Artifact
from casemate.engine.task import Context
from casemate.errors import ModelError, SettingError, ShapeError, TrainingError
from casemate.models import Classifier, ModelMetadata, create, load, save
from casemate.models.layers import NoiseLayer
from casemate.norms import Norm
from casemate.progress import NULL_OBSERVER
from casemate.training import CrossEntropy, Objective, TrainConfig, TrainResult, fit
from casemate.training.state import Weights, snapshot
from casemate_study.tasks.defended_training import defend_model
from conftest import TINY_CLASSES, TINY_SHAPE, tiny_images, tiny_model
from oracles import as_installed, generator

NSL = AdversarialRegularization
TRAIN, VALIDATION = split(tiny_images(150, noise=90, wrong=0.2), 50, 0)
NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")


def assert_same(one: Weights, two: Weights) -> None:
    """Bit for bit."""
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name


def untimed(trained: TrainResult) -> list[dict[str, Any]]:
    """The history without what a clock says."""
    return [{key: value for key, value in row.items() if not key.endswith("seconds")} for row in trained.history]


def gradients(objective: Objective, model: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Weights]:
    """The objective's loss and the gradients it leaves on the weights."""
    model.zero_grad(set_to_none=True)
    loss, _ = objective(model, images, labels)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(one: Weights, two: Weights) -> None:
    """The same names, nearly the same values (float64)."""
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-10, atol=1e-12)


# --------------------------------------------------------------- the golden values of Neural Structured Learning (NSL)
# they are those of its own adversarial_neighbor_test.py: a linear model, squared error, label 0


class Weighted(nn.Module):
    """The images' pixels times `weights`, summed, as a column."""

    def __init__(self, *weights: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weights], dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        """One number per example."""
        return images.flatten(1) @ self.weight.T


def row(*pixels: float) -> Tensor:
    """One image of one row."""
    return torch.tensor([[[pixels]]], dtype=torch.float64)


ZERO = torch.zeros(1, 1, dtype=torch.float64)


def neighbour(objective: AdversarialRegularization, *pixels: float, weights: tuple[float, ...] = (3, 4)) -> list[float]:
    """Where an image goes."""
    return objective.neighbours(Weighted(*weights), row(*pixels), ZERO, F.mse_loss).flatten().tolist()


def test_one_l2_step() -> None:
    assert neighbour(NSL(step_size=0.1), -1, 1) == pytest.approx([-1 + 0.06, 1 + 0.08], abs=1e-12)


def test_two_l2_steps_go_twice_as_far() -> None:
    assert neighbour(NSL(step_size=0.1, iterations=2), -1, 1) == pytest.approx([-1 + 0.12, 1 + 0.16], abs=1e-12)


def test_two_l2_steps_in_a_ball_end_on_its_edge() -> None:
    found = neighbour(NSL(step_size=0.1, iterations=2, pgd_eps=0.15), -1, 1)
    assert found == pytest.approx([-1 + 0.09, 1 + 0.12], abs=1e-12)


def test_the_ball_is_kept_to_with_a_single_step_too() -> None:
    found = neighbour(NSL(step_size=0.1, iterations=1, pgd_eps=0.05), -1, 1)
    assert found == pytest.approx([-1 + 0.03, 1 + 0.04], abs=1e-12)


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_a_step_across_both_limits_is_undone_by_the_clip(iterations: int) -> None:
    objective = NSL(step_size=0.1, clip_min=0.0, clip_max=1.0, iterations=iterations)
    assert neighbour(objective, 0, 1, weights=(-1, 1)) == [0, 1]


def test_linf_steps_end_in_the_corner_of_the_ball() -> None:
    # NSL's own images and weights are not in its notes; these have both signs of step
    objective = NSL(norm="linf", step_size=0.5, pgd_eps=0.4, iterations=2)
    assert neighbour(objective, 0, 1, weights=(-1, 1)) == pytest.approx([-0.4, 1.4], abs=1e-12)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"clip_min": 0.0, "clip_max": 1.2}, [0, 1.2]),
        ({"clip_min": 0.0}, [0, 1.4]),
        ({"clip_max": 1.0}, [-0.4, 1]),
        ({"clip_min": -0.5, "clip_max": 2.0}, [-0.4, 1.4]),
    ],
)
def test_linf_steps_are_clipped_after_the_ball(limits: dict[str, float], expected: list[float]) -> None:
    objective = NSL(norm="linf", step_size=0.5, pgd_eps=0.4, iterations=2, **limits)  # type: ignore[arg-type]
    assert neighbour(objective, 0, 1, weights=(-1, 1)) == pytest.approx(expected, abs=1e-12)


@given(st.sampled_from(NORMS), st.integers(0, 10_000))
def test_a_random_start_without_steps_lies_in_the_ball(norm: Norm, seed: int) -> None:
    images = torch.rand(20, *TINY_SHAPE, generator=generator(seed), dtype=torch.float64)
    limit = {} if norm == "l1" else {"pgd_eps": 0.3}  # in L1 there is no `pgd_eps`: the radius is the step
    objective = NSL(norm=norm, step_size=0.3 if norm == "l1" else 0.1, random_start=True, iterations=0, **limit)  # type: ignore[arg-type]
    torch.manual_seed(seed)
    moved = objective.neighbours(Weighted(*[1.0] * 64), images, torch.zeros(20, 1, dtype=torch.float64), F.mse_loss)
    lengths = torch.linalg.vector_norm(
        (moved - images).flatten(1), ord={"linf": math.inf, "l2": 2.0, "l1": 1.0}[norm], dim=1
    )
    assert lengths.max() <= 0.3 + 1e-6
    assert lengths.max() > 0.25
    assert lengths.unique().numel() == 20
    if norm == "linf":  # uniform in every pixel: 1280 numbers between -0.3 and 0.3
        delta = (moved - images).flatten()
        assert abs(delta.mean()) < 0.03
        assert float(delta.std()) == pytest.approx(0.6 / math.sqrt(12), rel=0.1)


def test_a_random_start_without_a_ball_is_a_step_away() -> None:
    objective = NSL(norm="linf", step_size=0.2, random_start=True, iterations=0)
    moved = objective.neighbours(Weighted(*[1.0] * 64), torch.zeros(9, *TINY_SHAPE), torch.zeros(9, 1), F.mse_loss)
    assert 0.19 < moved.abs().max() <= 0.2


def test_a_random_start_is_clipped_and_another_each_time() -> None:
    objective = NSL(norm="linf", step_size=0.2, random_start=True, iterations=0, clip_min=0.0, clip_max=1.0)
    images = torch.full((9, *TINY_SHAPE), 0.9)

    def start() -> Tensor:
        return objective.neighbours(Weighted(*[1.0] * 64), images, torch.zeros(9, 1), F.mse_loss)

    torch.manual_seed(0)
    one, two = start(), start()
    torch.manual_seed(0)
    assert torch.equal(start(), one)
    assert not torch.equal(one, two)
    assert one.max() == 1
    assert not torch.equal(one[0], one[1])


def test_after_a_random_start_the_gradient_is_the_one_there() -> None:
    """The prediction is 0.1 at the image; from starts at which it is negative, uphill is the other way."""
    objective = NSL(norm="linf", step_size=0.01, pgd_eps=0.5, random_start=True)
    model, images = Weighted(1, 1), torch.full((40, 1, 1, 2), 0.05, dtype=torch.float64)
    labels = torch.zeros(40, 1, dtype=torch.float64)
    torch.manual_seed(3)
    start = replace(objective, iterations=0).neighbours(model, images, labels, F.mse_loss)
    torch.manual_seed(3)
    moved = objective.neighbours(model, images, labels, F.mse_loss)
    expected = start + 0.01 * model(start).detach().sign().view(-1, 1, 1, 1)
    assert 5 < (model(start) < 0).sum() < 35
    torch.testing.assert_close(moved, expected.clamp(0.05 - 0.5, 0.05 + 0.5), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("weights", "direction"),
    [
        ((3, -4, 1), (0, -1, 0)),
        ((4, -4, 1), (0.5, -0.5, 0)),
        ((-2, -2, -2, 2), (-0.25, -0.25, -0.25, 0.25)),
        ((0, 0), (0, 0)),
    ],
)
def test_l1_shares_the_step_equally_among_the_largest(weights: tuple[float, ...], direction: tuple[float, ...]) -> None:
    def linear(predicted: Tensor, labels: Tensor) -> Tensor:
        return (predicted - labels).mean()

    model, image = Weighted(*weights), row(*[0.0] * len(weights))
    moved = NSL(norm="l1", step_size=0.1).neighbours(model, image, ZERO, linear)
    assert moved.flatten().tolist() == pytest.approx([0.1 * each for each in direction], abs=1e-12)


@pytest.mark.parametrize(
    ("scale", "length"), [(1e-3, 0.1), (2e-6, 0.1), (1e-6, 0.1), (5e-7, 0.05), (1e-8, 0.001), (0.0, 0.0)]
)
def test_an_l2_step_is_shorter_where_the_gradient_is_below_a_millionth(scale: float, length: float) -> None:
    def linear(predicted: Tensor, labels: Tensor) -> Tensor:
        return scale * (predicted - labels).mean()

    moved = NSL(step_size=0.1).neighbours(Weighted(0.6, 0.8), row(0, 0), ZERO, linear)
    assert moved.flatten().tolist() == pytest.approx([0.6 * length, 0.8 * length], rel=1e-9)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_the_step_follows_the_gradient_of_the_mean(count: int) -> None:
    """Below a millionth the step's length is the gradient's: of a mean over n examples, a share of 1 / n."""

    def linear(predicted: Tensor, labels: Tensor) -> Tensor:
        return 5e-7 * (predicted - labels).mean()

    moved = NSL(step_size=0.1).neighbours(
        Weighted(0.6, 0.8), torch.zeros(count, 1, 1, 2).double(), ZERO.repeat(count, 1), linear
    )
    expected = torch.tensor([0.03, 0.04], dtype=torch.float64).view(1, 1, 1, 2) / count
    torch.testing.assert_close(moved, expected.expand_as(moved))


class Spoilt(nn.Module):
    """The sum of some square roots, whose derivative at 0 is infinite, and of 0 times that one, not a number."""

    def forward(self, images: Tensor) -> Tensor:
        """One number per example."""
        return (images.flatten(1).clamp(min=0).sqrt() * torch.tensor([1.0, 0.0, 1.0, -1.0])).sum(1, keepdim=True)


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_that_are_not_finite_count_as_zero(norm: Norm) -> None:
    """The first pixel's is infinite and the second's not a number; those of the others are 0.5 and -0.5."""

    def linear(predicted: Tensor, labels: Tensor) -> Tensor:
        return (predicted - labels).mean()

    image = torch.tensor([0.0, 0.0, 1.0, 1.0]).view(1, 1, 1, 4)
    asked = image.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(Spoilt()(asked).sum(), asked)
    assert gradient.isinf().flatten().tolist() == [True, False, False, False]
    assert gradient.isnan().flatten().tolist() == [False, True, False, False]
    moved = NSL(norm=norm, step_size=0.1).neighbours(Spoilt(), image, ZERO.float(), linear)
    size = {"linf": 0.1, "l2": 0.1 * math.sqrt(0.5), "l1": 0.05}[norm]
    assert (moved - image).flatten().tolist() == pytest.approx([0, 0, size, -size], abs=1e-6)


@pytest.mark.parametrize(
    ("norm", "mask", "direction"),
    [
        ("l2", (1, 1), (0.6, 0.8)),
        ("l2", (1, 0.75), (0.5**0.5, 0.5**0.5)),  # 3 * 1 = 4 * 0.75: the mask is on the gradient, not on the step
        ("l2", (0, 1), (0, 1)),
        ("linf", (0.1, 1), (1, 1)),
        ("linf", (0, 1), (0, 1)),
        ("l1", (1, 0.5), (1, 0)),
    ],
)
def test_the_mask_multiplies_the_gradient(norm: Norm, mask: tuple[float, float], direction: tuple[float, ...]) -> None:
    objective = NSL(norm=norm, step_size=0.1, feature_mask=[[list(mask)]])
    expected = [-1 + 0.1 * direction[0], 1 + 0.1 * direction[1]]
    assert neighbour(objective, -1, 1) == pytest.approx(expected, abs=1e-12)
    twice = neighbour(replace(objective, iterations=2), -1, 1)
    assert twice == pytest.approx([-1 + 0.2 * direction[0], 1 + 0.2 * direction[1]], abs=1e-12)


def test_a_mask_of_one_number_holds_for_every_pixel() -> None:
    assert neighbour(NSL(step_size=0.1, feature_mask=[0.0]), -1, 1) == [-1, 1]
    assert neighbour(NSL(step_size=0.1, feature_mask=[0.5]), -1, 1) == pytest.approx([-0.94, 1.08], abs=1e-12)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_without_a_ball_an_image_drifts_as_far_as_its_steps_go(norm: Norm, iterations: int) -> None:
    found = neighbour(NSL(norm=norm, step_size=0.25, iterations=iterations), -1, 1)
    direction = {"linf": (1, 1), "l2": (0.6, 0.8), "l1": (0, 1)}[norm]
    reach = 0.25 * iterations
    assert found == pytest.approx([-1 + reach * direction[0], 1 + reach * direction[1]], abs=1e-9)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_step_is_brought_back_into_the_ball_round_the_image(norm: Norm) -> None:
    """On a loss that turns, an end within the ball is not enough: the path counts. Written out step by step."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    images, labels = torch.rand(6, *TINY_SHAPE, generator=generator(1)).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    objective = NSL(norm=norm, step_size=0.1 if norm == "linf" else 0.6, pgd_eps=0.15 if norm == "linf" else 0.7)
    for iterations in (1, 2, 5):
        moved = replace(objective, iterations=iterations).neighbours(model, images, labels)
        expected = reference_neighbours(replace(objective, iterations=iterations), model, images, labels)
        torch.testing.assert_close(moved, expected, rtol=0, atol=1e-12)


def test_examples_of_any_shape_have_neighbours() -> None:
    flat = torch.tensor([[-1.0, 1.0], [-1.0, 1.0]])
    for objective in (NSL(step_size=0.1), NSL(step_size=0.2, pgd_eps=0.1)):
        with as_installed():
            moved = objective.neighbours(Weighted(3, 4).float(), flat, torch.zeros(2, 1), F.mse_loss)
        torch.testing.assert_close(moved, torch.tensor([[-0.94, 1.08]] * 2))


# ---------------------------------------------------------------------- the loss, against one written out plainly


def reference_neighbours(objective: AdversarialRegularization, f: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The core of NSL in plain PyTorch, for images; no random start, no L1."""
    mask = 1.0 if objective.feature_mask is None else torch.tensor(objective.feature_mask)
    low, high = objective.clip_min, objective.clip_max
    moved = x.detach()
    for _ in range(objective.iterations):
        moved = moved.detach().requires_grad_(True)
        (g,) = torch.autograd.grad(F.cross_entropy(f(moved), y), moved)
        g = torch.where(torch.isfinite(g), g, torch.zeros_like(g)) * mask
        if objective.norm == "linf":
            d = g.sign()
        else:
            d = g * g.flatten(1).pow(2).sum(1).clamp_min(1e-12).rsqrt().view(-1, 1, 1, 1)
        delta = objective.step_size * d + moved.detach() - x
        eps = objective.pgd_eps
        if eps is not None and objective.norm == "linf":
            delta = delta.clamp(-eps, eps)
        elif eps is not None:
            length = delta.flatten(1).norm(dim=1).clamp_min(1e-30).view(-1, 1, 1, 1)
            delta = delta * (eps / length).clamp(max=1)
        moved = x + delta
        if low is not None:
            moved = moved.clamp(min=low)
        if high is not None:
            moved = moved.clamp(max=high)
    return moved.detach()


def reference_loss(objective: AdversarialRegularization, f: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The regularised loss, with fresh forward passes throughout."""
    moved = reference_neighbours(objective, f, x, y)
    return F.cross_entropy(f(x), y) + objective.multiplier * F.cross_entropy(f(moved), y)


def without_dropout(seed: int = 0) -> Classifier:
    """The tiny network in float64, dropout at zero; batch normalisation works as in training."""
    model = tiny_model(seed).double().train()
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    return model


BATCH = TRAIN[:12].tensors()[0].double(), TRAIN.labels[:12]
_MASK = (torch.arange(64).view(1, 8, 8) % 3 / 2).tolist()


@pytest.mark.parametrize(
    "objective",
    [
        NSL(),
        NSL(step_size=0.2),
        NSL(norm="linf", step_size=0.2),
        NSL(norm="linf", step_size=0.2, multiplier=1.5, clip_min=0.0, clip_max=1.0),
        NSL(norm="linf", step_size=0.1, pgd_eps=0.15, iterations=4, clip_min=0.0, clip_max=1.0),
        NSL(norm="l2", step_size=0.5, pgd_eps=0.8, iterations=3),
        NSL(norm="l2", step_size=0.5, iterations=2, feature_mask=_MASK),
        NSL(norm="linf", step_size=0.1, iterations=2, feature_mask=_MASK),
    ],
    ids=str,
)
def test_loss_and_weight_gradients_are_those_of_the_plain_implementation(objective: AdversarialRegularization) -> None:
    found, found_gradients = gradients(objective, without_dropout(), *BATCH)
    plain = without_dropout()
    expected = reference_loss(objective, plain, *BATCH)
    expected.backward()
    torch.testing.assert_close(found, expected.detach(), rtol=1e-12, atol=0)
    assert_close(found_gradients, {name: p.grad for name, p in plain.named_parameters() if p.grad is not None})
    assert len(found_gradients) == 8
    # and the term does something: without it both are others
    clean, clean_gradients = gradients(CrossEntropy(), without_dropout(), *BATCH)
    assert found > clean + 0.1
    assert not torch.equal(found_gradients["network.0.weight"], clean_gradients["network.0.weight"])


def test_the_parts_of_the_loss() -> None:
    objective = NSL(norm="linf", step_size=0.1, multiplier=0.3)
    model = without_dropout().eval()
    clean, adversarial, logits = objective.losses(model, *BATCH)
    whole, returned = objective(model, *BATCH)
    assert clean == F.cross_entropy(model(BATCH[0]), BATCH[1])
    assert adversarial == F.cross_entropy(model(objective.neighbours(model, *BATCH)), BATCH[1])
    assert adversarial > clean
    assert whole == clean + 0.3 * adversarial
    assert torch.equal(logits, model(BATCH[0]))
    assert torch.equal(returned, logits)


def test_with_multiplier_zero_it_is_plain_training() -> None:
    images, labels = BATCH
    model, other = tiny_model().double().train(), tiny_model().double().train()  # dropout and all
    torch.manual_seed(7)
    plain, plain_gradients = gradients(CrossEntropy(), model, images, labels)
    torch.manual_seed(7)
    found, found_gradients = gradients(NSL(multiplier=0.0, norm="linf", step_size=0.2), other, images, labels)
    assert found == plain
    assert_same(found_gradients, plain_gradients)


def test_no_gradient_flows_through_the_neighbour() -> None:
    """The direction depends on the weights; with x = [-1, 1], w = [3, 4] the neighbour is [-0.94, 1.08]."""
    objective = NSL(step_size=0.1)
    model = Weighted(3, 4)
    clean, adversarial, _ = objective.losses(model, row(-1, 1), ZERO, F.mse_loss)
    (gradient,) = torch.autograd.grad(adversarial, model.weight, retain_graph=True)
    assert gradient.flatten().tolist() == pytest.approx([2 * 1.5 * -0.94, 2 * 1.5 * 1.08])
    (gradient,) = torch.autograd.grad(clean, model.weight)
    assert gradient.flatten().tolist() == pytest.approx([-2, 2])
    for iterations in (1, 2):
        moved = replace(objective, iterations=iterations).neighbours(model, row(-1, 1), ZERO, F.mse_loss)
        assert not moved.requires_grad
        assert moved.grad_fn is None


def test_the_images_of_the_caller_are_left_alone() -> None:
    images = BATCH[0].clone()
    NSL(norm="linf", step_size=0.2, iterations=2)(without_dropout(), images, BATCH[1])[0].backward()
    assert torch.equal(images, BATCH[0])
    assert not images.requires_grad
    assert images.grad is None


def test_the_clean_forward_pass_serves_the_first_step() -> None:
    for iterations, random_start, expected in [(1, False, 2), (3, False, 4), (3, True, 5)]:
        calls: list[int] = []
        model = without_dropout()
        model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        NSL(iterations=iterations, random_start=random_start)(model, *BATCH)
        assert len(calls) == expected


@pytest.mark.parametrize("objective", [NSL(norm="linf", step_size=0.1), NSL(step_size=0.3, iterations=3)], ids=str)
def test_validation_returns_the_loss_of_the_neighbours_and_changes_nothing(
    objective: AdversarialRegularization,
) -> None:
    model = tiny_model().double()
    gradients(CrossEntropy(), model.train(), *BATCH)  # leaves gradients on the weights, and moves the averages
    model.eval()
    left = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    weights = snapshot(model)
    loss, logits = objective.validate(model, *BATCH)
    expected = F.cross_entropy(model(reference_neighbours(objective, model, *BATCH)), BATCH[1])
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    assert torch.equal(logits, model(BATCH[0]))
    assert not loss.requires_grad
    assert not logits.requires_grad
    assert_same(snapshot(model), weights)
    assert len(left) == 8
    assert_same({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, left)
    assert not any(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())


# ------------------------------------------------------------------------------------------------- bad settings


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"multiplier": -0.1}, r"multiplier = -0\.1; expected zero or more"),
        ({"multiplier": math.nan}, "multiplier = nan"),
        ({"multiplier": math.inf}, "multiplier = inf"),
        ({"step_size": -1.0}, r"step_size = -1\.0; expected zero or more"),
        ({"step_size": math.nan}, "step_size = nan"),
        ({"step_size": math.inf}, "step_size = inf"),
        ({"norm": "infinity"}, "norm = 'infinity'; expected linf, l2 or l1"),
        ({"clip_min": 1.0, "clip_max": 0.0}, r"clip_min = 1\.0; expected less than clip_max, 0\.0"),
        ({"clip_min": 1.0, "clip_max": 1.0}, "clip_min"),
        ({"clip_min": math.nan}, "clip_min = nan"),
        ({"clip_max": math.nan}, "clip_max = nan; expected a number"),
        ({"clip_min": "0"}, "clip_min = '0'; expected a number"),
        ({"iterations": 0}, r"iterations = 0; expected at least 1 \(0 with random_start\)"),
        ({"iterations": -1, "random_start": True}, "iterations = -1; expected at least 0"),
        ({"iterations": 1.5}, r"iterations = 1\.5; expected a whole number, at least 1 \(0 with random_start\)"),
        ({"iterations": math.nan}, "iterations = nan; expected a whole number"),
        ({"iterations": "2"}, "iterations = '2'; expected a whole number"),
        ({"pgd_eps": -0.1}, r"pgd_eps = -0\.1; expected zero or more"),
        ({"pgd_eps": math.inf}, "pgd_eps = inf"),
        ({"pgd_eps": math.nan}, "pgd_eps = nan"),
        ({"pgd_eps": 0.1, "norm": "l1"}, "pgd_eps with norm l1"),
        ({"feature_mask": [0.5, 1.5]}, "feature_mask: expected factors from 0 to 1"),
        ({"feature_mask": [-0.1]}, "feature_mask"),
        ({"feature_mask": [math.nan]}, "feature_mask"),
        ({"feature_mask": "abc"}, "feature_mask is a str that is no array of numbers; expected factors from 0 to 1"),
        ({"feature_mask": [[0.5], [0.5, 1.0]]}, "feature_mask is a list that is no array of numbers; expected factors"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_bad_setting_is_refused_by_name(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        NSL(**bad)


@pytest.mark.parametrize("mask", [[0.5] * 7, [[[[0.5]]]] * 3, [[[[[0.5]]]]], []])
def test_a_mask_of_another_size_is_refused(mask: Any) -> None:
    with pytest.raises(ShapeError, match=r"feature_mask of shape .* for images of shape \(1, 8, 8\); expected one"):
        NSL(feature_mask=mask)(tiny_model(), *TRAIN[:4].tensors())


def test_settings_at_their_limits_are_taken() -> None:
    NSL(multiplier=0.0, step_size=0.0, pgd_eps=0.0, clip_min=-1.0, clip_max=1.0, feature_mask=[0.0, 1.0])
    NSL(iterations=0, random_start=True)
    NSL(norm="l1", random_start=True)
    defaults = (NSL().multiplier, NSL().step_size, NSL().norm, NSL().iterations, NSL().pgd_eps, NSL().random_start)
    assert defaults == (0.2, 0.001, "l2", 1, None, False)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf, -math.inf])
def test_a_temperature_that_is_none_is_refused(temperature: float) -> None:
    model = tiny_model()
    makers: list[Callable[[], object]] = [
        lambda: TemperatureCrossEntropy(temperature=temperature),
        lambda: Distillation(teacher=model, temperature=temperature),
        lambda: at_temperature(model, temperature),
    ]
    for make in makers:
        with pytest.raises(SettingError, match=f"temperature = {temperature}; expected positive and finite"):
            make()


# ----------------------------------------------------------------------------------------------- distillation


def scaled(factor: float, seed: int = 1) -> Classifier:
    """A linear classifier of the tiny images whose logits are `factor` times as large."""
    model = tiny_model(seed, "linear").double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor)
    return model.eval()


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities, by NumPy."""
    exponent = np.exp(logits - logits.max(1, keepdims=True))
    return exponent / exponent.sum(1, keepdims=True)


def logits_of(model: Classifier, images: Tensor) -> np.ndarray:
    """What a model says, as float64 numbers."""
    with torch.no_grad():
        return model(images).double().numpy()


def test_a_teacher_that_is_sure_of_everything_is_the_labels() -> None:
    images = BATCH[0]
    teacher = scaled(1e6)
    labels = teacher(images).argmax(1)
    assert teacher(images).softmax(1).amax(1).eq(1).all()
    assert labels.unique().numel() > 1
    found, found_gradients = gradients(
        Distillation(teacher=teacher, temperature=1.0), without_dropout(), images, torch.zeros_like(labels)
    )
    expected, expected_gradients = gradients(CrossEntropy(), without_dropout(), images, labels)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert_close(found_gradients, expected_gradients)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 100.0])
def test_the_student_s_loss_is_the_formula(temperature: float) -> None:
    images, labels = BATCH
    student, teacher = scaled(3.0, seed=1), scaled(5.0, seed=2)
    p = softmax(logits_of(teacher, images) / temperature)
    q = softmax(logits_of(student, images) / temperature)
    objective = Distillation(teacher=teacher, temperature=temperature)
    loss, logits = objective(student, images, labels)
    assert loss.item() == pytest.approx(float(-(p * np.log(q)).sum(1).mean()), rel=1e-12)
    np.testing.assert_array_equal(logits.detach().numpy(), logits_of(student, images))  # undivided
    (gradient,) = torch.autograd.grad(loss, student.network[1].weight)  # type: ignore[index]
    by_hand = (q - p).T @ images.flatten(1).numpy() / len(images) / temperature
    np.testing.assert_allclose(gradient.numpy(), by_hand, rtol=1e-9, atol=1e-15)
    value, seen = objective.validate(student, images, labels)
    assert value == loss
    assert not value.requires_grad
    assert torch.equal(seen, logits)


def test_the_labels_are_not_used() -> None:
    images, labels = BATCH
    objective = Distillation(teacher=scaled(5.0, seed=2), temperature=2.0)
    assert objective(scaled(1.0), images, labels)[0] == objective(scaled(1.0), images, (labels + 1) % 3)[0]


def test_at_temperature_one_training_is_ordinary() -> None:
    found, found_gradients = gradients(TemperatureCrossEntropy(temperature=1.0), without_dropout(), *BATCH)
    expected, expected_gradients = gradients(CrossEntropy(), without_dropout(), *BATCH)
    assert found == expected
    assert_same(found_gradients, expected_gradients)


@pytest.mark.parametrize("temperature", [0.1, 2.0, 50.0])
def test_at_a_temperature_the_logits_are_divided_by_it(temperature: float) -> None:
    images, labels = BATCH
    model = scaled(20.0)
    loss, logits = TemperatureCrossEntropy(temperature=temperature)(model, images, labels)
    z = logits_of(model, images)
    log_q = np.log(softmax(z / temperature))
    assert loss.item() == pytest.approx(float(-log_q[np.arange(12), labels.numpy()].mean()), rel=1e-12)
    np.testing.assert_array_equal(logits.detach().numpy(), z)
    value, _ = TemperatureCrossEntropy(temperature=temperature).validate(model, images, labels)
    assert value == loss
    assert not value.requires_grad


def test_a_classifier_at_a_temperature_divides_its_logits_and_shares_its_weights() -> None:
    model = Classifier(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 3)),
        input_shape=TINY_SHAPE,
        classes=TINY_CLASSES,
        bounds=(-1.0, 2.0),
        mean=(0.5,),
        std=(0.25,),
    )
    cool = at_temperature(model, 4.0)
    images = BATCH[0].float()
    torch.testing.assert_close(cool(images), model(images) / 4)
    assert (cool.input_shape, cool.classes, cool.bounds) == (model.input_shape, model.classes, model.bounds)
    assert {id(p) for p in cool.parameters()} == {id(p) for p in model.parameters()}


class TrainSpec:
    """A teacher in an untidy state, and all that could change about it."""

    def __init__(self) -> None:
        self.model = tiny_model(3).train()
        layers = list(self.model.network.children())
        layers[1].eval()
        next(self.model.parameters()).requires_grad_(False)
        parameters = list(self.model.parameters())
        parameters[1].grad = torch.ones_like(parameters[1])

    def state(self) -> list[Any]:
        """Modes, flags and gradients."""
        modes = [module.training for module in self.model.modules()]
        grads = [None if p.grad is None else p.grad.tolist() for p in self.model.parameters()]
        return [modes, [p.requires_grad for p in self.model.parameters()], grads]


@pytest.mark.parametrize("validating", [False, True])
def test_the_teacher_answers_in_evaluation_mode_and_is_left_as_it_was(validating: bool) -> None:
    images, labels = TRAIN[:12].tensors()
    lesson = TrainSpec()
    state, weights = lesson.state(), snapshot(lesson.model)
    objective = Distillation(teacher=lesson.model, temperature=3.0)
    student = tiny_model(4).eval()
    if validating:
        loss, _ = objective.validate(student, images, labels)
    else:
        loss, _ = objective(student, images, labels)
        loss.backward()
        assert all(p.grad is not None for p in student.parameters())
    assert lesson.state() == state
    assert_same(snapshot(lesson.model), weights)
    calm = tiny_model(3).eval()  # the same weights: neither dropout nor statistics of the batch in its answers
    p, q = softmax(logits_of(calm, images) / 3), softmax(logits_of(student, images) / 3)
    assert loss.item() == pytest.approx(float(-(p * np.log(q)).sum(1).mean()), rel=1e-5)


def test_the_student_s_mode_is_its_own() -> None:
    student = tiny_model(4).train()
    before_ = snapshot(student)
    Distillation(teacher=tiny_model(3), temperature=2.0)(student, *TRAIN[:12].tensors())
    assert all(module.training for module in student.modules())
    assert any(not torch.equal(tensor, before_[name]) for name, tensor in snapshot(student).items())  # batch norm moved


@pytest.mark.parametrize(
    ("shape", "classes", "words"),
    [
        ((1, 8, 8), ("a", "b", "c", "d"), "a teacher of 4 classes .* for a student of 3 classes"),
        ((1, 9, 8), TINY_CLASSES, r"images \(1, 9, 8\) .* for a student of 3 classes and images \(1, 8, 8\)"),
        ((1, 8, 8), ("right", "middle", "left"), "expected the same"),
    ],
)
def test_a_teacher_of_something_else_is_refused(shape: tuple[int, int, int], classes: Any, words: str) -> None:
    teacher = create("linear", input_shape=shape, classes=classes)
    objective = Distillation(teacher=teacher, temperature=2.0)
    for call in (objective, objective.validate):
        with pytest.raises(ShapeError, match=words):
            call(tiny_model(), *TRAIN[:3].tensors())


@pytest.mark.parametrize("kind", [partial(Distillation, temperature=2.0), partial(RobustDistillation, eps=0.1)])
def test_a_teacher_of_other_bounds_is_refused(kind: Callable[..., Objective]) -> None:
    teacher = Classifier(tiny_model(3).network, bounds=(-1, 1))
    with pytest.raises(ShapeError, match=r"within \[-1, 1\] for a student of .* within \[0, 1\]; expected the same"):
        fit(tiny_model(), TRAIN, VALIDATION, TrainConfig(epochs=1), objective=kind(teacher=teacher))


def _same_network(student: Classifier) -> nn.Module:
    return student.network


def _same_layers(student: Classifier) -> nn.Module:
    return Classifier(nn.Sequential(*student.network.children()))


def _same_weights(student: Classifier) -> nn.Module:
    teacher = tiny_model(3)
    teacher.network[-1].weight = student.network[-1].weight  # type: ignore[index,union-attr]
    return teacher


def _same_memory(student: Classifier) -> nn.Module:
    teacher = tiny_model(3)
    teacher.network[-1].bias.data = student.network[-1].bias.data  # type: ignore[index,union-attr]
    return teacher


@pytest.mark.parametrize(
    ("teacher_of", "named"),
    [
        (lambda student: student, "all its layers"),
        (_same_network, "all its layers"),
        (partial(at_temperature, temperature=2.0), "its layer"),
        (_same_layers, "its layer '0'"),
        (_same_weights, r"its weights '8\.weight'"),
        (_same_memory, r"its weights '8\.bias'"),
    ],
)
def test_a_teacher_that_shares_weights_with_the_student_is_refused(
    teacher_of: Callable[[Classifier], nn.Module], named: str
) -> None:
    student = tiny_model(4)
    before = snapshot(student)
    objective = RobustDistillation(teacher=teacher_of(student), eps=0.1, steps=1)
    with pytest.raises(ModelError, match=f"the objective's teacher shares {named}.*copy.deepcopy"):
        fit(student, TRAIN, VALIDATION, TrainConfig(epochs=1), objective=objective)
    assert_same(snapshot(student), before)


def test_a_copy_of_the_student_is_a_teacher() -> None:
    student = tiny_model(4)
    objective = Distillation(teacher=copy.deepcopy(student), temperature=2.0)
    done = fit(student, TRAIN, VALIDATION, TrainConfig(epochs=1), objective=objective)
    assert_same(snapshot(student), done.best)


@pytest.mark.integration
def test_a_student_learns_the_teacher_s_probabilities_at_the_temperature() -> None:
    images = tiny_images(60, noise=120)
    teacher = scaled(6.0, seed=5).float()
    student = tiny_model(8, "linear")
    x = images.tensors()[0]

    def distance() -> float:
        return float(np.abs(softmax(logits_of(teacher, x) / 5) - softmax(logits_of(student, x) / 5)).max())

    first = distance()
    settings = TrainConfig(epochs=80, batch_size=60, learning_rate=0.2, schedule="cosine")
    done = fit(student, images, images, settings, objective=Distillation(teacher=teacher, temperature=5.0))
    assert first > 0.25
    assert distance() < 0.04
    p = softmax(logits_of(teacher, x) / 5)
    entropy = float(-(p * np.log(p)).sum(1).mean())  # the least that the loss can be
    assert done.history[-1]["val_loss"] == pytest.approx(entropy, abs=1e-3)
    assert done.history[0]["val_loss"] > entropy + 0.01


@pytest.mark.integration
def test_a_student_s_checkpoint_is_known_by_its_teacher(tmp_path: Path) -> None:
    settings = TrainConfig(epochs=2, batch_size=50)
    place = tmp_path / "state"

    def run(teacher: Classifier, temperature: float = 2.0) -> TrainResult:
        objective = Distillation(teacher=teacher, temperature=temperature)
        return fit(tiny_model(), TRAIN, VALIDATION, settings, objective=objective, checkpoint=place)

    first = run(tiny_model(1))
    written = place.read_bytes()
    for other in (lambda: run(tiny_model(2)), lambda: run(tiny_model(1), 3.0)):
        with pytest.raises(TrainingError, match="belongs to a training with other"):
            other()
    assert place.read_bytes() == written
    again = run(tiny_model(1).eval())  # its mode makes no difference
    assert again.history == first.history
    assert_same(snapshot(again.model), snapshot(first.model))


# --------------------------------------------------------------------------------------------------- recipes


@dataclass(frozen=True)
class Inverted:
    """White becomes black; remembers nothing, draws nothing."""

    def __call__(self, images: Tensor, index: Tensor, epoch: int, generator: Generator) -> Tensor:
        """Return the negatives."""
        del index, epoch, generator
        return 1 - images


@dataclass(frozen=True)
class Half:
    """Grey levels halved, so that odd ones fall between two bytes."""

    def __call__(self, images: Tensor, index: Tensor, epoch: int, generator: Generator) -> Tensor:
        """Return darker images."""
        del index, epoch, generator
        return images / 2


def test_copies_of_floating_point_images_are_floating_point() -> None:
    numbers = TRAIN.tensors()[0].double()
    done = Recipe(extra=(Inverted(),)).images(LabelledImages(pixels=numbers, labels=TRAIN.labels))
    assert done.pixels.dtype == torch.float64
    assert torch.equal(done.pixels[: len(TRAIN)], numbers)
    assert torch.equal(done.pixels[len(TRAIN) :], (1 - numbers.float()).double())


def test_every_extra_appends_one_changed_copy_of_all_images() -> None:
    done = Recipe(extra=(Inverted(), Half())).images(TRAIN)
    assert len(done) == 300
    assert done.pixels.dtype == torch.uint8
    assert torch.equal(done.pixels[:100], TRAIN.pixels)
    assert torch.equal(done.pixels[100:200], 255 - TRAIN.pixels)
    halves = done.pixels[200:].numpy() - TRAIN.pixels.numpy() / 2.0
    assert set(np.unique(halves)) <= {-0.5, 0.0, 0.5}
    assert {-0.5, 0.5} <= set(np.unique(halves))  # rounded, not cut off
    assert torch.equal(done.labels, TRAIN.labels.repeat(3))


def test_an_empty_recipe_adds_nothing() -> None:
    done = Recipe().images(TRAIN)
    assert torch.equal(done.pixels, TRAIN.pixels)
    assert torch.equal(done.labels, TRAIN.labels)


def test_the_copies_are_drawn_from_the_seed() -> None:
    kept = TRAIN.pixels.clone()
    noise = GaussianNoise(std=0.2)
    recipe = Recipe(extra=(noise, noise))
    one, again, other = recipe.images(TRAIN, 4), recipe.images(TRAIN, 4), recipe.images(TRAIN, 5)
    assert torch.equal(one.pixels, again.pixels)
    assert not torch.equal(one.pixels[100:200], other.pixels[100:200])
    assert not torch.equal(one.pixels[100:200], one.pixels[200:])  # each copy has its own draws
    assert torch.equal(one.pixels[:100], TRAIN.pixels)
    assert torch.equal(TRAIN.pixels, kept)
    added = one.pixels[100:200].float() - TRAIN.pixels.float()
    inner = (TRAIN.pixels > 100) & (TRAIN.pixels < 155)  # far from the limits the noise is whole
    assert float(added[inner].std()) == pytest.approx(0.2 * 255, rel=0.1)


def test_copies_of_many_images_keep_order_and_numbers() -> None:
    """More than are changed at a time."""

    @dataclass(frozen=True)
    class Numbered:
        def __call__(self, images: Tensor, index: Tensor, epoch: int, generator: Generator) -> Tensor:
            del generator
            assert epoch == 0
            seen.extend(index.tolist())
            return 1 - images

    seen: list[int] = []
    pixels = torch.randint(256, (2300, 1, 2, 2), generator=generator(0), dtype=torch.uint8)
    images = LabelledImages(pixels=pixels, labels=torch.arange(2300) % 7)
    done = Recipe(extra=(Numbered(),)).images(images)
    assert seen == list(range(2300))
    assert torch.equal(done.pixels, torch.cat([pixels, 255 - pixels]))
    assert torch.equal(done.labels[2300:], images.labels)


_SETTINGS = TrainConfig(epochs=2, batch_size=30, seed=3)


def test_a_function_is_the_objective_of_a_recipe_and_a_class_is_not() -> None:
    def mean_loss(model: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(images)
        return F.cross_entropy(logits, labels), logits

    given: Any = mean_loss
    with as_installed():
        done = Recipe(objective=given).fit(tiny_model(), TRAIN, VALIDATION, _SETTINGS)
    assert untimed(done) == untimed(Recipe().fit(tiny_model(), TRAIN, VALIDATION, _SETTINGS))
    wrong: Any = Distillation
    with as_installed(), pytest.raises(SettingError, match="the objective is the class Distillation; expected an obj"):
        Recipe(objective=wrong)


@pytest.mark.parametrize("name", ["extra", "augment"])
@pytest.mark.parametrize("given", [Shift(), [Shift], ["shift"], None])
def test_what_is_no_list_of_augmentations_is_refused(name: str, given: Any) -> None:
    with as_installed(), pytest.raises(SettingError, match=f"{name} = .*; expected a list of augmentations, such as"):
        Recipe(**{name: given})


def test_an_empty_recipe_is_ordinary_training() -> None:
    plain = fit(tiny_model(), TRAIN, VALIDATION, _SETTINGS)
    empty = Recipe().fit(tiny_model(), TRAIN, VALIDATION, _SETTINGS)
    assert_same(snapshot(plain.model), snapshot(empty.model))
    assert_same(plain.best, empty.best)
    assert untimed(plain) == untimed(empty)


class Recording:
    """A change that changes nothing and remembers what it saw."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, Tensor, Tensor]] = []

    def __call__(self, images: Tensor, index: Tensor, epoch: int, generator: Generator) -> Tensor:
        """Remember."""
        del generator
        self.seen.append((epoch, index.clone(), images.clone()))
        return images

    def __repr__(self) -> str:
        return "Recording()"


def test_a_recipe_s_images_and_changes_reach_the_loop() -> None:
    first, last = Recording(), Recording()
    recipe = Recipe(extra=(GaussianNoise(std=0.3), Inverted()), augment=(first, Inverted(), last))
    recipe.fit(tiny_model(), TRAIN, VALIDATION, _SETTINGS)
    whole = recipe.images(TRAIN, _SETTINGS.seed)  # the seed is that of the settings
    for epoch in (1, 2):
        index = torch.cat([numbers for when, numbers, _ in first.seen if when == epoch])
        images = torch.cat([seen for when, _, seen in first.seen if when == epoch])
        assert index.sort().values.tolist() == list(range(300))
        assert torch.equal(images, to_float(whole.pixels[index]))
    assert len(first.seen) == 20
    for (_, numbers, seen), (_, same, changed) in zip(first.seen, last.seen, strict=True):
        assert torch.equal(numbers, same)
        assert torch.equal(changed, 1 - seen)


def test_a_recipe_trains_by_its_objective_and_options(tmp_path: Path) -> None:
    objective = TemperatureCrossEntropy(temperature=7.0)
    changes: tuple[Augmentation, ...] = (Shift(pixels=1), AlternatingFlip())
    whole = fit(tiny_model(), TRAIN, VALIDATION, _SETTINGS, objective=objective, augment=changes)
    place = tmp_path / "state"
    done = Recipe(objective=objective, augment=changes).fit(
        tiny_model(), TRAIN, VALIDATION, _SETTINGS, checkpoint=place
    )
    assert place.exists()
    assert_same(snapshot(whole.model), snapshot(done.model))
    assert untimed(whole) == untimed(done)
    plain = fit(tiny_model(), TRAIN, VALIDATION, _SETTINGS)
    assert plain.history[0]["loss"] != done.history[0]["loss"]


def test_extra_images_are_part_of_what_a_checkpoint_is_known_by(tmp_path: Path) -> None:
    place = tmp_path / "state"
    Recipe(extra=(Inverted(),)).fit(tiny_model(), TRAIN, VALIDATION, _SETTINGS, checkpoint=place)
    for other in (Recipe(), Recipe(extra=(Half(),))):
        with pytest.raises(TrainingError, match="belongs to a training with other"):
            other.fit(tiny_model(), TRAIN, VALIDATION, _SETTINGS, checkpoint=place)


@pytest.mark.integration
def test_the_study_s_producer_trains_by_what_its_configuration_says(tmp_path: Path) -> None:
    found = digits.load()
    start, teacher = (
        create("tiny", input_shape=found.image_shape, classes=found.classes, seed=seed) for seed in (5, 6)
    )
    artifacts = {}
    for role, model in (("start", start), ("teacher", teacher)):
        (tmp_path / role).mkdir()
        save(
            model, tmp_path / role / f"{role}-weights.safetensors", ModelMetadata(architecture="tiny", dataset="digits")
        )
        artifacts[role] = Artifact(role, tmp_path / role, {})
    config = {
        "dataset": "digits",
        "architecture": "tiny",
        "dropout": 1.0,
        "train_images": 60,
        "validation_images": 15,
        "seed": 2,
        "training": {"epochs": 2, "batch_size": 40, "patience": 1},
        "weights": {role: f"{role}-weights" for role in artifacts},
        "extra": [{"name": "gaussian-blur"}],
        "augment": [{"name": "flip", "settings": {"vertical": 0.0}}],
    }
    train, validation = split(subset(found.train, 75, 2), 15, 2)
    settings = TrainConfig(epochs=2, batch_size=40, patience=1, seed=2)
    regularised = {"name": "adversarial-regularization", "settings": {"step_size": 0.2, "norm": "linf"}}
    distilled = {"name": "distillation", "settings": {"temperature": 3.0}}
    cases: list[tuple[str, dict[str, Any], Objective]] = [
        ("start", regularised, NSL(step_size=0.2, norm="linf")),
        ("teacher", distilled, Distillation(teacher=teacher, temperature=3.0)),
    ]
    for role, spec, objective in cases:
        folder, working = tmp_path / f"{role}-artifact", tmp_path / f"{role}-working"
        folder.mkdir()
        working.mkdir()
        context = Context(device="cpu", observer=NULL_OBSERVER)
        result = defend_model(config | {"objective": spec}, {role: artifacts[role]}, folder, working, context)
        model = create("tiny", input_shape=found.image_shape, classes=found.classes, seed=5 if role == "start" else 2)
        recipe = Recipe(objective=objective, extra=(GaussianBlur(),), augment=(Flip(vertical=0.0),))
        expected = recipe.fit(model, train, validation, settings)
        assert_same(snapshot(load(folder / "best.safetensors")[0]), expected.best)
        assert_same(snapshot(load(folder / "final.safetensors")[0]), snapshot(expected.model))
        sizes = {"train_images": 120, "original_images": 60, "validation_images": 15}
        assert {name: result[name] for name in sizes} == sizes


# ------------------------------------------------------------------------- early stopping on the adversarial loss

_REGULARISED = NSL(norm="linf", step_size=0.1, clip_min=0.0, clip_max=1.0, multiplier=0.5)


def test_early_stopping_restores_the_epoch_of_the_lowest_adversarial_loss() -> None:
    settings = TrainConfig(epochs=40, batch_size=10, learning_rate=0.02, patience=3)
    done = fit(tiny_model(), TRAIN, VALIDATION, settings, objective=_REGULARISED)
    losses = [each["val_loss"] for each in done.history]
    assert done.stopped_at == len(losses) < 40
    assert done.epoch == done.best_epoch == 1 + int(np.argmin(losses)) == len(losses) - 3
    assert_same(snapshot(done.model), done.best)
    model, (images, labels) = done.model.eval(), VALIDATION.tensors()
    moved = reference_neighbours(_REGULARISED, model, images, labels)
    adversarial, clean = (F.cross_entropy(model(x), labels).item() for x in (moved, images))
    assert adversarial == pytest.approx(min(losses), rel=1e-5)
    assert clean < 0.99 * adversarial  # so it is not the clean loss that is watched
    accuracy = float((model(images).argmax(1) == labels).float().mean())
    assert accuracy == pytest.approx(done.history[done.best_epoch - 1]["val_accuracy"])


def test_an_adversarial_training_that_is_stopped_goes_on_bit_for_bit(tmp_path: Path) -> None:
    class Killed(BaseException):
        """What a signal does to a process."""

    settings = TrainConfig(epochs=3, batch_size=25)
    objective = NSL(norm="linf", step_size=0.05, pgd_eps=0.1, iterations=2)
    whole = fit(tiny_model(), TRAIN, VALIDATION, settings, objective=objective)
    place = tmp_path / "state"

    @dataclass(frozen=True)
    class Dies:
        def __call__(self, images: Tensor, index: Tensor, epoch: int, generator: Generator) -> Tensor:
            del index, generator
            if epoch == 2 and alive:
                raise Killed
            return images

        def __repr__(self) -> str:
            return "Dies()"

    alive = [True]
    with pytest.raises(Killed):
        fit(tiny_model(), TRAIN, VALIDATION, settings, objective=objective, augment=(Dies(),), checkpoint=place)
    alive.clear()
    done = fit(tiny_model(), TRAIN, VALIDATION, settings, objective=objective, augment=(Dies(),), checkpoint=place)
    assert_same(snapshot(whole.model), snapshot(done.model))
    assert untimed(whole) == untimed(done)


def test_a_training_with_random_starts_is_a_function_of_its_seed() -> None:
    objective = replace(_REGULARISED, random_start=True, pgd_eps=0.1)
    settings = TrainConfig(epochs=1, batch_size=50)
    histories, untouched = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        histories.append(untimed(fit(tiny_model(), TRAIN, VALIDATION, settings, objective=objective)))
        untouched.append(torch.equal(torch.get_rng_state(), state))
    assert untouched == [True, True]
    assert histories[0] == histories[1]


def test_neighbours_are_found_also_where_the_caller_switched_gradients_off() -> None:
    objective, model = NSL(norm="linf", step_size=0.1, iterations=2), without_dropout().eval()
    expected = objective.neighbours(model, *BATCH)
    with torch.no_grad():
        assert torch.equal(objective.neighbours(model, *BATCH), expected)


# ----------------------------------------------------------------------------------------------- answers at random


def test_an_image_is_moved_otherwise_at_every_pass() -> None:
    images = torch.rand(8, 1, 12, 12, generator=generator(0))
    layer = StochasticAffine()
    kept = images.clone()
    torch.manual_seed(5)
    one, two = layer(images), layer(images)
    torch.manual_seed(5)
    assert torch.equal(layer(images), one)
    assert not torch.equal(one, two)
    assert one.shape == images.shape
    for moved in (one, two):
        assert moved.min() >= 0
        assert moved.max() <= 1
        assert (moved - images).flatten(1).abs().amax(1).gt(0.05).all()
    assert torch.equal(images, kept)
    same = layer(images[:1].expand(8, -1, -1, -1))
    assert not torch.equal(same[0], same[1])  # each image of a batch has its own draw


def test_it_is_so_in_training_and_in_evaluation() -> None:
    images = torch.rand(2, 1, 12, 12, generator=generator(0))
    for layer in (StochasticAffine().eval(), StochasticAffine().train()):
        assert not torch.equal(layer(images), images)


def test_the_draws_fill_their_limits_and_keep_them(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[Tensor, Tensor, Tensor]] = []

    def record(images: Tensor, angle: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        drawn.append((angle, shift, scale))
        return images.clone()

    monkeypatch.setattr(augment_module, "affine", record)
    StochasticAffine(shift=0.3, scale=0.2, rotation=9.0)(torch.zeros(4000, 1, 1, 1))
    StochasticAffine()(torch.zeros(4000, 1, 1, 1))
    for (angle, shift, scale), (turn, side, size) in zip(drawn, [(9.0, 0.3, 0.2), (4.0, 0.16, 0.16)], strict=True):
        assert shift.shape == (4000, 2)
        for values, reach in ((angle, turn), (shift[:, 0], side), (shift[:, 1], side), (scale - 1, size)):
            assert values.abs().max() <= reach + 1e-6
            assert values.min() < -0.95 * reach
            assert values.max() > 0.95 * reach
            assert abs(values.mean()) < 0.1 * reach
            assert float(values.std()) == pytest.approx(2 * reach / math.sqrt(12), rel=0.05)  # uniform
        assert abs(np.corrcoef(torch.stack([angle, shift[:, 0], shift[:, 1], scale]))[0, 1:]).max() < 0.1


def test_a_blob_ends_within_the_reach_of_a_shift() -> None:
    images = torch.zeros(300, 1, 41, 41)
    images[:, :, 19:22, 19:22] = 1
    torch.manual_seed(0)
    moved = StochasticAffine(shift=0.2, scale=0.0, rotation=0.0)(images)
    assert moved.sum((1, 2, 3)).sub(9).abs().max() < 1e-3
    place = torch.arange(41.0) - 20
    down = (moved.sum((1, 3)) * place).sum(1) / 9
    right = (moved.sum((1, 2)) * place).sum(1) / 9
    for shift in (down, right):
        assert shift.abs().max() <= 0.2 * 41 + 1e-3
        assert shift.max() > 7.5
        assert shift.min() < -7.5


@pytest.mark.parametrize(
    "bad", [{"shift": -0.1}, {"shift": 1.1}, {"scale": 1.0}, {"scale": -0.1}, {"rotation": -1.0}, {"rotation": 181.0}]
)
def test_limits_out_of_range_are_refused_by_name(bad: dict[str, float]) -> None:
    with pytest.raises(SettingError, match=f"{next(iter(bad))} = {next(iter(bad.values()))}"):
        StochasticAffine(**bad)


def test_gradients_reach_the_images_as_the_interpolation_has_them() -> None:
    images = torch.rand(3, 1, 9, 9, generator=generator(0)).requires_grad_(True)
    weight = torch.randn(3, 1, 9, 9, generator=generator(1))
    layer = StochasticAffine()
    torch.manual_seed(2)
    (gradient,) = torch.autograd.grad((layer(images) * weight).sum(), images)
    assert gradient.flatten(1).ne(0).float().mean(1).gt(0.5).all()
    # what is moved is linear in the image, and moved alike under one seed
    other = torch.rand(3, 1, 9, 9, generator=generator(3))
    torch.manual_seed(2)
    there = (layer(other) * weight).sum()
    torch.manual_seed(2)
    here = (layer(images) * weight).sum()
    torch.testing.assert_close((gradient * (other - images)).sum(), there - here, rtol=1e-4, atol=1e-4)


def test_preprocessing_asks_the_same_model_about_changed_images() -> None:
    class Negative(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return 1 - images

    model = Classifier(
        tiny_model(2).network, input_shape=TINY_SHAPE, classes=TINY_CLASSES, mean=(0.3,), std=(2.0,)
    ).eval()
    images = BATCH[0].float()
    moved = preprocessed(model, Negative())
    assert torch.equal(moved(images), model(1 - images))
    assert (moved.input_shape, moved.classes, moved.bounds) == (model.input_shape, model.classes, model.bounds)
    assert {id(p) for p in moved.parameters()} == {id(p) for p in model.parameters()}
    with torch.no_grad():
        next(model.parameters()).add_(1)
    assert torch.equal(moved(images), model(1 - images))


@pytest.mark.parametrize("bounds", [(-0.5, 2.0), (0.0, 255.0), (-1.0, 1.0)])
def test_a_model_of_other_pixels_is_not_preprocessed(bounds: tuple[float, float]) -> None:
    """What moves images keeps them within 0 and 1, and lets black in, which is 0."""
    model = Classifier(tiny_model(2).network, input_shape=TINY_SHAPE, classes=TINY_CLASSES, bounds=bounds)
    with pytest.raises(ModelError, match=r"a model with bounds \(.*\); expected \(0, 1\)"):
        preprocessed(model, StochasticAffine())


def test_a_stochastic_classifier_answers_otherwise_each_time() -> None:
    model = tiny_model(2).eval()
    moved = preprocessed(model, StochasticAffine())
    images = BATCH[0].float()
    torch.manual_seed(0)
    one, two = moved(images), moved(images)
    torch.manual_seed(0)
    assert torch.equal(moved(images), one)
    assert not torch.equal(one, two)
    torch.manual_seed(0)
    assert torch.equal(model(StochasticAffine()(images)), one)
    assert torch.equal(model(images), model(images))


def test_with_noise_is_a_copy_that_is_noisy_at_inference() -> None:
    model = create("paper-cnn-noise", input_shape=TINY_SHAPE, classes=TINY_CLASSES).eval()
    images = BATCH[0].float()
    calm = model(images)
    noisy = with_noise(model)
    torch.manual_seed(1)
    one, two = noisy(images), noisy(images)
    torch.manual_seed(1)
    assert torch.equal(noisy(images), one)
    assert not torch.equal(one, two)
    assert not torch.equal(one, calm)
    assert torch.equal(model(images), calm)  # the original is as it was
    layers = [[m for m in each.modules() if isinstance(m, NoiseLayer)] for each in (model, noisy)]
    assert [[layer.at_inference for layer in each] for each in layers] == [[False] * 4, [True] * 4]
    assert [layer.std for layer in layers[1]] == [0.2, 0.1, 0.1, 0.1]
    assert_same(snapshot(model), snapshot(noisy))
    assert not {id(p) for p in model.parameters()} & {id(p) for p in noisy.parameters()}


def test_a_network_without_noise_layers_is_refused() -> None:
    with pytest.raises(ModelError, match="without a noise layer"):
        with_noise(create("paper-cnn", input_shape=TINY_SHAPE, classes=TINY_CLASSES))


def test_the_affine_layer_is_the_augmentation() -> None:
    images = torch.rand(5, 1, 9, 9, generator=generator(0))
    torch.manual_seed(6)
    found = StochasticAffine(shift=0.2, scale=0.3, rotation=20.0)(images)
    change = Affine(shift=0.2, scale=0.3, rotation=20.0)
    expected = change(images, torch.arange(5), 0, torch.Generator().manual_seed(6))
    assert torch.equal(found, expected)
    assert "rotation=20.0" in repr(StochasticAffine(rotation=20.0))
