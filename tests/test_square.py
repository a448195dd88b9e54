"""Square: the optimum on a linear classifier, its windows, its budget, and what it does with odd input."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from casemate.attacks import PGD, Status
from casemate.attacks.noise import CornerNoise, UniformNoise
from casemate.attacks.square import AbstractSquareProposal, L2Square, LinfSquare, Square, _bumps, _eta
from casemate.errors import CasemateWarning, SettingError
from casemate.losses import margin
from casemate.models import Classifier
from casemate.norms import Ball, Norm
from casemate.rng import Streams
from conftest import Listener
from oracles import (
    UNIT,
    Counting,
    as_installed,
    check_claims,
    check_inside,
    check_nothing_at_zero,
    classifier,
    generator,
    linear_problem,
    room,
    small_task,
    steepest_descent,
)

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
EPS: dict[Norm, float] = {"linf": 0.15, "l2": 0.8, "l1": 3.0}


# ---------------------------------------------------------------------------------------------------- its strength


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_linf_reaches_the_exact_optimum_on_a_linear_classifier(seed: int, targeted: bool) -> None:
    """The best corner of the ball: an image is fooled where that corner's margin is negative, and else ends there."""
    problem, eps = linear_problem(seed), 0.02
    targets = 1 - problem.labels if targeted else None
    result = Square(eps=eps, n_queries=1500)(problem.model, problem.images, problem.labels, targets=targets)
    rooms = room(problem.images.flatten(1).double(), problem.slope)
    best = problem.margin(problem.images) - steepest_descent(problem.slope, rooms, "linf", eps)
    assert 0 < (best < 0).sum() < len(best)
    assert torch.equal(result.success, best < 0)
    stood = best > 0
    assert torch.allclose(problem.margin(result.adversarial)[stood], best[stood], rtol=0, atol=1e-5)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("norm", "eps", "share"), [("l2", 0.2, 0.6), ("l1", 0.6, 0.6)])
def test_l2_and_l1_come_near_the_exact_optimum(norm: Norm, eps: float, share: float) -> None:
    """Of the fall in margin that the ball allows, more than half is found: windows of 9 pixels of 36 are coarse."""
    problem = linear_problem(1, low=0.35, high=0.65, gap=0.5)
    images = problem.images + 0  # a shifted bias keeps everything correctly classified, so that no search ends early
    with torch.no_grad():
        problem.model.network[1].bias[1] -= 10.0  # type: ignore[index]
    labels = torch.zeros_like(problem.labels)
    slope = torch.where(problem.labels.bool().unsqueeze(1), -problem.slope, problem.slope)
    problem = replace(problem, labels=labels, slope=slope)
    result = Square(eps=eps, norm=norm, n_queries=600)(problem.model, images, labels)
    assert not result.success.any()
    fall = problem.margin(images) - problem.margin(result.adversarial)
    most = steepest_descent(slope, room(images.flatten(1).double(), slope), norm, eps)
    assert (fall <= most * (1 + 1e-5)).all()
    assert (fall >= share * most).all(), (fall / most).min()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("norm", NORMS)
def test_it_is_stronger_than_noise_and_not_far_from_pgd(norm: Norm) -> None:
    task = small_task(1, count=60, dtype=torch.float32)
    eps = EPS[norm]
    fooled = {
        "noise": UniformNoise(eps=eps, norm=norm, num_samples=300),
        "square": Square(eps=eps, norm=norm, n_queries=300),
        "pgd": PGD(eps=eps, norm=norm, steps=40, loss="margin"),
    }
    counts = {name: int(attack(task.model, task.images, task.labels).success.sum()) for name, attack in fooled.items()}
    assert counts["noise"] < counts["square"]
    assert counts["square"] >= 0.7 * counts["pgd"]


@pytest.mark.usefixtures("unchecked")
def test_it_is_stronger_than_random_corners() -> None:
    task = small_task(1, count=60, dtype=torch.float32)
    corners = CornerNoise(eps=0.15, num_samples=300)(task.model, task.images, task.labels)
    square = Square(eps=0.15, n_queries=300)(task.model, task.images, task.labels)
    assert square.success.sum() > corners.success.sum()
    stood = ~square.success & ~corners.success
    with torch.no_grad():
        wrong = [margin(task.model(result.adversarial), task.labels)[stood] for result in (square, corners)]
    assert stood.any()
    assert (wrong[0] > wrong[1]).double().mean() > 0.9


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("norm", NORMS)
def test_targets_are_reached(norm: Norm) -> None:
    task = small_task(1, scale=30.0)
    targets = (task.labels + 2) % 4
    attack = Square(eps=EPS[norm], norm=norm, n_queries=200)
    result = attack(task.model, task.images, task.labels, targets=targets)
    check_inside(attack, result, task.images)
    check_claims(result, task, targets)
    with torch.no_grad():
        before = task.model(task.images).argmax(1) == targets
    assert (result.success & ~before).sum() >= 8


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("norm", NORMS)
def test_more_queries_never_worsen(norm: Norm) -> None:
    """The same draws as far as they go; what is kept is never less wrong."""
    task = small_task(1, count=40)
    results = [
        Square(eps=0.5 * EPS[norm], norm=norm, n_queries=queries)(task.model, task.images, task.labels)
        for queries in (1, 20, 200)
    ]
    for fewer, more in itertools.pairwise(results):
        assert (more.success | ~fewer.success).all()
        stood = ~more.success
        with torch.no_grad():
            wrong = [margin(task.model(result.adversarial), task.labels)[stood] for result in (fewer, more)]
        assert (wrong[1] >= wrong[0] - 1e-9).all()
        assert (wrong[1] > wrong[0]).any()


@pytest.mark.usefixtures("unchecked")
def test_restarts_never_worsen_and_take_only_those_that_stood() -> None:
    task = small_task(1, count=60)
    one, three = (
        Square(eps=0.2, n_queries=25, restarts=restarts)(task.model, task.images, task.labels) for restarts in (1, 3)
    )
    assert (three.success | ~one.success).all()
    assert three.success.sum() > one.success.sum()
    assert torch.equal(one.adversarial[one.success], three.adversarial[one.success])
    stood = ~three.success
    with torch.no_grad():
        wrong = [margin(task.model(result.adversarial), task.labels)[stood] for result in (one, three)]
    assert (wrong[1] >= wrong[0]).all()
    assert (wrong[1] > wrong[0]).any()


# ------------------------------------------------------------------------------------------- windows and schedule


def test_the_schedule_of_the_window() -> None:
    """0.8 of 784 pixels is 25.04 squared; the share is halved after 10, 50, 200, ... steps."""
    attack = Square(eps=0.1)
    sides = {0: 25, 10: 25, 11: 18, 50: 18, 51: 13, 201: 9, 501: 6, 1001: 4, 2001: 3, 4001: 2, 6001: 2, 8001: 1}
    assert {step: attack.side(step, 28, 28) for step in sides} == sides
    rounded = {0: 25, 11: 19, 51: 13, 201: 9, 501: 7, 1001: 5, 2001: 3, 8001: 3}
    assert {step: replace(attack, norm="l2").side(step, 28, 28) for step in rounded} == rounded
    stretched = replace(attack, rescale_schedule=True, n_queries=1000)
    assert [stretched.side(step, 28, 28) for step in (1, 2, 20, 21, 999)] == [25, 18, 13, 9, 1]
    assert attack.side(0, 3, 40) == 3
    assert [replace(attack, norm="l1").side(9000, height, 40) for height in (1, 2, 3, 40)] == [1, 2, 3, 3]


def started(norm: Norm, eps: float, clean: Tensor) -> AbstractSquareProposal:
    moves = (LinfSquare if norm == "linf" else L2Square)(clean, Ball(eps=eps, norm=norm), UNIT)
    moves.start(Streams(1, torch.arange(len(clean))), 0)
    return moves


def step(moves: AbstractSquareProposal, draws: Tensor, side: int) -> Tensor:
    """The images after one step with these draws, in which everything is better."""
    moves.plan(draws.unsqueeze(1), [side])
    moves.step(0)
    moves.settle(torch.ones(len(draws), dtype=torch.bool))
    return moves.images(slice(None)).clone()


def grey(count: int, shape: tuple[int, int, int], low: float, high: float) -> Tensor:
    channels, height, width = shape
    rows = torch.rand(count, height, width, channels, generator=generator(0))
    return (low + (high - low) * rows).permute(0, 3, 1, 2)


def test_a_linf_step_sends_one_square_of_each_channel_to_a_corner() -> None:
    clean = grey(200, (3, 7, 5), low=0.2, high=0.8)
    moves = started("linf", 0.1, clean)
    start = moves.images(slice(None))
    assert torch.allclose((start - clean).abs(), torch.tensor(0.1))
    assert torch.equal((start > clean)[:, :, :1].expand(-1, -1, 7, -1), start > clean)
    moves.tried = moves.rows(clean).clone()
    found = step(moves, torch.rand(200, 8, generator=generator(1)), 2) - clean
    changed = found.abs() > 0.05
    assert changed.sum((2, 3)).eq(4).all()
    down, across = changed.any(3).double(), changed.any(2).double()
    assert down.sum(2).eq(2).all()
    assert across.sum(2).eq(2).all()
    assert torch.equal(changed[:, 0], changed[:, 2])
    assert torch.allclose(found[changed].abs(), torch.tensor(0.1))
    assert found.sum((2, 3)).abs().sub(0.4).abs().lt(1e-5).all()  # one sign for each channel
    assert found.sum((2, 3)).sign().sum(1).unique().tolist() == [-3, -1, 1, 3]
    assert changed.any(0).all(), "every pixel lies in some window, the last row and column too"


def test_a_linf_step_that_does_not_help_is_undone_and_one_that_changes_nothing_is_not_asked() -> None:
    moves = started("linf", 0.1, grey(50, (2, 6, 6), low=0.0, high=1.0))
    start = moves.images(slice(None)).clone()
    moves.plan(torch.rand(50, 1, 7, generator=generator(1)), [3])
    asked = moves.step(0)
    assert isinstance(asked, Tensor)
    assert torch.equal(asked, moves.images(slice(None)).ne(start).flatten(1).any(1).nonzero().squeeze(1))
    better = torch.arange(50) % 3 == 0
    tried = moves.images(slice(None)).clone()
    moves.settle(better)
    assert torch.equal(moves.images(slice(None)), tried.where(better.view(-1, 1, 1, 1), start))
    moves.step(0)
    moves.settle(~better)
    again = moves.step(0)
    assert isinstance(again, Tensor)
    assert not len(again)


@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 9, 5), (1, 2, 7)])
def test_an_l2_step_keeps_all_of_the_radius(shape: tuple[int, int, int]) -> None:
    clean = grey(60, shape, low=0.45, high=0.55)
    moves = started("l2", 0.3, clean)
    best = moves.images(slice(None))
    for number in range(5):
        assert torch.allclose((best - clean).flatten(1).norm(dim=1), torch.tensor(0.3), atol=1e-5)
        new = step(moves, torch.rand(60, 5 + shape[0], generator=generator(number)), min(3, *shape[1:]))
        # of two windows that both gave all they had before, nothing comes
        assert (new - best).flatten(1).abs().amax(1).gt(1e-3).double().mean() > 0.8
        best = new


def test_an_l2_step_moves_mass_from_one_window_to_another() -> None:
    """Outside both nothing changes, and the second is emptied where it does not meet the first."""
    clean = grey(1, (2, 8, 8), low=0.45, high=0.55)
    moves = started("l2", 0.3, clean)
    best = moves.images(slice(None))
    draws = torch.tensor([[0.0, 0.0, 0.99, 0.99, 0.2, 0.1, 0.9]])  # top left takes, bottom right gives
    before, after = best - clean, step(moves, draws, 3) - clean
    assert after[:, :, 5:, 5:].abs().max() < 1e-6
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[:3, :3] = inside[5:, 5:] = True
    assert torch.allclose(before[:, :, ~inside], after[:, :, ~inside], atol=1e-6)
    freed = before[:, :, inside].square().sum(2)
    assert torch.allclose(after[:, :, inside].square().sum(2), freed, rtol=1e-4)


def test_bumps_are_two_hills_of_opposite_sign() -> None:
    for norm, order in (("l2", 2), ("l1", 1)):
        bump, turned = _bumps(5, norm, torch.float64, torch.device("cpu"))
        assert bump.norm(p=order).item() == pytest.approx(1)
        assert torch.equal(bump.T, turned)
        assert (bump[:2] > 0).all()
        assert (bump[2:] < 0).all()
    # nested squares of 1, 3, 5, ... pixels, each of the reciprocal square of its number high
    nested = torch.zeros(5, 5, dtype=torch.float64)
    for storey in range(3):
        nested[2 - storey : 3 + storey, 2 - storey : 3 + storey] += (storey + 1) ** -2.0
    assert torch.allclose(_eta(5, 5, 2), nested / nested.norm())


# ------------------------------------------------------------------------------------- claims, budget, odd input


@pytest.mark.filterwarnings("ignore:eps .* is more than the:casemate.errors.CasemateWarning")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_are_inside_and_are_what_they_are_said_to_be(norm: Norm, dtype: torch.dtype) -> None:
    task = small_task(3, dtype=dtype)
    for eps in (0.3 * EPS[norm], EPS[norm], 10 * EPS[norm]):
        attack = Square(eps=eps, norm=norm, n_queries=70)
        result = attack(task.model, task.images, task.labels)
        check_inside(attack, result, task.images)
        check_claims(result, task)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("shape", "classes"), [((3, 5, 9), 3), ((1, 9, 4), 2), ((2, 1, 3), 5)])
def test_any_shape_and_any_bounds(norm: Norm, shape: tuple[int, int, int], classes: int) -> None:
    random = generator(4)
    layer = nn.Linear(math.prod(shape), classes)
    names = tuple(f"class {number}" for number in range(classes))
    model = Classifier(nn.Sequential(nn.Flatten(), layer), input_shape=shape, classes=names, bounds=(-1.0, 3.0)).eval()
    images = -1 + 4 * torch.rand(20, *shape, generator=random)
    with torch.no_grad():
        labels = model(images).argmax(1)
    attack = Square(eps=4 * EPS[norm], norm=norm, n_queries=100)
    result = attack(model, images, labels)
    check_inside(attack, result, images, bounds=(-1.0, 3.0))
    assert (result.norm[~result.success] > 0).all()
    assert result.success.any()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("norm", NORMS)
def test_the_batch_split_does_not_matter(norm: Norm) -> None:
    task = small_task(1)
    attack = Square(eps=EPS[norm], norm=norm, n_queries=60, restarts=2)
    whole = attack(task.model, task.images, task.labels, seed=3)
    parts = attack(task.model, task.images, task.labels, seed=3, batch_size=7)
    rest = attack(task.model, task.images[11:], task.labels[11:], seed=3, index=torch.arange(11, 30))
    other = attack(task.model, task.images, task.labels, seed=4)
    assert torch.allclose(whole.adversarial, parts.adversarial, rtol=0, atol=1e-7)
    assert torch.equal(whole.status, parts.status)
    assert whole.passes == parts.passes
    assert torch.allclose(whole.adversarial[11:], rest.adversarial, rtol=0, atol=1e-7)
    assert not torch.allclose(whole.adversarial, other.adversarial, atol=1e-3)


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:.* met logits or gradients that are not finite:casemate.errors.CasemateWarning")
@pytest.mark.parametrize("bad", [2.0, 0.5])
def test_images_that_a_query_does_not_change_take_no_pass(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it change what is found; also where the start's logits are not finite (`bad` = 0.5, for some images)."""
    task, attack = small_task(1, dtype=torch.float32), Square(eps=0.02, n_queries=400)
    task.images[:, 0, 0, 0] = 0.5
    model = classifier(Broken(task.model.network, bad), classes=4)
    found = attack(model, task.images, task.labels)
    assert (found.status == Status.NON_FINITE).any() == (bad < 1)
    step = LinfSquare.step

    def ask_all(moves: LinfSquare, number: int) -> slice:
        step(moves, number)
        return slice(None)

    monkeypatch.setattr(LinfSquare, "step", ask_all)
    all_asked = attack(model, task.images, task.labels)
    assert torch.equal(found.adversarial, all_asked.adversarial)
    assert torch.equal(found.status, all_asked.status)
    assert found.passes.forward < 0.9 * all_asked.passes.forward


@pytest.mark.filterwarnings("ignore:eps 1e-06 in l2:casemate.errors.CasemateWarning")
@pytest.mark.usefixtures("unchecked")
def test_queries_are_counted_and_the_fooled_leave() -> None:
    task = small_task(1, dtype=torch.float32)
    counting = Counting(task.model.network)
    model = classifier(counting, classes=4)
    result = Square(eps=0.8, norm="l2", n_queries=200)(model, task.images, task.labels)
    assert result.passes.forward == counting.forwards
    assert result.passes.backward == counting.backwards == 0
    with torch.no_grad():
        clean = task.model(task.images).argmax(1) == task.labels
    stood, fell = ~result.success, result.success & clean
    most = 2 * len(clean) + 200 * int(stood.sum()) + 200 * int(fell.sum())
    assert 2 * len(clean) + 200 * int(stood.sum()) + int(fell.sum()) <= result.passes.forward < most
    assert fell.sum() >= 5
    nobody = Square(eps=1e-6, norm="l2", n_queries=40)(model, task.images[clean], task.labels[clean])
    assert nobody.passes.forward == int(clean.sum()) * 42  # the clean image, 40 queries, the verification


def test_what_was_misclassified_is_left_alone(listener: Listener) -> None:
    task = small_task()
    attack = Square(eps=0.03, n_queries=300)
    result = attack(task.model, task.images, task.labels, observer=listener)
    with torch.no_grad():
        wrong = task.model(task.images).argmax(1) != task.labels
    assert wrong.sum() == 5
    assert torch.equal(result.adversarial[wrong], task.images[wrong])
    assert result.status[wrong].eq(Status.SUCCESS).all()
    assert listener.done == pytest.approx(listener.total)
    again = attack(task.model, task.images[wrong], task.labels[wrong])
    assert again.passes.forward == 10


@pytest.mark.parametrize("norm", NORMS)
def test_eps_zero_changes_nothing(norm: Norm) -> None:
    check_nothing_at_zero(lambda eps: Square(eps=eps, norm=norm, n_queries=20), small_task(dtype=torch.float32))


class Broken(nn.Module):
    """Not finite where the image's first pixel is `bad`, or at some of the images further off than the clean ones."""

    def __init__(self, inner: nn.Module, bad: float) -> None:
        super().__init__()
        self.inner = inner
        self.bad = bad

    def forward(self, images: Tensor) -> Tensor:
        """NaN for some."""
        return self.inner(images).masked_fill((images[:, 0, 0, 0] > self.bad).unsqueeze(1), torch.nan)


def test_logits_that_are_not_finite() -> None:
    task = small_task(1)
    images = task.images.clone()
    images[:, 0, 0, 0] = 0.5
    images[::5, 0, 0, 0] = 0.95
    inner = task.model.network
    with torch.no_grad():
        labels = inner(images).argmax(1)
    with pytest.warns(CasemateWarning, match="on 6 of 30 images Square met logits or gradients that are not finite"):
        always = Square(eps=0.2, n_queries=100)(classifier(Broken(inner, 0.74), classes=4), images, labels)
    bad = images[:, 0, 0, 0] > 0.7
    assert always.status[bad].eq(Status.NON_FINITE).all()
    assert torch.equal(always.adversarial[bad], images[bad])
    whole = Square(eps=0.2, n_queries=100)(classifier(inner, classes=4), images, labels)
    assert torch.equal(always.adversarial[~bad], whole.adversarial[~bad])
    # where only some queries are not finite, the others may still fool; if none does, the fault is named
    with pytest.warns(CasemateWarning, match="of 24 images Square met logits or gradients that are not finite"):
        sometimes = Square(eps=0.2, n_queries=100)(
            classifier(Broken(inner, 0.5), classes=4), images[~bad], labels[~bad]
        )
    assert set(sometimes.status.tolist()) == {Status.SUCCESS, Status.NON_FINITE}
    assert sometimes.adversarial[sometimes.success][:, 0, 0, 0].max() <= 0.5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"eps": -0.1}, "eps"),
        ({"norm": "l3"}, "norm"),
        ({"n_queries": 0}, "n_queries = 0; expected"),
        ({"p_init": 0.0}, r"p_init = 0.0; expected"),
        ({"p_init": 1.1}, r"p_init = 1.1; expected"),
        ({"p_init": math.nan}, "p_init = nan; expected"),
        ({"restarts": 0}, "restarts = 0; expected"),
    ],
)
def test_settings_are_refused(settings: dict[str, object], words: str) -> None:
    with as_installed(), pytest.raises(SettingError, match=words):
        Square(**{"eps": 0.1, **settings})  # type: ignore[arg-type]


def test_defaults_are_those_of_autoattack() -> None:
    attack = Square(eps=0.1)
    assert (attack.n_queries, attack.p_init, attack.restarts, attack.rescale_schedule) == (5000, 0.8, 1, False)
