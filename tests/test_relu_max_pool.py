"""Layers that are computed together or in part give what PyTorch's give one after another, forward and back."""

import math
import os
from typing import Any

import numba
import pytest
import torch
from torch import Tensor, nn

from casemate import compiled
from casemate.attacks import frozen
from casemate.models import freeze
from casemate.models.accel.dropout import HashDropout
from casemate.models.accel.relu_max_pool import ReLUMaxPool2d, SmallInputConvPool, can_fuse_convolution, is_2x2_pooling
from casemate.models.accel.small_input_conv import SmallInputConv
from oracles import check_layer, classifier, generator

RECTIFIED = nn.Sequential(nn.MaxPool2d(2), nn.ReLU())


@pytest.mark.parametrize("shape", [(5, 8, 6, 6), (2, 3, 7, 5), (4, 16, 2, 3), (1, 1, 9, 8), (0, 4, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.usefixtures("threads")
def test_pooling_with_relu_is_exactly_pytorch_s(shape: tuple[int, ...], dtype: torch.dtype, last: bool) -> None:
    maps = torch.randn(shape, dtype=dtype, generator=generator(0))
    maps = maps.contiguous(memory_format=torch.channels_last) if last else maps
    check_layer(RECTIFIED, ReLUMaxPool2d(), maps)


def test_the_first_of_several_largest_gets_the_gradient_and_zero_none() -> None:
    maps = torch.randint(-1, 2, (6, 4, 8, 8), generator=generator(1)).float()  # nearly every pooling sees a tie
    check_layer(RECTIFIED, ReLUMaxPool2d(), maps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sign", [1, -1])
def test_what_is_no_number_stays_none_and_infinities_stay(dtype: torch.dtype, sign: int) -> None:
    maps = torch.randn(6, 4, 8, 8, generator=generator(2)).to(dtype)
    places = torch.rand(maps.shape, generator=generator(3))
    maps = maps.masked_fill(places < 0.1, math.copysign(float("nan"), sign)).masked_fill(places > 0.9, float("inf"))
    maps = maps.masked_fill((places > 0.5) & (places < 0.6), -float("inf"))
    assert ReLUMaxPool2d()(maps).isnan().any()
    check_layer(RECTIFIED, ReLUMaxPool2d(), maps)


def test_other_precisions_are_left_to_pytorch() -> None:
    maps = torch.randn(3, 8, 6, 6, generator=generator(0)).half()
    check_layer(RECTIFIED, ReLUMaxPool2d(), maps)


def test_maps_too_small_to_pool_are_refused_as_by_pytorch() -> None:
    with pytest.raises(RuntimeError, match="too small"):
        ReLUMaxPool2d()(torch.rand(1, 2, 1, 1))


CONVOLUTIONS: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": 3, "bias": False},
    {"kernel_size": 4, "stride": 2, "padding": 1},
    {"kernel_size": (3, 5), "stride": (2, 1), "padding": (0, 2)},
    {"kernel_size": 5, "stride": 3, "padding": 2},
    {"kernel_size": 2, "padding": 1},
    {"kernel_size": 1},
]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("settings", CONVOLUTIONS)
@pytest.mark.usefixtures("threads")
def test_a_convolution_with_pooling_is_pytorch_s(channels: int, settings: dict[str, Any]) -> None:
    layer = nn.Conv2d(channels, 16, **settings).double().requires_grad_(False)
    assert can_fuse_convolution(layer)
    images = torch.rand(5, channels, 13, 12, dtype=torch.float64, generator=generator(4))
    check_layer(
        nn.Sequential(layer, RECTIFIED), SmallInputConvPool(SmallInputConv(layer)), images, rtol=1e-12, atol=1e-13
    )


@pytest.mark.parametrize("value", [0.1, 0.37, 0.8])
def test_of_equal_places_the_first_gets_the_gradient(value: float) -> None:
    """Every place of an even image sees the same, and must get the same number, or rounding would choose."""
    layer = nn.Conv2d(1, 32, 3, padding=1).requires_grad_(False)
    assert layer.bias is not None
    layer.bias.add_(4)  # so that ReLU lets all pass
    images = torch.full((2, 1, 12, 12), value, requires_grad=True)
    maps = SmallInputConvPool(SmallInputConv(layer))(images)
    (gradient,) = torch.autograd.grad(maps[:, :, 2, 3].sum(), images)
    seen = torch.zeros(12, 12, dtype=torch.bool)
    seen[3:6, 5:8] = True  # by the first of the places of that pooling
    assert gradient[:, 0, seen].ne(0).all()
    assert gradient[:, 0, ~seen].eq(0).all()


def test_a_convolution_with_pooling_tells_of_what_is_no_number() -> None:
    layer = nn.Conv2d(1, 8, 3, padding=1).requires_grad_(False)
    images = torch.rand(4, 1, 8, 8, generator=generator(4))
    images[1, 0, 3, 4] = float("nan")
    expected, seen = (
        module(images).isnan()
        for module in (nn.Sequential(layer, RECTIFIED), SmallInputConvPool(SmallInputConv(layer)))
    )
    assert expected.any()
    assert torch.equal(expected, seen)


@pytest.mark.parametrize("images", [torch.rand(2, 1, 8, 8).bfloat16(), torch.rand(1, 1, 1, 3)])
def test_a_convolution_with_pooling_leaves_other_precisions_and_errors_to_pytorch(images: Tensor) -> None:
    layer = nn.Conv2d(1, 8, 3, padding=1).requires_grad_(False).to(images.dtype)
    pooled = SmallInputConvPool(SmallInputConv(layer))
    if images.shape[2] == 1:
        with pytest.raises(RuntimeError, match="too small"):
            pooled(images)
    else:
        check_layer(nn.Sequential(layer, RECTIFIED), pooled, images, rtol=0.05, atol=0.05)


def test_loops_compile_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*, cache: bool = False, **settings: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return numba.njit(**settings)

    monkeypatch.setattr(compiled, "njit", nowhere)
    doubled = torch.ones(2, 3)

    def double(values: Any) -> None:
        values *= 2

    compiled.over_images(compiled.loop(double), doubled)
    assert (doubled == 2).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_threads_of_its_own() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        maps = torch.randn(6, 4, 8, 8, generator=generator(0))
        expected = ReLUMaxPool2d()(maps)
        child = os.fork()
        if child == 0:  # pragma: no cover
            os._exit(0 if torch.equal(ReLUMaxPool2d()(maps), expected) else 1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3},
        {"kernel_size": 2, "stride": 1},
        {"ceil_mode": True, "kernel_size": 2},
        {"kernel_size": 2, "padding": 1},
        {"kernel_size": 2, "dilation": 2},
        {"kernel_size": 2, "return_indices": True},
    ],
)
def test_other_poolings_are_left(settings: dict[str, Any]) -> None:
    assert not is_2x2_pooling(nn.MaxPool2d(**settings))
    assert is_2x2_pooling(nn.MaxPool2d((2, 2), stride=2))
    assert not is_2x2_pooling(nn.AvgPool2d(2))


def test_a_frozen_network_uses_all_of_it() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.2),
        nn.Conv2d(8, 8, 3, padding=1), nn.MaxPool2d(2), nn.Identity(), nn.ReLU(),
        nn.Conv2d(8, 4, 3, padding=1), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    model = classifier(network.double().eval(), classes=3, shape=(1, 15, 14))
    images = torch.rand(6, 1, 15, 14, dtype=torch.float64, generator=generator(7))
    with frozen(model):
        both = freeze(model, images)
        check_layer(model, both.copy, images, rtol=1e-11, atol=1e-12)
    assert both.matches_original
    expected = {
        "ReLU behind pooling": 1,
        "pooling with ReLU": 2,
        "convolution with pooling": 1,
    }
    assert expected.items() <= both.changes.items()
    assert not any(isinstance(layer, nn.ReLU | nn.BatchNorm2d) for layer in both.copy.modules())


def test_what_layers_return_may_be_written_over() -> None:
    maps = torch.randn(3, 8, 6, 6, generator=generator(0), requires_grad=True)
    images = torch.randn(3, 1, 6, 6, generator=generator(0), requires_grad=True)
    few = SmallInputConvPool(SmallInputConv(nn.Conv2d(1, 8, 3).requires_grad_(False)))
    for out in (ReLUMaxPool2d()(maps), few(images), HashDropout(nn.Dropout(0.5))(maps)):
        out.add_(1).mul_(2)
        out.sum().backward()


def test_a_pooling_that_is_used_twice_is_left() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.pool, self.relu = nn.Conv2d(1, 8, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()
            self.dense = nn.Linear(8 * 9, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.dense(self.pool(self.relu(self.pool(self.convolution(images)))).flatten(1))

    model = classifier(Twice().double().eval(), classes=3, shape=(1, 12, 12))
    images = torch.rand(4, 1, 12, 12, dtype=torch.float64, generator=generator(7))
    with frozen(model):
        both = freeze(model, images)
        check_layer(model, both.copy, images, rtol=1e-11, atol=1e-12)
    assert "pooling with ReLU" not in both.changes


def test_pooling_can_be_differentiated_twice() -> None:
    maps = torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=generator(8))
    found = []
    for module in (RECTIFIED, ReLUMaxPool2d()):
        leaf = maps.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad((module(leaf) ** 3).sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad((gradient**2).sum(), leaf)
        found.append(second)
    assert found[0].abs().sum() > 0
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-13)
