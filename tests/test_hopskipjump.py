"""HopSkipJump: the exact distance on a linear classifier, and that it uses decisions and its budget as it says."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from casemate.attacks import PGD, Status
from casemate.attacks.hopskipjump import HopSkipJump
from casemate.errors import CasemateWarning, SettingError
from casemate.models import Classifier
from casemate.norms import Norm
from conftest import Listener
from oracles import (
    SHAPE,
    Counting,
    Linear,
    as_installed,
    check_claims,
    check_inside,
    classifier,
    generator,
    linear_problem,
    room,
    small_task,
)

NORMS: tuple[Norm, ...] = ("l2", "linf")


def exact_distance(problem: Linear, norm: Norm) -> np.ndarray:
    """How near the boundary lies within the bounds of the pixels, by bisection in float64.

    Downhill, the nearest point moves each pixel by min(t * |slope|, room) for L2, and by min(t, room) for Linf.
    """
    slope = problem.slope.detach().abs().numpy()
    rooms = room(problem.images.flatten(1).double(), problem.slope).detach().numpy()
    need = problem.margin(problem.images).detach().numpy()
    low, high = np.zeros(len(need)), np.full(len(need), 100.0)
    for _ in range(100):
        middle = (low + high) / 2
        moved = np.minimum(middle[:, None] * (slope if norm == "l2" else 1.0), rooms)
        enough = (slope * moved).sum(1) >= need
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    moved = np.minimum(high[:, None] * (slope if norm == "l2" else 1.0), rooms)
    return np.linalg.norm(moved, axis=1) if norm == "l2" else moved.max(1)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("targeted", [False, True])
def test_the_exact_distance_to_a_plane(norm: Norm, targeted: bool) -> None:
    """Within 5 % of the exact distance after 5,000 queries, and never nearer than it."""
    problem = linear_problem(0, low=0.35, high=0.65, gap=0.5)
    targets = 1 - problem.labels if targeted else None
    result = HopSkipJump(norm=norm, n_queries=5000)(problem.model, problem.images, problem.labels, targets=targets)
    assert result.success.all()
    ratio = result.distance.numpy() / exact_distance(problem, norm)
    assert ratio.min() >= 1 - 1e-5
    assert ratio.max() < 1.05
    assert np.median(ratio) < 1.025


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("norm", NORMS)
def test_the_exact_distance_where_bounds_are_met(norm: Norm) -> None:
    """Pixels that lie at their bounds cannot move: the probes say so, but the way there is longer."""
    problem = linear_problem(1, count=16)
    assert (problem.images == 0).any()
    result = HopSkipJump(norm=norm, n_queries=10_000)(problem.model, problem.images, problem.labels)
    ratio = result.distance.numpy() / exact_distance(problem, norm)
    assert ratio.min() >= 1 - 1e-5
    assert ratio.max() < 1.1
    assert np.median(ratio) < 1.05
    check_inside(HopSkipJump(norm=norm), result, problem.images.detach())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("norm", NORMS)
def test_more_queries_come_nearer(norm: Norm) -> None:
    task = small_task(2, dtype=torch.float32)
    results = [
        HopSkipJump(norm=norm, n_queries=queries)(task.model, task.images, task.labels) for queries in (100, 500, 3000)
    ]
    assert all(result.success.all() for result in results)
    for fewer, more in itertools.pairwise(results):
        assert (more.distance <= fewer.distance + 1e-7).all()
        assert more.distance.median() < 0.9 * fewer.distance.median()


@pytest.mark.integration
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("norm", "grid"), [("l2", (0.02, 2.0)), ("linf", (0.004, 0.5))])
def test_it_is_not_far_from_what_gradients_find(norm: Norm, grid: tuple[float, float]) -> None:
    """Against the smallest of 40 radii at which PGD succeeds."""
    task = small_task(2, dtype=torch.float32, count=20)
    smallest = torch.full((20,), torch.inf)
    for eps in np.geomspace(*grid, 40).tolist():
        found = PGD(eps=eps, norm=norm, steps=15)(task.model, task.images, task.labels)
        smallest = smallest.minimum(found.distance)
    result = HopSkipJump(norm=norm, n_queries=4000)(task.model, task.images, task.labels)
    moved = smallest > 0
    ratio = (result.distance / smallest)[moved]
    assert ratio.median() < 1.2
    assert ratio.max() < 4


class Decisions(nn.Module):
    """Says which class is the largest, and nothing else."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        """One for the class, zero for the others."""
        logits = self.inner(images)
        return nn.functional.one_hot(logits.argmax(1), logits.shape[1]).to(logits.dtype)


@pytest.mark.filterwarnings("ignore:HopSkipJump found nothing that fools:casemate.errors.CasemateWarning")
@pytest.mark.parametrize("targeted", [False, True])
def test_decisions_are_all_it_uses(targeted: bool) -> None:
    """Of a network that hides its scores it makes exactly the same."""
    task = small_task(1)
    targets = (task.labels + 2) % 4 if targeted else None
    attack = HopSkipJump(n_queries=400)
    open_, shut = (
        attack(classifier(network, classes=4), task.images, task.labels, targets=targets)
        for network in (task.model.network, Decisions(task.model.network))
    )
    assert torch.equal(open_.adversarial, shut.adversarial)
    assert torch.equal(open_.status, shut.status)
    assert open_.passes == shut.passes
    assert open_.passes.backward == 0
    assert open_.success.sum() >= 10


@pytest.mark.filterwarnings("ignore:HopSkipJump found nothing that fools:casemate.errors.CasemateWarning")
def test_targets_are_met_or_the_clean_image_comes_back() -> None:
    task = small_task(1, dtype=torch.float32)
    targets = (task.labels + 2) % 4
    attack = HopSkipJump(n_queries=600)
    result = attack(task.model, task.images, task.labels, targets=targets)
    check_claims(result, task, targets)
    check_inside(attack, result, task.images)
    assert torch.equal(result.adversarial[~result.success], task.images[~result.success])
    assert result.success.sum() >= 10


class Lamp(nn.Module):
    """Class 1 for bright images, class 0 for others, and never class 2."""

    def forward(self, images: Tensor) -> Tensor:
        """The mean against 0.7."""
        bright = images.flatten(1).mean(1) - 0.7
        return torch.stack([-bright, bright, torch.full_like(bright, -100.0)], 1)


def test_one_image_without_a_start_does_not_stop_the_others() -> None:
    """Uniform fine noise is never as bright as class 1 wants, coarse noise is; of class 2 there is no image at all."""
    model = classifier(Lamp(), classes=3)
    images = 0.2 + 0.2 * torch.rand(9, *SHAPE, generator=generator(0))
    labels, targets = torch.zeros(9, dtype=torch.int64), torch.tensor([1, 2, 1, 2, 1, 1, 2, 1, 1])
    with pytest.warns(CasemateWarning, match="HopSkipJump found nothing that fools on 3 of 9 images"):
        result = HopSkipJump(n_queries=3000)(model, images, labels, targets=targets)
    assert torch.equal(result.success, targets == 1)
    assert result.status[targets == 2].eq(Status.FAILED).all()
    assert torch.equal(result.adversarial[targets == 2], images[targets == 2])
    assert result.distance[targets == 2].isinf().all()
    exact = (0.7 - images.flatten(1).mean(1)) * SHAPE[1]  # along (1, ..., 1) over all 36 pixels
    assert (result.distance / exact)[targets == 1].max() < 1.05
    alone = HopSkipJump(n_queries=3000)(model, images[:1], labels[:1], targets=targets[:1])
    assert torch.allclose(alone.adversarial, result.adversarial[:1], atol=1e-4)


def test_the_budget_is_kept(listener: Listener) -> None:
    task = small_task(1, dtype=torch.float32, count=7)
    counting = Counting(task.model.network)
    model = classifier(counting, classes=4)
    for queries, steps in ((100, 50), (777, 50), (5000, 2)):
        counting.restart()
        attack = HopSkipJump(n_queries=queries, steps=steps)
        result = attack(model, task.images[:6], task.labels[:6])
        assert result.passes.forward == counting.forwards
        already = int((model(task.images[:6]).argmax(1) != task.labels[:6]).sum())
        spent = result.passes.forward - 6 - already  # the verification, and one query of those fooled already
        assert spent <= (6 - already) * queries
        assert spent >= (6 - already) * (400 if queries == 777 else 20 if steps == 50 else 250)
    assert counting.forwards < 6 * 400 + 12  # two steps of 100 and 141 probes
    HopSkipJump(n_queries=300)(model, task.images, task.labels, observer=listener)
    assert listener.done == pytest.approx(listener.total)


@pytest.mark.filterwarnings("ignore:HopSkipJump found nothing that fools:casemate.errors.CasemateWarning")
@pytest.mark.parametrize("norm", NORMS)
def test_the_batch_split_does_not_matter(norm: Norm) -> None:
    task = small_task(1, count=12)
    attack = HopSkipJump(norm=norm, n_queries=500)
    whole = attack(task.model, task.images, task.labels, seed=3)
    parts = attack(task.model, task.images, task.labels, seed=3, batch_size=5)
    rest = attack(task.model, task.images[7:], task.labels[7:], seed=3, index=torch.arange(7, 12))
    other = attack(task.model, task.images, task.labels, seed=4)
    assert torch.allclose(whole.adversarial, parts.adversarial, rtol=0, atol=1e-6)
    assert torch.equal(whole.status, parts.status)
    assert whole.passes == parts.passes
    assert torch.allclose(whole.adversarial[7:], rest.adversarial, rtol=0, atol=1e-6)
    assert not torch.allclose(whole.adversarial, other.adversarial, atol=1e-3)


def test_what_was_misclassified_lies_at_no_distance() -> None:
    task = small_task()
    with torch.no_grad():
        wrong = task.model(task.images).argmax(1) != task.labels
    result = HopSkipJump(n_queries=150)(task.model, task.images, task.labels)
    assert torch.equal(result.adversarial[wrong], task.images[wrong])
    assert result.distance[wrong].eq(0).all()
    assert (result.distance[~wrong] > 0).all()
    again = HopSkipJump(n_queries=150)(task.model, task.images[wrong], task.labels[wrong])
    assert again.passes.forward == 2 * int(wrong.sum())


class Broken(nn.Module):
    """Not finite for images whose mean is at most `low`, whatever else they are."""

    def __init__(self, inner: nn.Module, low: float, also: float = 2.0) -> None:
        super().__init__()
        self.inner = inner
        self.low = low
        self.also = also

    def forward(self, images: Tensor) -> Tensor:
        """NaN for some."""
        mean = images.flatten(1).mean(1, keepdim=True)
        return self.inner(images).masked_fill((mean <= self.low) | (mean > self.also), torch.nan)


def test_logits_that_are_not_finite() -> None:
    images = 0.2 + 0.1 * torch.rand(6, *SHAPE, generator=generator(0))
    images[:2] = 0.05
    labels = torch.zeros(6, dtype=torch.int64)
    with pytest.warns(CasemateWarning, match="on 2 of 6 images HopSkipJump met logits or gradients that are not"):
        result = HopSkipJump(n_queries=300)(classifier(Broken(Lamp(), 0.1), classes=3), images, labels)
    assert result.status.tolist() == [Status.NON_FINITE] * 2 + [Status.SUCCESS] * 4
    assert torch.equal(result.adversarial[:2], images[:2])
    # what is bright enough to fool is not finite: nothing does, and that is why
    with pytest.warns(CasemateWarning, match="on 6 of 6 images HopSkipJump met logits or gradients that are not"):
        result = HopSkipJump(n_queries=300)(classifier(Broken(Lamp(), 0.0, also=0.69), classes=3), images, labels)
    assert result.status.eq(Status.NON_FINITE).all()
    assert torch.equal(result.adversarial, images)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 2)])
def test_any_shape_and_any_bounds(norm: Norm, shape: tuple[int, int, int]) -> None:
    layer = nn.Linear(int(np.prod(shape)), 2)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([torch.full((layer.in_features,), sign) for sign in (-1.0, 1.0)]))
        layer.bias.zero_()
    model = Classifier(nn.Sequential(nn.Flatten(), layer), input_shape=shape, classes=("a", "b"), bounds=(-4.0, 8.0))
    images = -1 + 0.5 * torch.rand(8, *shape, generator=generator(2))
    labels = torch.zeros(8, dtype=torch.int64)
    attack = HopSkipJump(norm=norm, n_queries=3000)
    result = attack(model, images, labels)
    check_inside(attack, result, images, bounds=(-4.0, 8.0))
    mean = -images.flatten(1).mean(1)
    exact = mean * (layer.in_features**0.5 if norm == "l2" else 1.0)
    assert result.success.all()
    assert (result.distance / exact).max() < 1.05


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"norm": "l1"}, "norm = 'l1'; expected l2 or linf"),
        ({"n_queries": 99}, "n_queries = 99; expected at least 100"),
        ({"steps": 0}, "steps = 0; expected"),
        ({"evaluations": 0}, "evaluations = 0; expected"),
        ({"max_evaluations": 0}, "max_evaluations = 0; expected"),
        ({"starts": 0}, "starts = 0; expected"),
    ],
)
def test_settings_are_refused(settings: dict[str, object], words: str) -> None:
    with as_installed(), pytest.raises(SettingError, match=words):
        HopSkipJump(**settings)  # type: ignore[arg-type]


def test_probes_grow_with_the_root_of_the_step_up_to_the_most() -> None:
    """What three steps take with 10, 14 and 17 probes, and with 10 each."""
    task = small_task(1, dtype=torch.float32, count=6)
    growing = HopSkipJump(steps=3, evaluations=10)
    level = replace(growing, max_evaluations=10)
    counts = [attack(task.model, task.images[1:2], task.labels[1:2]).passes.forward for attack in (growing, level)]
    assert abs(counts[0] - counts[1] - 11) <= 6  # the steps along the normal may take a query more or less
