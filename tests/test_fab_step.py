"""A step of FAB is the same as one loop and as tensor operations."""

import pytest
import torch
from torch import Tensor

from casemate import compiled
from casemate.attacks import fab
from casemate.attacks._hyperplane import Hyperplane
from casemate.attacks.fab import next_iterates
from casemate.norms import Bounds, Norm
from oracles import generator

SHAPE = (7, 3, 5, 6)


def _plane(slope: Tensor, gap: Tensor) -> Hyperplane:
    return Hyperplane(gap, slope, slope.flatten(1).abs().sum(1), torch.ones(len(slope), dtype=torch.bool))


def _both(
    monkeypatch: pytest.MonkeyPatch,
    images: Tensor,
    clean: Tensor,
    plane: Hyperplane,
    norm: Norm,
    bounds: Bounds,
    eta: float = 1.05,
    alpha_max: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """The next iterates by the loop, and by tensor operations."""
    settings = {"eta": eta, "alpha_max": alpha_max}
    with monkeypatch.context() as patch:
        patch.setattr(fab, "_by_operations", lambda *arguments: pytest.fail("asked for"))
        fast = next_iterates(images, clean, plane, norm, bounds, **settings)
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "supports", lambda values: False)
        patch.setattr(fab, "_in_one_loop", lambda *arguments: pytest.fail("asked for"))
        slow = next_iterates(images, clean, plane, norm, bounds, **settings)
    return fast, slow


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-2.0, 3.0), (0.25, 0.75)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_loop_does_what_the_operations_do(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, bounds: Bounds, norm: Norm, layout: torch.memory_format
) -> None:
    low, high = bounds
    draws = generator(3)
    clean, images = (
        (low + (high - low) * (1.4 * torch.rand(SHAPE, generator=draws) - 0.2)).clamp(low, high).to(dtype)
        for _ in range(2)
    )
    slope = torch.randn(SHAPE, generator=draws, dtype=dtype).contiguous(memory_format=layout)
    slope[1] = 0  # no boundary in sight
    slope[2] *= 1e-25  # squares of which float32 cannot hold
    slope[3, :, :2] = 0
    gap = torch.randn(len(slope), generator=draws, dtype=dtype) * (high - low) * torch.tensor([1, 1, 1e-25, 1, 1, 1, 1])
    gap[4] = 1e4  # further than the bounds reach
    gap[5] = 0
    gap[6] = 1e-3
    arguments = (images.contiguous(memory_format=layout), clean, _plane(slope, gap.to(dtype)), norm, bounds)
    fast, slow = _both(monkeypatch, *arguments)
    assert fast.shape == slow.shape
    assert fast.dtype == slow.dtype == dtype
    torch.testing.assert_close(fast, slow, rtol=0, atol=(high - low) * 100 * torch.finfo(dtype).eps)
    assert fast.amin() >= low
    assert fast.amax() <= high
    assert not torch.equal(fast, images)


def test_without_leaning_it_ends_on_the_plane() -> None:
    """With eta 1 and alpha 0 the linear function is zero at the next iterate, and none within the bounds is nearer."""
    draws = generator(4)
    images, slope = torch.rand(SHAPE, generator=draws).double(), torch.randn(SHAPE, generator=draws).double()
    gap = 0.2 * slope.flatten(1).abs().sum(1)
    found = next_iterates(images, images, _plane(slope, gap), "linf", (0.0, 1.0), eta=1.0, alpha_max=0.0)
    moved = found - images
    torch.testing.assert_close(-gap, (moved * slope).flatten(1).sum(1), rtol=1e-12, atol=0)
    reach = moved.flatten(1).abs().amax(1)
    shorter = 0.999 * reach.view(-1, 1, 1, 1) * -slope.sign()
    rise = (((images + shorter).clamp(0, 1) - images) * slope).flatten(1).sum(1)
    assert (rise > -gap).all()  # the farthest that a smaller step takes falls short


def test_what_is_not_a_number_harms_no_other_image(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = generator(5)
    images, clean = (torch.rand(SHAPE, generator=draws) for _ in range(2))
    slope, gap = torch.randn(SHAPE, generator=draws), torch.randn(len(images), generator=draws)
    good = next_iterates(images, clean, _plane(slope, gap), "l2", (0.0, 1.0), eta=1.05, alpha_max=0.1)
    slope[0, 0, 0, 0], slope[1, 0, 0, 0], gap[2], gap[3] = torch.inf, torch.nan, torch.inf, torch.nan
    for norm in ("linf", "l2"):
        fast, slow = _both(monkeypatch, images, clean, _plane(slope, gap), norm, (0.0, 1.0))
        torch.testing.assert_close(fast[4:], slow[4:])
    torch.testing.assert_close(fast[4:], good[4:])


def test_without_images_there_is_nothing_to_do() -> None:
    none = torch.rand(0, 1, 4, 4)
    plane = _plane(none, torch.rand(0))
    assert next_iterates(none, none, plane, "linf", (0.0, 1.0), eta=1.05, alpha_max=0.1).shape == none.shape


def test_l1_goes_by_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fab, "_in_one_loop", lambda *arguments: pytest.fail("asked for"))
    images, slope = torch.rand(SHAPE, generator=generator(6)), torch.randn(SHAPE, generator=generator(7))
    found = next_iterates(images, images, _plane(slope, torch.ones(7)), "l1", (0.0, 1.0), eta=1.05, alpha_max=0.1)
    assert found.isfinite().all()
