"""The worst case over a list of attacks, AutoAttack's list, and smaller batches."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from casemate.attacks import (
    BIM,
    FAB,
    FGSM,
    PGD,
    AbstractAttack,
    AutoAttack,
    Restarts,
    Spatial,
    Square,
    UniformNoise,
)
from casemate.data import LabelledImages
from casemate.errors import MachineError, ModelError, SettingError, ShapeError
from casemate.evaluation.budgets import attacks_for
from casemate.evaluation.cascade import run_cascade
from casemate.evaluation.cascade_result import MISCLASSIFIED, ROBUST
from casemate.evaluation.evaluation import evaluate
from casemate.memory import batched
from casemate.models import mean_over_samples, with_fixed_seed
from conftest import Listener
from oracles import Linear, classifier, linear_problem, network, room, small_task, steepest_descent

VALUES = (0.01, 0.02, 0.03)
PROBLEM = linear_problem(3, count=40)
PROBLEM = replace(PROBLEM, images=PROBLEM.images.detach(), slope=PROBLEM.slope.detach())
IMAGES = LabelledImages(pixels=PROBLEM.images, labels=PROBLEM.labels)


def fallen(problem: Linear, eps: float) -> np.ndarray:
    """Which images can be fooled within eps at all (Linf)."""
    rooms = room(problem.images.flatten(1).double(), problem.slope)
    fall = steepest_descent(problem.slope, rooms, "linf", eps)
    return (problem.margin(problem.images) < fall).detach().numpy()


# ------------------------------------------------------------------------------------------------------- the cascade


@pytest.mark.parametrize(
    "attacks",
    [
        {"noise": UniformNoise(eps=0.01, num_samples=3), "pgd": PGD(eps=0.01, steps=5, step_size=0.03)},
        {"fab": FAB(norm="linf"), "pgd": PGD(eps=0.01, steps=5, step_size=0.03)},
        {"pgd": PGD(eps=0.01, steps=5, step_size=0.03), "fab": FAB(norm="linf")},
    ],
    ids=["weak first", "minimum norm first", "minimum norm last"],
)
def test_what_is_left_is_what_cannot_be_fooled(attacks: dict[str, AbstractAttack]) -> None:
    found = run_cascade(PROBLEM.model, attacks, IMAGES, VALUES)
    for column, eps in enumerate(VALUES):
        assert np.array_equal(found.robust[:, column], ~fallen(PROBLEM, eps))
    assert (np.diff(found.robust.astype(int), axis=1) <= 0).all()
    moved = (found.adversarial - PROBLEM.images).abs().flatten(1).amax(1).numpy()
    lost = found.first_success >= 0
    assert np.allclose(moved[lost], found.distance[lost], atol=1e-6)
    assert (PROBLEM.margin(found.adversarial)[torch.from_numpy(lost)] <= 1e-6).all()
    assert (moved[~lost] == 0).all()
    assert np.isinf(found.distance[found.first_success == ROBUST]).all()
    for eps, robust in zip(VALUES, found.robust.T, strict=True):
        assert (found.distance[~robust] <= eps + 1e-6).all()


def test_later_attacks_get_survivors_only() -> None:
    attacks = {"fgsm": FGSM(eps=0.1), "pgd": PGD(eps=0.1, steps=3)}
    found = run_cascade(PROBLEM.model, attacks, IMAGES, VALUES)
    left = len(IMAGES)
    for attempt in found.attempts:
        assert attempt.tried == left
        assert attempt.fooled == attempt.status["success"]
        left -= attempt.fooled
    assert left == found.robust[:, -1].sum()
    assert sum((found.first_success == place).sum() for place in range(2)) == len(IMAGES) - left


def test_a_minimum_norm_attack_runs_once() -> None:
    """At the larger eps its distances are known: no pass is made, and the same images fall as in a run of its own."""
    found = run_cascade(PROBLEM.model, {"fab": FAB(norm="linf")}, IMAGES, VALUES)
    assert [attempt.passes.forward > 0 for attempt in found.attempts] == [True, False, False]
    for column, eps in enumerate(VALUES):
        alone = run_cascade(PROBLEM.model, {"fab": FAB(norm="linf")}, IMAGES, [eps])
        assert np.array_equal(alone.robust[:, 0], found.robust[:, column])


@pytest.mark.parametrize(
    "attack",
    [
        Restarts(attack=FAB(norm="linf"), restarts=1),
        BIM(eps=0.01, steps=20, step_size=0.02, clip="range"),
        Spatial(rotations=1, max_shift=1.0, shifts=3),
    ],
    ids=["wrapped minimum norm", "BIM with clip range", "shifts"],
)
def test_an_image_counts_as_fooled_only_within_eps(attack: AbstractAttack) -> None:
    """Attacks that do not stay within eps fool more images than can be fooled there."""
    found = run_cascade(PROBLEM.model, {"attack": attack}, IMAGES, VALUES)
    anywhere = attack(PROBLEM.model, PROBLEM.images, PROBLEM.labels).success
    assert anywhere.sum() > (~found.robust[:, -1]).sum()
    for column, eps in enumerate(VALUES):
        lost = ~found.robust[:, column]
        assert (lost <= fallen(PROBLEM, eps)).all()
        assert (found.distance[lost] <= eps + 1e-6).all()


def test_the_images_given_stay_as_they_are() -> None:
    before = IMAGES.pixels.clone()
    run_cascade(PROBLEM.model, {"pgd": PGD(eps=0.1, steps=3)}, IMAGES, VALUES)
    assert torch.equal(IMAGES.pixels, before)


def test_images_that_are_wrong_already_are_nobodys_success() -> None:
    wrong = torch.arange(len(IMAGES)) % 4 == 0
    images = LabelledImages(pixels=IMAGES.pixels, labels=torch.where(wrong, 1 - IMAGES.labels, IMAGES.labels))
    found = run_cascade(PROBLEM.model, {"pgd": PGD(eps=0.1, steps=3)}, images, VALUES)
    assert np.array_equal(found.first_success == MISCLASSIFIED, wrong.numpy())
    assert (found.distance[wrong.numpy()] == 0).all()
    assert not found.robust[wrong.numpy()].any()
    assert torch.equal(found.adversarial[wrong], images.pixels[wrong])
    assert found.attempts[0].tried == (~wrong).sum()


@pytest.mark.parametrize(
    ("attacks", "values", "message"),
    [
        ({}, VALUES, "no attacks; expected at least one"),
        ({"pgd": PGD(eps=0.1)}, (), "at least one value"),
        ({"pgd": PGD(eps=0.1)}, (0.1, 0.05), "ascending"),
        ({"pgd": PGD(eps=0.1), "fab": FAB(norm="l2")}, VALUES, "fab has norm l2; expected linf"),
    ],
)
def test_a_list_that_makes_no_worst_case_is_refused(
    attacks: dict[str, AbstractAttack], values: tuple[float, ...], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        run_cascade(PROBLEM.model, attacks, IMAGES, values)


# --------------------------------------------------------------------------------------------------------- AutoAttack


def test_autoattack_has_the_parameters_of_the_original() -> None:
    """Read from the code at commit a392200."""
    standard = AutoAttack(eps=0.1).attacks()
    assert list(standard) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    facts = {name: attack.record() for name, attack in standard.items()}
    assert (
        facts["apgd-ce"] | {"steps": 100, "restarts": 1, "rho": 0.75, "eot_samples": 1, "use_larger_eps": False}
        == facts["apgd-ce"]
    )
    assert facts["apgd-t"] | {"steps": 100, "restarts": 1, "classes": 9} == facts["apgd-t"]
    assert facts["fab-t"] | {"steps": 100, "alpha_max": 0.1, "eta": 1.05, "beta": 0.9, "classes": 9} == facts["fab-t"]
    assert (
        facts["square"] | {"n_queries": 5001, "p_init": 0.8, "restarts": 1, "rescale_schedule": False}
        == facts["square"]
    )
    plus = AutoAttack(eps=0.1, version="plus").attacks()
    assert list(plus) == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    assert [plus[name].record()["restarts"] for name in ("apgd-ce", "apgd-dlr", "fab")] == [5, 5, 5]
    rand = AutoAttack(eps=0.1, version="rand").attacks()
    assert {name: attack.record()["eot_samples"] for name, attack in rand.items()} == {"apgd-ce": 20, "apgd-dlr": 20}
    sparse = {name: attack.record() for name, attack in AutoAttack(eps=8, norm="l1").attacks().items()}
    assert sparse["apgd-ce"] | {"restarts": 5, "use_larger_eps": True} == sparse["apgd-ce"]
    assert sparse["apgd-t"] | {"classes": 5, "use_larger_eps": True} == sparse["apgd-t"]


def test_plus_is_not_defined_for_l1() -> None:
    with pytest.raises(SettingError, match="version plus is defined for linf and l2"):
        AutoAttack(eps=8, version="plus", norm="l1")


@pytest.mark.integration
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("classes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_autoattack_works_with_few_classes(classes: int) -> None:
    """It leaves what a cascade over the same attacks leaves, and no more than PGD with many restarts."""
    model = classifier(network(1, classes=classes, dtype=torch.float32, scale=8.0), classes)
    images = torch.rand(16, *model.input_shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        labels = model(images).argmax(1)
    attack = AutoAttack(eps=0.03)
    result = attack(model, images, labels)
    found = run_cascade(model, attack.attacks(), LabelledImages(pixels=images, labels=labels), [0.03])
    strong = PGD(eps=0.03, steps=30, restarts=5)(model, images, labels)
    assert 0 < result.success.sum() < len(labels)
    assert (~result.success).sum() <= (~strong.success).sum()
    assert abs(int(result.success.sum()) - int((~found.robust[:, 0]).sum())) <= 1
    assert (result.norm <= 0.03 + 1e-6).all()


def test_autoattack_does_not_aim() -> None:
    task = small_task()
    with pytest.raises(SettingError, match="cannot be targeted"):
        AutoAttack(eps=0.1)(task.model, task.images, task.labels, targets=(task.labels + 1) % 4)


# -------------------------------------------------------------------------------------------------- memory and batches


def _full(limit: int, error: Exception) -> Callable[[slice], list[int]]:
    """Work that holds at most `limit` examples."""

    def work(part: slice) -> list[int]:
        if part.stop - part.start > limit:
            raise error
        return list(range(part.start, part.stop))

    return work


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
@pytest.mark.parametrize("limit", [1, 3, 7, 100])
def test_batches_are_halved_until_they_fit(limit: int, error: Exception) -> None:
    listener = Listener()
    found = batched(37, 16, _full(limit, error), listener)
    assert [number for part in found for number in part] == list(range(37))
    assert bool(listener.said) == (limit < 16)
    assert all("images at a time" in words for words in listener.said)


def test_memory_that_holds_nothing_is_named() -> None:
    with pytest.raises(MachineError, match="one image at a time"):
        batched(4, 4, _full(0, MemoryError()))


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        batched(4, 4, _full(0, RuntimeError("shapes differ")))


class _Small(nn.Module):
    """A network that does not fit into memory with more than eight images."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > 8:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes")
        return self.inner(images)


@pytest.mark.integration
@pytest.mark.usefixtures("unchecked")
def test_an_evaluation_goes_on_with_smaller_batches() -> None:
    """And finds the same, since draws are keyed by example."""
    attacks = {"pgd": PGD(eps=0.1, steps=5), "square": Square(eps=0.1, n_queries=20)}
    small = classifier(_Small(PROBLEM.model))
    listener = Listener()
    found = evaluate(small, IMAGES, eps=VALUES, attacks=attacks, observer=listener)
    whole = evaluate(PROBLEM.model, IMAGES, eps=VALUES, attacks=attacks)
    assert any("Out of memory" in words for words in listener.said)
    assert np.array_equal(found.cascade.robust, whole.cascade.robust)
    assert [each.word for each in found.verdicts] == [each.word for each in whole.verdicts]


# ------------------------------------------------------------------------------------------------------ bad input


class _Returns(nn.Module):
    """A network that returns something of its own."""

    def __init__(self, make: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.make = make

    def forward(self, images: Tensor) -> object:
        return self.make(images)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda images: torch.zeros(len(images), 3), r"expected one logit for each of its 2 classes"),
        (lambda images: {"scores": images}, r"returns a dict with 'scores' .* for 1 image; .*output='scores'"),
        (lambda images: images.view(3, 5), "fails on a batch of shape"),
    ],
)
def test_a_model_that_is_no_classifier_is_named(make: Callable[[Tensor], object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        evaluate(classifier(_Returns(make)), IMAGES, eps=0.1)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (LabelledImages(pixels=IMAGES.pixels * 255, labels=IMAGES.labels), "the model's bounds are"),
        (LabelledImages(pixels=IMAGES.pixels, labels=IMAGES.labels + 1), "they run from 0 to 1"),
        (IMAGES[:0], "no images"),
    ],
)
def test_images_that_do_not_fit_are_named(images: LabelledImages, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        evaluate(PROBLEM.model, images, eps=0.1)


@pytest.mark.usefixtures("unchecked")
def test_no_eps_is_named() -> None:
    with pytest.raises(SettingError, match="all above zero"):
        evaluate(PROBLEM.model, IMAGES, eps=[0.0, 0.1])
    with pytest.raises(SettingError, match="budget"):
        attacks_for("endless", "linf", 0.1, randomised=False)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------- random answers


class _Noisy(nn.Module):
    """A linear network whose pixels get noise at every pass."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images + torch.randn_like(images))


def test_the_mean_of_many_answers_is_the_answer_without_noise() -> None:
    """Of a linear network, whose mean under noise it is; the error falls with the root of the number of draws."""
    noisy = classifier(_Noisy(PROBLEM.model))
    torch.manual_seed(0)
    with torch.no_grad():
        truth = PROBLEM.model(PROBLEM.images)
        few, many = ((mean_over_samples(noisy, draws)(PROBLEM.images) - truth).std().item() for draws in (4, 400))
    assert 5 < few / many < 20
    with pytest.raises(SettingError, match="draws = 0"):
        mean_over_samples(noisy, 0)


def test_the_same_draws_give_the_same_answer_and_leave_the_generator_alone() -> None:
    fixed = with_fixed_seed(classifier(_Noisy(PROBLEM.model)), seed=1)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first, second = fixed(PROBLEM.images), fixed(PROBLEM.images)
    assert torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(first, with_fixed_seed(classifier(_Noisy(PROBLEM.model)), seed=2)(PROBLEM.images))
