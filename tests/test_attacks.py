"""The attacks against closed-form optima, properties that hold for all of them, and input that they refuse."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import final

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from casemate.attacks import (
    BIM,
    FGSM,
    MIFGSM,
    PGD,
    PRESETS,
    AbstractAttack,
    AbstractGradientAttack,
    Criterion,
    Misclassification,
    Passes,
    Restarts,
    RunResult,
    Status,
    frozen,
)
from casemate.attacks.base import with_eps
from casemate.attacks.gradient import Keep, Loop, with_steps
from casemate.attacks.inputs import check_images
from casemate.errors import CasemateWarning, DataError, ModelError, SettingError, ShapeError
from casemate.models import Classifier
from casemate.norms import AnyNorm, Ball, Eps, Norm
from casemate.progress import Advance
from casemate.rng import Streams
from casemate.settings import expect
from oracles import (
    EXAMINED,
    PIXELS,
    SHAPE,
    Counting,
    Linear,
    NoWayBack,
    as_installed,
    check_approaches_target,
    check_beats_chance,
    check_claims,
    check_inside,
    check_nothing_at_zero,
    check_reaches_optimum,
    classifier,
    distance,
    generator,
    linear_problem,
    network,
    small_task,
)

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
EPS: dict[Norm, float] = {"linf": 0.1, "l2": 0.5, "l1": 2.0}
seeds = st.integers(0, 10_000)


def attacks(norm: Norm, eps: float | None = None) -> list[AbstractGradientAttack]:
    """One of every kind, `last` and `worst`, few steps."""
    eps = EPS[norm] if eps is None else eps
    return [
        FGSM(eps=eps, norm=norm, keep="last"),
        FGSM(eps=eps, norm=norm),
        BIM(eps=eps, steps=4, norm=norm, keep="last"),
        BIM(eps=eps, steps=4, norm=norm),
        BIM(eps=eps, steps=4, norm=norm, clip="range"),
        PGD(eps=eps, steps=4, norm=norm, keep="last"),
        PGD(eps=eps, steps=3, restarts=2, norm=norm),
        MIFGSM(eps=eps, steps=4, norm=norm, keep="last"),
        MIFGSM(eps=eps, steps=4, norm=norm),
    ]


every_attack = st.sampled_from([attack for norm in NORMS for attack in attacks(norm)])


# ------------------------------------------------------------------------------- the optimum on a linear classifier


@given(seeds, st.floats(0.005, 0.4))
def test_fgsm_reaches_the_exact_optimum_on_a_linear_classifier(seed: int, eps: float) -> None:
    """Margin minus the sum of |w_i| * min(eps, room of pixel i to its bound)."""
    check_reaches_optimum(FGSM(eps=eps, keep="last"), linear_problem(seed), norm="linf", eps=eps)


@given(seeds, st.floats(0.01, 0.3))
def test_fgsm_l2_reaches_eps_times_the_length_where_no_bound_is_met(seed: int, eps: float) -> None:
    problem = linear_problem(seed, low=0.35, high=0.65, gap=0.5)
    check_reaches_optimum(FGSM(eps=eps, norm="l2", keep="last"), problem, norm="l2", eps=eps)


@given(seeds, st.floats(0.01, 0.3))
def test_fgsm_l1_spends_all_of_eps_on_the_steepest_pixel(seed: int, eps: float) -> None:
    problem = linear_problem(seed, low=0.35, high=0.65, gap=0.5)
    check_reaches_optimum(FGSM(eps=eps, norm="l1", keep="last"), problem, norm="l1", eps=eps)


ITERATED: list[Callable[[float, Norm], AbstractGradientAttack]] = [
    lambda eps, norm: BIM(eps=eps, norm=norm, keep="last"),
    lambda eps, norm: BIM(eps=eps, steps=25, step_size=eps / 8, norm=norm, keep="last"),
    lambda eps, norm: PGD(eps=eps, norm=norm, keep="last"),
    lambda eps, norm: PGD(eps=eps, norm=norm, restarts=3, keep="last"),
    lambda eps, norm: MIFGSM(eps=eps, norm=norm, keep="last"),
    lambda eps, norm: MIFGSM(eps=eps, norm=norm, decay=0.0, keep="last"),
]


@pytest.mark.parametrize("make", ITERATED)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("eps", [0.02, 0.1, 0.3])
def test_iterated_attacks_reach_the_same_optimum(
    make: Callable[[float, Norm], AbstractGradientAttack], seed: int, eps: float
) -> None:
    check_reaches_optimum(make(eps, "linf"), linear_problem(seed), norm="linf", eps=eps)


@pytest.mark.parametrize("make", ITERATED)
@pytest.mark.parametrize("eps", [0.05, 0.2])
def test_iterated_l2_attacks_reach_the_same_optimum(
    make: Callable[[float, Norm], AbstractGradientAttack], eps: float
) -> None:
    """From a random start the part across the gradient only shrinks, so the optimum is neared, not met."""
    attack = make(eps, "l2")
    slack = 4e-2 * eps if isinstance(attack, PGD) else 2e-5
    check_reaches_optimum(attack, linear_problem(1, low=0.35, high=0.65, gap=0.5), norm="l2", eps=eps, slack=slack)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("eps", [0.5, 2.0, 5.0])
def test_bim_l1_fills_the_steepest_pixels_to_their_bounds(seed: int, eps: float) -> None:
    """The greedy optimum; the last pixels are reached to within a step."""
    attack = BIM(eps=eps, steps=300, step_size=0.02, norm="l1", keep="last")
    check_reaches_optimum(attack, linear_problem(seed), norm="l1", eps=eps, slack=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_bim_with_clip_range_reaches_the_optimum_of_the_larger_ball(seed: int) -> None:
    attack = BIM(eps=0.1, steps=10, clip="range", keep="last")
    check_reaches_optimum(attack, linear_problem(seed), norm="linf", eps=0.25)


@pytest.mark.parametrize("gap", [40.0, 60.0])
def test_the_optimum_is_reached_where_other_losses_have_no_gradient_left(gap: float) -> None:
    problem = saturated(gap)
    check_reaches_optimum(FGSM(eps=0.2, keep="last"), problem, norm="linf", eps=0.2)
    check_reaches_optimum(FGSM(eps=0.2, loss="margin", keep="last"), problem, norm="linf", eps=0.2)
    with pytest.warns(CasemateWarning, match=f"FGSM had no gradient to follow on {len(problem.images)} of "):
        stuck = FGSM(eps=0.2, loss="prob-ce", keep="last")(problem.model, problem.images, problem.labels)
    assert torch.equal(stuck.adversarial, problem.images)
    assert stuck.status.eq(Status.ZERO_GRADIENT).all()
    with pytest.raises(AssertionError, match="missed the optimum"):
        check_reaches_optimum(FGSM(eps=0.2, loss="torch-ce", keep="last"), problem, norm="linf", eps=0.2)


def saturated(gap: float) -> Linear:
    """A linear problem of which every image is right by `gap` or more."""
    problem = linear_problem(3, scale=20.0, gap=4.0)
    sure = problem.margin(problem.images) > gap
    assert sure.sum() >= 5
    return replace(problem, images=problem.images[sure], labels=problem.labels[sure], slope=problem.slope[sure])


@pytest.mark.parametrize("norm", NORMS)
def test_with_two_classes_the_targeted_attack_is_the_untargeted_one(norm: Norm) -> None:
    problem = linear_problem(2, low=0.35, high=0.65, gap=0.5)
    for attack in attacks(norm):
        free = attack(problem.model, problem.images, problem.labels)
        aimed = attack(problem.model, problem.images, problem.labels, targets=1 - problem.labels)
        assert torch.allclose(free.adversarial, aimed.adversarial, rtol=0, atol=1e-6)
        assert torch.equal(free.success, aimed.success)
    if norm == "linf":
        check_reaches_optimum(FGSM(eps=0.1, keep="last"), problem, norm=norm, eps=0.1, targeted=True)


# ---------------------------------------------------------------------------------- properties, on a small network


@given(seeds, every_attack)
def test_adversarial_images_are_inside_and_are_what_they_are_said_to_be(
    seed: int, attack: AbstractGradientAttack
) -> None:
    task = small_task(seed % 7)
    result = attack(task.model, task.images, task.labels, seed=seed)
    check_inside(attack, result, task.images)
    check_claims(result, task)


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:eps :casemate.errors.CasemateWarning")
@given(seeds, st.sampled_from(NORMS), st.floats(0.0, 20.0))
@settings(max_examples=20)
def test_float32_images_are_inside_at_every_radius(seed: int, norm: Norm, eps: float) -> None:
    task = small_task(1, dtype=torch.float32)
    task = replace(task, images=task.images.mul(1.5).sub(0.25).clamp(0, 1))
    for attack in (BIM(eps=eps, steps=3, norm=norm), PGD(eps=eps, steps=3, norm=norm, keep="last")):
        check_inside(attack, attack(task.model, task.images, task.labels, seed=seed), task.images)


@pytest.mark.parametrize("norm", NORMS)
def test_eps_zero_changes_nothing(norm: Norm) -> None:
    task = small_task(dtype=torch.float32)
    for kind in PRESETS.values():
        check_nothing_at_zero(lambda eps, kind=kind: kind(eps=eps, norm=norm, keep="last"), task)  # type: ignore[call-arg]


@pytest.mark.parametrize("attack", [attack for attack in attacks("linf") if not isinstance(attack, PGD)])
def test_attacks_raise_the_loss_more_than_chance_does(attack: AbstractGradientAttack) -> None:
    check_beats_chance(replace(attack, keep="last"), small_task(scale=2.0))  # type: ignore[call-arg]


def test_pgd_raises_the_loss_more_than_chance_does() -> None:
    check_beats_chance(PGD(eps=0.1, keep="last"), small_task(scale=2.0))


@pytest.mark.parametrize("attack", [a for norm in NORMS for a in attacks(norm) if not isinstance(a, PGD)])
def test_targeted_attacks_approach_their_target(attack: AbstractGradientAttack) -> None:
    # one L1 step moves one pixel of 36, which may not suffice
    check_approaches_target(attack, small_task(scale=3.0), reached=0 if attack.ball().norm == "l1" else 1)


@pytest.mark.parametrize("norm", NORMS)
def test_what_was_fooled_is_left_alone_with_worst_and_goes_on_with_last(norm: Norm) -> None:
    """`worst` hands the clean image back where it is misclassified already; both agree on who is fooled in the end."""
    task = small_task()
    wrong = task.model(task.images).argmax(1) != task.labels
    assert wrong.sum() == 5
    for worst in (FGSM(eps=EPS[norm], norm=norm), BIM(eps=EPS[norm], norm=norm), MIFGSM(eps=EPS[norm], norm=norm)):
        early = worst(task.model, task.images, task.labels)
        late = replace(worst, keep="last")(task.model, task.images, task.labels)
        assert torch.equal(early.adversarial[wrong], task.images[wrong])
        assert early.status[wrong].eq(Status.SUCCESS).all()
        assert distance(late.adversarial, task.images, norm)[wrong].min() > 0
        assert (early.success | ~late.success).all()
        stood = ~early.success
        assert torch.allclose(early.adversarial[stood], late.adversarial[stood], rtol=0, atol=1e-9)


@pytest.mark.parametrize("attack", attacks("linf") + attacks("l2")[2:3])
def test_the_batch_size_does_not_matter(attack: AbstractGradientAttack) -> None:
    task = small_task()
    whole = attack(task.model, task.images, task.labels, seed=4)
    parts = attack(task.model, task.images, task.labels, seed=4, batch_size=7)
    assert torch.allclose(whole.adversarial, parts.adversarial, rtol=0, atol=1e-9)
    assert torch.equal(whole.status, parts.status)
    assert torch.equal(whole.prediction, parts.prediction)
    assert whole.passes == parts.passes


@pytest.mark.parametrize("attack", attacks("linf") + attacks("l1")[5:6])
def test_an_image_is_attacked_alike_whatever_lies_beside_it(attack: AbstractGradientAttack) -> None:
    """Its random numbers are those of its number in the data set, not of its place in the batch."""
    task = small_task()
    whole = attack(task.model, task.images, task.labels, seed=4)
    rest = attack(task.model, task.images[11:], task.labels[11:], seed=4, index=torch.arange(11, len(task.labels)))
    assert torch.allclose(whole.adversarial[11:], rest.adversarial, rtol=0, atol=1e-9)
    if not isinstance(attack, PGD):
        order = torch.randperm(len(task.labels), generator=generator(0))
        shuffled = attack(task.model, task.images[order], task.labels[order])
        assert torch.allclose(whole.adversarial[order], shuffled.adversarial, rtol=0, atol=1e-9)


def test_seeds() -> None:
    task = small_task()
    attack = PGD(eps=0.1, steps=2, keep="last")
    first, again, other = (attack(task.model, task.images, task.labels, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.adversarial, again.adversarial)
    assert not torch.equal(first.adversarial, other.adversarial)
    still = replace(attack, random_start=False)
    assert torch.equal(
        still(task.model, task.images, task.labels, seed=0).adversarial,
        still(task.model, task.images, task.labels, seed=1).adversarial,
    )


@pytest.mark.parametrize("keep", ["first_success", "last"])
@pytest.mark.parametrize("norm", NORMS)
def test_restarts_never_worsen(norm: Norm, keep: Keep) -> None:
    task = small_task(1, count=60, scale=30.0)
    previous: Tensor | None = None
    shares = []
    for restarts in (1, 2, 4, 8):
        attack = PGD(eps=0.5 * EPS[norm], steps=2, restarts=restarts, norm=norm, keep=keep)
        result = attack(task.model, task.images, task.labels)
        check_inside(attack, result, task.images)
        if previous is not None:
            assert (result.success | ~previous).all()
        previous = result.success
        shares.append(result.robust_accuracy)
    if norm == "linf":
        assert shares[-1] < shares[0]


def test_of_several_restarts_without_success_the_highest_loss_is_kept() -> None:
    task = small_task(3)
    losses = [
        PGD(eps=0.02, steps=1, restarts=restarts)(task.model, task.images, task.labels).loss for restarts in (1, 3, 9)
    ]
    assert (losses[1] >= losses[0]).all()
    assert (losses[2] >= losses[1]).all()
    assert (losses[2] > losses[0]).any()


def test_bim_with_clip_range_leaves_the_eps_ball_and_says_so() -> None:
    task = small_task(2)
    for steps, step, radius in ((10, 0.02, 0.2), (10, None, 0.125), (50, 0.05, 1.0)):
        attack = BIM(eps=0.05, steps=steps, step_size=step, clip="range", keep="last")
        assert attack.ball().eps == pytest.approx(radius)
        assert BIM(eps=0.05, steps=steps, step_size=step).ball().eps == 0.05
        result = attack(task.model, task.images, task.labels)
        check_inside(attack, result, task.images)
        assert result.norm.max() > 0.05 + 1e-3


def test_momentum_is_that_of_dong_et_al() -> None:
    """Algorithm 1 of Dong et al. 2018, written out for one image at a time in NumPy terms."""
    task = small_task(5)
    eps, steps, decay = 0.1, 7, 0.9

    def published(image: Tensor, label: Tensor) -> Tensor:
        moved, momentum = image.clone(), torch.zeros_like(image)
        for _ in range(steps):
            moved = moved.detach().requires_grad_(True)
            F.cross_entropy(task.model(moved.unsqueeze(0)), label.unsqueeze(0)).backward()
            assert moved.grad is not None
            momentum = decay * momentum + moved.grad / moved.grad.abs().sum()
            moved = moved.detach() + eps / steps * momentum.sign()
            moved = moved.clamp(image - eps, image + eps).clamp(0, 1)
        return moved

    expected = torch.stack([published(*pair) for pair in zip(task.images, task.labels, strict=True)])
    attack = MIFGSM(eps=eps, steps=steps, decay=decay, loss="torch-ce", keep="last")
    found = attack(task.model, task.images, task.labels).adversarial
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(replace(attack, decay=0.0)(task.model, task.images, task.labels).adversarial, expected)


# --------------------------------------------------------------------------------------- the model is left as it was


class Unruly(nn.Module):
    """Batch normalisation frozen in a model that trains, dropout, a buffer, and a flag to fail at a given call."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(48, 3)
        )
        self.register_buffer("calls", torch.zeros(()))
        self.fail_at: int | None = None
        self.count = 0

    def forward(self, images: Tensor) -> Tensor:
        """Refuse at call number `fail_at`."""
        self.count += 1
        if self.count == self.fail_at:
            raise ZeroDivisionError("the model gave up")
        return self.layers(images)


def unruly() -> tuple[Classifier, Unruly]:
    """In training mode, its batch normalisation in evaluation mode, one layer frozen, gradients lying about."""
    torch.manual_seed(0)
    inner = Unruly()
    model = classifier(inner, classes=3).train()
    inner.layers[1].eval()
    inner.layers[0].requires_grad_(False)
    model(torch.rand(4, *SHAPE)).sum().backward()
    return model, inner


def everything(model: Classifier) -> list[object]:
    """All of a model's state that an attack could disturb."""
    return [
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        {name: module.training for name, module in model.named_modules()},
        {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        torch.get_rng_state(),
        torch.is_grad_enabled(),
    ]


def assert_same(before: object, after: object) -> None:
    """Equal, tensors bit for bit."""
    if isinstance(before, dict) and isinstance(after, dict):
        assert before.keys() == after.keys()
        for key in before:
            assert_same(before[key], after[key])
    elif isinstance(before, Tensor) and isinstance(after, Tensor):
        assert torch.equal(before, after)
    else:
        assert before == after


@pytest.mark.parametrize("attack", attacks("linf") + attacks("l1")[-1:])
def test_the_model_is_left_as_it_was(attack: AbstractGradientAttack) -> None:
    model, _ = unruly()
    images, labels = torch.rand(6, *SHAPE), torch.tensor([0, 1, 2, 0, 1, 2])
    images_before, before = images.clone(), everything(model)
    result = attack(model, images, labels)
    for was, is_now in zip(before, everything(model), strict=True):
        assert_same(was, is_now)
    assert torch.equal(images, images_before)
    assert not result.adversarial.requires_grad
    assert torch.equal(result.adversarial, attack(model, images, labels).adversarial), "dropout was on"


@pytest.mark.parametrize("fail_at", [2, EXAMINED + 1, EXAMINED + 2, EXAMINED + 4])
def test_the_model_is_left_as_it_was_also_when_it_raises_midway(fail_at: int) -> None:
    model, inner = unruly()
    before = everything(model)
    inner.count, inner.fail_at = 0, fail_at
    with pytest.raises(ModelError, match=r"fails on a batch of .*: ZeroDivisionError: the model gave up") as failed:
        BIM(eps=0.1, keep="last")(model, torch.full((6, *SHAPE), 0.5), torch.zeros(6, dtype=torch.int64))
    assert isinstance(failed.value.__cause__, ZeroDivisionError)
    for was, is_now in zip(before, everything(model), strict=True):
        assert_same(was, is_now)


def test_inside_frozen_there_is_neither_dropout_nor_a_weight_gradient() -> None:
    model, _ = unruly()
    with frozen(model):
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())


def test_gradients_that_the_caller_switched_off_or_asked_for_change_nothing() -> None:
    task = small_task()
    attack = PGD(eps=0.1, steps=2)
    expected = attack(task.model, task.images, task.labels).adversarial
    with torch.no_grad():
        assert torch.equal(attack(task.model, task.images, task.labels).adversarial, expected)
    wanting = task.images.clone().requires_grad_(True)
    found = attack(task.model, wanting, task.labels).adversarial
    assert torch.equal(found, expected)
    assert wanting.grad is None
    assert not found.requires_grad


# ------------------------------------------------------------------------------------------------- counts and status


@pytest.mark.parametrize("attack", [attack for norm in NORMS for attack in attacks(norm)])
@pytest.mark.parametrize("targeted", [False, True])
def test_passes_are_what_the_network_sees(attack: AbstractGradientAttack, targeted: bool) -> None:
    task = small_task()
    counting = Counting(task.model.network)
    targets = (task.labels + 1) % 4 if targeted else None
    result = attack(classifier(counting, classes=4), task.images, task.labels, targets=targets, batch_size=8)
    assert (result.passes.forward, result.passes.backward) == (counting.forwards, counting.backwards)


@pytest.mark.filterwarnings("ignore:eps 1e-06 in linf:casemate.errors.CasemateWarning")
def test_passes_by_hand() -> None:
    """30 images, 5 of them misclassified: those leave `worst` after the first look."""
    task = small_task()
    last = BIM(eps=1e-6, steps=4, keep="last")(task.model, task.images, task.labels).passes
    assert (last.forward, last.backward) == (30 * 5, 30 * 4)
    worst = BIM(eps=1e-6, steps=4)(task.model, task.images, task.labels).passes
    assert (worst.forward, worst.backward) == (30 + 25 * 3 + 30, 30 + 25 * 3)


def test_a_model_that_fails_on_the_way_back_is_named() -> None:
    class Refusing(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, images: Tensor) -> Tensor:
            return self.inner(NoWayBack.apply(images))

    task = small_task()
    with pytest.raises(ModelError, match="no way back"):
        PGD(eps=0.1, steps=2)(classifier(Refusing(task.model.network), classes=4), task.images, task.labels)


class Rounded(nn.Module):
    """Reads whole grey levels: no gradient reaches the pixels."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        """Quantise, then classify."""
        return self.inner((255 * images).round() / 255)


@pytest.mark.parametrize("attack", attacks("linf") + attacks("l2") + attacks("l1"))
def test_an_attack_without_a_direction_says_so(attack: AbstractGradientAttack) -> None:
    task = small_task()
    model = classifier(Rounded(task.model.network), classes=4)
    with pytest.warns(CasemateWarning, match="had no gradient to follow on .* of 30 images"):
        result = attack(model, task.images, task.labels)
    assert result.status[~result.success].eq(Status.ZERO_GRADIENT).all()
    assert result.status[result.success].eq(Status.SUCCESS).all()
    assert (~result.success).sum() >= 15
    if not isinstance(attack, PGD):
        assert torch.equal(result.adversarial, task.images)


class Trouble(nn.Module):
    """Numbers that fail for chosen images: where, is written in the first pixels of the image itself.

    Pixel 0 at exactly 0.5: the logits are fine, the gradient is not (the derivative of a square root at 0).
    Pixel 1 at 0.3 or below: the logits are not a number.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        """Classify, with trouble."""
        first, second = images[:, 0, 0, 0], images[:, 0, 0, 1]
        extra = (first - 0.5).square().sqrt() + 0 * (second - 0.3).clamp(min=0).log()
        return self.inner(images) + extra.unsqueeze(1) * torch.tensor([1.0, 0, 0, 0], dtype=images.dtype)


@pytest.mark.parametrize("keep", ["first_success", "last"])
@pytest.mark.parametrize("norm", NORMS)
def test_numbers_that_are_not_finite_are_a_status_and_give_the_clean_image(norm: Norm, keep: Keep) -> None:
    task = small_task(4)
    model = classifier(Trouble(task.model.network), classes=4)
    images = task.images.clone()
    images[:, 0, 0, :2] = 0.9
    images[0:10, 0, 0, 0] = 0.5  # no gradient to follow
    images[10:20, 0, 0, 1] = 0.1  # no logits to begin with
    labels = task.labels
    clean = model(images)
    right = clean.isfinite().all(1) & (clean.argmax(1) == labels)
    for kind in (FGSM, BIM, MIFGSM):
        with pytest.warns(CasemateWarning, match="of 30 images .* met logits or gradients that are not finite"):
            result = kind(eps=EPS[norm] / 4, norm=norm, keep=keep)(model, images, labels)
        trouble = torch.arange(30) < 20
        assert torch.equal(result.adversarial[trouble], images[trouble])
        assert result.status[:10][right[:10]].eq(Status.NON_FINITE).all()
        assert result.status[:10][~right[:10]].eq(Status.SUCCESS).all(), "the clean image fools as it is"
        assert result.status[10:20].eq(Status.NON_FINITE).all()
        assert result.status[20:].ne(Status.NON_FINITE).all()
        assert result.adversarial.isfinite().all()
        assert not result.success[10:20].any()


def test_an_attack_that_walks_into_numbers_that_are_not_finite_hands_the_clean_image_back() -> None:
    """The logits fail at the last iterate only, which no gradient step sees."""
    task = small_task(4)
    model = classifier(Trouble(task.model.network), classes=4)
    images = task.images.clone()
    images[:, 0, 0, 0], images[:, 0, 0, 1] = 0.9, 0.35
    with pytest.warns(CasemateWarning, match="met logits or gradients that are not finite"):
        result = FGSM(eps=0.1, keep="last")(model, images, task.labels)
    lost = result.status == Status.NON_FINITE
    assert 0 < lost.sum() < 30
    assert torch.equal(result.adversarial[lost], images[lost])
    assert result.norm[lost].eq(0).all()
    with torch.no_grad():
        assert torch.equal(result.prediction, model(result.adversarial).argmax(1))


def test_a_restart_with_finite_numbers_outweighs_one_without() -> None:
    class Cliff(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            level = images.flatten(1)[:, 1:].mean(1)
            broken = 0 * (images[:, 0, 0, 0] - 0.5).clamp(min=0).log()
            return torch.stack([level + broken, 1 - level], 1)

    images, labels = torch.full((40, *SHAPE), 0.51), torch.zeros(40, dtype=torch.int64)
    model = classifier(Cliff())
    with pytest.warns(CasemateWarning, match="met logits or gradients that are not finite"):
        once = PGD(eps=0.1, steps=1)(model, images, labels)
    often = PGD(eps=0.1, steps=1, restarts=8)(model, images, labels)
    lost = once.status == Status.NON_FINITE
    assert 5 < lost.sum() < 35
    assert often.status.eq(Status.SUCCESS).all()


def test_success_is_never_claimed_for_logits_that_are_not_finite() -> None:
    logits = torch.tensor([[1.0, float("nan")], [float("inf"), 0.0], [0.0, 1.0]])
    assert Misclassification(torch.tensor([1, 1, 0])).is_adversarial(logits).tolist() == [False, False, True]
    assert Misclassification(torch.tensor([1, 0, 1]), targeted=True).is_adversarial(logits).tolist() == [
        False,
        False,
        True,
    ]


def test_robust_accuracy_is_the_share_that_withstood() -> None:
    task = small_task()
    result = BIM(eps=0.05)(task.model, task.images, task.labels)
    assert 0 < result.robust_accuracy < 25 / 30
    assert result.robust_accuracy == pytest.approx(1 - result.success.float().mean().item())
    assert result.attack == {
        "name": "BIM",
        "eps": 0.05,
        "steps": 10,
        "step_size": None,
        "clip": "ball",
        "norm": "linf",
        "loss": "ce",
        "keep": "first_success",
    }


# -------------------------------------------------------------------------------------------------------- bad input


def task32() -> tuple[Classifier, Tensor, Tensor]:
    """A float32 model with ten classes, images and labels."""
    return classifier(network(dtype=torch.float32, classes=10), 10), torch.rand(4, *SHAPE), torch.tensor([0, 1, 2, 9])


BAD_INPUT: list[tuple[Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], str]] = [
    (lambda x, y: (255 * x + 1, y), "Scale the images"),
    (lambda x, y: (x - 0.5, y), "pixels from -"),
    (lambda x, y: (x.where(x < 0.9, float("nan")), y), "images have pixels that are not finite numbers"),
    (lambda x, y: (x.repeat(1, 3, 1, 1), y), r"shape \(4, 3, 6, 6\); expected \(n, 1, 6, 6\)"),
    (lambda x, y: (x[0], y), "shape"),
    (lambda x, y: (x.flatten(1), y), "shape"),
    (lambda x, y: ((255 * x).to(torch.int16), y), "int16"),
    (lambda x, y: (x, y + 1), "labels from 1 to 10"),
    (lambda x, y: (x, y - 1), "labels from -1"),
    (lambda x, y: (x, y[:3]), "expected 4 int64"),
    (lambda x, y: (x, y.float()), "float32"),
    (lambda x, y: (x, y.unsqueeze(1)), r"labels\.squeeze"),
    (lambda x, y: (x, F.one_hot(y, 10)), r"labels\.argmax"),
    (lambda x, y: (x[:0], y[:0]), "no images"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD_INPUT)
def test_images_and_labels_that_the_model_does_not_take_are_refused(
    spoil: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], message: str
) -> None:
    model, images, labels = task32()
    images[0, 0, 0, 0] = 0.95
    with as_installed(), pytest.raises((ShapeError, DataError), match=message):
        FGSM(eps=0.1)(model, *spoil(images, labels))


def test_targets_are_checked_like_labels() -> None:
    model, images, labels = task32()
    with pytest.raises(SettingError, match="equals the true label"):
        FGSM(eps=0.1)(model, images, labels, targets=torch.tensor([1, 2, 3, 9]))
    with pytest.raises(ShapeError, match="labels from 0 to 10"):
        FGSM(eps=0.1)(model, images, labels, targets=torch.tensor([1, 2, 0, 10]))
    with as_installed(), pytest.raises(ShapeError):
        FGSM(eps=0.1)(model, images, labels, targets=torch.tensor([1, 2]))


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_holds_at_least_one_image(batch_size: int) -> None:
    model, images, labels = task32()
    with pytest.raises(SettingError, match="batch_size"):
        FGSM(eps=0.1)(model, images, labels, batch_size=batch_size)


@pytest.mark.parametrize("norm", NORMS)
def test_pixels_that_a_conversion_left_a_hair_outside_are_taken_as_at_the_bound(norm: Norm) -> None:
    """Normalising and back leaves such pixels; a whole image of them must not add up to leaving the ball."""
    problem = linear_problem(0)
    images = torch.where(problem.images > 0.5, 1 + 5e-7, -5e-7)
    check_images(problem.model, images, problem.labels)
    attack = BIM(eps=EPS[norm], norm=norm)
    result = attack(problem.model, images, problem.labels)
    check_inside(attack, result, images.clamp(0, 1))


def test_bounds_other_than_zero_and_one() -> None:
    """Pixels in grey levels: float32 is coarser there, and still every image passes the check."""
    layer = nn.Linear(PIXELS, 2)
    model = Classifier(nn.Sequential(nn.Flatten(), layer), input_shape=SHAPE, classes=("a", "b"), bounds=(0.0, 255.0))
    images = 255 * torch.rand(20, *SHAPE, generator=generator(0))
    labels = model(images).argmax(1)
    for norm in NORMS:
        result = BIM(eps=7.7, norm=norm, keep="last")(model, images, labels)
        assert result.adversarial.min() >= 0
        assert result.adversarial.max() <= 255
        assert distance(result.adversarial, images, norm).max() <= 7.7 + 1e-3


BAD_SETTINGS: list[Callable[[], object]] = [
    lambda: FGSM(eps=-0.1),
    lambda: FGSM(eps=math.nan),
    lambda: FGSM(eps=math.inf),
    lambda: FGSM(eps=0.1, loss="nope"),  # type: ignore[arg-type]
    lambda: FGSM(eps=0.1, norm="l3"),  # type: ignore[arg-type]
    lambda: FGSM(eps=0.1, keep="best"),  # type: ignore[arg-type]
    lambda: BIM(eps=0.1, clip="both"),  # type: ignore[arg-type]
    lambda: BIM(eps=0.1, steps=0),
    lambda: BIM(eps=0.1, steps=-1, clip="range"),
    lambda: BIM(eps=0.1, step_size=-0.1),
    lambda: BIM(eps=0.1, step_size=math.inf),
    lambda: PGD(eps=0.1, steps=0),
    lambda: PGD(eps=0.1, restarts=0),
    lambda: PGD(eps=0.1, restarts=2, random_start=False),
    lambda: MIFGSM(eps=0.1, steps=0),
    lambda: MIFGSM(eps=0.1, decay=-1.0),
    lambda: Loop(ball=Ball(eps=0.1), steps=1, step_size=math.nan, loss="ce"),
    lambda: with_eps(FGSM(eps=0.1), -1.0),
    lambda: with_steps(BIM(eps=0.1), 0),
    lambda: with_steps(FGSM(eps=0.1), 3),
]


@pytest.mark.parametrize("make", BAD_SETTINGS)
def test_settings_outside_their_values_are_refused_when_the_attack_is_made(make: Callable[[], object]) -> None:
    with as_installed(), pytest.raises(SettingError):
        make()


def test_an_attack_is_its_settings() -> None:
    """The same object is the algorithm and the record: frozen, comparable, every field documented by its name."""
    assert FGSM(eps=0.1) == FGSM(eps=0.1)
    assert hash(BIM(eps=0.1)) == hash(BIM(eps=0.1))
    assert with_eps(BIM(eps=0.1), 0.2).loop().step_size == 0.05
    assert with_eps(BIM(eps=0.1, step_size=0.01), 0.2).loop().step_size == 0.01
    assert with_steps(PGD(eps=0.1), 10).loop().step_size == pytest.approx(0.025)
    for name, kind in PRESETS.items():
        assert name == kind.__name__.lower()
        assert {"eps", "norm", "loss", "keep"} <= {field.name for field in fields(kind)}
        assert issubclass(kind, AbstractAttack)


@final
@dataclass(frozen=True, kw_only=True)
class Brighter(AbstractAttack):
    """All that a new attack needs: fields and `run`. Its images leave the ball; one has no finite numbers."""

    eps: Eps
    norm: AnyNorm = "linf"

    def __post_init__(self) -> None:
        expect(self)

    def run(
        self, model: Classifier, clean: Tensor, criterion: Criterion, streams: Streams, advance: Advance
    ) -> RunResult:
        """Add more than is allowed."""
        del model, criterion, advance
        return RunResult(clean + 1, streams.index > 0, streams.index != 1, Passes(forward=len(clean)))


def test_a_new_attack_needs_fields_and_run_alone() -> None:
    task = small_task(dtype=torch.float32)
    with as_installed():
        attack = Brighter(eps="1/16", norm="LINF")  # type: ignore[arg-type]
    assert attack.ball() == Ball(eps=1 / 16)
    assert attack.max_passes(4) is None
    assert attack.record() == {"name": "Brighter", "eps": 1 / 16, "norm": "linf"}
    with pytest.warns(CasemateWarning):
        result = attack(task.model, task.images, task.labels)
    expected = (task.images + 1 / 16).clamp(0, 1)
    assert torch.allclose(result.adversarial[1:], expected[1:])
    assert torch.equal(result.adversarial[0], task.images[0])
    assert result.status[0] in (Status.NON_FINITE, Status.SUCCESS)
    assert result.status[1] in (Status.ZERO_GRADIENT, Status.SUCCESS)
    wrapped = Restarts(attack=attack, restarts=2)
    assert wrapped.ball() == attack.ball()
    assert wrapped.max_passes(4) is None
    assert torch.equal(result[result.success].adversarial, result.adversarial[result.success])
