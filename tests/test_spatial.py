"""Rotations and shifts: what a placement is, the whole grid against a plain search, draws, and troubled numbers."""

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from casemate.attacks import Misclassification, Status, with_eps
from casemate.attacks.spatial import Spatial, transformed
from casemate.errors import CasemateWarning, SettingError
from casemate.models import Classifier
from casemate.rng import Streams, derive
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
    small_task,
)

SMALL = Spatial(max_rotation=20, max_shift=1.5, rotations=3, shifts=4)


def numbers(count: int, *values: float) -> Tensor:
    """The same for every image."""
    return torch.tensor(values, dtype=torch.float64).expand(count, len(values))


def place(images: Tensor, angle: float, right: float, down: float, low: float = 0.0, high: float = 1.0) -> Tensor:
    """All images moved alike."""
    return transformed(images, numbers(len(images), angle)[:, 0], numbers(len(images), right, down), (low, high))


# ---------------------------------------------------------------------------------------------------- one placement


@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 5, 8)])
@pytest.mark.parametrize(("right", "down"), [(2, 1), (-1, 2), (0, -3), (4, 0)])
def test_whole_pixels_move_right_and_down_and_black_enters(shape: tuple[int, int, int], right: int, down: int) -> None:
    images = torch.rand(3, *shape, generator=generator(0))
    _, height, width = shape
    expected = torch.zeros_like(images)
    for row, column in product(range(height), range(width)):
        if 0 <= row + down < height and 0 <= column + right < width:
            expected[:, :, row + down, column + right] = images[:, :, row, column]
    assert torch.allclose(place(images, 0, right, down), expected, atol=1e-5)


@pytest.mark.parametrize("angle", [90, 180, -90])
def test_rotations_run_counter_clockwise(angle: int) -> None:
    images = torch.rand(3, *SHAPE, generator=generator(0))
    assert torch.allclose(place(images, angle, 0, 0), images.rot90(angle // 90, (2, 3)), atol=1e-5)


@pytest.mark.parametrize(("right", "down"), [(2, 1), (-1, 2)])
def test_an_image_is_rotated_first_and_then_shifted(right: int, down: int) -> None:
    """So the shift is to the right and down as seen, whatever the angle."""
    images = torch.zeros(2, 1, 9, 9)
    images[:, :, 3:6, 3:7] = torch.rand(2, 1, 3, 4, generator=generator(0))
    assert torch.allclose(place(images, 90, right, down), place(images.rot90(1, (2, 3)), 0, right, down), atol=1e-5)
    turned = place(images, 30, 0, 0)
    assert torch.allclose(place(images, 30, right, down), place(turned, 0, right, down), atol=1e-5)
    assert not torch.allclose(place(images, 30, right, down), place(place(images, 0, right, down), 30, 0, 0), atol=0.1)


def test_each_image_has_a_placement_of_its_own() -> None:
    images = torch.rand(3, *SHAPE, generator=generator(0))
    angle, shift = torch.tensor([0.0, 90.0, 13.0]), torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.5, -1.0]])
    together = transformed(images, angle, shift, (0.0, 1.0))
    for number, (turn, (right, down)) in enumerate(zip(angle.tolist(), shift.tolist(), strict=True)):
        alone = place(images[number : number + 1], turn, right, down)
        assert torch.allclose(together[number : number + 1], alone, atol=1e-6)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.25, 3.0), (0.0, 255.0)])
def test_what_enters_is_the_lower_bound(low: float, high: float) -> None:
    images = low + (high - low) * torch.rand(3, *SHAPE, generator=generator(0))
    moved = place(images, 0, 2, 0, low, high)
    assert moved[..., :2].sub(low).abs().max() < 1e-4 * (high - low)
    assert torch.allclose(moved[..., 2:], images[..., :-2], rtol=0, atol=1e-4 * (high - low))
    for angle in (-17, 30):
        turned = place(images, angle, 0.7, -2, low, high)
        assert turned.min() >= low
        assert turned.max() <= high


# -------------------------------------------------------------------------------------------------------- the grid


def searched(task: Task, attack: Spatial, targets: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """By plain search, image by image: what is fooled, and the largest margin of error (that of the first that fools).

    The grid is written out here: every angle with every shift to the right and down.
    """
    turns, moves = (
        [0.0] if count == 1 else [limit * (2 * each / (count - 1) - 1) for each in range(count)]
        for count, limit in ((attack.rotations, attack.max_rotation), (attack.shifts, attack.max_shift))
    )
    places = [None, *product(turns, moves, moves)]
    with torch.no_grad():
        logits = torch.stack([task.model(task.images if p is None else place(task.images, *p)) for p in places])
    aim = task.labels if targets is None else targets
    own = logits.gather(2, aim.expand(len(places), -1).unsqueeze(2)).squeeze(2)
    rest = logits.scatter(2, aim.expand(len(places), -1).unsqueeze(2), -math.inf).amax(2)
    wrong = rest - own if targets is None else own - rest
    fools = wrong > 0
    first = fools.double().argmax(0)
    chosen = torch.where(fools.any(0), first, wrong.argmax(0))
    return fools.any(0), wrong.gather(0, chosen.unsqueeze(0)).squeeze(0)


@pytest.mark.parametrize(
    "attack",
    [
        SMALL,
        Spatial(max_rotation=40, rotations=7, shifts=1),
        Spatial(max_shift=2, rotations=1, shifts=3),
        Spatial(rotations=1, shifts=1),
    ],
)
@pytest.mark.parametrize("targeted", [False, True])
def test_the_grid_is_searched_whole(attack: Spatial, targeted: bool) -> None:
    task = small_task(2, count=40, scale=3.0)
    targets = (task.labels + 1) % 4 if targeted else None
    fooled, wrong = searched(task, attack, targets)
    found = attack(task.model, task.images, task.labels, targets=targets)
    assert torch.equal(found.success, fooled)
    with torch.no_grad():
        logits = task.model(found.adversarial)
    aim = (task.labels if targets is None else targets).unsqueeze(1)
    reached = logits.scatter(1, aim, -math.inf).amax(1) - logits.gather(1, aim).squeeze(1)
    assert torch.allclose(-reached if targeted else reached, wrong, atol=1e-6)
    check_inside(attack, found, task.images)
    check_claims(found, task, targets)


def test_the_default_grid_is_the_paper_s() -> None:
    assert Spatial().tries == 31 * 5 * 5 == 775
    assert (Spatial().max_rotation, Spatial().max_shift) == (30, 3)
    assert math.isinf(Spatial().ball().eps)
    attack, streams = Spatial(), Streams(0, torch.arange(1))
    placements = {
        tuple(torch.cat([angle, shift[0]]).tolist())
        for angle, shift in (attack._transformation(number, streams) for number in range(775))
    }
    expected = {
        (float(a), 1.5 * right, 1.5 * down)
        for a in range(-30, 31, 2)
        for right in range(-2, 3)
        for down in range(-2, 3)
    }
    assert len(placements) == 775
    assert torch.allclose(torch.tensor(sorted(placements)), torch.tensor(sorted(expected)), atol=1e-5)


def test_a_bright_spot_goes_where_the_classifier_looks() -> None:
    """A linear classifier that asks how far to the right the light is: the farthest shift to the right is returned."""
    weight = torch.arange(7.0).repeat(7, 1)
    layer = nn.Linear(49, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([torch.zeros(49), weight.flatten()]))
        layer.bias.copy_(torch.tensor([5.5, 0.0]))
    model = classifier(nn.Sequential(nn.Flatten(), layer), shape=(1, 7, 7))
    images = torch.zeros(2, 1, 7, 7)
    images[0, 0, 3, 3], images[1, 0, 3, 4] = 1, 1
    found = Spatial(max_shift=2, rotations=1, shifts=3)(model, images, torch.zeros(2, dtype=torch.int64))
    assert found.success.tolist() == [False, True]  # columns 5 and 6 of 5.5
    assert found.adversarial[0, 0, :, 5].sum() == pytest.approx(1, abs=1e-5)
    assert found.adversarial[1, 0, :, 6].sum() == pytest.approx(1, abs=1e-5)


def test_two_classes_will_do() -> None:
    problem = linear_problem(0, count=40, gap=0.5)
    images = problem.images.detach()
    free = SMALL(problem.model, images, problem.labels)
    aimed = SMALL(problem.model, images, problem.labels, targets=1 - problem.labels)
    assert torch.equal(free.adversarial, aimed.adversarial)
    assert free.success.sum() > 5


# -------------------------------------------------------------------------------------------------------- the draws


def test_drawn_placements_fill_their_limits_and_keep_them() -> None:
    attack = Spatial(max_rotation=12, max_shift=2, num_samples=50)
    streams = Streams(3, torch.arange(40))
    drawn = [attack._transformation(number, streams) for number in range(50)]
    angle, shift = torch.cat([each for each, _ in drawn]), torch.cat([each for _, each in drawn])
    for values, limit in ((angle, 12), (shift[:, 0], 2), (shift[:, 1], 2)):
        assert values.abs().max() <= limit
        assert values.max() > 0.98 * limit
        assert values.min() < -0.98 * limit
        assert abs(float(values.mean())) < 0.05 * limit
    assert len(set(angle.tolist())) > 1900
    assert abs(float(torch.corrcoef(torch.stack([angle, shift[:, 0], shift[:, 1]]))[0, 1])) < 0.1


def test_the_worst_of_the_draws_is_returned() -> None:
    task = small_task(2, count=40, scale=3.0)
    attack = Spatial(max_rotation=25, max_shift=1.5, num_samples=6)
    found = attack(task.model, task.images, task.labels, seed=9)
    streams = Streams(derive(9, "Spatial"), torch.arange(40))
    candidates = [task.images] + [
        transformed(task.images, *attack._transformation(number, streams), (0.0, 1.0)) for number in range(6)
    ]
    with torch.no_grad():
        right = torch.stack([task.model(each).argmax(1) == task.labels for each in candidates])
    assert torch.equal(found.success, ~right.all(0))
    assert 10 < found.success.sum() < 40
    check_claims(found, task)


def test_more_draws_never_fool_less() -> None:
    task = small_task(2, count=60, scale=3.0)
    shares = []
    before = torch.zeros(60, dtype=torch.bool)
    for draws in (1, 3, 10, 30):
        found = Spatial(max_rotation=5, max_shift=0.5, num_samples=draws)(task.model, task.images, task.labels)
        assert (found.success | ~before).all()
        before = found.success
        shares.append(found.robust_accuracy)
    assert shares[-1] < shares[0]


# -------------------------------------------------------------------------------------------------------- all of it


@pytest.mark.parametrize("attack", [SMALL, Spatial(num_samples=7)])
def test_the_batch_size_does_not_matter(attack: Spatial) -> None:
    task = small_task(1)
    whole = attack(task.model, task.images, task.labels, seed=4)
    parts = attack(task.model, task.images, task.labels, seed=4, batch_size=7)
    assert torch.allclose(whole.adversarial, parts.adversarial, rtol=0, atol=1e-9)
    assert torch.equal(whole.status, parts.status)
    assert whole.passes == parts.passes
    rest = attack(task.model, task.images[11:], task.labels[11:], seed=4, index=torch.arange(11, 30))
    assert torch.allclose(whole.adversarial[11:], rest.adversarial, rtol=0, atol=1e-9)
    other = attack(task.model, task.images, task.labels, seed=5)
    assert torch.equal(other.adversarial, whole.adversarial) == (attack.num_samples is None)


def test_what_is_fooled_leaves_and_what_is_wrong_already_stays_as_it_is() -> None:
    task = small_task()
    counting = Counting(task.model.network)
    wrong = task.model(task.images).argmax(1) != task.labels
    found = SMALL(classifier(counting, classes=4), task.images, task.labels)
    assert (found.passes.forward, found.passes.backward) == (counting.forwards, 0)
    assert found.passes.forward < 30 * (2 + SMALL.tries)
    assert torch.equal(found.adversarial[wrong], task.images[wrong])
    assert found.status[wrong].eq(Status.SUCCESS).all()
    all_wrong = SMALL(task.model, task.images, (task.model(task.images).argmax(1) + 1) % 4)
    assert all_wrong.passes.forward == 30 * 2
    stubborn = Spatial(max_rotation=0, max_shift=0, rotations=2, shifts=2)(task.model, task.images, task.labels)
    assert stubborn.passes.forward == 30 + 25 * 8 + 30


def test_nothing_moves_without_room() -> None:
    task = small_task()
    found = Spatial(max_rotation=0, max_shift=0, num_samples=3)(task.model, task.images, task.labels)
    assert torch.allclose(found.adversarial, task.images, rtol=0, atol=1e-6)
    assert found.success.sum() == 5


def test_it_never_lacks_a_direction() -> None:
    class Rounded(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :2].round()

    images = torch.ones(4, *SHAPE)
    images[:, 0, 0, 1] = 0
    found = Spatial(max_rotation=0, max_shift=0.1, rotations=1)(classifier(Rounded()), images, torch.zeros(4).long())
    assert found.status.eq(Status.FAILED).all()


class Trouble(nn.Module):
    """Not a number where the first pixel is darker than 0.3."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        """Classify, with trouble."""
        return self.inner(images) + 0 * (images[:, :1, 0, 0] - 0.3).log()


def test_numbers_that_are_not_finite_never_fool_and_are_a_status() -> None:
    task = small_task(4)
    images = task.images.clone()
    images[:, 0, 0, :2] = 0.9
    images[::3, 0, 0, :2] = 0.1  # these have no logits from the start
    model = classifier(Trouble(task.model.network), classes=4)
    labels = torch.where(torch.arange(30) % 3 == 0, task.labels, task.model(images).argmax(1))
    words = "of 30 images Spatial met logits or gradients that are not finite"
    with pytest.warns(CasemateWarning, match=words):
        found = Spatial(max_rotation=0, max_shift=1, rotations=1, shifts=3)(model, images, labels)
    stood = ~found.success
    assert stood[::3].any()
    assert found.status[stood].eq(Status.NON_FINITE).all()  # a shift to the right lets black into the first pixel
    assert torch.equal(found.adversarial[stood], images[stood])
    assert found.success.any()
    assert torch.equal(
        model(found.adversarial[found.success]).isfinite().all(1), torch.ones(int((~stood).sum())).bool()
    )
    with pytest.warns(CasemateWarning, match=f"on 10 {words}"):
        up = Spatial(max_rotation=0, max_shift=0, rotations=1, shifts=1)(model, images, labels)
    assert up.status[torch.arange(30) % 3 != 0].eq(Status.FAILED).all()
    assert up.status[::3].eq(Status.NON_FINITE).all()


def test_other_bounds_and_several_channels() -> None:
    layer = nn.Linear(3 * 5 * 7, 3)
    model = Classifier(
        nn.Sequential(nn.Flatten(), layer), input_shape=(3, 5, 7), classes=("a", "b", "c"), bounds=(-2.0, 2.0)
    )
    images = 4 * torch.rand(30, 3, 5, 7, generator=generator(0)) - 2
    found = SMALL(model, images, model(images).argmax(1))
    check_inside(SMALL, found, images, (-2.0, 2.0))
    assert found.success.any()


def test_progress_is_told_as_it_is_made() -> None:
    task = small_task()
    told: list[float] = []
    Spatial(max_rotation=0.01, max_shift=0, num_samples=9).run(
        task.model,
        task.images,
        Misclassification(task.labels),
        Streams(0, torch.arange(30)),
        lambda amount, note="": told.append(amount),
    )
    assert told == pytest.approx([3.0] * 10)


def test_it_says_what_it_is() -> None:
    assert Spatial(num_samples=10).record() == {
        "name": "Spatial",
        "max_rotation": 30.0,
        "max_shift": 3.0,
        "rotations": 31,
        "shifts": 5,
        "num_samples": 10,
    }
    assert with_eps(SMALL, 0.1) == SMALL


BAD: list[Callable[[], object]] = [
    lambda: Spatial(max_rotation=-1),
    lambda: Spatial(max_rotation=181),
    lambda: Spatial(max_rotation=math.nan),
    lambda: Spatial(max_shift=-1),
    lambda: Spatial(max_shift=math.inf),
    lambda: Spatial(rotations=0),
    lambda: Spatial(shifts=0),
    lambda: Spatial(num_samples=0),
]


@pytest.mark.parametrize("make", BAD)
def test_settings_outside_their_values_are_refused(make: Callable[[], object]) -> None:
    with as_installed(), pytest.raises(SettingError, match=r" = .*; expected "):
        make()
