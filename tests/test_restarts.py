"""Restarts: fresh draws for those not fooled yet, the nearest image of several runs, and what is refused."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import final

import pytest
import torch
from torch import Tensor, nn

from casemate.attacks import (
    BIM,
    EOT,
    FGSM,
    PGD,
    AbstractAttack,
    AbstractMinimumNormAttack,
    Passes,
    RunResult,
    Status,
    with_eps,
)
from casemate.attacks.criterion import Criterion, Misclassification
from casemate.attacks.restarts import Restarts
from casemate.errors import CasemateWarning, SettingError
from casemate.models import Classifier
from casemate.norms import Ball, Norm
from casemate.progress import Advance
from casemate.rng import Streams, derive
from oracles import (
    Counting,
    Linear,
    as_installed,
    check_claims,
    check_inside,
    check_nothing_at_zero,
    classifier,
    distance,
    linear_problem,
    small_task,
)

WEAK = PGD(eps=0.05, steps=1)


@final
@dataclass(frozen=True, kw_only=True)
class Noise(AbstractAttack):
    """One point drawn from the ball; remembers which images it was given, and what it drew."""

    eps: float = 0.1
    norm: Norm = "linf"
    seen: list[tuple[list[int], Tensor]] = field(default_factory=list, compare=False)

    def max_passes(self, classes: int) -> Passes:
        """None that count."""
        del classes
        return Passes()

    def run(
        self, model: Classifier, clean: Tensor, criterion: Criterion, streams: Streams, advance: Advance
    ) -> RunResult:
        """Draw."""
        del criterion
        advance(len(clean), "")
        moved = self.ball().sample(clean, model.bounds, streams, "point")
        self.seen.append((streams.index.tolist(), moved))
        every = torch.ones(len(clean), dtype=torch.bool)
        return RunResult(moved, every, every, Passes())


@final
@dataclass(frozen=True, kw_only=True)
class Lottery(AbstractMinimumNormAttack):
    """Straight to the boundary of a linear problem, and beyond it by a share that is drawn; sometimes it fails.

    It counts how often each image was given to it; the numbers of image number `broken` are not finite.
    """

    problem: Linear
    norm: Norm = "l2"
    broken: int = -1
    given: list[int] = field(default_factory=list, compare=False)

    def max_passes(self, classes: int) -> Passes:
        """None that count."""
        del classes
        return Passes()

    def run(
        self, model: Classifier, clean: Tensor, criterion: Criterion, streams: Streams, advance: Advance
    ) -> RunResult:
        """Go there."""
        del advance
        self.given.extend(streams.index.tolist())
        slope, length = self.problem.slope[streams.index], self.shares(streams)
        with torch.no_grad():
            fooled = criterion.is_adversarial(model(clean))
        factor = torch.where(fooled, 0.0, length) * self.gap()[streams.index]
        moved = (clean - (factor.unsqueeze(1) * slope).view_as(clean).to(clean.dtype)).clone()
        finite = streams.index != self.broken
        return RunResult(moved, finite, torch.ones_like(finite), Passes(forward=len(clean)))

    @staticmethod
    def shares(streams: Streams) -> Tensor:
        """Of the way to the boundary: 0 for failure, or from 1.01 to 1.5."""
        draw = streams.uniform((2,), "share").double()
        return torch.where(draw[:, 0] < 0.3, 0.0, 1.01 + draw[:, 1] / 2)

    def gap(self) -> Tensor:
        """The step along the slope that ends exactly on the boundary."""
        return self.problem.margin(self.problem.images) / self.problem.slope.square().sum(1)


def margins(problem: Linear, index: list[int], images: Tensor) -> list[float]:
    """By how much some of a problem's images are classified correctly, from weights and bias by hand."""
    layer = problem.model.network[1]  # type: ignore[index]
    logits = images.flatten(1).double() @ layer.weight.double().T + layer.bias.double()
    own = logits.gather(1, problem.labels[index].unsqueeze(1)).squeeze(1)
    return (2 * own - logits.sum(1)).tolist()


# ------------------------------------------------------------------------------------------- attacks within a ball


@pytest.mark.parametrize(
    "attack",
    [WEAK, PGD(eps=0.5, steps=2, norm="l2", keep="last"), EOT(attack=BIM(eps=0.05, steps=2), eot_samples=2), Noise()],
    ids=lambda attack: type(attack).__name__,
)
@pytest.mark.parametrize("targeted", [False, True])
def test_one_run_is_the_attack_itself(attack: AbstractAttack, targeted: bool) -> None:
    task = small_task()
    targets = (task.labels + 1) % 4 if targeted else None
    once = Restarts(attack=attack, restarts=1)(task.model, task.images, task.labels, targets=targets, seed=3)
    alone = attack(task.model, task.images, task.labels, targets=targets, seed=3)
    for name in ("adversarial", "prediction", "success", "status", "loss", "norm"):
        assert torch.equal(getattr(once, name), getattr(alone, name)), name


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("targeted", [False, True])
def test_more_runs_never_fool_less_and_in_the_end_more(norm: Norm, targeted: bool) -> None:
    task = small_task(1, count=60, scale=30.0)
    targets = (task.labels + 1) % 4 if targeted else None
    attack = PGD(eps={"linf": 0.05, "l2": 0.25, "l1": 1.0}[norm], steps=2, norm=norm)
    results = [
        Restarts(attack=attack, restarts=runs)(task.model, task.images, task.labels, targets=targets)
        for runs in (1, 2, 4, 8)
    ]
    for fewer, more in pairwise(results):
        assert (more.success | ~fewer.success).all()
        kept = more.adversarial[fewer.success]
        assert torch.allclose(kept, fewer.adversarial[fewer.success], atol=1e-12)  # rounding: few runs make no copy
        check_inside(attack, more, task.images)
        check_claims(more, task, targets)
    if not targeted:  # few reach a target by luck
        assert results[-1].success.sum() > results[0].success.sum()


@pytest.mark.parametrize("targeted", [False, True])
def test_without_success_the_most_wrong_result_is_kept(targeted: bool) -> None:
    """Highest cross-entropy of the label, or lowest of the target, over all the runs that the draws stand for."""
    task = small_task(3)
    targets = (task.labels + 1) % 4 if targeted else None
    truth = task.labels if targets is None else targets
    attack = Noise(eps=0.02)
    found = Restarts(attack=attack, restarts=5)(task.model, task.images, task.labels, targets=targets)
    losses = torch.full((5, 30), -math.inf if not targeted else math.inf, dtype=torch.float64)
    for run, (index, moved) in enumerate(attack.seen):
        with torch.no_grad():
            value = nn.functional.cross_entropy(task.model(moved), truth[index], reduction="none")
        losses[run, index] = value
    with torch.no_grad():
        reached = nn.functional.cross_entropy(task.model(found.adversarial), truth, reduction="none")
    stood = ~found.success
    assert stood.sum() > 10
    best = losses.amin(0) if targeted else losses.amax(0)
    assert torch.allclose(reached[stood], best[stood])
    assert not torch.allclose(losses[0][stood], best[stood])


def test_it_is_as_strong_as_the_restarts_that_pgd_has_itself() -> None:
    task = small_task(1, count=120, scale=30.0)
    attack = PGD(eps=0.05, steps=2)
    once = attack(task.model, task.images, task.labels).robust_accuracy
    own = replace(attack, restarts=6)(task.model, task.images, task.labels).robust_accuracy
    wrapped = Restarts(attack=attack, restarts=6)(task.model, task.images, task.labels).robust_accuracy
    assert wrapped < once
    assert abs(wrapped - own) < 0.06


def test_only_those_not_fooled_yet_go_on_and_every_run_draws_afresh() -> None:
    problem = linear_problem(0, count=40, gap=0.6)
    attack = Noise(eps=0.3)
    Restarts(attack=attack, restarts=6)(problem.model, problem.images, problem.labels, seed=5)
    assert 3 <= len(attack.seen) <= 6
    left = list(range(40))
    for run, (index, moved) in enumerate(attack.seen):
        assert index == left
        seed = derive(5, "Noise")
        streams = Streams(seed if run == 0 else derive(seed, "restart", run), torch.tensor(index))
        assert torch.equal(moved, attack.ball().sample(problem.images[index], (0, 1), streams, "point"))
        left = [number for number, stands in zip(index, margins(problem, index, moved), strict=True) if stands > 0]
    assert 0 < len(left) < 30
    assert len(attack.seen[-1][0]) < 40


def test_a_run_with_finite_numbers_outweighs_one_without() -> None:
    class Cliff(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            level = images.flatten(1)[:, 1:].mean(1)
            broken = 0 * (images[:, 0, 0, 0] - 0.5).clamp(min=0).log()
            return torch.stack([level + broken, 1 - level], 1)

    model, labels = classifier(Cliff()), torch.zeros(40, dtype=torch.int64)
    for level, status in ((0.51, Status.SUCCESS), (0.9, Status.FAILED)):
        images = torch.full((40, 1, 6, 6), level)
        images[:, 0, 0, 0] = 0.51
        with pytest.warns(CasemateWarning, match="of 40 images PGD met logits or gradients that are not finite"):
            once = PGD(eps=0.1, steps=1)(model, images, labels)
        often = Restarts(attack=PGD(eps=0.1, steps=1), restarts=9)(model, images, labels)
        lost = once.status == Status.NON_FINITE
        assert 5 < lost.sum() < 35
        assert often.status.eq(status).all()


def test_numbers_that_are_never_finite_are_a_status() -> None:
    class Broken(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :3] * math.nan

    images, labels = torch.full((4, 1, 6, 6), 0.5), torch.zeros(4, dtype=torch.int64)
    with pytest.warns(CasemateWarning, match="on 4 of 4 images .* met logits or gradients that are not finite"):
        found = Restarts(attack=WEAK, restarts=3)(classifier(Broken(), classes=3), images, labels)
    assert found.status.eq(Status.NON_FINITE).all()
    assert torch.equal(found.adversarial, images)


def test_an_attack_that_never_had_a_direction_says_so() -> None:
    class Rounded(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :3].round()

    images = torch.tensor([0.9, 0.1, 0.1]).repeat(5, 12).view(5, 1, 6, 6)
    model = classifier(Rounded(), classes=3)
    with pytest.warns(CasemateWarning, match="had no gradient to follow on 5 of 5 images"):
        found = Restarts(attack=WEAK, restarts=3)(model, images, torch.zeros(5).long())
    assert found.status.eq(Status.ZERO_GRADIENT).all()


# --------------------------------------------------------------------------------------------- minimum-norm attacks


def near(seed: int = 1) -> Linear:
    """A problem in which no bound is met on the way."""
    return linear_problem(seed, low=0.35, high=0.65, gap=0.5)


@pytest.mark.parametrize("runs", [1, 2, 6])
def test_the_nearest_image_of_all_runs_is_returned(runs: int) -> None:
    problem = near()
    attack = Lottery(problem=problem)
    warned = pytest.warns(CasemateWarning, match="Lottery found nothing that fools") if runs < 6 else nullcontext()
    with warned:
        found = Restarts(attack=attack, restarts=runs)(problem.model, problem.images, problem.labels, seed=2)
    seed = derive(2, "Lottery")
    seeds = [seed, *(derive(seed, "restart", run) for run in range(1, runs))]
    shares = torch.stack([Lottery.shares(Streams(each, torch.arange(24))) for each in seeds])
    shares[shares == 0] = math.inf
    exact = problem.margin(problem.images) / problem.slope.norm(dim=1)
    expected = exact * shares.amin(0)
    assert torch.allclose(found.distance.double(), expected, rtol=1e-4, atol=1e-6)
    none = expected.isinf()
    assert none.any() == (runs < 6)
    assert torch.equal(found.adversarial[none], problem.images[none])
    assert found.status[none].eq(Status.FAILED).all()
    assert attack.given == list(range(24)) * runs
    if runs == 6:  # the nearest of six lies near the boundary itself
        assert (found.distance / exact).mean() < 1.15


def test_with_a_minimum_norm_attack_what_is_wrong_from_the_start_is_not_run_again() -> None:
    problem = near()
    labels = problem.labels.clone()
    labels[::4] = 1 - labels[::4]
    attack = Lottery(problem=problem)
    found = Restarts(attack=attack, restarts=3)(problem.model, problem.images, labels)
    assert [attack.given.count(number) for number in range(24)] == [1 if number % 4 == 0 else 3 for number in range(24)]
    assert found.distance[::4].eq(0).all()
    assert torch.equal(found.adversarial[::4], problem.images[::4])


def test_with_a_minimum_norm_attack_numbers_that_are_not_finite_are_a_status() -> None:
    problem = near()
    attack = Lottery(problem=problem, broken=7)
    with pytest.warns(CasemateWarning, match="on 1 of 24 images Lottery met logits or gradients that are not finite"):
        found = Restarts(attack=attack, restarts=3)(problem.model, problem.images, problem.labels)
    assert found.status[7] == Status.NON_FINITE
    assert found.status.eq(Status.NON_FINITE).sum() == 1
    assert torch.equal(found.adversarial[7], problem.images[7])
    assert math.isinf(found.distance[7])


# --------------------------------------------------------------------------------------------------- all of them


@pytest.mark.filterwarnings("ignore:Lottery found nothing:casemate.errors.CasemateWarning")
@pytest.mark.parametrize("inner", ["ball", "nearest"])
def test_the_batch_size_does_not_matter(inner: str) -> None:
    problem = near()
    attack = Restarts(attack=WEAK if inner == "ball" else Lottery(problem=problem), restarts=4)
    whole = attack(problem.model, problem.images, problem.labels, seed=4)
    parts = attack(problem.model, problem.images, problem.labels, seed=4, batch_size=7)
    assert torch.allclose(whole.adversarial, parts.adversarial, rtol=0, atol=1e-6)
    assert torch.equal(whole.status, parts.status)
    assert whole.passes == parts.passes
    other = attack(problem.model, problem.images, problem.labels, seed=5)
    assert not torch.equal(whole.adversarial, other.adversarial)


def test_passes_are_what_the_network_sees() -> None:
    task = small_task()
    counting = Counting(task.model.network)
    attack = Restarts(attack=WEAK, restarts=3)
    found = attack(classifier(counting, classes=4), task.images, task.labels, batch_size=8)
    assert (found.passes.forward, found.passes.backward) == (counting.forwards, counting.backwards)
    assert found.passes.backward > 30


def test_progress_is_told_as_it_is_made() -> None:
    problem = near()
    told: list[float] = []
    attack = Restarts(attack=Noise(eps=0.001), restarts=4)
    attack.run(
        problem.model,
        problem.images,
        Misclassification(problem.labels),
        Streams(0, torch.arange(24)),
        lambda amount, note="": told.append(amount),
    )
    assert told == [6.0] * 4


def test_nothing_happens_at_eps_zero() -> None:
    check_nothing_at_zero(lambda eps: Restarts(attack=PGD(eps=eps, steps=2), restarts=3), small_task())


def test_distances_are_those_of_the_norm() -> None:
    problem = near()
    found = Restarts(attack=Lottery(problem=problem, norm="l1"), restarts=3)(
        problem.model, problem.images, problem.labels
    )
    assert found.norm.numpy() == pytest.approx(distance(found.adversarial, problem.images.detach(), "l1"), rel=1e-5)


def test_it_says_what_it_is_made_of_and_takes_another_eps() -> None:
    attack = Restarts(attack=WEAK)
    assert attack.record() == {"name": "Restarts", "attack": WEAK.record(), "restarts": 5}
    assert with_eps(attack, 0.2) == Restarts(attack=replace(WEAK, eps=0.2))
    assert attack.ball() == WEAK.ball()


def test_an_attack_that_cannot_aim_cannot_do_so_in_a_wrapper() -> None:
    @final
    @dataclass(frozen=True, kw_only=True)
    class Aimless(AbstractAttack):
        targetable = False  # pyright: ignore[reportAssignmentType]

        def ball(self) -> Ball:
            return Ball(eps=0.1)

        def max_passes(self, classes: int) -> Passes:
            """None that count."""
            del classes
            return Passes()

        def run(
            self, model: Classifier, clean: Tensor, criterion: Criterion, streams: Streams, advance: Advance
        ) -> RunResult:
            raise AssertionError("was run")

    task = small_task()
    with pytest.raises(SettingError, match="Aimless cannot be targeted"):
        Restarts(attack=Aimless())(task.model, task.images, task.labels, targets=(task.labels + 1) % 4)


BAD: list[tuple[Callable[[], object], str]] = [
    (lambda: Restarts(attack=WEAK, restarts=0), "restarts = 0; expected at least 1"),
    (lambda: Restarts(attack=Restarts(attack=WEAK)), "Restarts of Restarts"),
    (lambda: Restarts(attack=FGSM(eps=0.1)), "FGSM without a random start would repeat the same run"),
    (lambda: Restarts(attack=replace(WEAK, random_start=False)), "PGD without a random start"),
]


@pytest.mark.parametrize(("make", "words"), BAD)
def test_settings_that_make_no_sense_are_refused(make: Callable[[], object], words: str) -> None:
    with as_installed(), pytest.raises(SettingError, match=words):
        make()


def test_one_run_of_an_attack_that_draws_nothing_is_fine() -> None:
    task = small_task()
    found = Restarts(attack=FGSM(eps=0.1), restarts=1)(task.model, task.images, task.labels)
    assert torch.equal(found.success, FGSM(eps=0.1)(task.model, task.images, task.labels).success)
