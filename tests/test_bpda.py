"""Backward pass differentiable approximation: exact going forward, another derivative going back."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from casemate.attacks import BIM, FGSM, PGD, Status, frozen
from casemate.attacks.bpda import BPDA
from casemate.attacks.differentiate import gradient_of
from casemate.defenses import preprocessed
from casemate.errors import CasemateWarning, ShapeError
from oracles import SHAPE, check_reaches_optimum, classifier, generator, linear_problem, network, small_task

IMAGES = torch.rand(5, *SHAPE, generator=generator(0))


def rounded(images: Tensor) -> Tensor:
    """Sixteen grey levels."""
    return (images * 15).round() / 15


def threshold(images: Tensor) -> Tensor:
    """Black or white, decided in NumPy, which writes into what it is given."""
    pixels = images.numpy()
    pixels[...] = pixels > 0.5
    return torch.from_numpy(pixels.astype(np.uint8))


def steep(images: Tensor) -> Tensor:
    """A smooth threshold."""
    return torch.sigmoid(8 * (images - 0.5))


def gradient(change: nn.Module, images: Tensor, after: Callable[[Tensor], Tensor]) -> Tensor:
    """The derivative of the sum of `after` the change."""
    images = images.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(after(change(images)).sum(), images)
    return found


@pytest.mark.parametrize("change", [rounded, threshold, nn.Threshold(0.5, 0.0)], ids=["rounded", "numpy", "module"])
@pytest.mark.parametrize("backward", [None, steep])
def test_going_forward_it_is_the_change_itself_bit_for_bit(
    change: Callable[[Tensor], Tensor], backward: Callable[[Tensor], Tensor] | None
) -> None:
    expected = change(IMAGES.clone()).float()
    for wanting in (True, False):
        images = IMAGES.clone().requires_grad_(wanting)
        found = BPDA(change, backward)(images)
        assert torch.equal(found, expected)
        assert found.dtype == torch.float32
        assert found.requires_grad == wanting
        assert torch.equal(images, IMAGES)


def test_going_back_the_identity_has_the_gradient_of_what_follows_at_the_changed_image() -> None:
    """Not at the image itself: the network saw the changed one."""
    found = gradient(BPDA(rounded), IMAGES, lambda images: images**3)
    assert torch.allclose(found, 3 * rounded(IMAGES) ** 2)
    assert not torch.allclose(found, 3 * IMAGES**2, atol=1e-2)


def test_going_back_another_change_adds_its_derivative_at_the_image() -> None:
    found = gradient(BPDA(threshold, steep), IMAGES, lambda images: (images + 1) ** 3)
    value = steep(IMAGES)
    expected = 3 * (threshold(IMAGES.clone()).float() + 1) ** 2 * 8 * value * (1 - value)
    assert torch.allclose(found, expected, rtol=1e-5)
    images = IMAGES.clone().requires_grad_(True)
    assert gradient_of(BPDA(rounded, torch.detach)(images).sum(), images).eq(0).all()


def test_the_second_change_is_asked_only_where_a_gradient_is_wanted() -> None:
    asked = []

    def smooth(images: Tensor) -> Tensor:
        asked.append(len(images))
        return images

    change = BPDA(rounded, smooth)
    change(IMAGES)
    with torch.no_grad():
        change(IMAGES.clone().requires_grad_(True))
    assert asked == []
    change(IMAGES.clone().requires_grad_(True))
    assert asked == [5]


@pytest.mark.parametrize("eps", [0.03, 0.2])
def test_an_attack_through_it_moves_images_as_if_nothing_were_in_the_way(eps: float) -> None:
    """On a linear classifier the gradient does not depend on the place, so the optimum is reached behind any change."""
    problem = linear_problem(0)
    hidden = classifier(nn.Sequential(BPDA(rounded), problem.model.network))
    open_ = FGSM(eps=eps, keep="last")(problem.model, problem.images, problem.labels)
    found = FGSM(eps=eps, keep="last")(hidden, problem.images, problem.labels)
    check_reaches_optimum(FGSM(eps=eps, keep="last"), problem, norm="linf", eps=eps)
    assert torch.equal(found.adversarial, open_.adversarial)
    assert torch.equal(found.prediction, hidden(open_.adversarial).argmax(1))


@pytest.mark.parametrize("targeted", [False, True])
def test_a_defence_that_only_hides_its_gradients_falls(targeted: bool) -> None:
    task = small_task(1, count=60, dtype=torch.float32)
    targets = (task.labels + 1) % 4 if targeted else None

    class Rounding(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return rounded(images)

    attack = BIM(eps=0.1)
    with pytest.warns(CasemateWarning, match="had no gradient to follow on .* of 60 images .* Try .* BPDA") as warned:
        results = {
            name: attack(model, task.images, task.labels, targets=targets)
            for name, model in (
                ("open", task.model),
                ("hidden", preprocessed(task.model, Rounding())),
                ("through", preprocessed(task.model, BPDA(rounded))),
            )
        }
    assert len(warned) == 1, "of the hidden one alone"
    fooled = {name: int(found.success.sum()) for name, found in results.items()}
    hidden = results["hidden"]
    assert hidden.status[~hidden.success].eq(Status.ZERO_GRADIENT).all()
    assert fooled["hidden"] < 0.5 * fooled["open"]
    assert fooled["through"] >= fooled["open"] - 4
    assert results["through"].status.ne(Status.ZERO_GRADIENT).all()
    # and what it found fools the defence as it is, without us in it
    moved = results["through"].adversarial
    assert torch.equal(results["through"].prediction, preprocessed(task.model, Rounding())(moved).argmax(1))


def test_it_may_change_the_shape_if_both_ways_agree() -> None:
    def shrink(images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images, 2).round()

    smaller = BPDA(shrink, nn.AvgPool2d(2))
    assert torch.allclose(gradient(smaller, IMAGES, lambda images: images), torch.full_like(IMAGES, 0.25))
    images = IMAGES.clone().requires_grad_(True)
    with pytest.raises(ShapeError, match=r"forward returns the shape \(5, 1, 3, 3\), but the identity \(5, 1, 6, 6\)"):
        BPDA(shrink)(images)
    with pytest.raises(ShapeError, match=r"but backward \(5, 1, 2, 2\); give a backward"):
        BPDA(shrink, nn.AvgPool2d(3))(images)


def test_it_works_on_features_inside_a_network() -> None:
    torch.manual_seed(0)
    first, last = nn.Linear(36, 8), nn.Linear(8, 3)
    model = classifier(nn.Sequential(nn.Flatten(), first, BPDA(torch.sign, torch.tanh), last), classes=3)
    images = IMAGES.clone().requires_grad_(True)
    hidden = first(images.flatten(1))
    assert torch.equal(model(images), last(hidden.sign()))
    (found,) = torch.autograd.grad(model(images)[:, 0].sum(), images)
    slope = (last.weight[0] * (1 - hidden.tanh() ** 2)) @ first.weight
    assert torch.allclose(found.flatten(1), slope, atol=1e-6)


def test_modules_in_it_are_frozen_and_named_with_the_rest() -> None:
    """A learnt approximation belongs to the network; functions are named in its text."""
    learnt = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Dropout(0.5))
    task = small_task(dtype=torch.float32)
    model = preprocessed(task.model, BPDA(rounded, learnt))
    model.train()
    assert {id(p) for p in learnt.parameters()} <= {id(p) for p in model.parameters()}
    with frozen(model):
        assert not learnt[1].training
        assert not any(parameter.requires_grad for parameter in learnt.parameters())
    PGD(eps=0.1, steps=2)(model, task.images, task.labels)
    assert learnt[1].training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in learnt.parameters())
    assert "forward=rounded" in str(model)
    assert "forward=rounded, backward=identity" in str(BPDA(rounded))
    assert "Dropout(p=0.5" in str(model)


def test_a_change_that_draws_at_random_draws_at_every_pass() -> None:
    noisy = BPDA(lambda images: rounded(images + 0.2 * torch.randn_like(images)))
    model = preprocessed(classifier(network(dtype=torch.float32), classes=4), noisy)
    torch.manual_seed(0)
    first, second = model(IMAGES), model(IMAGES)
    torch.manual_seed(0)
    assert torch.equal(model(IMAGES.clone().requires_grad_(True)), first)
    assert not torch.equal(first, second)
