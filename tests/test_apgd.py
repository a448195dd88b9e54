"""Auto-PGD: against its algorithm written out for one image, closed-form optima, and what every attack must keep to."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from casemate.attacks import PGD, AbstractAttack, Misclassification, Passes, Status, frozen, prepare_for_attack
from casemate.attacks.apgd import APGD, Ascent, Goal, TargetedAPGD, checkpoints
from casemate.errors import CasemateWarning, SettingError
from casemate.losses import LossName, loss_by_name, targeted_dlr
from casemate.models import Classifier
from casemate.norms import Ball, Norm
from casemate.rng import Streams, derive
from oracles import (
    PIXELS,
    SHAPE,
    Counting,
    Task,
    as_installed,
    check_approaches_target,
    check_beats_chance,
    check_claims,
    check_inside,
    check_nothing_at_zero,
    classifier,
    linear_problem,
    room,
    small_task,
    steepest_descent,
)

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
EPS: dict[Norm, float] = {"linf": 0.05, "l2": 0.25, "l1": 1.0}


def attacks(norm: Norm, steps: int = 6) -> list[AbstractAttack]:
    """One of every kind."""
    eps = EPS[norm]
    kinds: list[AbstractAttack] = [
        APGD(eps=eps, norm=norm, steps=steps),
        APGD(eps=eps, norm=norm, steps=steps, loss="dlr", restarts=2),
        TargetedAPGD(eps=eps, norm=norm, steps=steps),
    ]
    if norm == "l1":
        kinds += [APGD(eps=eps, norm=norm, steps=steps, use_larger_eps=True)]
        kinds += [TargetedAPGD(eps=eps, norm=norm, steps=steps, use_larger_eps=True, restarts=2, classes=2)]
    return kinds


EVERY = [attack for norm in NORMS for attack in attacks(norm)]
every_attack = pytest.mark.parametrize("attack", EVERY)


# ------------------------------------------------------------------------------------ the algorithm, image by image


Look = Callable[[Tensor], tuple[float, Tensor]]
"""Loss and gradient at an image."""


def written_out(
    look: Look, clean: Tensor, start: Tensor, ball: Ball, marks: list[int], steps: int, share: float
) -> Tensor:
    """The best image of the ascent from `start`, for one image that is never fooled, with all history kept.

    Linf and L2: Croce and Hein 2020, algorithm 1 (rho 0.75, momentum 0.75). L1: Croce and Hein 2021, whose first steps
    move a `share` of the pixels (0: two thirds of those that the start changes).
    """
    pixels = clean.numel()
    loss, gradient = look(start)
    losses, bests, halvings = [loss], [(loss, start, gradient)], [True]
    here = older = start
    size = ball.eps if ball.norm == "l1" else 2 * ball.eps
    changes = [pixels if share else int((start != clean).sum())]
    moved = round(share * pixels + 0.4999) if share else max(1, math.ceil(changes[0] / 1.5))
    for step in range(1, steps + 1):
        if ball.norm == "l1":
            top = gradient.abs().flatten().sort(descending=True).indices[:moved]
            direction = torch.zeros(pixels, dtype=clean.dtype).scatter(0, top, gradient.flatten()[top].sign() / moved)
            there = ball.project(here + size * direction.view_as(clean), clean, (0.0, 1.0))
        else:
            direction = gradient.sign() if ball.norm == "linf" else gradient / gradient.norm()
            there = ball.project(here + size * direction, clean, (0.0, 1.0))
            if step > 1:
                there = ball.project(here + 0.75 * (there - here) + 0.25 * (here - older), clean, (0.0, 1.0))
        older, here = here, there
        loss, gradient = look(here)
        losses.append(loss)
        bests.append(max(bests[-1], (loss, here, gradient), key=lambda each: each[0]))
        if step not in marks:
            continue
        last = max((mark for mark in marks if mark < step), default=0)
        if ball.norm == "l1":
            changes.append(int((bests[-1][1] != clean).sum()))
            moved = max(1, math.ceil(changes[-1] / 1.5))
            back = changes[-1] / changes[-2] < 0.95
            size = ball.eps if back else max(size / 1.5, ball.eps / 10)
        else:
            rose = sum(after > before for before, after in pairwise(losses[last:]))
            back = rose <= 0.75 * (step - last) or (not halvings[-1] and bests[last][0] == bests[-1][0])
            halvings.append(back)
            size = size / 2 if back else size
        if back:
            _, here, gradient = bests[-1]
    return bests[-1][1]


def published(steps: int) -> list[int]:
    """The checkpoints of Croce and Hein 2020, section on the step size, for a number of steps that 100 divides."""
    shares = [0, 22]
    while shares[-1] < 100:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 3, 6))
    return [share * steps // 100 for share in shares[1:-1]]


def unfooled(attack: APGD | TargetedAPGD, task: Task) -> tuple[Tensor, Passes, Streams]:
    """What the algorithm returns where nothing counts as fooled, image by image.

    One at a time, so that a batch's rounding does not decide between two points that are equally good.
    """
    streams = Streams(derive(7), torch.arange(len(task.images)))
    found, total = [], Passes()
    with frozen(task.model):
        for one in torch.arange(len(task.images)).split(1):
            aim = Misclassification(task.labels[one]).with_changes(never=True)
            run = attack.run(task.model, task.images[one], aim, streams[one], lambda amount, note: None)
            found.append(run.images)
            total.add(run.passes)
    return torch.cat(found), total, streams


def looking(task: Task, number: int, loss: LossName | None) -> Look:
    """Loss and gradient of one image; without a name, the targeted ratio towards its most likely wrong class."""
    label = task.labels[number : number + 1]
    wrong = task.model(task.images[number : number + 1])[0].detach().clone()
    wrong[label] = -math.inf
    aim = wrong.argmax().view(1)

    def look(image: Tensor) -> tuple[float, Tensor]:
        image = image.detach().requires_grad_(True)
        logits = task.model(image)
        value = targeted_dlr(logits, label, aim) if loss is None else loss_by_name(loss)(logits, label)
        return value.item(), torch.autograd.grad(value.sum(), image)[0]

    return look


@pytest.mark.parametrize(("norm", "loss"), [("linf", "ce"), ("linf", "dlr"), ("l2", "ce"), ("l2", None)])
def test_the_ascent_is_that_of_the_paper(norm: Norm, loss: LossName | None) -> None:
    task = small_task(count=2)
    ball = Ball(eps=EPS[norm], norm=norm)
    attack = APGD(eps=ball.eps, norm=norm, loss=loss) if loss else TargetedAPGD(eps=ball.eps, norm=norm, classes=1)
    found, _, streams = unfooled(attack, task)
    starts = ball.sample(task.images, (0.0, 1.0), streams, "start", 0, 0)
    for number in range(len(found)):
        one = slice(number, number + 1)
        look = looking(task, number, loss)
        expected = written_out(look, task.images[one], starts[one], ball, published(100), 100, 0)
        assert torch.allclose(found[one], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("loss", ["ce", None])
def test_the_ascent_for_l1_is_that_of_the_second_paper(loss: LossName | None) -> None:
    task = small_task(count=2)
    ball = Ball(eps=2.0, norm="l1")
    attack = APGD(eps=2.0, norm="l1", loss=loss) if loss else TargetedAPGD(eps=2.0, norm="l1", classes=1)
    found, _, streams = unfooled(attack, task)
    starts = ball.project(task.images + streams.normal(SHAPE, "start", 0, 0), task.images, (0.0, 1.0))
    for number in range(len(found)):
        one = slice(number, number + 1)
        look = looking(task, number, loss)
        expected = written_out(look, task.images[one], starts[one], ball, list(range(4, 100, 4)), 100, 0.2)
        assert torch.allclose(found[one], expected, rtol=0, atol=1e-9)


@pytest.mark.integration
def test_the_wide_schedule_goes_through_three_balls() -> None:
    task = small_task(count=1)
    found, passes, streams = unfooled(APGD(eps=1.0, norm="l1", steps=200, use_larger_eps=True), task)
    assert (passes.forward, passes.backward) == (1 + 200 + 3, 200)
    for number in range(len(found)):
        one = slice(number, number + 1)
        clean, look = task.images[one], looking(task, number, "ce")
        image = clean + streams.normal(SHAPE, "start", 0, 0)[one]
        for eps, steps, interval in ((3.0, 60, 2), (2.0, 60, 2), (1.0, 80, 3)):
            ball = Ball(eps=eps, norm="l1")
            start = ball.project(image, clean, (0.0, 1.0))
            image = written_out(look, clean, start, ball, list(range(interval, steps, interval)), steps, 0)
        assert torch.allclose(found[one], image, rtol=0, atol=1e-9)


def test_the_checkpoints_are_those_of_the_paper() -> None:
    assert list(checkpoints(100, "linf")) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(checkpoints(1000, "l2")) == published(1000)
    assert list(checkpoints(50, "l1")) == list(range(2, 50, 2))
    for steps in range(1, 9):
        assert list(checkpoints(steps, "linf")) == list(checkpoints(steps, "l1")) == list(range(1, steps))


def ascent(norm: Norm, losses: list[list[float]], *, eps: float = 1.0, dense: bool = True) -> Ascent:
    """Three grey images that have visited images as bright as the number of the step, with these losses."""
    clean = torch.zeros(3, 1, 2, 5)
    on = Ascent(clean, clean, Ball(eps=eps, norm=norm), (-10.0, 10.0), dense=dense)
    for step, row in enumerate(losses):
        on.images = clean + step
        on.arrive(torch.tensor(row, dtype=torch.float64), clean + 10 * step, first=step == 0)
    return on


def test_the_step_is_halved_where_too_few_steps_rose_and_the_best_point_taken_up_again() -> None:
    """Steps of 2 eps; four steps, of which 1, 3 and 4 rose; three quarters are not enough."""
    on = ascent("linf", [[0, 0, 0], [1, 1, 1], [0, 2, 2], [0, 1, 3], [0, 3, 4]])
    on.halve(0.75 * 4)
    assert on.size.tolist() == [1, 1, 2]
    assert on.images[:, 0, 0, 0].tolist() == [1, 4, 4]
    assert on.gradient[:, 0, 0, 0].tolist() == [10, 40, 40]
    assert on.rises.tolist() == [0, 0, 0]
    # the second condition: not halved at the last checkpoint, and no better point since
    for loss in (3.5, 3.7, 3.8, 3.9):
        on.arrive(torch.full((3,), loss, dtype=torch.float64), on.gradient, first=False)
    on.halve(0.75 * 3)
    assert on.size.tolist() == [1, 1, 1]


def test_l1_steps_move_fewer_pixels_as_the_best_point_becomes_sparser() -> None:
    """Ten pixels. Best points: 9, all 10 and 3 of them changed, after a check at which all 10 were."""
    on = ascent("l1", [[0, 0, 0]])
    assert on.moved.tolist() == [2, 2, 2]
    best = torch.ones(3, 10)
    best[0, :1] = best[2, :7] = 0
    on.images = best.view(3, 1, 2, 5)
    on.arrive(torch.ones(3, dtype=torch.float64), on.images, first=False)
    on.images = on.images + 1
    on.adapt(1.0)
    assert on.moved.tolist() == [6, 7, 2]
    assert on.size.tolist() == pytest.approx([1, 1 / 1.5, 1])
    assert on.images.flatten(1).sum(1).tolist() == [9, 20, 3]
    for _ in range(9):
        on.adapt(1.0)
    assert on.size.tolist() == pytest.approx([0.1, 0.1, 0.1])


def test_an_l1_step_has_length_one_and_moves_the_steepest_pixels() -> None:
    on = ascent("l1", [[0, 0, 0]])
    on.gradient = torch.arange(-4.0, 6.0).repeat(3, 1).view(3, 1, 2, 5)
    on.moved = torch.tensor([1, 2, 10])
    on.move(Ball(eps=1.0, norm="l1"), (-10.0, 10.0), first=True)
    moved = on.images.flatten(1)
    assert moved[0].tolist() == pytest.approx([0] * 9 + [1])
    assert moved[1].tolist() == pytest.approx([-1 / 3] + [0] * 7 + [1 / 3] * 2)  # -4 and 4 are equally large
    assert moved[2].tolist() == pytest.approx([-1 / 9] * 4 + [0] + [1 / 9] * 5)


# ---------------------------------------------------------------------------------------------- closed-form optima


def decided(attack: AbstractAttack, *, seed: int, slack: float, low: float = 0.0, targeted: bool = False) -> None:
    """It fools exactly where the optimum of the two-class linear classifier does, and elsewhere nears the optimum."""
    problem = linear_problem(seed, low=low, high=1 - low, count=16)
    ball = attack.ball()
    targets = 1 - problem.labels if targeted else None
    result = attack(problem.model, problem.images, problem.labels, targets=targets)
    rooms = room(problem.images.flatten(1).double(), problem.slope)
    best = problem.margin(problem.images) - steepest_descent(problem.slope, rooms, ball.norm, ball.eps)
    reached, length = problem.margin(result.adversarial), problem.slope.norm(dim=1)
    assert (reached >= best - 1e-5 * length).all(), "went further than the ball allows"
    clear = best.abs() > slack * length
    assert torch.equal(result.success[clear], (best < 0)[clear])
    missed = ((reached - best) / length)[~result.success]
    assert missed.max() <= slack, f"missed the optimum by {missed.max():.3g}"
    assert 3 <= result.success.sum() <= 13
    check_inside(attack, result, problem.images.detach())


@pytest.mark.parametrize(("seed", "targeted", "loss"), [(0, False, "ce"), (1, True, "ce"), (2, False, "dlr")])
def test_with_two_classes_it_fools_exactly_what_can_be_fooled(seed: int, targeted: bool, loss: LossName) -> None:
    decided(APGD(eps=0.02, steps=40, loss=loss), seed=seed, slack=1e-4, targeted=targeted)
    decided(APGD(eps=0.1, norm="l2", steps=60, loss=loss), seed=seed, slack=2e-3, low=0.3, targeted=targeted)
    decided(APGD(eps=0.3, norm="l1", loss=loss), seed=seed, slack=2.5e-2, targeted=targeted)


def test_with_two_classes_the_one_wrong_class_is_the_target() -> None:
    decided(TargetedAPGD(eps=0.02, steps=40), seed=3, slack=1e-4)
    decided(TargetedAPGD(eps=0.1, norm="l2", steps=60), seed=3, slack=2e-3, low=0.3)
    decided(TargetedAPGD(eps=0.3, norm="l1", use_larger_eps=True), seed=3, slack=2.5e-2)


# ------------------------------------------------------------------------------------------------------ properties


@every_attack
def test_adversarial_images_are_inside_and_are_what_they_are_said_to_be(attack: AbstractAttack) -> None:
    task = small_task(3)
    result = attack(task.model, task.images, task.labels)
    check_inside(attack, result, task.images)
    check_claims(result, task)


@every_attack
def test_the_batch_does_not_matter(attack: AbstractAttack) -> None:
    task = small_task(1, count=16)
    whole = attack(task.model, task.images, task.labels, seed=4)
    split = attack(task.model, task.images, task.labels, seed=4, batch_size=9)
    assert torch.allclose(split.adversarial, whole.adversarial, rtol=0, atol=1e-9)
    assert split.passes == whole.passes
    chosen = torch.tensor([11, 3, 14])
    some = attack(task.model, task.images[chosen], task.labels[chosen], seed=4, index=chosen)
    assert torch.allclose(some.adversarial, whole.adversarial[chosen], rtol=0, atol=1e-9)
    other = attack(task.model, task.images, task.labels, seed=5)
    assert not torch.allclose(other.adversarial, whole.adversarial, rtol=0, atol=1e-3)


@pytest.mark.parametrize("norm", NORMS)
def test_targeted_attacks_approach_their_target(norm: Norm) -> None:
    """The ratio does not mind the scale, so with it the target's probability need not rise; what is reached counts."""
    task, attack = small_task(), APGD(eps=3 * EPS[norm], norm=norm, steps=25)
    check_approaches_target(attack, task, reached=3)
    targets = (task.labels + 2) % 4
    reached = attack(task.model, task.images, task.labels, targets=targets).success
    with_ratio = replace(attack, loss="dlr")(task.model, task.images, task.labels, targets=targets)
    assert abs(int(with_ratio.success.sum() - reached.sum())) <= 1
    check_claims(with_ratio, task, targets)


def test_the_ratio_of_a_target_that_ranks_third_is_not_flat() -> None:
    goal = Goal(Misclassification(torch.tensor([3]), targeted=True), "dlr")
    logits = torch.tensor([[4.0, 3.0, 1.0, 2.0, 0.0]], requires_grad=True)
    (value,) = goal.objective(logits)
    assert value.item() == pytest.approx((2 - 4) / (4 - 1.5))
    value.backward()
    assert logits.grad is not None
    assert logits.grad[0, 3] > 0.1


@pytest.mark.parametrize("make", [APGD, TargetedAPGD])
@pytest.mark.parametrize("norm", NORMS)
def test_eps_zero_changes_nothing(make: Callable[..., AbstractAttack], norm: Norm) -> None:
    task = small_task()
    check_nothing_at_zero(lambda eps: make(eps=eps, norm=norm), task)
    result = make(eps=0.0, norm=norm)(task.model, task.images, task.labels)
    assert set(result.status.tolist()) == {Status.SUCCESS, Status.FAILED}


@pytest.mark.parametrize("loss", ["ce", "torch-ce"])
def test_the_loss_rises_more_than_by_chance(loss: LossName) -> None:
    task = small_task(2)
    right = torch.arange(len(task.labels)) % 6 != 0  # what is misclassified already is left alone
    check_beats_chance(APGD(eps=0.01, steps=30, loss=loss), Task(task.model, task.images[right], task.labels[right]))


@pytest.mark.parametrize("norm", NORMS)
def test_at_equal_steps_it_fools_no_less_than_pgd(norm: Norm) -> None:
    task, eps = small_task(1, count=60), 3 * EPS[norm]
    pgd = PGD(eps=eps, norm=norm, steps=20)(task.model, task.images, task.labels)
    assert 15 < pgd.success.sum() < 55
    for attack in (APGD(eps=eps, norm=norm, steps=20), TargetedAPGD(eps=eps, norm=norm, steps=20)):
        assert attack(task.model, task.images, task.labels).success.sum() >= pgd.success.sum()


def test_restarts_go_on_with_those_that_are_left() -> None:
    task = small_task(1, count=60, scale=12.0)
    once = APGD(eps=0.1, steps=1)(task.model, task.images, task.labels)
    often = APGD(eps=0.1, steps=1, restarts=6)(task.model, task.images, task.labels)
    assert often.success.sum() >= once.success.sum() + 5
    assert torch.equal(often.adversarial[once.success], once.adversarial[once.success])
    assert (often.loss >= once.loss - 1e-9)[~often.success].all()
    left = int((~once.success).sum())
    assert once.passes.backward <= 50
    assert 5 * (60 - int(often.success.sum())) <= often.passes.backward - once.passes.backward <= 5 * left


def test_bounds_and_channels_of_any_kind() -> None:
    """The wide noise of L1 is as wide as the bounds: a start changes many pixels at [-100, 300] as at [0, 1]."""
    shape, names, bounds = (3, 4, 5), ("a", "b", "c"), (-100.0, 300.0)
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(60, 8), nn.Tanh(), nn.Linear(8, 3))
    model = Classifier(layers, input_shape=shape, classes=names, bounds=bounds).eval()
    with torch.no_grad():
        layers[1].weight /= 100  # type: ignore[operator]
        images = (500 * torch.rand(20, *shape) - 150).clamp(*bounds)
        labels = model(images).argmax(1)
    radii: dict[Norm, float] = {"linf": 20.0, "l2": 100.0, "l1": 400.0}
    for norm, eps in radii.items():
        for attack in (APGD(eps=eps, norm=norm, steps=20), TargetedAPGD(eps=eps, norm=norm, steps=20)):
            result = attack(model, images, labels)
            check_inside(attack, result, images, bounds)
            assert result.success.sum() >= 5
            assert result.status.le(Status.FAILED).all()


# ----------------------------------------------------------------------------------------------- what is aimed at


def test_the_targets_are_the_most_likely_wrong_classes_in_order() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    labels = torch.tensor([0, 1])
    goals = TargetedAPGD(eps=0.1).goals(Misclassification(labels), logits)
    aims = [goal.target_classes for goal in goals]
    assert torch.equal(torch.stack([aim for aim in aims if aim is not None], 1), torch.tensor([[2, 1, 3], [3, 2, 0]]))
    assert torch.equal(goals[1].objective(logits), targeted_dlr(logits, labels, torch.tensor([1, 2])))
    assert torch.equal(goals[1][torch.tensor([1])].objective(logits[1:]), goals[1].objective(logits)[1:])
    assert len(TargetedAPGD(eps=0.1, classes=2).goals(Misclassification(labels), logits)) == 2


class Decoy(nn.Module):
    """Class 1 follows class 0 at a constant distance; only class 2 can be reached, by brighter images."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        light = images.flatten(1).mean(1)
        return torch.stack([0 * light + 1, 0 * light + 0.5, 10 * light - 5], 1)


def test_a_later_target_succeeds_where_the_first_is_a_decoy() -> None:
    model, images = classifier(Decoy(), classes=3), torch.full((4, *SHAPE), 0.5)
    labels = torch.zeros(4, dtype=torch.int64)
    first = TargetedAPGD(eps=0.12, classes=1, steps=10)(model, images, labels)
    both = TargetedAPGD(eps=0.12, classes=2, steps=10)(model, images, labels)
    assert not first.success.any()
    assert both.success.all()
    assert both.prediction.eq(2).all()


def test_the_targeted_version_takes_no_targets() -> None:
    task = small_task()
    with pytest.raises(SettingError, match="cannot be targeted"):
        TargetedAPGD(eps=0.1)(task.model, task.images, task.labels, targets=(task.labels + 1) % 4)


# ------------------------------------------------------------------------------------------------ counts and status


@every_attack
def test_passes_are_what_the_network_sees(attack: AbstractAttack) -> None:
    task = small_task()
    counting = Counting(task.model.network)
    result = attack(classifier(counting, classes=4), task.images, task.labels, batch_size=11)
    assert (result.passes.forward, result.passes.backward) == (counting.forwards, counting.backwards)


@pytest.mark.filterwarnings("ignore:eps 1e-06 in linf:casemate.errors.CasemateWarning")
def test_passes_by_hand() -> None:
    """30 images; 5 are misclassified, and only looked at; then the verification. No gradient at the last point."""
    task = small_task()
    for draws in (1, 3):
        passes = APGD(eps=1e-6, steps=4, restarts=2, eot_samples=draws)(task.model, task.images, task.labels).passes
        assert (passes.forward, passes.backward) == (draws * (30 + 2 * 25 * 5) + 30, draws * 2 * 25 * 4)
    passes = TargetedAPGD(eps=1e-6, steps=4)(task.model, task.images, task.labels).passes
    assert (passes.forward, passes.backward) == (30 + 3 * 25 * 5 + 30, 3 * 25 * 4)


@every_attack
def test_what_is_misclassified_from_the_start_is_left_alone(attack: AbstractAttack) -> None:
    task = small_task()
    result = attack(task.model, task.images, (task.labels + 1) % 4)
    wrong = task.model(task.images).argmax(1) != (task.labels + 1) % 4
    assert wrong.sum() >= 24
    assert torch.equal(result.adversarial[wrong], task.images[wrong])
    assert result.success[wrong].all()


def test_an_image_leaves_with_the_first_iterate_that_fools() -> None:
    """Every step of 3 eps from the middle: the batch the network sees only ever shrinks within a run."""
    task = small_task(count=60)
    sizes: list[int] = []
    task.model.network.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    with prepare_for_attack(task.model, task.images, pass_size=60) as prepared:
        sizes.clear()
        result = APGD(eps=0.05, steps=30)(prepared, task.images, task.labels)
    left = int((~result.success).sum())
    assert sizes[:2] == [60, 50]
    assert all(after <= before for before, after in pairwise(sizes[1:-1]))
    assert sizes[-2] == left < sizes[2]


def test_where_nothing_counts_as_fooled_the_image_with_the_highest_loss_is_kept() -> None:
    task = small_task(count=1)
    seen: list[Tensor] = []
    task.model.network.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    found, passes, _ = unfooled(APGD(eps=0.1, steps=30, restarts=2), task)
    assert passes == Passes(forward=1 + 2 * 31, backward=2 * 30)
    losses = [F.cross_entropy(logits, task.labels).item() for logits in seen]
    assert F.cross_entropy(task.model(found), task.labels).item() == pytest.approx(max(losses[1:]), rel=1e-12)


class Rounded(nn.Module):
    """Reads whole grey levels: no gradient reaches the pixels."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        """Quantise, then classify."""
        return self.inner((255 * images).round() / 255)


@every_attack
def test_an_attack_without_a_direction_says_so(attack: AbstractAttack) -> None:
    task = small_task(scale=1.0)
    for model in (Rounded(task.model.network), Undifferentiable(task.model.network)):
        with pytest.warns(CasemateWarning, match="had no gradient to follow on .* of 30 images"):
            result = attack(classifier(model, classes=4), task.images, task.labels)
        assert result.status[~result.success].eq(Status.ZERO_GRADIENT).all()
        assert (~result.success).sum() >= 10


class Undifferentiable(nn.Module):
    """Returns numbers that have lost all trace of the images."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        """Classify without a graph."""
        with torch.no_grad():
            return self.inner(images)


class Trouble(nn.Module):
    """Numbers that fail where an image's first pixel says so, be it from the start or once it has moved.

    Above 0.9 the logits are not numbers; between 0.8 and 0.9 they are, but the gradient is not.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        """Classify."""
        corner = images[:, :1, 0, 0]
        steep = (corner - corner.detach()).where((corner > 0.8) & (corner <= 0.9), 1).sqrt()
        return (self.inner(images) + steep).masked_fill(corner > 0.9, math.nan)


@every_attack
def test_numbers_that_are_not_finite_are_a_status_and_give_the_clean_image(attack: AbstractAttack) -> None:
    """The others' results are what they are without them."""
    task = small_task()
    images = task.images.clone()
    images[:, 0, 0, 0] = 0.3
    images[1:3, 0, 0, 0] = 0.95
    images[3:5, 0, 0, 0] = 0.85
    model = classifier(Trouble(task.model.network), classes=4)
    labels = task.model(images).argmax(1)
    weak = replace(attack, eps=attack.ball().eps / 50)  # type: ignore[call-arg]
    with pytest.warns(CasemateWarning, match="on 4 of 30 images .* met logits or gradients that are not finite"):
        result = weak(model, images, labels)
    assert result.status[1:5].eq(Status.NON_FINITE).all()
    assert torch.equal(result.adversarial[1:5], images[1:5])
    others = [0, *range(5, 30)]
    assert result.status[others].le(Status.FAILED).all()
    index = torch.tensor(others)
    alone = weak(task.model, images[others], labels[others], index=index)
    assert torch.allclose(result.adversarial[others], alone.adversarial, rtol=0, atol=1e-9)


def test_an_image_that_walks_into_trouble_keeps_what_fooled_before() -> None:
    """Class 1 wins above a mean of 0.62; above 0.66 nothing is a number."""

    class Cliff(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            light = images.flatten(1).mean(1)
            return torch.stack([0 * light, light - 0.62], 1).masked_fill((light > 0.66).unsqueeze(1), math.nan)

    model, images = classifier(Cliff()), torch.full((2, *SHAPE), 0.5)
    labels = torch.tensor([0, 0])
    fooled = APGD(eps=0.15)(model, images, labels)
    assert fooled.success.all()
    with pytest.warns(CasemateWarning, match="on 2 of 2 images APGD met logits or gradients that are not finite"):
        beyond = APGD(eps=0.4)(model, images, labels)  # the first step lands at 0.9
    assert beyond.status.eq(Status.NON_FINITE).all()
    assert torch.equal(beyond.adversarial, images)


def test_progress_amounts_to_the_images_at_most() -> None:
    task = small_task()
    for attack in (
        APGD(eps=0.01, restarts=3, steps=10),
        TargetedAPGD(eps=0.5, norm="l1", steps=10, use_larger_eps=True),
    ):
        done: list[float] = []
        streams = Streams(1, torch.arange(30))
        with frozen(task.model):
            attack.run(
                task.model,
                task.images,
                Misclassification(task.labels),
                streams,
                lambda amount, note, done=done: done.append(amount),
            )
        assert 15 < sum(done) <= 30 + 1e-6


# --------------------------------------------------------------------------------- models that answer at random


class Noisy(nn.Module):
    """A linear classifier whose slope is off by random numbers, new ones at every pass, of zero mean."""

    def __init__(self, inner: nn.Module, noise: float) -> None:
        super().__init__()
        self.inner, self.noise = inner, noise

    def forward(self, images: Tensor) -> Tensor:
        """Logits with a random part that hardly changes them, only their gradient."""
        flat = images.flatten(1)
        random = self.noise * torch.randn(2, PIXELS)
        return self.inner(images) + (flat - flat.detach()) @ random.T


def test_averaged_gradients_see_through_noise() -> None:
    torch.manual_seed(3)
    problem = linear_problem(0)
    model = classifier(Noisy(problem.model.network, 5.0))
    one = APGD(eps=0.03, steps=10)(model, problem.images, problem.labels)
    many = APGD(eps=0.03, steps=10, eot_samples=40)(model, problem.images, problem.labels)
    assert many.success.sum() >= one.success.sum() + 3


def test_draws_of_a_model_that_does_not_answer_at_random_change_nothing() -> None:
    task = small_task()
    for norm in NORMS:
        once = APGD(eps=EPS[norm], norm=norm, steps=6)
        expected = once(task.model, task.images, task.labels).adversarial
        found = replace(once, eot_samples=4)(task.model, task.images, task.labels).adversarial
        assert torch.allclose(found, expected, rtol=0, atol=1e-9)


# -------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("make", [APGD, TargetedAPGD])
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"eps": -0.1}, "eps"),
        ({"eps": math.nan}, "eps"),
        ({"norm": "l3"}, "l3"),
        ({"steps": 0}, "steps = 0"),
        ({"restarts": 0}, "restarts = 0"),
        ({"eot_samples": 0}, "eot_samples = 0"),
        ({"rho": -0.1}, "rho = -0.1"),
        ({"rho": 1.1}, "rho = 1.1"),
        ({"rho": math.nan}, "rho = nan"),
        ({"use_larger_eps": True}, "use_larger_eps"),
        ({"use_larger_eps": True, "norm": "l2"}, "use_larger_eps"),
    ],
)
def test_settings_outside_their_values_are_refused(
    make: Callable[..., AbstractAttack], settings: dict, words: str
) -> None:
    with as_installed(), pytest.raises(SettingError, match=words):
        make(**{"eps": 0.1, **settings})


def test_losses_and_classes_outside_their_values_are_refused() -> None:
    with as_installed(), pytest.raises(SettingError, match="loss = "):
        APGD(eps=0.1, loss="mse")  # type: ignore[arg-type]
    with as_installed(), pytest.raises(SettingError, match="classes = 0"):
        TargetedAPGD(eps=0.1, classes=0)


def test_defaults_are_those_of_the_original() -> None:
    attack, targeted = APGD(eps=0.1), TargetedAPGD(eps=0.1)
    assert (attack.steps, attack.restarts, attack.rho, attack.eot_samples, attack.norm) == (100, 1, 0.75, 1, "linf")
    assert (targeted.steps, targeted.classes, targeted.restarts) == (100, 9, 1)
    assert attack.record()["loss"] == "ce"
