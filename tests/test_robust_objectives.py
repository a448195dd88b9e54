"""TRADES, MART, weight perturbation, one step, several norms, robust distillation: each written out by hand."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from casemate.attacks import PGD
from casemate.data import UNLABELLED
from casemate.defenses import (
    FGSMRS,
    MART,
    NFGSM,
    TRADES,
    AdversarialTraining,
    RobustDistillation,
    SeveralNorms,
    make_objective,
)
from casemate.defenses.divergence import divergence, most_divergent
from casemate.defenses.mart import boosted_cross_entropy
from casemate.defenses.weight_perturbation import at_perturbed_weights
from casemate.errors import SettingError, ShapeError
from casemate.models import Classifier, create
from casemate.norms import Ball, Norm, norm_of
from casemate.training import Objective, TrainConfig, fit
from casemate.training.state import Weights, snapshot
from conftest import TINY_CLASSES, tiny_images, tiny_model
from oracles import as_installed

TRAIN, VALIDATION = tiny_images(150, 1, noise=90), tiny_images(60, 2, noise=90)
IMAGES, LABELS = tiny_images(24, 3).tensors()
EPS = 0.08
ALL: dict[str, Objective] = {
    "trades": TRADES(eps=EPS, steps=3),
    "mart": MART(eps=EPS, steps=3),
    "fgsm-rs": FGSMRS(eps=EPS),
    "n-fgsm": NFGSM(eps=EPS),
    "several-norms": SeveralNorms(eps_linf=EPS, eps_l2=0.5, eps_l1=3, steps=3),
    "robust-distillation": RobustDistillation(teacher=tiny_model(8), eps=EPS, steps=3),
    "perturbed weights": AdversarialTraining(eps=EPS, steps=3, weight_perturbation=0.02),
}


def settled(seed: int = 0) -> Classifier:
    """A tiny network whose batch normalisation has seen images, in training mode and without dropout."""
    model = tiny_model(seed).train()
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    with torch.no_grad():
        for _ in range(50):
            model(IMAGES)
    return model


def gradients(model: Classifier, loss: Tensor) -> Weights:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def assert_near(one: Weights, other: Weights, rtol: float = 1e-4) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=rtol, atol=1e-6, msg=name)


# ------------------------------------------------------------------------------------------------------- divergence


def test_the_divergence_is_that_of_the_textbook() -> None:
    one, other = torch.randn(7, 4), torch.randn(7, 4)
    p, q = one.softmax(1), other.softmax(1)
    torch.testing.assert_close(divergence(one, other), (p * (p / q).log()).sum(1))
    assert divergence(one, one).abs().max() < 1e-6
    masked = one.clone()
    masked[:, 0] = -torch.inf
    masked.requires_grad_(True)
    value = divergence(masked, torch.where(torch.arange(4) == 0, -torch.inf, other)).sum()
    (gradient,) = torch.autograd.grad(value, masked)
    assert value.isfinite()
    assert gradient.isfinite().all()
    torch.testing.assert_close(value, divergence(one[:, 1:], other[:, 1:]).sum())


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_images_of_high_divergence_lie_in_the_ball_and_diverge(norm: Norm) -> None:
    model = settled().eval()
    ball = Ball(eps={"linf": 0.1, "l2": 0.6, "l1": 4.0}[norm], norm=norm)
    before = snapshot(model)
    target = model(IMAGES).detach()
    start = Ball(eps=0.01 * ball.eps, norm=norm)
    pgd = PGD(eps=ball.eps, norm=norm, steps=10, step_size=ball.eps / 4)
    moved = most_divergent(model, IMAGES, target, pgd, start)
    assert (norm_of(moved - IMAGES, norm) <= ball.eps * (1 + 1e-5)).all()
    assert moved.min() >= 0
    assert moved.max() <= 1
    near = start.project(torch.rand_like(IMAGES), IMAGES, (0.0, 1.0))
    apart = divergence(target, model(moved)).mean()
    assert apart > 5 * divergence(target, model(near)).mean()
    assert not moved.requires_grad
    assert_near(snapshot(model), before, 0)


# ----------------------------------------------------------------------------------------------------------- TRADES


def test_trades_is_cross_entropy_plus_the_divergence_of_the_same_network() -> None:
    objective = TRADES(eps=EPS, steps=4, beta=3.0, label_smoothing=0.1)
    model, twin = settled(), settled()
    torch.manual_seed(3)
    loss, logits = objective(model, IMAGES, LABELS)
    torch.manual_seed(3)
    moved, clean = objective.adversarial(twin, IMAGES)
    torch.testing.assert_close(logits, clean)
    p, q = twin(IMAGES), twin(moved)
    by_hand = F.cross_entropy(p, LABELS, label_smoothing=0.1)
    by_hand = by_hand + 3 * F.kl_div(q.log_softmax(1), p.softmax(1), reduction="batchmean")
    torch.testing.assert_close(loss, by_hand)
    assert_near(gradients(model, loss), gradients(twin, by_hand))
    assert_near(snapshot(model), snapshot(twin))  # batch normalisation saw the clean and the adversarial images, once


def test_trades_without_its_second_term_is_ordinary_training_and_needs_no_labels_to_attack() -> None:
    model = settled()
    loss, _ = TRADES(eps=EPS, beta=0, steps=1)(model, IMAGES, LABELS)
    torch.testing.assert_close(loss, F.cross_entropy(settled()(IMAGES), LABELS))


# ------------------------------------------------------------------------------------------------------------- MART


def test_the_boosted_cross_entropy_is_that_of_the_probabilities() -> None:
    logits, labels = torch.randn(9, 5, dtype=torch.float64) * 3, torch.arange(9) % 5
    p = logits.softmax(1)
    own = p.gather(1, labels[:, None]).squeeze(1)
    others = p.scatter(1, labels[:, None], 0).amax(1)
    torch.testing.assert_close(boosted_cross_entropy(logits, labels), -own.log() - (1 - others).log())
    sure = torch.tensor([[200.0, 0.0, -200.0]])
    assert boosted_cross_entropy(sure, torch.tensor([1])).isfinite().all()  # the logarithm of 1 - p would be -inf


def test_mart_weighs_the_divergence_by_how_unsure_the_clean_image_is() -> None:
    objective = MART(eps=EPS, steps=3, beta=4.0)
    model, twin = settled(), settled()
    torch.manual_seed(3)
    loss, _ = objective(model, IMAGES, LABELS)
    torch.manual_seed(3)
    pgd = AdversarialTraining(eps=EPS, steps=3)
    moved, _ = pgd.adversarial(twin, IMAGES, LABELS)
    p, q = twin(IMAGES).softmax(1), twin(moved).softmax(1)
    own = LABELS[:, None]
    boosted = -q.gather(1, own).squeeze(1).log() - (1 - q.scatter(1, own, 0).amax(1)).log()
    by_hand = (boosted + 4 * (p * (p / q).log()).sum(1) * (1 - p.gather(1, own).squeeze(1))).mean()
    torch.testing.assert_close(loss, by_hand)
    assert_near(gradients(model, loss), gradients(twin, by_hand), 1e-3)


# ---------------------------------------------------------------------------------------------- weight perturbation


def test_the_gradient_is_that_at_the_weights_moved_uphill() -> None:
    model, twin, moved = settled(), settled(), settled()
    value = at_perturbed_weights(model, lambda network: F.cross_entropy(network(IMAGES), LABELS), 0.05)
    uphill = gradients(twin, F.cross_entropy(twin(IMAGES), LABELS))
    with torch.no_grad():
        for name, weight in moved.named_parameters():
            if weight.ndim > 1:
                weight += 0.05 * weight.norm() * uphill[name] / uphill[name].norm()
    there = F.cross_entropy(moved(IMAGES), LABELS)
    torch.testing.assert_close(value, there)
    assert value > F.cross_entropy(settled()(IMAGES), LABELS)
    assert_near(gradients(model, value), gradients(moved, there))
    assert_near(dict(model.named_parameters()), dict(settled().named_parameters()), 0)


def test_batch_normalisation_sees_one_pass_of_a_perturbed_step() -> None:
    model, twin = settled(), settled()
    at_perturbed_weights(model, lambda network: F.cross_entropy(network(IMAGES), LABELS), 1e-9)
    twin(IMAGES)
    assert_near(snapshot(model), snapshot(twin))


PERTURBED = [name for name, each in ALL.items() if hasattr(each, "weight_perturbation")]


@pytest.mark.parametrize("name", PERTURBED)
def test_a_perturbation_of_nothing_changes_nothing_and_of_something_raises_the_loss(name: str) -> None:
    objective: Any = ALL[name]
    losses = list[float]()
    for gamma in (0.0, 1e-9, 0.05):
        torch.manual_seed(5)
        losses.append(replace(objective, weight_perturbation=gamma)(settled(), IMAGES, LABELS)[0].item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] > losses[0] + 1e-3


@pytest.mark.parametrize("name", PERTURBED)
def test_where_only_biases_and_normalisation_are_trained_nothing_is_perturbed(name: str) -> None:
    objective: Any = ALL[name]
    losses = list[float]()
    for gamma in (0.0, 0.05):
        model = settled()
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.ndim == 1)
        torch.manual_seed(5)
        loss, _ = replace(objective, weight_perturbation=gamma)(model, IMAGES, LABELS)
        assert gradients(model, loss)
        losses.append(loss.item())
    assert losses[1] == losses[0]


# ----------------------------------------------------------------------------------------------------- one step each


def test_fgsm_rs_steps_from_a_random_point_and_stays_in_the_ball() -> None:
    model = settled()
    moved, _ = FGSMRS(eps=EPS).adversarial(model, IMAGES, LABELS)
    change = (moved - IMAGES).abs()
    assert change.max() <= EPS * (1 + 1e-5)
    inside = (moved > 0) & (moved < 1)
    full = ((change - EPS).abs() < 1e-6)[inside].double().mean()
    # from a uniform start a step of 1.25 eps ends on the surface in 5 of 8 cases
    assert 0.5 < full < 0.75
    assert F.cross_entropy(model.eval()(moved), LABELS) > F.cross_entropy(model(IMAGES), LABELS)


def test_n_fgsm_is_not_projected() -> None:
    moved, _ = NFGSM(eps=EPS, noise=2.0).adversarial(settled(), IMAGES, LABELS)
    change = (moved - IMAGES).abs()
    assert 2.5 * EPS < change.max() <= 3 * EPS + 1e-6
    assert moved.min() >= 0
    assert moved.max() <= 1


@pytest.mark.parametrize("objective", [FGSMRS(eps=EPS), NFGSM(eps=EPS)])
def test_one_step_costs_two_passes_of_the_network(objective: FGSMRS | NFGSM) -> None:
    model, calls = settled(), list[bool]()
    model.examine(IMAGES)
    model.network.register_forward_hook(lambda *_: calls.append(model.training))
    loss, _ = objective(model, IMAGES, LABELS)
    assert calls == [False, True]
    assert loss.requires_grad


# ------------------------------------------------------------------------------------------------------ several norms


def test_the_worst_ball_of_each_image_counts() -> None:
    objective = SeveralNorms(eps_linf=0.1, eps_l2=0.5, eps_l1=None, steps=4)
    model, twin = settled(), settled()
    torch.manual_seed(3)
    loss, _ = objective(model, IMAGES, LABELS)
    torch.manual_seed(3)
    moved = [
        AdversarialTraining(eps=ball.eps, norm=ball.norm, steps=4).adversarial(twin, IMAGES, LABELS)[0]
        for ball in objective.balls
    ]
    twin.eval()
    both = torch.stack([F.cross_entropy(twin(each), LABELS, reduction="none") for each in moved])
    chosen = both.argmax(0)
    assert len(set(chosen.tolist())) == 2  # each ball is the worst one of some image
    worst = torch.where(chosen.view(-1, 1, 1, 1) == 0, moved[0], moved[1])
    torch.testing.assert_close(loss, F.cross_entropy(twin.train()(worst), LABELS))


def test_the_mean_and_one_ball_at_random() -> None:
    losses = {
        kind: SeveralNorms(eps_linf=0.1, eps_l2=0.5, eps_l1=2.0, combine=kind, steps=3).validate(
            settled().eval(), IMAGES, LABELS
        )[0]
        for kind in ("worst", "mean", "random")
    }
    assert max(losses.values()) - min(losses.values()) < 0.2  # validation is the same for all, up to random starts
    calls = list[bool]()
    model = settled()
    model.examine(IMAGES)
    model.network.register_forward_hook(lambda *_: calls.append(model.training))
    SeveralNorms(combine="random", steps=3)(model, IMAGES, LABELS)
    assert len(calls) == 3 + 2  # the clean logits, three steps in one ball, the loss
    with pytest.raises(SettingError, match="without a radius"):
        SeveralNorms(eps_linf=None, eps_l2=None, eps_l1=None)


# ------------------------------------------------------------------------------------------------ robust distillation


def test_robust_distillation_is_two_divergences_from_the_teacher() -> None:
    teacher = settled(9).eval()
    objective = RobustDistillation(teacher=teacher, eps=EPS, steps=3, clean=0.25)
    model, twin = settled(), settled()
    torch.manual_seed(3)
    loss, logits = objective(model, IMAGES, torch.full_like(LABELS, -1))
    torch.manual_seed(3)
    target = teacher(IMAGES).detach()
    moved = objective.adversarial(twin, IMAGES, target)
    q, p = twin(moved), twin(IMAGES)
    torch.testing.assert_close(logits, p)
    by_hand = 0.75 * F.kl_div(q.log_softmax(1), target.softmax(1), reduction="batchmean")
    by_hand = by_hand + 0.25 * F.kl_div(p.log_softmax(1), target.softmax(1), reduction="batchmean")
    torch.testing.assert_close(loss, by_hand)
    assert_near(gradients(model, loss), gradients(twin, by_hand), 1e-3)
    assert all(each.grad is None for each in teacher.parameters())


def test_a_teacher_of_other_classes_is_refused() -> None:
    teacher = create("linear", input_shape=(1, 8, 8), classes=(*TINY_CLASSES, "far"), seed=0)
    with pytest.raises(ShapeError, match="a teacher of 4 classes"):
        RobustDistillation(teacher=teacher)(tiny_model(), IMAGES, LABELS)


@pytest.mark.parametrize("name", ["trades", "mart", "adversarial-regularization", "virtual-adversarial"])
def test_labels_that_the_network_has_no_class_for_are_refused(name: str) -> None:
    objective = make_objective({"name": name, "settings": {}})
    for labels, words in (
        (LABELS + 1, "labels from 1 to 3; with 3 classes"),
        (LABELS[:5], r"shape \(5,\) for 24 images"),
    ):
        with as_installed(), pytest.raises(ShapeError, match=words):
            objective(tiny_model(), IMAGES, labels)
    unknown = LABELS.where(LABELS > 0, UNLABELLED)
    if name in ("trades", "mart"):
        with pytest.raises(ShapeError, match="labels from -1"):
            objective(tiny_model(), IMAGES, unknown)
    else:
        assert objective(tiny_model(), IMAGES, unknown)[0].isfinite()


# ---------------------------------------------------------------------------------------------------------------- all


@pytest.mark.parametrize("name", ALL)
def test_every_objective_makes_a_network_more_robust_than_it_began(name: str) -> None:
    settings = TrainConfig(epochs=6, batch_size=30, learning_rate=0.01, monitor="robust-accuracy", seed=1)
    if name == "robust-distillation":
        teacher = fit(
            tiny_model(4), TRAIN, VALIDATION, replace(settings, monitor="loss"), objective=ALL["trades"]
        ).model
        objective: Objective = replace(ALL[name], teacher=teacher)  # type: ignore[type-var]  # pyright: ignore[reportArgumentType]
    else:
        objective = ALL[name]
    done = fit(tiny_model(), TRAIN, VALIDATION, settings, objective=objective)
    assert done.history[-1]["val_robust_accuracy"] > 0.5  # chance is a third


@pytest.mark.parametrize("name", ALL)
def test_validation_has_no_gradient_and_leaves_the_network_as_it_was(name: str) -> None:
    model = settled().eval()
    before = snapshot(model)
    loss, logits = ALL[name].validate(model, IMAGES, LABELS)
    assert not loss.requires_grad
    assert not logits.requires_grad
    torch.testing.assert_close(logits, model(IMAGES).detach())
    assert_near(snapshot(model), before, 0)
    assert not model.training


@pytest.mark.parametrize("kind", [FGSMRS, NFGSM, SeveralNorms, partial(SeveralNorms, combine="random")])
def test_labels_are_smoothed_in_the_loss_and_not_in_the_attack(
    kind: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adversarial images are those of the true labels, and only the loss at them changes."""
    seen: list[tuple[Tensor, float]] = []
    original = F.cross_entropy

    def spy(logits: Tensor, labels: Tensor, **options: Any) -> Tensor:
        seen.append((logits.detach(), options.get("label_smoothing", 0.0)))
        return original(logits, labels, **options)

    monkeypatch.setattr(F, "cross_entropy", spy)
    ends: list[Tensor] = []
    for smoothing in (0.0, 0.2):
        torch.manual_seed(3)
        loss, _ = kind(label_smoothing=smoothing)(settled(), IMAGES, LABELS)
        assert seen[-1][1] == smoothing
        ends.append(seen[-1][0])
        assert torch.equal(loss, original(ends[-1], LABELS, label_smoothing=smoothing))
    assert torch.equal(*ends)
