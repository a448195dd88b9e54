"""FAB and FAB-T: the hyperplane they step to, exact distances on linear classifiers, and algorithm 1 written out."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from casemate.attacks import PGD, AbstractMinimumNormAttack, Misclassification, Status, frozen
from casemate.attacks._hyperplane import NormalizedNormal, likeliest_classes, nearest_boundary, nearest_point
from casemate.attacks.fab import FAB, TargetedFAB
from casemate.errors import CasemateWarning, SettingError
from casemate.models import Classifier
from casemate.norms import Bounds, Norm, norm_of
from oracles import (
    EXAMINED,
    PIXELS,
    SHAPE,
    UNIT,
    Counting,
    Linear,
    Tally,
    Task,
    Uncopied,
    as_installed,
    check_claims,
    check_inside,
    classifier,
    distance,
    generator,
    linear_problem,
    network,
    room,
    small_task,
)
from test_attacks import Trouble

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
KINDS: tuple[Callable[..., AbstractMinimumNormAttack], ...] = (FAB, TargetedFAB)
seeds = st.integers(0, 10_000)


# ---------------------------------------------------------------------------------- exact answers, by other means


def shortest_move(slope: Tensor, rooms: Tensor, rise: Tensor, norm: Norm) -> Tensor:
    """Sizes of the pixels' moves, float64 `(n, pixels)`: by bisection of the scale (Linf, L2), by sorting (L1)."""
    size, rooms, rise = slope.abs().double(), rooms.double(), rise.double().unsqueeze(1)
    largest = size.amax(1, keepdim=True)
    size, rise = size / largest, rise / largest
    if norm == "l1":
        size, order = size.sort(dim=1, descending=True)
        free = rooms.gather(1, order)
        before = (size * free).cumsum(1) - size * free
        moved = ((rise - before) / size.clamp(min=1e-300)).clamp(min=0).minimum(free)
        return torch.zeros_like(moved).scatter(1, order, moved)
    pace = torch.ones_like(size) if norm == "linf" else size
    low, high = torch.zeros_like(rise), torch.full_like(rise, 1e6)
    for _ in range(120):
        middle = (low + high) / 2
        over = (size * (middle * pace).minimum(rooms)).sum(1, keepdim=True) >= rise
        low, high = torch.where(over, low, middle), torch.where(over, middle, high)
    return (high * pace).minimum(rooms).masked_fill(size == 0, 0)


def exact_distance(problem: Linear, norm: Norm, bounds: Bounds = UNIT) -> Tensor:
    """How far the boundary is from each image within the bounds; every image can reach it."""
    rooms = room(problem.images.flatten(1).double(), problem.slope, bounds)
    margin = problem.margin(problem.images).detach()
    assert ((problem.slope.abs() * rooms).sum(1) > margin).all()
    return norm_of(shortest_move(problem.slope, rooms, margin, norm), norm)


def check_near_exact(
    attack: AbstractMinimumNormAttack, problem: Linear, *, slack: float, beyond: float = 1e-6, targeted: bool = False
) -> None:
    """Every image fools, and none is nearer than possible, or farther than by a share `slack` and `beyond`."""
    targets = 1 - problem.labels if targeted else None
    result = attack(problem.model, problem.images, problem.labels, targets=targets)
    best = exact_distance(problem, attack.norm)
    assert result.status.eq(Status.SUCCESS).all()
    assert (result.distance.double() >= best * (1 - 1e-4) - 1e-6).all(), "nearer than the boundary"
    assert (result.distance.double() <= best * (1 + slack) + beyond).all(), (result.distance / best).max()


# -------------------------------------------------------------------------------------------------- the hyperplane


def plane_problem(seed: int, count: int, side: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Images, a third of their pixels exactly at a bound, and slopes of very different sizes, some of them zero."""
    random = generator(seed)
    images = (1.6 * torch.rand(count, 1, side, side, generator=random, dtype=dtype) - 0.3).clamp(0, 1)
    slope = torch.randn(images.shape, generator=random, dtype=dtype)
    slope *= torch.rand(images.shape, generator=random, dtype=dtype) ** 4
    return images, slope.where(torch.rand(images.shape, generator=random) > 0.1, 0)


def check_nearest(images: Tensor, slope: Tensor, rise: Tensor, norm: Norm, bounds: Bounds, rounding: float) -> None:
    """On the plane, within the bounds, and as short as the answer found by other means."""
    move = nearest_point(images, NormalizedNormal(slope), rise, norm, bounds).double()
    reached = (slope.double() * move).flatten(1).sum(1)
    assert ((reached - rise.double()).abs() <= rounding * rise.abs()).all()
    moved = images.double() + move
    scale = bounds[1] - bounds[0]
    assert moved.min() >= bounds[0] - rounding * scale
    assert moved.max() <= bounds[1] + rounding * scale
    toward = (slope * rise.sign().view(-1, 1, 1, 1)).flatten(1).double()
    rooms = room(images.flatten(1).double(), -toward, bounds)
    # compared with the answers for a little less and a little more: the last bit of the rise may take a long way
    less, more = (
        norm_of(shortest_move(toward, rooms, rise.abs().double() * (1 + sign * rounding), norm), norm)
        for sign in (-1, 1)
    )
    length = norm_of(move, norm)
    assert (length >= less * (1 - rounding)).all()
    assert (length <= more * (1 + rounding)).all()


@given(seeds, st.sampled_from(NORMS), st.floats(1e-6, 0.999))
def test_the_nearest_point_is_exact(seed: int, norm: Norm, share: float) -> None:
    images, slope = plane_problem(seed, 8, 6, torch.float64)
    sign = torch.randint(2, (8,), generator=generator(seed)) * 2 - 1
    toward = (slope * sign.view(-1, 1, 1, 1)).flatten(1)
    most = (toward.abs() * room(images.flatten(1), -toward)).sum(1)
    check_nearest(images, slope, sign * share * most, norm, UNIT, 1e-12)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("share", [0.002, 0.1, 0.9, 0.9999])
def test_the_nearest_point_of_float32_images_is_on_the_plane_to_rounding(norm: Norm, share: float) -> None:
    images, slope = plane_problem(1, 64, 28, torch.float32)
    most = (slope.abs().flatten(1) * room(images.flatten(1), -slope.flatten(1))).sum(1)
    check_nearest(images, slope, share * most, norm, UNIT, 4e-6)
    check_nearest(255 * images, slope, 255 * share * most, norm, (0.0, 255.0), 4e-6)
    shrunk = 1e-30 * slope  # its squares are zero in float32
    check_nearest(images, shrunk, share * (1e-30 * most), norm, UNIT, 4e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_a_plane_out_of_reach_gives_the_corner_and_no_slope_or_rise_no_move(norm: Norm) -> None:
    images, slope = plane_problem(2, 9, 28, torch.float32)
    corner = torch.where(slope > 0, 1 - images, torch.where(slope < 0, -images, 0))
    most = (slope * corner).flatten(1).sum(1)
    for rise in (1.001 * most, 1e6 * most, torch.full_like(most, 1e38), torch.full_like(most, torch.inf)):
        assert torch.equal(nearest_point(images, NormalizedNormal(slope), rise, norm, UNIT), corner)
    mixed = torch.where(torch.arange(9) % 2 == 0, 1e6, 0.0) * most  # one in reach does not hang on one that is not
    assert torch.equal(nearest_point(images, NormalizedNormal(slope), mixed, norm, UNIT)[::2], corner[::2])
    assert nearest_point(images, NormalizedNormal(slope), mixed, norm, UNIT)[1::2].eq(0).all()
    for rise in (torch.zeros_like(most), most):
        assert nearest_point(images, NormalizedNormal(torch.zeros_like(slope)), rise, norm, UNIT).eq(0).all()


@pytest.mark.parametrize("norm", NORMS)
def test_the_nearest_boundary_is_that_of_least_gap_over_dual_norm(norm: Norm) -> None:
    task = small_task(3, count=12)
    own = task.labels
    everyone = (own.unsqueeze(1) + torch.arange(1, 4)) % 4
    with frozen(task.model):
        plane = nearest_boundary(task.model, task.images, Misclassification(own), everyone, norm)
        likeliest = nearest_boundary(task.model, task.images, Misclassification(own), None, norm)
    order = {"linf": 1, "l2": 2, "l1": math.inf}[norm]
    for number, label in enumerate(own.tolist()):
        jacobian = torch.autograd.functional.jacobian(task.model, task.images[number : number + 1])[0]  # type: ignore[arg-type]
        logits = task.model(task.images[number : number + 1])[0].detach()
        wrong = [other for other in range(4) if other != label]
        slopes = {other: jacobian[other] - jacobian[label] for other in wrong}
        lengths = {other: slopes[other].flatten().norm(p=order) for other in wrong}
        near = min(wrong, key=lambda other: float((logits[other] - logits[label]).abs() / lengths[other]))
        assert torch.allclose(plane.normal[number], slopes[near][0], rtol=0, atol=1e-12)
        assert torch.allclose(plane.offset[number], logits[near] - logits[label], rtol=0, atol=1e-12)
        assert torch.allclose(plane.length[number], lengths[near], rtol=0, atol=1e-12)
        top = max(wrong, key=lambda other: float(logits[other]))
        assert torch.allclose(likeliest.normal[number], slopes[top][0], rtol=0, atol=1e-12)


def test_the_likeliest_rivals_come_in_order_and_are_never_the_own_class() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, -1.0, 5.0]])
    own = torch.tensor([0, 0])
    assert likeliest_classes(logits, own, 9).tolist() == [[2, 1], [2, 1]]
    assert likeliest_classes(logits, torch.tensor([2, 1]), 1).tolist() == [[0], [2]]


# ----------------------------------------------------------------------------------- exact on linear classifiers


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_distance_to_a_plane_is_found(
    kind: Callable[..., AbstractMinimumNormAttack], norm: Norm, seed: int
) -> None:
    """Pixels meet their bounds, in L1 nearly all that move. The required 5 per cent, and in fact one."""
    check_near_exact(kind(norm=norm, steps=50), linear_problem(seed), slack=0.01)
    check_near_exact(kind(norm=norm, steps=10), linear_problem(seed, gap=4.0), slack=0.05)


@pytest.mark.parametrize("norm", NORMS)
def test_the_distance_is_found_towards_a_target(norm: Norm) -> None:
    check_near_exact(FAB(norm=norm), linear_problem(5), slack=0.01, targeted=True)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_distance_is_found_where_the_softmax_is_saturated(
    kind: Callable[..., AbstractMinimumNormAttack], norm: Norm
) -> None:
    problem = linear_problem(4, scale=30.0, gap=4.0)
    assert problem.margin(problem.images).max() > 50
    check_near_exact(kind(norm=norm), problem, slack=0.01)


@pytest.mark.parametrize("norm", NORMS)
def test_bounds_other_than_zero_and_one(norm: Norm) -> None:
    """The same problem in grey levels, with a colour channel more: the distances are 255 times as long."""
    problem = linear_problem(6)
    layer = problem.model.network[1]  # type: ignore[index]
    grey = nn.Linear(PIXELS, 2)
    with torch.no_grad():
        grey.weight.copy_(layer.weight / 255)
        grey.bias.copy_(layer.bias)
    shape = (3, 4, 3)
    model = Classifier(nn.Sequential(nn.Flatten(), grey), input_shape=shape, classes=("a", "b"), bounds=(0.0, 255.0))
    images = 255 * problem.images.view(-1, *shape)
    result = FAB(norm=norm)(model, images, problem.labels)
    best = 255 * exact_distance(problem, norm)
    assert result.success.all()
    assert (result.distance.double() <= 1.01 * best + 1e-3).all()
    assert (result.distance.double() >= 0.999 * best - 1e-3).all()
    assert result.adversarial.min() >= 0
    assert result.adversarial.max() <= 255


# ------------------------------------------------------------------------------------------ algorithm 1, written out


def published(task: Task, attack: FAB, aim: int | None, number: int) -> Tensor:
    """Algorithm 1 of the paper for one image, its planes solved by bisection; `aim` is the one class looked at."""
    clean, label = task.images[number], int(task.labels[number])
    norm = attack.norm

    def length(move: Tensor) -> float:
        return float(norm_of(move.unsqueeze(0), norm))

    def project(point: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
        rise = -offset - (slope * point).sum()
        toward = (slope * rise.sign()).flatten().unsqueeze(0)
        sizes = shortest_move(toward, room(point.flatten().unsqueeze(0), -toward), rise.abs().unsqueeze(0), norm)
        return (toward.sign() * sizes).view_as(point)

    image, found, nearest = clean.clone(), clean.clone(), math.inf
    for _ in range(attack.steps):
        jacobian = torch.autograd.functional.jacobian(task.model, image.unsqueeze(0))[0]  # type: ignore[arg-type]
        logits = task.model(image.unsqueeze(0))[0].detach()
        wrong = [other for other in range(4) if other != label] if aim is None else [aim]
        dual = {"linf": 1, "l2": 2, "l1": math.inf}[norm]
        away = {
            other: float(
                (logits[other] - logits[label]).abs() / (jacobian[other] - jacobian[label]).flatten().norm(dual)
            )
            for other in wrong
        }
        near = min(wrong, key=lambda other: away[other])
        slope = jacobian[near][0] - jacobian[label][0]
        offset = logits[near] - logits[label] - (slope * image).sum()
        across, back = project(image, slope, offset), project(clean, slope, offset)
        alpha = min(length(across) / (length(across) + length(back)), attack.alpha_max)
        image = ((1 - alpha) * (image + attack.eta * across) + alpha * (clean + attack.eta * back)).clamp(0, 1)
        if int(task.model(image.unsqueeze(0)).argmax()) != label:
            if length(image - clean) < nearest:
                nearest, found = length(image - clean), image
            image = clean + attack.beta * (image - clean)
    return found


@pytest.mark.integration
@pytest.mark.parametrize("norm", NORMS)
def test_steps_are_those_of_the_paper(norm: Norm) -> None:
    task = small_task(2, count=7)
    right = torch.tensor([1, 2, 3, 4, 5])
    task = replace(task, images=task.images[right], labels=task.labels[right])
    attack = FAB(norm=norm, steps=6, alpha_max=0.15, eta=1.1, beta=0.8)
    expected = torch.stack([published(task, attack, None, number) for number in range(5)])
    found = attack(task.model, task.images, task.labels)
    assert found.success.all()
    assert torch.allclose(found.adversarial, expected, rtol=0, atol=1e-9)
    likeliest = likeliest_classes(task.model(task.images), task.labels, 1).squeeze(1).tolist()
    aimed = torch.stack([published(task, attack, aim, number) for number, aim in enumerate(likeliest)])
    settings = {name: getattr(attack, name) for name in ("norm", "steps", "alpha_max", "eta", "beta")}
    found = TargetedFAB(classes=1, **settings)(task.model, task.images, task.labels)
    assert torch.allclose(found.adversarial, aimed, rtol=0, atol=1e-9)


class Recorder(Uncopied):
    """Remembers the images it sees, those of the examination first."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.tally = Tally()

    def forward(self, images: Tensor) -> Tensor:
        """Remember and pass on."""
        self.tally.seen.append(images.detach().clone())
        return self.inner(images)


@pytest.mark.filterwarnings("ignore:.* found nothing that fools:casemate.errors.CasemateWarning")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_random_starts_lie_at_half_the_radius_or_half_the_distance_found(
    kind: Callable[..., AbstractMinimumNormAttack], norm: Norm
) -> None:
    task = small_task(1, count=12)
    images = 0.45 + 0.1 * task.images
    labels = task.model(images).argmax(1)
    for radius, expected in ((0.02, 0.01), (None, None), (0.0, 0.0)):
        recorder = Recorder(task.model.network)
        settings: dict[str, Any] = {"classes": 1} if kind is TargetedFAB else {}
        attack = kind(norm=norm, steps=1, restarts=2, restart_eps=radius, **settings)
        found = kind(norm=norm, steps=1, **settings)(task.model, images, labels).distance
        attack(classifier(recorder, 4), images, labels)
        seen = recorder.tally.seen[EXAMINED:]
        _, first, _, second, _, _ = seen  # clean, twice step and check, and what the caller verifies
        assert torch.equal(first, images)
        away = torch.from_numpy(distance(second, images, norm))
        default = {"linf": 0.3, "l2": 1.0, "l1": 5.0}[norm]
        reach = found.double().clamp(max=default) / 2 if expected is None else torch.full_like(away, expected)
        inside = (second > 0).flatten(1).all(1) & (second < 1).flatten(1).all(1)
        assert inside.any()
        assert torch.allclose(away[inside], reach[inside].minimum(found.double()[inside] / 2), rtol=1e-5, atol=1e-8)


# ---------------------------------------------------------------------------------- properties, on a small network


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_images_fool_and_are_what_they_are_said_to_be(
    kind: Callable[..., AbstractMinimumNormAttack], norm: Norm
) -> None:
    task = small_task(1)
    attack = kind(norm=norm, steps=20)
    result = attack(task.model, task.images, task.labels)
    check_inside(attack, result, task.images)
    check_claims(result, task)
    assert result.success.all()
    right = result.norm > 0
    assert right.sum() == 25
    inner = task.images + 0.97 * (result.adversarial - task.images)  # hardly anything of the way is to spare
    assert task.model(inner).argmax(1).eq(task.labels)[right].double().mean() > 0.6


@pytest.mark.filterwarnings("ignore:.* found nothing that fools:casemate.errors.CasemateWarning")
@pytest.mark.parametrize("norm", NORMS)
def test_targets_are_reached(norm: Norm) -> None:
    """The least likely class of four, of a network that favours none; nearer than PGD would."""
    task = small_task(1)
    with torch.no_grad():
        logits = task.model(task.images)
        task.model.network[-1].bias -= logits.mean(0)  # type: ignore[index]
        logits -= logits.mean(0)
    task = replace(task, labels=logits.argmax(1))
    targets = likeliest_classes(logits, task.labels, 3)[:, -1]
    result = FAB(norm=norm, steps=30)(task.model, task.images, task.labels, targets=targets)
    check_claims(result, task, targets)
    assert result.success.sum() >= 28
    assert result.passes.backward == 30 * 30
    free = FAB(norm=norm, steps=30)(task.model, task.images, task.labels)
    assert (result.distance >= free.distance * 0.98).sum() >= 28, "a given class is not nearer than any class"
    assert result.distance.median() > 1.5 * free.distance.median()
    eps = float(result.distance.median())
    baseline = PGD(eps=eps, norm=norm, steps=30)(task.model, task.images, task.labels, targets=targets)
    assert 5 < baseline.success.sum() <= (result.distance <= eps + 1e-6).sum()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_at_least_as_many_are_fooled_within_eps_as_by_pgd(
    kind: Callable[..., AbstractMinimumNormAttack], norm: Norm
) -> None:
    task = small_task(0)
    near = kind(norm=norm, steps=20)(task.model, task.images, task.labels)
    for share in (0.25, 0.5, 0.75):
        eps = float(near.distance.quantile(share))
        baseline = PGD(eps=eps, norm=norm, steps=20)(task.model, task.images, task.labels)
        assert 0 < baseline.success.sum() <= (near.distance <= eps + 1e-6).sum()


@pytest.mark.filterwarnings("ignore:.* found nothing that fools:casemate.errors.CasemateWarning")
@pytest.mark.parametrize("classes", [2, 3, 12])
def test_any_number_of_classes(classes: int) -> None:
    model = classifier(network(7, classes=classes, scale=4.0), classes)
    images = torch.rand(10, *SHAPE, generator=generator(1), dtype=torch.float64)
    labels = model(images).argmax(1)
    distances = [kind(steps=15)(model, images, labels).distance for kind in KINDS]
    assert all(each.isfinite().all() for each in distances)
    assert torch.allclose(*distances, rtol=0.02) if classes == 2 else True
    assert (distances[1] <= 1.05 * distances[0]).all()
    result = TargetedFAB(steps=1)(model, images, labels)
    assert result.passes.backward == 10 * min(9, classes - 1)


@pytest.mark.filterwarnings("ignore:.* found nothing that fools:casemate.errors.CasemateWarning")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_batch_size_does_not_matter(kind: Callable[..., AbstractMinimumNormAttack], norm: Norm) -> None:
    task = small_task(1, scale=30.0)
    attack = kind(norm=norm, steps=2, restarts=2, stop_at_distance={"linf": 0.02, "l2": 0.1, "l1": 0.3}[norm])
    whole = attack(task.model, task.images, task.labels, seed=4)
    parts = attack(task.model, task.images, task.labels, seed=4, batch_size=7)
    assert torch.allclose(whole.adversarial, parts.adversarial, rtol=0, atol=1e-9)
    assert torch.equal(whole.status, parts.status)
    assert whole.passes == parts.passes
    other = attack(task.model, task.images, task.labels, seed=5)
    assert not torch.equal(whole.adversarial, other.adversarial)


@pytest.mark.filterwarnings("ignore:.* found nothing that fools:casemate.errors.CasemateWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_restarts_and_steps_never_worsen(kind: Callable[..., AbstractMinimumNormAttack]) -> None:
    task = small_task(1, scale=30.0)
    previous, medians = torch.full((30,), math.inf, dtype=torch.float64), []
    for steps, restarts in ((3, 1), (10, 1), (10, 3)):
        found = kind(steps=steps, restarts=restarts)(task.model, task.images, task.labels).distance
        assert (found <= previous).all()
        previous = found
        medians.append(found[found > 0].median())
    assert medians[1] < medians[0]


@pytest.mark.filterwarnings("ignore:.* found nothing that fools:casemate.errors.CasemateWarning")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_enough_fools_the_same_images_in_less_time(kind: Callable[..., AbstractMinimumNormAttack], norm: Norm) -> None:
    task = small_task(2)
    full = kind(norm=norm, steps=10, restarts=2)(task.model, task.images, task.labels)
    eps = float(full.distance[full.distance > 0].median()) * 1.001
    early = kind(norm=norm, steps=10, restarts=2, stop_at_distance=eps)(task.model, task.images, task.labels)
    assert ((full.distance <= eps) == (early.distance <= eps)).all()
    assert early.success.all()
    assert early.passes.backward < 0.75 * full.passes.backward
    nothing = kind(norm=norm, steps=2, stop_at_distance=0.0, restart_eps=0.0, restarts=2)(
        task.model, task.images, task.labels
    )
    assert (nothing.distance <= 0).sum() == 5, "only what is wrong from the start lies within 0"


@pytest.mark.parametrize("kind", KINDS)
def test_passes_are_counted(kind: Callable[..., AbstractMinimumNormAttack]) -> None:
    task = small_task(1)
    counting = Counting(task.model.network)
    model = classifier(counting, 4)
    result = kind(steps=4, restarts=2, stop_at_distance=0.03)(model, task.images, task.labels)
    assert result.passes.forward == counting.forwards
    assert result.passes.backward == counting.backwards > 0
    wrong = task.model(task.images).argmax(1) != task.labels
    counting.restart()
    result = kind()(model, task.images[wrong], task.labels[wrong])
    assert torch.equal(result.adversarial, task.images[wrong])
    assert result.distance.eq(0).all()
    assert (counting.forwards, counting.backwards) == (2 * int(wrong.sum()), 0)


def test_progress_adds_up(listener: Any) -> None:
    task = small_task(1)
    FAB(steps=4, restarts=2)(task.model, task.images, task.labels, observer=listener)
    assert listener.done == pytest.approx(30)
    assert max(len(listener.notes), 8) > 8


# ----------------------------------------------------------------------------------------------- counts and status


@pytest.mark.filterwarnings("ignore:.* found nothing that fools:casemate.errors.CasemateWarning")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_that_are_not_finite_are_a_status_and_give_the_clean_image(
    kind: Callable[..., AbstractMinimumNormAttack], norm: Norm
) -> None:
    task = small_task(4)
    model = classifier(Trouble(task.model.network), 4)
    images = task.images.clone()
    images[:, 0, 0, :2] = 0.9
    images[0:10, 0, 0, 0] = 0.5  # no gradient to follow
    images[10:20, 0, 0, 1] = 0.1  # no logits to begin with
    clean = model(images)
    right = clean.isfinite().all(1) & (clean.argmax(1) == task.labels)
    with pytest.warns(CasemateWarning, match="of 30 images .* met logits or gradients that are not finite"):
        result = kind(norm=norm, steps=10)(model, images, task.labels)
    lost = result.status == Status.NON_FINITE
    assert lost[:10][right[:10]].all() or kind is TargetedFAB  # a rival without the broken logit may be reached
    assert lost[10:20].all()
    assert torch.equal(result.adversarial[lost], images[lost])
    assert result.status[20:].ne(Status.NON_FINITE).all()
    assert result.adversarial.isfinite().all()


class Steps(nn.Module):
    """Logits from bytes: its gradient is zero, exactly."""

    def __init__(self, inner: nn.Module, *, cut: bool) -> None:
        super().__init__()
        self.inner, self.cut = inner, cut

    def forward(self, images: Tensor) -> Tensor:
        """Round, with or without a graph to differentiate."""
        return self.inner(images.detach() if self.cut else (images * 255).round() / 255)


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_no_gradient_is_a_status(kind: Callable[..., AbstractMinimumNormAttack], cut: bool) -> None:
    task = small_task(1)
    model = classifier(Steps(task.model.network, cut=cut), 4)
    with pytest.warns(CasemateWarning, match="had no gradient to follow on 25 of 30 images"):
        result = kind(steps=3)(model, task.images, task.labels)
    assert torch.equal(result.adversarial, task.images)
    assert (result.status == Status.ZERO_GRADIENT).sum() == 25
    assert (result.status == Status.SUCCESS).sum() == 5


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_fooled_is_handed_back(kind: Callable[..., AbstractMinimumNormAttack]) -> None:
    """A slope, but a boundary far outside the box."""
    problem = linear_problem(1)
    layer = problem.model.network[1]  # type: ignore[index]
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([500.0, 0.0]))
    labels = torch.zeros_like(problem.labels)
    with pytest.warns(CasemateWarning, match="found nothing that fools on 24 of 24 images, at whatever distance"):
        result = kind(steps=5)(problem.model, problem.images, labels)
    assert result.status.eq(Status.FAILED).all()
    assert torch.equal(result.adversarial, problem.images)
    assert result.distance.isinf().all()


BAD_SETTINGS: list[dict[str, Any]] = [
    {"norm": "l3"},
    {"steps": 0},
    {"restarts": 0},
    {"alpha_max": -0.1},
    {"alpha_max": 1.1},
    {"alpha_max": math.nan},
    {"eta": 0.9},
    {"eta": math.inf},
    {"beta": 0.0},
    {"beta": 1.01},
    {"restart_eps": -1.0},
    {"restart_eps": math.inf},
    {"stop_at_distance": -0.1},
    {"stop_at_distance": math.nan},
]


@pytest.mark.parametrize("settings", BAD_SETTINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_settings_outside_their_values_are_refused(
    kind: Callable[..., AbstractMinimumNormAttack], settings: dict[str, Any]
) -> None:
    with as_installed(), pytest.raises(SettingError, match=next(iter(settings)) if "norm" not in settings else "norm"):
        kind(**settings)


def test_fab_t_tries_at_least_one_class_and_cannot_aim() -> None:
    with pytest.raises(SettingError, match="classes = 0"):
        TargetedFAB(classes=0)
    task = small_task()
    with pytest.raises(SettingError, match="cannot be targeted"):
        TargetedFAB()(task.model, task.images, task.labels, targets=(task.labels + 1) % 4)
