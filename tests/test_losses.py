"""The losses: their values, and where in float32 their gradients are accurate, partly gone, or wholly gone."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from casemate.errors import SettingError
from casemate.logits import top_gap
from casemate.losses import LOSSES, TITLES, dlr, loss_by_name, margin, stable_cross_entropy, targeted_dlr
from oracles import generator

seeds = st.integers(0, 10_000)


def some_logits(seed: int, classes: int, scale: float, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Random logits of 8 examples and labels."""
    random = generator(seed)
    logits = scale * torch.randn(8, classes, generator=random, dtype=dtype)
    return logits, torch.randint(classes, (8,), generator=random)


def gradient(name: str, logits: Tensor, labels: Tensor) -> Tensor:
    """The loss's gradient with respect to the logits."""
    logits = logits.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(LOSSES[name](logits, labels).sum(), logits)
    return found


def confident(gap: float, dtype: torch.dtype = torch.float32, classes: int = 5) -> tuple[Tensor, Tensor]:
    """One example that is right by `gap`, with different other logits."""
    logits = torch.zeros(1, classes, dtype=dtype)
    logits[0] -= torch.arange(classes, dtype=dtype) / 8
    logits[0, 2] = gap
    return logits, torch.tensor([2])


# ------------------------------------------------------------------------------------------------------------ values


@given(seeds, st.integers(2, 7), st.floats(0.1, 60.0), st.sampled_from([torch.float32, torch.float64]))
def test_the_stable_form_is_cross_entropy(seed: int, classes: int, scale: float, dtype: torch.dtype) -> None:
    logits, labels = some_logits(seed, classes, scale, dtype)
    expected = F.cross_entropy(logits.double(), labels, reduction="none")
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6 * max(scale, 1)
    assert torch.allclose(LOSSES["ce"](logits, labels).double(), expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(LOSSES["torch-ce"](logits, labels), F.cross_entropy(logits, labels, reduction="none"))


def test_the_stable_form_keeps_the_digits_of_a_small_loss() -> None:
    """log(1 + 4 e^-30): in float32 `F.cross_entropy` rounds it to 0."""
    logits, labels = torch.tensor([[30.0, 0, 0, 0, 0]]), torch.tensor([0])
    assert LOSSES["ce"](logits, labels).item() == pytest.approx(math.log1p(4 * math.exp(-30)), rel=1e-5)
    assert LOSSES["torch-ce"](logits, labels).item() == 0


@pytest.mark.parametrize(("gap", "expected"), [(0.0, math.log(2)), (1.0, math.log1p(math.exp(-1)))])
def test_the_probability_form_is_cross_entropy_where_nothing_is_clipped(gap: float, expected: float) -> None:
    value = LOSSES["prob-ce"](torch.tensor([[gap, 0.0]]), torch.tensor([0])).item()
    assert value == pytest.approx(expected, rel=1e-6)


def test_the_probability_form_is_clipped_as_keras_clips() -> None:
    logits = torch.tensor([[40.0, 0.0]])
    assert LOSSES["prob-ce"](logits, torch.tensor([1])).item() == pytest.approx(-math.log(1e-7), rel=1e-6)
    assert LOSSES["prob-ce"](logits, torch.tensor([0])).item() == pytest.approx(1e-7, rel=0.2)


@given(seeds, st.integers(2, 7))
def test_the_sign_of_the_margin_says_whether_it_is_misclassified(seed: int, classes: int) -> None:
    logits, labels = some_logits(seed, classes, 3.0)
    assert torch.equal(margin(logits, labels) > 0, logits.argmax(1) != labels)


def test_margin_and_gap_by_hand() -> None:
    logits = torch.tensor([[3.0, 1.0, -2.0], [0.0, 5.0, 4.5], [1.0, 1.0, 0.0]])
    assert margin(logits, torch.tensor([0, 0, 1])).tolist() == [-2.0, 5.0, 0.0]
    assert top_gap(logits).tolist() == [2.0, 0.5, 0.0]


# --------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("classes", [2, 5])
def test_gradients_agree_with_finite_differences(name: str, classes: int) -> None:
    logits, labels = some_logits(4, classes, 1.0)
    torch.autograd.gradcheck(lambda z: LOSSES[name](z, labels), logits.requires_grad_(True))


@given(seeds, st.integers(2, 7), st.floats(0.1, 4.0))
def test_the_three_cross_entropies_have_one_gradient_while_nothing_saturates(
    seed: int, classes: int, scale: float
) -> None:
    logits, labels = some_logits(seed, classes, min(scale, 1.5))
    stable, torchs, probability = (gradient(name, logits, labels) for name in ("ce", "torch-ce", "prob-ce"))
    assert torch.allclose(stable, torchs, atol=1e-12)
    assert torch.allclose(stable, probability, atol=1e-9)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("gap", [20.0, 35.0, 50.0, 65.0, 80.0])
def test_where_the_network_is_sure_only_the_stable_gradient_is_left(gap: float, classes: int) -> None:
    """The reason for the default loss: a sign step needs every class's gradient, however small."""
    single = confident(gap, classes=classes if classes > 2 else 3)
    double = confident(gap, torch.float64, classes=classes if classes > 2 else 3)
    if classes == 2:
        single = (single[0][:, 1:], torch.tensor([1]))
        double = (double[0][:, 1:], torch.tensor([1]))
    label = single[1].item()
    exact, stable = gradient("ce", *double), gradient("ce", *single)
    assert stable.ne(0).all()
    if gap < 43:
        assert torch.allclose(stable.double(), exact, rtol=1e-4, atol=0)
    torchs = gradient("torch-ce", *single)
    assert torchs[0, int(label)] == 0
    assert torchs.ne(0).any()
    assert gradient("prob-ce", *single).eq(0).all()
    assert gradient("margin", *single)[0, int(label)] == -1


@pytest.mark.parametrize("gap", [40.0, 60.0, 87.0, 104.0, 500.0, 1e5])
def test_the_stable_gradient_never_vanishes_and_keeps_its_direction(gap: float) -> None:
    """Beyond a gap of 87 float32 cannot hold the gradient itself; its direction is what attacks follow."""
    stable = gradient("ce", *confident(gap)).double()
    logits, labels = confident(gap, torch.float64)
    logits = logits.requires_grad_(True)
    own = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
    log_odds = logits.masked_fill(own, -torch.inf).logsumexp(1) - logits[own]
    (direction,) = torch.autograd.grad(log_odds.sum(), logits)
    assert torch.allclose(stable / stable.norm(), direction / direction.norm(), rtol=1e-4, atol=0)
    assert abs(LOSSES["ce"](*confident(gap)).item()) < 1e-13


@pytest.mark.parametrize("name", ["ce", "torch-ce", "margin"])
def test_large_logits_give_finite_gradients(name: str) -> None:
    logits = torch.tensor([[1e30, -1e30, 3.0], [-1e30, 1e30, 3.0], [1e4, 1e4, 1e4]])
    for label in range(3):
        labels = torch.full((3,), label)
        assert LOSSES[name](logits, labels).isfinite().all()
        assert gradient(name, logits, labels).isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_a_class_at_minus_infinity_is_a_class_that_is_not_there(name: str) -> None:
    """A network that masks a class: the others' loss and gradient are those of the network without it."""
    logits, labels = torch.tensor([[1.0, -0.5, float("-inf")]]), torch.tensor([0])
    assert LOSSES[name](logits, labels) == pytest.approx(LOSSES[name](logits[:, :2], labels))
    with_it, without = gradient(name, logits, labels), gradient(name, logits[:, :2], labels)
    assert with_it[:, 2] == 0
    assert torch.allclose(with_it[:, :2], without)


def test_a_label_at_minus_infinity_is_infinitely_wrong() -> None:
    logits, labels = torch.tensor([[float("-inf"), 0.0, 1.0]]), torch.tensor([0])
    assert LOSSES["ce"](logits, labels).item() == math.inf
    assert gradient("ce", logits, labels).isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_each_example_has_a_loss_of_its_own(name: str) -> None:
    logits, labels = some_logits(9, 4, 2.0)
    # repeated and not by itself: PyTorch rounds exp differently in vectors of 4 or 8 numbers and in what is left over
    alone = torch.stack([LOSSES[name](logits[[i] * 8], labels[[i] * 8])[i] for i in range(8)])
    assert torch.equal(LOSSES[name](logits, labels), alone)


# ------------------------------------------------------------------------------------------------------------- names


def test_losses_are_found_by_name() -> None:
    assert loss_by_name("ce") is stable_cross_entropy
    assert TITLES.keys() == LOSSES.keys()
    with pytest.raises(SettingError, match="ce, torch-ce, prob-ce, margin"):
        loss_by_name("cross-entropy")


# ------------------------------------------------------------------------------------------- difference of logits ratio


def test_the_ratio_by_hand() -> None:
    """Logits (4, 1, 3, -1): the label's margin -1 over 4 - 1 = 3; towards class 1, (1 - 4) over 4 - (1 + -1) / 2."""
    logits, labels = torch.tensor([[4.0, 1.0, 3.0, -1.0]]), torch.tensor([0])
    assert dlr(logits, labels).item() == pytest.approx(-1 / 3)
    assert targeted_dlr(logits, labels, torch.tensor([1])).item() == pytest.approx(-3 / 4)
    assert dlr(logits, torch.tensor([3])).item() == pytest.approx(5 / 3)


@pytest.mark.parametrize("classes", [3, 4, 10])
def test_the_ratio_does_not_see_scale_or_shift(classes: int) -> None:
    logits, labels = some_logits(9, classes, 2.0)
    targets = (labels + 1) % classes
    moved = 1000 * logits + 5
    assert torch.allclose(dlr(moved, labels), dlr(logits, labels), rtol=1e-3)
    assert torch.allclose(targeted_dlr(moved, labels, targets), targeted_dlr(logits, labels, targets), rtol=1e-3)


def test_two_classes_fall_back_to_the_margin() -> None:
    logits, labels = some_logits(9, 2, 2.0)
    assert torch.equal(dlr(logits, labels), margin(logits, labels))
    assert torch.equal(targeted_dlr(logits, labels, 1 - labels), margin(logits, labels))


def test_equal_logits_have_a_finite_ratio() -> None:
    logits, labels = torch.zeros(1, 5), torch.tensor([2])
    assert gradient("dlr", logits, labels).isfinite().all()
