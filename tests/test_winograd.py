"""Winograd's convolutions give what the plain ones give, forward and back, at every border."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from casemate.attacks import frozen
from casemate.models import freeze
from casemate.models.accel import winograd
from casemate.models.accel.winograd import Winograd, suits
from oracles import both_ways, check_layer, classifier, generator


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of few channels too, in several parts."""
    monkeypatch.setattr(winograd, "_CHANNELS", 1)
    monkeypatch.setattr(winograd, "_HELD", 16 * 5 * 20)


@pytest.mark.parametrize("padding", ["same", 0, 1, 2, (2, 0)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sides", [(3, 3), (4, 6), (5, 8), (7, 7), (9, 4)])
@pytest.mark.usefixtures("_small")
def test_it_is_the_plain_convolution(padding: Any, bias: bool, sides: tuple[int, int]) -> None:
    layer = nn.Conv2d(5, 7, 3, padding=padding, bias=bias).double().requires_grad_(False)
    maps = torch.randn(6, 5, *sides, dtype=torch.float64, generator=generator(0))
    check_layer(layer, Winograd(layer), maps, 1e-11, 1e-11)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 5, 40])
def test_any_number_of_images_and_threads_in_float32(count: int, threads: int) -> None:
    layer = nn.Conv2d(128, 160, 3, padding=1).requires_grad_(False)
    maps = torch.randn(count, 128, 6, 5, generator=generator(1))
    assert suits(layer)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check_layer(layer, Winograd(layer), maps, 2e-5, 2e-5)
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("_small")
def test_a_result_stays_when_the_memory_is_used_again() -> None:
    layer = nn.Conv2d(3, 4, 3).requires_grad_(False)
    filtered = Winograd(layer)
    first = both_ways(filtered, torch.randn(3, 3, 6, 6, generator=generator(2)))
    kept = [each.clone() for each in first]
    both_ways(filtered, torch.randn(3, 3, 6, 6, generator=generator(3)))
    torch.testing.assert_close(list(first), kept, rtol=0, atol=0)


@pytest.mark.usefixtures("_small")
def test_what_is_kept_serves_passes_of_every_kind() -> None:
    layer = nn.Conv2d(3, 4, 3).requires_grad_(False)
    filtered = Winograd(layer)
    winograd._rooms.kept.clear()
    maps = torch.randn(3, 3, 6, 6, generator=generator(2))
    with torch.inference_mode():
        filtered(maps)
    check_layer(layer, filtered, maps, 1e-5, 1e-5)
    assert torch.equal(filtered.weight, layer.weight)
    assert filtered.bias is layer.bias


def test_what_it_cannot_take_goes_through_the_layer() -> None:
    layer = nn.Conv2d(128, 128, 3).requires_grad_(False)
    filtered = Winograd(layer)
    for maps in (torch.rand(128, 4, 4), torch.rand(1, 128, 90, 90)):
        assert torch.equal(filtered(maps), layer(maps))
    coarse = Winograd(nn.Conv2d(128, 128, 3).bfloat16().requires_grad_(False))
    assert coarse(torch.rand(1, 128, 4, 4).bfloat16()).dtype is torch.bfloat16
    with pytest.raises(RuntimeError, match="Kernel size"):
        filtered(torch.rand(1, 128, 2, 4))


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 1}, {"kernel_size": 5}, {"stride": 2}, {"dilation": 2}, {"groups": 2},
        {"padding": 1, "padding_mode": "reflect"}, {"out_channels": 64}, {"in_channels": 64},
    ],
)  # fmt: skip
def test_other_convolutions_are_left(settings: dict[str, Any]) -> None:
    assert suits(nn.Conv2d(128, 128, 3))
    assert not suits(nn.Conv2d(**{"in_channels": 128, "out_channels": 128, "kernel_size": 3, **settings}))


class Functional(nn.Module):
    """Pools by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)

    def forward(self, maps: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(self.norm(self.convolution(maps))), 2)


@pytest.mark.usefixtures("_small")
def test_a_frozen_network_uses_it_but_not_before_a_max_pooling() -> None:
    network = nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.Dropout(0.1), nn.MaxPool2d(2), Functional(), nn.Conv2d(6, 6, 1),
        nn.Conv2d(6, 6, 3, padding=1), nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip
    model = classifier(network.double().eval(), classes=3, shape=(4, 9, 8))
    images = torch.rand(6, 4, 9, 8, dtype=torch.float64, generator=generator(7))
    with frozen(model):
        both = freeze(model, images)
        check_layer(model, both.copy, images, 1e-10, 1e-10)
    assert both.faithful
    assert both.changes["convolution by Winograd"] == 2
    kinds = [type(layer) for layer in both.copy.get_submodule("network").children()]
    assert [place for place, kind in enumerate(kinds) if kind is Winograd] == [0, 9]
