"""Noise as an attack: what it draws, what it finds where that is known exactly, and which draw it hands back."""

import math

import pytest
import torch
from torch import Tensor, nn

from casemate.attacks import PGD, Status
from casemate.attacks.base import stream_key
from casemate.attacks.noise import AbstractNoise, CornerNoise, UniformNoise
from casemate.errors import CasemateWarning, SettingError
from casemate.losses import margin
from casemate.models import Classifier
from casemate.norms import Norm
from casemate.rng import Streams, derive
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
    small_task,
)

EPS: dict[Norm, float] = {"linf": 0.15, "l2": 0.8, "l1": 3.0}


def attacks(draws: int, eps: float | None = None) -> list[AbstractNoise]:
    uniform = [UniformNoise(eps=EPS[norm] if eps is None else eps, norm=norm, num_samples=draws) for norm in EPS]
    return [*uniform, CornerNoise(eps=EPS["linf"] if eps is None else eps, num_samples=draws)]


every_attack = pytest.mark.parametrize("attack", attacks(20), ids=lambda a: f"{type(a).__name__}-{a.norm}")


def one_pixel(margins: Tensor, shape: tuple[int, int, int] = (1, 1, 1)) -> tuple[Classifier, Tensor, Tensor]:
    """Images of class 1 by `margins`: how far the sum of the pixels lies above the boundary."""
    count = math.prod(shape)
    layer = nn.Linear(count, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0], [1.0]]).expand(2, count))
        layer.bias.copy_(torch.tensor([0.0, -0.5 * count]))
    images = 0.5 + (margins / count).view(-1, 1, 1, 1).expand(-1, *shape)
    model = classifier(nn.Sequential(nn.Flatten(), layer), shape=shape)
    return model, images.clone(), torch.ones(len(margins), dtype=torch.int64)


# ---------------------------------------------------------------------------------------- where the answer is known


@pytest.mark.parametrize("targeted", [False, True])
def test_all_corners_of_few_pixels_are_found(targeted: bool) -> None:
    """Four pixels have 16 corners; 200 draws miss the best with probability 2.5e-6. It lowers the sum by 4 eps."""
    margins = torch.linspace(0.01, 0.41, 41)
    model, images, labels = one_pixel(margins, (1, 2, 2))
    targets = 1 - labels if targeted else None
    result = CornerNoise(eps=0.05, num_samples=200)(model, images, labels, targets=targets)
    clear = (margins - 0.2).abs() > 1e-4
    assert torch.equal(result.success[clear], (margins < 0.2)[clear])
    stood = margins > 0.2 + 1e-4
    assert torch.allclose(result.adversarial[stood], images[stood] - 0.05)


@pytest.mark.usefixtures("unchecked")
def test_uniform_noise_on_one_pixel_comes_within_a_fiftieth_of_the_edge() -> None:
    """1,000 draws leave the last fiftieth of the way on one side unvisited with probability 4e-5."""
    margins = torch.linspace(0.0025, 0.2, 80)
    model, images, labels = one_pixel(margins)
    result = UniformNoise(eps=0.1, num_samples=1000)(model, images, labels)
    assert result.success[margins < 0.098].all()
    assert not result.success[margins > 0.1001].any()
    stood = ~result.success
    assert (images - result.adversarial)[stood].min() > 0.098


def test_corners_move_every_pixel_by_eps_or_to_the_bound() -> None:
    clean = torch.rand(300, 2, 3, 5, generator=generator(0))
    draws = CornerNoise(eps=0.2).draw(clean, UNIT, Streams(3, torch.arange(300)), 0)
    up, down = (clean + 0.2).clamp(max=1), (clean - 0.2).clamp(min=0)
    assert ((draws == up) | (draws == down)).all()
    share = (draws == up).double().mean(0)
    assert share.sub(0.5).abs().max() < 0.15  # five standard deviations
    again = CornerNoise(eps=0.2).draw(clean, UNIT, Streams(3, torch.arange(300)), 1)
    assert (draws == again).double().mean().item() == pytest.approx(0.5, abs=0.05)


# --------------------------------------------------------------------------------------------- on a small network


@every_attack
@pytest.mark.parametrize("targeted", [False, True])
def test_images_are_inside_and_are_what_they_are_said_to_be(attack: AbstractNoise, targeted: bool) -> None:
    task = small_task(1, scale=30.0)
    targets = (task.labels + 2) % 4 if targeted else None
    result = attack(task.model, task.images, task.labels, targets=targets)
    check_inside(attack, result, task.images)
    check_claims(result, task, targets)


@every_attack
@pytest.mark.parametrize("targeted", [False, True])
def test_the_first_that_fools_or_else_the_most_wrong_is_handed_back(attack: AbstractNoise, targeted: bool) -> None:
    task = small_task(1, scale=30.0)
    targets = (task.labels + 1) % 4 if targeted else None
    result = attack(task.model, task.images, task.labels, targets=targets, seed=5)
    streams = Streams(derive(5, stream_key(attack)), torch.arange(len(task.labels)))
    draws = torch.stack([attack.draw(task.images, UNIT, streams, number) for number in range(20)])
    with torch.no_grad():
        logits = torch.stack([task.model(each) for each in draws])
        start = task.model(task.images).argmax(1)
    labels = task.labels if targets is None else targets
    wrong = torch.stack([margin(each, labels) for each in logits]) * (1 if targets is None else -1)
    hit = logits.argmax(2) != labels if targets is None else logits.argmax(2) == labels
    place = torch.where(hit.any(0), hit.double().argmax(0), wrong.argmax(0))
    expected = draws[place, torch.arange(len(labels))]
    already = start != labels if targets is None else start == labels
    expected[already] = task.images[already]
    assert torch.allclose(result.adversarial, expected, rtol=0, atol=1e-7)
    assert torch.equal(result.success, already | hit.any(0))
    assert 0 < result.success.sum() < len(labels)


@every_attack
def test_more_draws_find_more_but_less_than_pgd(attack: AbstractNoise) -> None:
    task = small_task(1, count=60, dtype=torch.float32, scale=30.0)
    with torch.no_grad():
        before = task.model(task.images).argmax(1) != task.labels
    kind = {"eps": attack.eps, "norm": attack.norm}
    few, many = (type(attack)(**kind, num_samples=draws)(task.model, task.images, task.labels) for draws in (3, 100))
    pgd = PGD(**kind, steps=20, loss="margin")(task.model, task.images, task.labels)
    assert (many.success | ~few.success).all()
    assert before.sum() < many.success.sum() < pgd.success.sum()
    assert many.success.sum() > few.success.sum()


@every_attack
def test_the_batch_split_does_not_matter(attack: AbstractNoise) -> None:
    task = small_task(1, scale=30.0)
    whole = attack(task.model, task.images, task.labels, seed=3)
    parts = attack(task.model, task.images, task.labels, seed=3, batch_size=7)
    rest = attack(task.model, task.images[11:], task.labels[11:], seed=3, index=torch.arange(11, 30))
    other = attack(task.model, task.images, task.labels, seed=4)
    assert torch.allclose(whole.adversarial, parts.adversarial, rtol=0, atol=1e-9)
    assert torch.equal(whole.status, parts.status)
    assert whole.passes == parts.passes
    assert torch.allclose(whole.adversarial[11:], rest.adversarial, rtol=0, atol=1e-9)
    assert not torch.allclose(whole.adversarial, other.adversarial, atol=1e-3)


def test_draws_are_counted_and_the_fooled_leave(listener: Listener) -> None:
    task = small_task(1, scale=30.0)
    counting = Counting(task.model.network)
    model = classifier(counting, classes=4)
    with torch.no_grad():
        start = int((task.model(task.images).argmax(1) == task.labels).sum())
    result = UniformNoise(eps=0.2, num_samples=50)(model, task.images, task.labels, observer=listener)
    stood = int((~result.success).sum())
    assert result.passes.forward == counting.forwards
    assert result.passes.backward == 0
    assert 60 + 50 * stood + (start - stood) <= result.passes.forward < 60 + 50 * start
    assert start > stood
    assert listener.done == pytest.approx(listener.total)
    fooled = ~torch.eye(4, dtype=torch.bool)[task.labels].gather(1, task.model(task.images).argmax(1, keepdim=True))
    assert torch.equal(result.adversarial[fooled.squeeze(1)], task.images[fooled.squeeze(1)])


def test_eps_zero_changes_nothing_and_draws_nothing() -> None:
    task = small_task(dtype=torch.float32)
    check_nothing_at_zero(lambda eps: UniformNoise(eps=eps, norm="l2", num_samples=5), task)
    check_nothing_at_zero(lambda eps: CornerNoise(eps=eps, num_samples=5), task)
    assert CornerNoise(eps=0.0)(task.model, task.images, task.labels).passes.forward == 2 * len(task.labels)


class Broken(nn.Module):
    """Not finite where the first pixel is above `bad`."""

    def __init__(self, inner: nn.Module, bad: float) -> None:
        super().__init__()
        self.inner = inner
        self.bad = bad

    def forward(self, images: Tensor) -> Tensor:
        """NaN for some."""
        return self.inner(images).masked_fill((images[:, :1, 0, 0] > self.bad), torch.nan)


def test_logits_that_are_not_finite() -> None:
    model, images, labels = one_pixel(torch.tensor([0.02, 0.3, 0.02, 0.3, 0.46]))
    broken = classifier(Broken(model.network, 0.955), shape=(1, 1, 1))
    with pytest.warns(CasemateWarning, match="on 1 of 5 images UniformNoise met logits or gradients that are not"):
        result = UniformNoise(eps=0.15, num_samples=60)(broken, images, labels)
    # the last is not finite from the start
    codes = [Status.SUCCESS, Status.FAILED, Status.SUCCESS, Status.FAILED, Status.NON_FINITE]
    assert result.status.tolist() == codes
    assert torch.equal(result.adversarial[4], images[4])
    # here some draws of every image are lost; one that is fooled all the same counts, the others are named
    broken = classifier(Broken(model.network, 0.53), shape=(1, 1, 1))
    result = UniformNoise(eps=0.15, num_samples=60)(broken, images[:1], labels[:1])
    assert result.status.tolist() == [Status.SUCCESS]
    broken = classifier(Broken(model.network, 0.81), shape=(1, 1, 1))
    with pytest.warns(CasemateWarning, match="on 1 of 1 images UniformNoise met logits or gradients that are not"):
        result = UniformNoise(eps=0.15, num_samples=60)(broken, images[1:2], labels[1:2])
    assert result.status.tolist() == [Status.NON_FINITE]
    assert torch.equal(result.adversarial, images[1:2])


def test_other_bounds_and_channels() -> None:
    layer = nn.Linear(3 * 4 * 5, 5)
    names = tuple("abcde")
    model = Classifier(nn.Sequential(nn.Flatten(), layer), input_shape=(3, 4, 5), classes=names, bounds=(-2.0, 2.0))
    images = -2 + 4 * torch.rand(12, 3, 4, 5, generator=generator(1))
    labels = model(images).argmax(1)
    for attack in attacks(10, eps=0.3):
        result = attack(model, images, labels)
        check_inside(attack, result, images, bounds=(-2.0, 2.0))
        assert (result.norm > 0).all()


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (UniformNoise, {"eps": -1.0}, "eps = -1.0; expected"),
        (UniformNoise, {"norm": "l5"}, "norm = 'l5'; expected"),
        (UniformNoise, {"num_samples": 0}, "num_samples = 0; expected"),
        (CornerNoise, {"num_samples": 0}, "num_samples = 0; expected"),
        (CornerNoise, {"norm": "l2"}, "norm = 'l2'; expected linf"),
        (CornerNoise, {"norm": "l1"}, "norm = 'l1'; expected linf"),
    ],
)
def test_settings_are_refused(kind: type[AbstractNoise], settings: dict[str, object], words: str) -> None:
    with as_installed(), pytest.raises(SettingError, match=words):
        kind(**{"eps": 0.1, **settings})  # type: ignore[arg-type]
