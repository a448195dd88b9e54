"""Carlini and Wagner's attack: exact distances on a linear classifier, odd input, and the search that others share.

The `check_*` functions hold for every attack that searches through `nearest`; EAD and L-BFGS are held to them as well.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from casemate.attacks import PGD, AbstractMinimumNormAttack, Misclassification, Status
from casemate.attacks._minimum_norm import BinarySearchConst, MinimumNormSearch, PlateauDetector
from casemate.attacks.carlini_wagner import CarliniWagner
from casemate.errors import CasemateWarning, SettingError
from casemate.models import Classifier
from casemate.norms import Norm, norm_of
from conftest import Listener
from oracles import (
    PIXELS,
    SHAPE,
    Counting,
    Linear,
    as_installed,
    check_claims,
    check_inside,
    classifier,
    generator,
    linear_problem,
    network,
    room,
    small_task,
    steepest_descent,
)
from test_attacks import Rounded, Trouble

# ---------------------------------------------------------------------------------------- what holds for all of them


def exact_distance(problem: Linear, norm: Norm, beyond: float = 0.0) -> Tensor:
    """The smallest norm, within the bounds, at which the margin falls to minus `beyond`: by bisection, in float64."""
    slope = problem.slope
    rooms = room(problem.images.flatten(1).double(), slope)
    with torch.no_grad():
        wanted = problem.margin(problem.images) + beyond
    low = torch.zeros_like(wanted)
    high = torch.full_like(wanted, 1e4)
    for _ in range(200):
        middle = ((low + high) / 2).unsqueeze(1)
        if (
            norm == "l2"
        ):  # of all moves with this length of step the shortest is along the slope, each pixel to its bound
            fall = (slope.abs() * (middle * slope.abs()).minimum(rooms)).sum(1)
        else:
            fall = steepest_descent(slope, rooms, norm, middle)  # type: ignore[arg-type]
        enough = fall >= wanted
        low, high = torch.where(enough, low, middle.squeeze(1)), torch.where(enough, middle.squeeze(1), high)
    return (high.unsqueeze(1) * slope.abs()).minimum(rooms).norm(dim=1) if norm == "l2" else high


def linear(seed: int, **settings: float) -> Linear:
    """`linear_problem`, sixteen images, without the graph that it was made with."""
    problem = linear_problem(seed, count=16, **settings)  # type: ignore[arg-type]
    return replace(problem, images=problem.images.detach(), slope=problem.slope.detach())


def check_exact(
    attack: AbstractMinimumNormAttack,
    problem: Linear,
    *,
    share: float = 0.05,
    targeted: bool = False,
    beyond: float = 0.0,
) -> None:
    """On a linear classifier every image fools, no nearer than possible and at most `share` further."""
    exact = exact_distance(problem, attack.norm, beyond)
    targets = 1 - problem.labels if targeted else None
    result = attack(problem.model, problem.images, problem.labels, targets=targets)
    check_inside(attack, result, problem.images)
    assert result.success.all()
    ratio = result.distance.double() / exact
    assert ratio.min() >= 1 - 1e-4, f"nearer than possible: {ratio.min()}"
    assert ratio.max() <= 1 + share, f"too far: {ratio.max()}"


def black_and_white(seed: int) -> Linear:
    """A linear classifier and images of which every pixel lies at a bound."""
    problem = linear(seed)
    images = torch.randint(2, problem.images.shape, generator=generator(seed)).float()
    with torch.no_grad():
        labels = problem.model(images).argmax(1)
    flipped = (labels != problem.labels).unsqueeze(1)
    return replace(problem, images=images, labels=labels, slope=problem.slope.where(~flipped, -problem.slope))


class Shifted(nn.Module):
    """The same classifier for pixels in other units, all of its logits lower by `by`."""

    def __init__(self, inner: nn.Module, *, low: float = 0.0, width: float = 1.0, by: float = 0.0) -> None:
        super().__init__()
        self.inner, self.low, self.width, self.by = inner, low, width, by

    def forward(self, images: Tensor) -> Tensor:
        """Classify."""
        return self.inner((images - self.low) / self.width) - self.by


def check_shifted_logits(attack: AbstractMinimumNormAttack) -> None:
    """Only differences of logits count: where all are negative the images are the same."""
    task = small_task(2, count=8)
    expected = attack(task.model, task.images, task.labels)
    lower = classifier(Shifted(task.model.network, by=40.0), classes=4)
    assert lower(task.images).max() < 0
    found = attack(lower, task.images, task.labels)
    assert torch.allclose(found.distance, expected.distance, rtol=1e-4)


def check_other_bounds(attack: AbstractMinimumNormAttack) -> None:
    """In other units of the pixels the distances are the same, in those units."""
    task = small_task(2, count=8)
    expected = attack(task.model, task.images, task.labels)
    low, width = -30.0, 240.0
    model = Classifier(
        Shifted(task.model.network, low=low, width=width),
        input_shape=SHAPE,
        classes=task.model.classes,
        bounds=(low, low + width),
    )
    found = attack(model, low + width * task.images, task.labels)
    assert found.success.all()
    assert found.adversarial.min() >= low
    assert found.adversarial.max() <= low + width
    assert torch.allclose(found.distance, width * expected.distance, rtol=1e-4)


def check_targets(attack: AbstractMinimumNormAttack, classes: int) -> None:
    """Untargeted, all images of a small network fool; aimed, they end in the class asked for, and no nearer."""
    model = classifier(network(3, classes=classes, scale=3.0), classes=classes)
    images = torch.rand(9, *SHAPE, generator=generator(classes)).double()
    with torch.no_grad():
        labels, targets = model(images).topk(2, dim=1).indices.unbind(1)
    anywhere = attack(model, images, labels)
    assert anywhere.success.all()
    aimed = attack(model, images, labels, targets=targets)
    assert torch.equal(aimed.prediction, targets)
    assert (anywhere.distance <= 1.1 * aimed.distance).all()
    check_inside(attack, aimed, images)
    if classes == 2:
        assert torch.allclose(aimed.distance, anywhere.distance, rtol=1e-3)


def check_split(attack: AbstractMinimumNormAttack) -> None:
    """How the images are cut into batches changes nothing."""
    task = small_task(5, count=11)
    whole = attack(task.model, task.images, task.labels)
    parts = attack(task.model, task.images, task.labels, batch_size=4)
    assert torch.allclose(parts.adversarial, whole.adversarial, atol=1e-6)
    assert torch.equal(parts.status, whole.status)


def check_holds_alone(attack: AbstractMinimumNormAttack) -> None:
    """In float32 images that fool by a hair in a batch fool one at a time as well."""
    task = small_task(6, count=24, dtype=torch.float32)
    result = attack(task.model, task.images, task.labels)
    assert result.success.all()
    with torch.no_grad():
        alone = torch.cat([task.model(image.unsqueeze(0)) for image in result.adversarial]).argmax(1)
    assert (alone != task.labels).all()


def check_misclassified(attack: AbstractMinimumNormAttack) -> None:
    """What is misclassified from the start, or classified as the target, is done; it costs the first look alone."""
    task = small_task(count=12)
    with torch.no_grad():
        predicted = task.model(task.images).argmax(1)
    wrong = (predicted + 1) % 4
    for result in (
        attack(task.model, task.images, wrong),
        attack(task.model, task.images, wrong, targets=predicted),
    ):
        assert torch.equal(result.adversarial, task.images)
        assert result.status.eq(Status.SUCCESS).all()
        assert result.distance.eq(0).all()
        assert (result.passes.forward, result.passes.backward) == (24, 12)
    mixed = attack(task.model, task.images, task.labels)
    at_once = predicted != task.labels
    assert 0 < at_once.sum() < 12
    assert torch.equal(mixed.distance == 0, at_once)
    check_claims(mixed, task)


def check_passes(attack: AbstractMinimumNormAttack) -> None:
    """Passes are what the network sees, and no more than the attack says."""
    task = small_task()
    counting = Counting(task.model.network)
    result = attack(classifier(counting, classes=4), task.images, task.labels, batch_size=16)
    assert (result.passes.forward, result.passes.backward) == (counting.forwards, counting.backwards)
    most = attack.max_passes(4)
    assert result.passes.backward <= 30 * most.backward


def check_no_direction(attack: AbstractMinimumNormAttack) -> None:
    """Without a gradient nothing is found, after one look."""
    task = small_task(count=12)
    with pytest.warns(CasemateWarning, match="had no gradient to follow on .* of 12 images"):
        result = attack(classifier(Rounded(task.model.network), classes=4), task.images, task.labels)
    with torch.no_grad():
        right = classifier(Rounded(task.model.network), classes=4)(task.images).argmax(1) == task.labels
    assert result.status[right].eq(Status.ZERO_GRADIENT).all()
    assert torch.equal(result.adversarial, task.images)
    assert result.distance[right].isinf().all()
    assert (result.passes.forward, result.passes.backward) == (24, 12)


def check_trouble(attack: AbstractMinimumNormAttack) -> None:
    """Numbers that are not finite are a status, and do not spoil the neighbours."""
    task = small_task(4)
    model = classifier(Trouble(task.model.network), classes=4)
    images = task.images.clone()
    images[:, 0, 0, :2] = 0.9
    images[0:10, 0, 0, 0] = 0.5  # no gradient to follow
    images[10:20, 0, 0, 1] = 0.1  # no logits to begin with
    with torch.no_grad():
        logits = model(images)
    wrong = logits.isfinite().all(1) & (logits.argmax(1) != task.labels)
    with pytest.warns(CasemateWarning, match="of 30 images .* met logits or gradients that are not finite"):
        result = attack(model, images, task.labels)
    lost = (torch.arange(30) < 20) & ~wrong
    assert result.status[lost].eq(Status.NON_FINITE).all()
    assert torch.equal(result.adversarial[lost], images[lost])
    assert result.status[wrong].eq(Status.SUCCESS).all()
    # a step may lead to where the logits are no numbers, which is the end of that example
    assert result.status[20:].eq(Status.SUCCESS).sum() >= 9
    assert result.success.logical_or(result.status == Status.NON_FINITE).all()
    assert result.adversarial.isfinite().all()


def check_beats_pgd(attack: AbstractMinimumNormAttack, steps: int) -> None:
    """At every eps it fools as many images as PGD does, or more."""
    task = small_task(1, count=40, dtype=torch.float32)
    found = attack(task.model, task.images, task.labels).distance
    shares: list[float] = []
    for eps in found[found > 0].quantile(torch.tensor([0.3, 0.6])).tolist():
        pgd = PGD(eps=eps, norm=attack.norm, steps=steps)(task.model, task.images, task.labels)
        assert (found <= eps * (1 + 1e-6)).sum() >= pgd.success.sum()
        shares.append(pgd.success.double().mean().item())
    assert 1 / 6 < shares[-1] < 1, "the comparison must be able to fail"


def check_progress(attack: AbstractMinimumNormAttack, listener: Listener) -> None:
    """Work is told as it is done, and adds up."""
    task = small_task(count=12)
    attack(task.model, task.images, task.labels, observer=listener)
    assert len(listener.notes) > 5
    assert listener.done == pytest.approx(12)


def check_leaves_unfound(attack: AbstractMinimumNormAttack) -> None:
    """Where no image within the bounds fools, the clean one comes back and the status says that it failed."""
    layer = nn.Linear(PIXELS, 3)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([1e3, 0.0, 0.0]))
    images = torch.rand(5, *SHAPE, generator=generator(0))
    model = classifier(nn.Sequential(nn.Flatten(), layer), 3)
    with pytest.warns(CasemateWarning, match="found nothing that fools on 5 of 5 images, at whatever distance"):
        result = attack(model, images, torch.zeros(5, dtype=torch.int64))
    assert result.status.eq(Status.FAILED).all()
    assert torch.equal(result.adversarial, images)
    assert result.distance.isinf().all()


def check_refused(make: Callable[[], object]) -> None:
    """A setting outside its values is refused when the attack is made."""
    with as_installed(), pytest.raises(SettingError, match="expected"):
        make()


# --------------------------------------------------------------------------------------------- Carlini and Wagner's

FAST = {"steps": 30, "binary_search_steps": 4, "initial_const": 1.0, "learning_rate": 0.1}
BOTH = [CarliniWagner(**FAST), CarliniWagner(norm="linf", **FAST)]  # type: ignore[arg-type]
unchecked = pytest.mark.usefixtures("unchecked")
"""For thousands of steps: checking the annotations takes ten times as long as the steps."""

both = pytest.mark.parametrize("attack", BOTH, ids=["l2", "linf"])


@pytest.mark.integration
@unchecked
@pytest.mark.parametrize(("seed", "scale", "targeted"), [(0, 1.0, False), (1, 30.0, True)])
def test_l2_finds_the_exact_distance_on_a_linear_classifier(seed: int, scale: float, targeted: bool) -> None:
    check_exact(CarliniWagner(steps=100), linear(seed, scale=scale), targeted=targeted)


@unchecked
@pytest.mark.parametrize(("seed", "scale", "targeted"), [(0, 1.0, True), (1, 30.0, False)])
def test_linf_finds_the_exact_distance_on_a_linear_classifier(seed: int, scale: float, targeted: bool) -> None:
    problem = linear(seed, scale=scale)
    check_exact(CarliniWagner(norm="linf", steps=120), problem, targeted=targeted)


@unchecked
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_pixels_at_their_bounds_move_like_all_others(norm: Norm) -> None:
    problem = black_and_white(3)
    assert problem.images.unique().tolist() == [0.0, 1.0]
    check_exact(CarliniWagner(norm=norm, steps=100), problem)


@pytest.mark.integration
@unchecked
def test_confidence_is_the_lead_that_is_reached() -> None:
    problem = linear(4)
    attack = CarliniWagner(steps=100, confidence=1.0)
    check_exact(attack, problem, beyond=1.0)
    lead = -problem.margin(attack(problem.model, problem.images, problem.labels).adversarial)
    assert (lead >= 1).all()


@pytest.mark.integration
@unchecked
def test_ending_early_saves_passes_and_costs_little() -> None:
    task = small_task(1, count=16, dtype=torch.float32)
    whole, early = (
        CarliniWagner(steps=60, abort_early=abort)(task.model, task.images, task.labels) for abort in (False, True)
    )
    assert early.passes.backward < 0.95 * whole.passes.backward
    assert early.distance.mean() < 1.03 * whole.distance.mean()


@both
def test_negative_logits_change_nothing(attack: CarliniWagner) -> None:
    check_shifted_logits(attack)


@both
def test_bounds_other_than_zero_and_one(attack: CarliniWagner) -> None:
    check_other_bounds(attack)


@pytest.mark.integration
@both
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_any_number_of_classes_with_and_without_targets(attack: CarliniWagner, classes: int) -> None:
    check_targets(attack, classes)


@both
def test_the_batch_split_changes_nothing(attack: CarliniWagner) -> None:
    check_split(attack)


@both
def test_what_fools_in_a_batch_fools_alone(attack: CarliniWagner) -> None:
    check_holds_alone(attack)


@both
def test_the_misclassified_need_no_work(attack: CarliniWagner) -> None:
    check_misclassified(attack)


@both
def test_passes_are_counted(attack: CarliniWagner) -> None:
    check_passes(attack)


@both
def test_no_gradient_is_a_status(attack: CarliniWagner) -> None:
    check_no_direction(attack)


@both
def test_numbers_that_are_not_finite_are_a_status(attack: CarliniWagner) -> None:
    check_trouble(attack)


@both
def test_what_cannot_be_fooled_stays_clean(attack: CarliniWagner) -> None:
    check_leaves_unfound(attack)


@both
def test_progress_adds_up(attack: CarliniWagner, listener: Listener) -> None:
    check_progress(attack, listener)


@pytest.mark.integration
@unchecked
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_as_strong_as_pgd(norm: Norm) -> None:
    check_beats_pgd(CarliniWagner(norm=norm, steps=80, initial_const=0.1, binary_search_steps=7), 80)


BAD_SETTINGS: list[Callable[[], object]] = [
    lambda: CarliniWagner(norm="l1"),
    lambda: CarliniWagner(norm="l3"),  # type: ignore[arg-type]
    lambda: CarliniWagner(steps=0),
    lambda: CarliniWagner(binary_search_steps=0),
    lambda: CarliniWagner(confidence=-1.0),
    lambda: CarliniWagner(confidence=math.nan),
    lambda: CarliniWagner(confidence=math.inf),
    lambda: CarliniWagner(learning_rate=0.0),
    lambda: CarliniWagner(learning_rate=math.inf),
    lambda: CarliniWagner(initial_const=0.0),
    lambda: CarliniWagner(initial_const=math.nan),
]


@pytest.mark.parametrize("make", BAD_SETTINGS)
def test_settings_outside_their_values_are_refused(make: Callable[[], object]) -> None:
    check_refused(make)


# ------------------------------------------------------------------------------------------------------- the search


def test_the_constant_is_bisected_once_it_sufficed() -> None:
    constants = BinarySearchConst(torch.zeros(3, *SHAPE), 0.001)
    at = torch.tensor([0, 2])
    for reached in ([False, True], [False, False], [True, False]):
        constants.narrow(at, torch.tensor(reached))
    # the first: 0.001 and 0.01 failed, 0.1 sufficed; the last: 0.001 sufficed, its half and three quarters did not
    assert constants.value.tolist() == pytest.approx([0.055, 0.001, 0.000875])


def test_an_objective_that_swings_about_a_falling_mean_has_not_stalled() -> None:
    stalling = PlateauDetector(torch.zeros(3))
    stalled: list[list[bool]] = []
    for window in range(3):
        for step in range(4):
            swing = 5.0 * (-1) ** step
            changed = torch.tensor([False, False, window == 1])
            stalling.add(torch.tensor([20 + swing, 20 - window + swing, 20.0]), changed)
        stalled.append(stalling.check().tolist())
    assert stalled == [[False, False, False], [True, False, False], [True, False, False]]


def test_a_fooling_image_outlives_numbers_that_are_not_finite() -> None:
    class Edge(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            level = images.flatten(1).mean(1)
            return torch.stack([0.5 - level, 0 * (0.9 - level).clamp(min=0).log()], 1)

    clean = torch.full((3, *SHAPE), 0.2)
    criterion = Misclassification(torch.zeros(3, dtype=torch.int64))
    nearest = MinimumNormSearch(classifier(Edge()), clean, criterion, size=lambda delta: norm_of(delta, "linf"))
    at = nearest.start_round()
    assert at.tolist() == [0, 1, 2]
    levels = torch.tensor([0.6, 0.7, 0.4]).view(-1, 1, 1, 1)
    nearest.value_and_grad(at, levels.expand_as(clean))
    assert nearest.reached.tolist() == [True, True, False]
    nearest.value_and_grad(at, torch.tensor([0.95, 0.65, 0.95]).view(-1, 1, 1, 1).expand_as(clean))
    assert nearest.start_round().tolist() == [1]
    found = nearest.result()
    assert torch.allclose(found.images[:2, 0, 0, 0], torch.tensor([0.6, 0.65]))
    assert found.finite.tolist() == [True, True, False]
    assert found.has_gradient.all()
    assert (found.passes.forward, found.passes.backward) == (9, 9)
    assert nearest.distance.tolist() == pytest.approx([0.4, 0.45, math.inf])


def test_the_exact_distances_lie_on_the_boundary() -> None:
    """The oracle itself: grey images far from the bounds, where the distance is the margin over the dual norm."""
    problem = linear(0, low=0.45, high=0.55, gap=0.05)
    margin, slope = problem.margin(problem.images).detach(), problem.slope
    assert torch.allclose(exact_distance(problem, "l2"), margin / slope.norm(dim=1), rtol=1e-6)
    assert torch.allclose(exact_distance(problem, "linf"), margin / slope.abs().sum(1), rtol=1e-6)
    assert torch.allclose(exact_distance(problem, "l1"), margin / slope.abs().amax(1), rtol=1e-6)
