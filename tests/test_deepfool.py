"""DeepFool: exact distances on linear classifiers, the overshoot, and the published algorithm written out."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from casemate.attacks import FGSM, Status
from casemate.attacks.deepfool import DeepFool
from casemate.errors import CasemateWarning, SettingError
from casemate.models import Classifier
from casemate.norms import Bounds, Norm
from oracles import (
    SHAPE,
    Counting,
    Task,
    as_installed,
    check_claims,
    check_inside,
    classifier,
    generator,
    linear_problem,
    network,
    small_task,
)
from test_attacks import Trouble
from test_fab import Steps, check_near_exact, exact_distance

NORMS: tuple[Norm, ...] = ("l2", "linf")


LONGER = 1e-4
"""By so much, as a share of the range of the pixels, the authors' code lengthens every step."""


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("norm", NORMS)
def test_the_nearest_point_within_the_bounds_is_found(norm: Norm, seed: int) -> None:
    """Many pixels meet a bound; the last step passes the plane by at most the overshoot and its own lengthening."""
    attack = DeepFool(norm=norm)
    check_near_exact(attack, linear_problem(seed), slack=0.021, beyond=1.03 * LONGER)
    check_near_exact(attack, linear_problem(seed, scale=30.0, gap=4.0), slack=0.05)


@pytest.mark.parametrize("norm", NORMS)
def test_most_pixels_cannot_follow(norm: Norm) -> None:
    """Three quarters of the slope point out of the box, so every step gets but a quarter of the way."""
    layer = nn.Linear(36, 2)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[1] = torch.tensor([1.0, -1.0, -1.0, -1.0] * 9)
        layer.bias.copy_(torch.tensor([0.0, -4.5]))
    model = classifier(nn.Sequential(nn.Flatten(), layer))
    images, labels = torch.zeros(1, *SHAPE), torch.zeros(1, dtype=torch.int64)
    result = DeepFool(norm=norm)(model, images, labels)
    best = 0.5 if norm == "linf" else 1.5  # nine pixels up by a half
    assert result.success.all()
    assert best < result.distance.item() < best * 1.05
    assert 2 * 15 < result.passes.forward < 2 * 40


@pytest.mark.parametrize("overshoot", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("norm", NORMS)
def test_the_overshoot_is_applied(norm: Norm, overshoot: float) -> None:
    """Without bounds in the way a plane is met in one step, and passed by a share of its distance."""
    problem = linear_problem(1, low=0.35, high=0.65, gap=0.5)
    result = DeepFool(norm=norm, overshoot=overshoot, steps=1)(problem.model, problem.images, problem.labels)
    expected = (1 + overshoot) * (exact_distance(problem, norm) + LONGER)
    assert result.success.all()
    assert torch.allclose(result.distance.double(), expected, rtol=2e-4, atol=1e-6)


def published(task: Task, number: int, norm: Norm, overshoot: float) -> tuple[Tensor, int]:
    """Algorithm 2 of the paper, and its section 3.3, for one image; and how many steps it takes.

    With the lengthening of the authors' code, and the image clipped to the bounds.
    """
    clean, label = task.images[number], int(task.labels[number])
    low, high = task.model.bounds
    total = torch.zeros_like(clean)
    for step in range(50):
        image = (clean + (1 + overshoot) * total).clamp(low, high).unsqueeze(0)
        logits = task.model(image)[0].detach()
        if int(logits.argmax()) != label:
            return image[0], step
        jacobian = torch.autograd.functional.jacobian(task.model, image)[0]  # type: ignore[arg-type]
        slopes = [(jacobian[k] - jacobian[label])[0] for k in range(4) if k != label]
        gaps = [float(logits[k] - logits[label]) for k in range(4) if k != label]
        dual = 1 if norm == "linf" else 2
        away = [abs(gap) / float(slope.flatten().norm(p=dual)) for gap, slope in zip(gaps, slopes, strict=True)]
        near = min(range(3), key=lambda k: away[k])
        slope = slopes[near]
        length = away[near] + LONGER * (high - low)
        total = total + length * (slope.sign() if norm == "linf" else slope / slope.norm())
    raise AssertionError("the written-out algorithm did not end")


@pytest.mark.parametrize("bounds", [(-20.0, 20.0), (0.0, 1.0)])
@pytest.mark.parametrize("norm", NORMS)
def test_steps_are_those_of_the_paper(norm: Norm, bounds: Bounds) -> None:
    """Far from the bounds, and where the iterates are clipped to them."""
    task = small_task(2, count=20, scale=6.0)
    model = Classifier(task.model.network, input_shape=SHAPE, classes=tuple("abcd"), bounds=bounds).eval()
    task = Task(model, task.images, task.model(task.images).argmax(1))
    found = DeepFool(norm=norm)(model, task.images, task.labels)
    expected, steps = zip(*(published(task, number, norm, 0.02) for number in range(20)), strict=True)
    assert min(steps) >= 1
    assert max(steps) >= 2
    assert torch.allclose(found.adversarial, torch.stack(expected), rtol=0, atol=2e-4)
    assert found.passes.backward == 3 * sum(steps)


@pytest.mark.parametrize("norm", NORMS)
def test_images_fool_and_are_what_they_are_said_to_be(norm: Norm) -> None:
    task = small_task(1, count=60)
    attack = DeepFool(norm=norm)
    result = attack(task.model, task.images, task.labels)
    check_inside(attack, result, task.images)
    check_claims(result, task)
    assert result.success.all()
    wrong = task.model(task.images).argmax(1) != task.labels
    assert torch.equal(result.adversarial[wrong], task.images[wrong])
    assert result.distance[~wrong].gt(0).all()
    parts = attack(task.model, task.images, task.labels, batch_size=7)
    assert torch.allclose(result.adversarial, parts.adversarial, rtol=0, atol=1e-9)
    assert result.passes == parts.passes


def test_more_are_fooled_within_eps_than_by_one_step() -> None:
    task = small_task(3, count=60)
    near = DeepFool(norm="linf")(task.model, task.images, task.labels)
    for share in (0.3, 0.5, 0.7):
        eps = float(near.distance.quantile(share))
        baseline = FGSM(eps=eps)(task.model, task.images, task.labels)
        assert 0 < baseline.success.sum() <= (near.distance <= eps + 1e-6).sum()


@pytest.mark.filterwarnings("ignore:.* found nothing that fools:casemate.errors.CasemateWarning")
@pytest.mark.parametrize("classes", [2, 3, 12])
def test_any_number_of_classes(classes: int) -> None:
    model = classifier(network(7, classes=classes, scale=4.0), classes)
    images = torch.rand(10, *SHAPE, generator=generator(1), dtype=torch.float64)
    labels = model(images).argmax(1)
    assert DeepFool()(model, images, labels).success.all()
    once = DeepFool(steps=1)(model, images, labels)
    assert once.passes.backward == 10 * (min(10, classes) - 1)
    few = DeepFool(candidates=2, steps=1)(model, images, labels)
    assert few.passes.backward == 10


def test_a_candidate_that_is_left_out_is_not_looked_at() -> None:
    """Three classes: the likeliest rival's boundary is far, that of the other near."""
    layer = nn.Linear(36, 3)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[1, 0] = 0.1
        layer.weight[2, 1] = 10.0
        layer.bias.copy_(torch.tensor([1.0, 0.92, -4.5]))
    model = classifier(nn.Sequential(nn.Flatten(), layer), 3)
    images, labels = torch.full((1, *SHAPE), 0.5), torch.zeros(1, dtype=torch.int64)
    assert model(images).argmax(1).item() == 0
    images[0, 0, 0, 0] = 0.0
    both = DeepFool()(model, images, labels)
    assert both.prediction.item() == 2
    assert both.distance.item() == pytest.approx(0.05 * 1.02, rel=0.01)
    one = DeepFool(candidates=2)(model, images, labels)
    assert one.prediction.item() == 1
    assert one.distance.item() == pytest.approx(0.8 * 1.02, rel=0.01)


def test_an_image_exactly_on_the_boundary_is_pushed_across() -> None:
    """A tie goes to the first class; the nearest plane is at distance 0."""
    layer = nn.Linear(36, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([torch.full((36,), 0.25), torch.tensor([0.125, 0.375] * 18)]))
    model = classifier(nn.Sequential(nn.Flatten(), layer))
    images, labels = torch.full((2, *SHAPE), 0.5), torch.zeros(2, dtype=torch.int64)
    assert model(images)[0].diff().item() == 0
    for norm in NORMS:
        result = DeepFool(norm=norm)(model, images, labels)
        assert result.status.eq(Status.SUCCESS).all()
        assert result.distance.max() < 1e-3


def test_passes_are_counted() -> None:
    task = small_task(1)
    counting = Counting(task.model.network)
    model = classifier(counting, 4)
    result = DeepFool()(model, task.images, task.labels)
    assert result.passes.forward == counting.forwards
    assert result.passes.backward == counting.backwards > 0
    assert counting.backwards < 3 * 25 * 6, "who is fooled leaves"
    wrong = task.model(task.images).argmax(1) != task.labels
    counting.restart()
    result = DeepFool()(model, task.images[wrong], task.labels[wrong])
    assert torch.equal(result.adversarial, task.images[wrong])
    assert (counting.forwards, counting.backwards) == (2 * int(wrong.sum()), 0)


@pytest.mark.parametrize("norm", NORMS)
def test_numbers_that_are_not_finite_are_a_status_and_give_the_clean_image(norm: Norm) -> None:
    task = small_task(4)
    model = classifier(Trouble(task.model.network), 4)
    images = task.images.clone()
    images[:, 0, 0, :2] = 0.9
    images[0:10, 0, 0, 0] = 0.5  # no gradient to follow
    images[10:20, 0, 0, 1] = 0.1  # no logits to begin with
    clean = model(images)
    right = clean.isfinite().all(1) & (clean.argmax(1) == task.labels)
    with pytest.warns(CasemateWarning, match="of 30 images DeepFool met logits or gradients that are not finite"):
        result = DeepFool(norm=norm)(model, images, task.labels)
    lost = result.status == Status.NON_FINITE
    assert lost[:10][right[:10]].all()
    assert lost[10:20].all()
    assert torch.equal(result.adversarial[lost], images[lost])
    assert result.status[20:].ne(Status.NON_FINITE).all()
    assert result.adversarial.isfinite().all()


@pytest.mark.parametrize("cut", [True, False])
def test_no_gradient_is_a_status(cut: bool) -> None:
    task = small_task(1)
    model = classifier(Steps(task.model.network, cut=cut), 4)
    with pytest.warns(CasemateWarning, match="DeepFool had no gradient to follow on 25 of 30 images"):
        result = DeepFool(steps=3)(model, task.images, task.labels)
    assert torch.equal(result.adversarial, task.images)
    assert (result.status == Status.ZERO_GRADIENT).sum() == 25
    assert (result.status == Status.SUCCESS).sum() == 5


def test_what_no_step_fools_is_handed_back() -> None:
    task = small_task(5, scale=6.0)
    with pytest.warns(CasemateWarning, match="DeepFool found nothing that fools on .* of 30 images"):
        short = DeepFool(steps=1)(task.model, task.images, task.labels)
    full = DeepFool()(task.model, task.images, task.labels)
    failed = ~short.success
    assert 0 < failed.sum() < 25
    assert short.status[failed].eq(Status.FAILED).all()
    assert torch.equal(short.adversarial[failed], task.images[failed])
    assert full.success.all()


BAD_SETTINGS: list[dict[str, Any]] = [
    {"norm": "l1"},
    {"norm": "l3"},
    {"steps": 0},
    {"overshoot": -0.1},
    {"overshoot": math.inf},
    {"overshoot": math.nan},
    {"candidates": 1},
]


@pytest.mark.parametrize("settings", BAD_SETTINGS)
def test_settings_outside_their_values_are_refused(settings: dict[str, Any]) -> None:
    with as_installed(), pytest.raises(SettingError, match=next(iter(settings))):
        DeepFool(**settings)


def test_it_cannot_aim() -> None:
    task = small_task()
    with pytest.raises(SettingError, match="cannot be targeted"):
        DeepFool()(task.model, task.images, task.labels, targets=(task.labels + 1) % 4)
