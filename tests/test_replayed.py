"""Replayed passes give what the network gives, although they share their memory.

No GPU is needed: a recording stands in that has the same manners as a CUDA graph, fixed memory that the next call
overwrites and a way back that can be gone once.
"""

import random
import time
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from casemate.attacks import FAB, PGD, Attack, TargetedFAB, held, sweep_eps
from casemate.models import Classifier, freeze
from casemate.models.accel.replayed import SIZES, Recording, Replayed, replaying
from oracles import both_ways, check_layer, classifier, generator

IMAGES = torch.rand(40, 1, 6, 6, generator=generator(0))


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(96, 4)).requires_grad_(False)


class Static:
    """A recording with the manners of a CUDA graph."""

    made = 0

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        Static.made += 1
        assert len(images) in SIZES
        assert not images.requires_grad
        self.network, self.images = network, images.clone()
        self.live: tuple[Tensor, Tensor] | None = None
        self.logits, self.gradient = network(images).clone(), torch.zeros_like(images)

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape == self.images.shape
        with torch.no_grad():
            self.images.copy_(images)
        with torch.enable_grad():
            leaf = self.images.clone().requires_grad_(True)
            logits = self.network(leaf)
        self.live = (logits, leaf)
        return self.logits.copy_(logits.detach())

    def backward(self, gradient: Tensor) -> Tensor:
        assert self.live is not None, "its activations are gone"
        logits, leaf = self.live
        self.live = None
        return self.gradient.copy_(torch.autograd.grad(logits, leaf, gradient)[0])


@pytest.fixture(autouse=True)
def _anew() -> None:
    Static.made = 0


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 40, max(SIZES) + 1])
def test_any_number_of_images_is_answered_as_by_the_network(count: int) -> None:
    plain = network()
    images = torch.rand(count, 1, 6, 6, generator=generator(2))
    check_layer(plain, Replayed(plain, Static), images, rtol=1e-5, atol=1e-6)
    assert Static.made == (0 < count <= max(SIZES))


def test_what_was_returned_stays_when_the_memory_is_used_again() -> None:
    plain = network()
    replayed = Replayed(plain, Static)
    first = both_ways(replayed, IMAGES[:16])
    kept = [each.clone() for each in first]
    both_ways(replayed, IMAGES[16:32])
    with torch.no_grad():
        replayed(IMAGES[20:36])
    torch.testing.assert_close(list(first), kept, rtol=0, atol=0)
    assert Static.made == 1


def test_several_gradients_of_one_pass_and_of_passes_in_between() -> None:
    plain = network()
    replayed = Replayed(plain, Static)
    found = []
    for module in (plain, replayed):
        early, late = (part.clone().requires_grad_(True) for part in (IMAGES[:16], IMAGES[16:32]))
        one, two = module(early), module(late)
        gradients = [torch.autograd.grad(one[:, column].sum(), early, retain_graph=True)[0] for column in range(3)]
        gradients += [torch.autograd.grad(two[:, column].sum(), late, retain_graph=True)[0] for column in range(3)]
        found.append(gradients)
    torch.testing.assert_close(*found)


def test_a_network_that_cannot_be_recorded_is_asked_itself() -> None:
    tries = []

    def fails(network: nn.Module, images: Tensor) -> Recording:
        tries.append(len(images))
        raise RuntimeError("operation not permitted when stream is capturing")

    plain = network()
    replayed = Replayed(plain, fails)
    for count in (10, 40):
        torch.testing.assert_close(replayed(IMAGES[:count]), plain(IMAGES[:count]))
    assert tries == [16]
    assert replayed.failed is not None
    assert "capturing" in replayed.failed


def model_of(made: nn.Module) -> Classifier:
    return classifier(made, classes=4, shape=(1, 6, 6))


class Slow(nn.Module):
    """A network that takes its time, as small ones on a GPU do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(0.02)
        return self.inner(images)


class Fast(Static):
    """A recording that takes none."""

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        super().__init__(getattr(network, "inner", network), images)


class Wrong(Fast):
    """Right on the way forward only."""

    def backward(self, gradient: Tensor) -> Tensor:
        return super().backward(gradient).neg_()


def test_it_is_used_where_it_is_faster_and_right() -> None:
    model = model_of(Slow())
    made = replaying(model, IMAGES[:8], Fast)
    assert made is not None
    assert isinstance(made.network, Replayed)
    assert not isinstance(model.network, Replayed)
    torch.testing.assert_close(made(IMAGES), model(IMAGES))
    assert replaying(model, IMAGES[:8], Wrong) is None


class Slower(Static):
    """A recording that takes longer than the network."""

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(0.05)
        return super().forward(images)


class Coupled(Slow):
    """Answers hang on the company."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images - images.mean(0))


class FastCoupled(Fast):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images - images.mean(0))


class Drawing(Slow):
    """Answers hang on a draw of Python's."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * (1 if random.random() < 0.5 else 2)


def test_what_is_slower_hangs_on_company_or_on_chance_is_not_used() -> None:
    assert replaying(model_of(network()), IMAGES[:8], Slower) is None
    assert replaying(model_of(Coupled()), IMAGES[:32], FastCoupled) is None
    random.seed(0)
    assert all(replaying(model_of(Drawing()), IMAGES[:8], Fast) is None for _ in range(3))


def test_memory_that_runs_out_ends_larger_sizes_only() -> None:
    def small(network: nn.Module, images: Tensor) -> Recording:
        if len(images) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return Static(network, images)

    plain = network()
    replayed = Replayed(plain, small)
    for count in (10, 40, 17, 16):
        torch.testing.assert_close(replayed(IMAGES[:count]), plain(IMAGES[:count]))
    assert Static.made == 1
    assert replayed.failed is None


def test_filled_up_images_lie_as_they_did() -> None:
    colours = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 4)).requires_grad_(False)
    images = torch.rand(32, 3, 6, 6, generator=generator(4)).contiguous(memory_format=torch.channels_last)
    replayed = Replayed(colours, Static)
    for count in (20, 32):
        check_layer(colours, replayed, images[:count], rtol=1e-5, atol=1e-6)
    assert Static.made == 1


def test_a_model_without_gradient_or_recording_is_left() -> None:
    class Stepped(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :4].round().detach()

    assert replaying(model_of(Stepped()), IMAGES[:8], Fast) is None

    def fails(network: nn.Module, images: Tensor) -> Recording:
        raise RuntimeError("no memory")

    assert replaying(model_of(Slow()), IMAGES[:8], fails) is None


@pytest.mark.parametrize("attack", [PGD(eps=0.1, steps=5), FAB(steps=4), TargetedFAB(steps=3, restarts=2)])
def test_attacks_find_the_same(attack: Attack) -> None:
    model = model_of(network())
    labels = model(IMAGES).argmax(1)
    both = freeze(model, IMAGES[:8], pass_size=24)
    replayed = replace(both, copy=model_of(Replayed(both.copy.get_submodule("network"), Static)))
    replayed.copy.pass_size = 24
    expected, seen = attack(both, IMAGES, labels), attack(replayed, IMAGES, labels)
    assert Static.made > 0
    torch.testing.assert_close(seen.adversarial, expected.adversarial)
    assert torch.equal(seen.status, expected.status)


def test_sweeps_find_the_same() -> None:
    model = model_of(network())
    labels = model(IMAGES).argmax(1)
    with held(model, IMAGES) as both:
        replayed = replace(both, copy=model_of(Replayed(both.copy.get_submodule("network"), Static)))
        found = [
            sweep_eps(PGD(eps=0.1, steps=4), each, IMAGES, labels, [0.02, 0.1, 0.3], only_worst=True)
            for each in (both, replayed)
        ]
    assert torch.equal(found[0].worst, found[1].worst)
    assert not found[0].worst[:, -1].all()
