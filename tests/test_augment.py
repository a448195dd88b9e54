"""Every augmentation against what it promises, and against rot90, flip, padding and SciPy's image functions."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage, stats
from torch import Generator, Tensor

from casemate.data.augment import (
    Affine,
    AlternatingFlip,
    Augmentation,
    Flip,
    GaussianBlur,
    RandomApply,
    Shift,
    affine,
)
from casemate.data.named import AUGMENTATIONS, make_augmentation
from casemate.data.noise import GaussianNoise, SaltAndPepper, Speckle
from casemate.errors import SettingError
from oracles import as_installed

_SETTINGS: dict[str, list[dict[str, Any]]] = {
    "alternating-flip": [{}],
    "flip": [{}, {"horizontal": 0.0}, {"vertical": 0.9}, {"horizontal": 1.0, "vertical": 1.0}],
    "shift": [{}, {"pixels": 0}, {"pixels": 3}, {"pixels": 20}],
    "affine": [{}, {"rotation": 180.0, "shift": 1.0, "scale": 0.99}, {"rotation": 0.0, "shift": 0.0, "scale": 0.0}],
    "gaussian-blur": [{}, {"size": 1}, {"size": 5, "sigma": 0.5}, {"size": 11, "sigma": 100.0}, {"sigma": 1e-3}],
    "gaussian-noise": [{}, {"std": 0.0}, {"std": 10.0}],
    "speckle": [{}, {"std": 0.0}, {"std": 10.0}],
    "salt-and-pepper": [{}, {"share": 0.0}, {"share": 0.5}, {"share": 1.0}],
}
_RANDOM: list[tuple[Augmentation, int]] = [
    (Flip(), 4),
    (Shift(pixels=3), 20),
    (Affine(), 40),
    (GaussianNoise(), 40),
    (Speckle(), 40),
    (SaltAndPepper(share=0.2), 40),
    (RandomApply(change=GaussianBlur(), share=0.5), 2),
    (RandomApply(change=Shift(pixels=3), share=1.0), 20),
]
"""Those that draw for each image, and how many of 40 equal images at least come out different (of 49 moves: 27)."""


def _all() -> list[Augmentation]:
    changes = [AUGMENTATIONS[name](**settings) for name, several in _SETTINGS.items() for settings in several]
    return [*changes, RandomApply(change=Affine()), RandomApply(change=GaussianNoise(), share=1.0)]


def _images(count: int, channels: int = 1, height: int = 6, width: int = 6, seed: int = 1) -> Tensor:
    """Random images with some pixels at exactly black and white."""
    draw = torch.rand(count, channels, height, width, generator=Generator().manual_seed(seed))
    return (1.4 * draw - 0.2).clamp(0, 1)


def _apply(change: Augmentation, images: Tensor, *, seed: int = 0, epoch: int = 1) -> Tensor:
    return change(images, torch.arange(len(images)), epoch, Generator().manual_seed(seed))


def _numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _moved(images: Tensor, *, angle: float = 0.0, right: float = 0.0, down: float = 0.0, scale: float = 1.0) -> Tensor:
    """`affine` with the same numbers for every image."""
    ones = torch.ones(len(images), dtype=torch.float64)
    return affine(images, angle * ones, torch.stack([right * ones, down * ones], 1), scale * ones)


# --- all of them -------------------------------------------------------------------------------------------------


def test_every_augmentation_is_tested_here() -> None:
    assert _SETTINGS.keys() == AUGMENTATIONS.keys()


@given(
    change=st.sampled_from(_all()),
    count=st.integers(1, 6),
    channels=st.sampled_from([1, 3]),
    sides=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    last=st.booleans(),
)
def test_any_images_keep_shape_type_and_range_and_are_not_written_to(
    change: Augmentation,
    count: int,
    channels: int,
    sides: tuple[int, int],
    seed: int,
    dtype: torch.dtype,
    last: bool,
) -> None:
    images = _images(count, channels, *sides, seed=seed % 1000).to(dtype)
    if last:
        images = images.contiguous(memory_format=torch.channels_last)
    before = images.clone()
    changed = _apply(change, images, seed=seed, epoch=seed % 7)
    assert (changed.shape, changed.dtype, changed.device) == (images.shape, dtype, images.device)
    assert bool(((changed >= 0) & (changed <= 1)).all())  # a NaN is neither
    assert torch.equal(images, before)


@pytest.mark.parametrize("change", _all(), ids=repr)
def test_the_generator_alone_decides(change: Augmentation) -> None:
    images = _images(12, 3, 7, 9)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = _apply(change, images)
    assert torch.equal(torch.get_rng_state(), before)  # nothing comes from, or goes to, the global generator
    torch.manual_seed(2)
    assert torch.equal(_apply(change, images), one)
    same_otherwise_stored = _apply(change, images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(same_otherwise_stored, one, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("change", "least"), _RANDOM, ids=repr)
def test_every_image_and_every_epoch_gets_its_own_draw(change: Augmentation, least: int) -> None:
    images = _images(1, 1, 12, 12).expand(40, -1, -1, -1)
    generator = Generator().manual_seed(0)
    epochs = [change(images, torch.arange(40), epoch, generator) for epoch in (1, 2)]
    assert not torch.equal(*epochs)  # the generator goes on, so another epoch is another draw
    assert not torch.equal(epochs[0], _apply(change, images, seed=1))
    assert torch.equal(epochs[0], _apply(change, images, seed=0))
    for epoch in epochs:
        assert len(torch.unique(epoch.flatten(1), dim=0)) >= least


def test_a_blur_draws_nothing() -> None:
    images = _images(1).expand(5, -1, -1, -1)
    shown = _apply(GaussianBlur(), images)
    assert torch.equal(shown, _apply(GaussianBlur(), images, seed=5, epoch=9))
    assert torch.equal(shown, shown[:1].expand_as(shown))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Flip(horizontal=-0.1), "horizontal = -0.1; expected a probability"),
        (lambda: Flip(horizontal=math.nan), "horizontal = nan"),
        (lambda: Flip(vertical=1.1), "vertical = 1.1; expected a probability"),
        (lambda: Shift(pixels=-1), "pixels = -1; expected at least 0"),
        (lambda: Affine(rotation=-1.0), "rotation = -1.0; expected degrees from 0 to 180"),
        (lambda: Affine(rotation=181.0), "rotation = 181.0"),
        (lambda: Affine(rotation=math.nan), "rotation = nan"),
        (lambda: Affine(shift=-0.1), "shift = -0.1; expected a share of the side"),
        (lambda: Affine(shift=1.5), "shift = 1.5"),
        (lambda: Affine(scale=-0.1), "scale = -0.1; expected at least 0 and below 1"),
        (lambda: Affine(scale=1.0), "scale = 1.0"),
        (lambda: GaussianBlur(size=0), "size = 0; expected an odd number"),
        (lambda: GaussianBlur(size=4), "size = 4"),
        (lambda: GaussianBlur(size=-3), "size = -3"),
        (lambda: GaussianBlur(sigma=0.0), "sigma = 0.0; expected 0.001 or more and finite"),
        (lambda: GaussianBlur(sigma=math.inf), "sigma = inf"),
        (lambda: GaussianBlur(sigma=math.nan), "sigma = nan"),
        (lambda: GaussianNoise(std=-0.1), "std = -0.1; expected from 0 to 1000"),
        (lambda: GaussianNoise(std=math.inf), "std = inf"),
        (lambda: Speckle(std=math.nan), "std = nan"),
        (lambda: Speckle(std=-1.0), "std = -1.0"),
        (lambda: SaltAndPepper(share=-0.1), "share = -0.1; expected a probability"),
        (lambda: SaltAndPepper(share=1.1), "share = 1.1"),
        (lambda: RandomApply(change=Flip(), share=-0.5), "share = -0.5; expected a probability"),
        (lambda: RandomApply(change=Flip(), share=math.nan), "share = nan"),
    ],
)
def test_a_bad_setting_is_named(build: Callable[[], Augmentation], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        build()


# --- by name -----------------------------------------------------------------------------------------------------


def test_an_augmentation_is_made_from_its_name_and_settings() -> None:
    assert make_augmentation({"name": "flip"}) == Flip()
    assert make_augmentation({"name": "shift", "settings": {"pixels": 4}}) == Shift(pixels=4)
    assert make_augmentation({"name": "gaussian-blur", "share": 0.25}) == RandomApply(change=GaussianBlur(), share=0.25)
    assert make_augmentation({"name": "speckle", "settings": {"std": 0.1}, "share": 0}) == RandomApply(
        change=Speckle(std=0.1), share=0
    )
    for name, change in AUGMENTATIONS.items():
        assert type(make_augmentation({"name": name})) is change


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "gausian-blur"}, r"unknown augmentation 'gausian-blur'; known: .*; did you mean gaussian-blur\?"),
        ({"name": "flips"}, r"did you mean flip\?"),
        ({"name": "unheard-of"}, r"'unheard-of'; known: alternating-flip, flip, .*salt-and-pepper$"),
        ({"name": "shift", "setting": {"pixels": 9}}, "an augmentation with setting; known: name, settings, share"),
        ({"settings": {}}, "unknown augmentation 'None'"),
        ({"name": "flip", "share": "0.5"}, "share = '0.5'; expected a probability"),
        ({"name": "shift", "settings": {"pixel": 2}}, "augmentation shift with .*unexpected.*'pixel'"),
        ({"name": "shift", "settings": {"pixels": "2"}}, "pixels = '2'; expected a whole number"),
        ({"name": "affine", "settings": {"rotation": 200.0}}, "rotation = 200.0"),
        ({"name": "flip", "share": 1.5}, "share = 1.5"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_a_bad_description_is_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make_augmentation(spec)


# --- shift, rotate, scale ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize("turns", [-1, 0, 1, 2, 3, 4])
def test_a_quarter_turn_is_rot90_counter_clockwise(side: int, turns: int) -> None:
    images = _images(3, 2, side, side).double()
    turned = _moved(images, angle=90.0 * turns)
    torch.testing.assert_close(turned, torch.rot90(images, turns, (2, 3)), rtol=0, atol=1e-9)


def test_every_image_is_moved_by_its_own_numbers() -> None:
    images = _images(4, 1, 5, 5).double()
    shift = torch.zeros(4, 2, dtype=torch.float64)
    moved = affine(images, _numbers(0, 90, 180, -90), shift, _numbers(1, 1, 1, 1))
    wanted = torch.stack([torch.rot90(image, turns, (1, 2)) for image, turns in zip(images, (0, 1, 2, 3), strict=True)])
    torch.testing.assert_close(moved, wanted, rtol=0, atol=1e-9)


@given(st.integers(-6, 6), st.integers(-9, 9))
def test_a_shift_by_whole_pixels_fills_with_black(right: int, down: int) -> None:
    height, width = 8, 5
    images = _images(2, 3, height, width).double()
    framed = F.pad(images, (width + 1, width + 1, height + 1, height + 1))
    top, left = height + 1 - down, width + 1 - right
    wanted = framed[:, :, top : top + height, left : left + width]
    torch.testing.assert_close(_moved(images, right=right / width, down=down / height), wanted, rtol=0, atol=1e-9)


def test_scale_two_magnifies_the_middle() -> None:
    images = _images(2, 1, 8, 8).double()
    twice = F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(_moved(images, scale=2.0), twice[:, :, 4:12, 4:12], rtol=0, atol=1e-9)


def test_scale_one_half_shows_everything_in_the_middle() -> None:
    wanted = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    wanted[:, :, 2:6, 2:6] = 1
    torch.testing.assert_close(_moved(torch.ones_like(wanted), scale=0.5), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("height", "width"), [(6, 12), (12, 6), (4, 10)])
def test_an_oblong_image_is_not_distorted(height: int, width: int) -> None:
    pattern = _images(2, 1, 4, 4).double()
    top, left = (height - 4) // 2, (width - 4) // 2
    around = (left, left, top, top)
    turned = _moved(F.pad(pattern, around), angle=90.0)
    torch.testing.assert_close(turned, F.pad(torch.rot90(pattern, 1, (2, 3)), around), rtol=0, atol=1e-9)


def test_first_the_shift_then_the_turn_then_the_scale() -> None:
    image = torch.zeros(1, 1, 11, 11, dtype=torch.float64)
    image[0, 0, 5, 5] = 1
    # two to the right of the centre; a quarter turn brings that to two above it; scale 2 to four above it
    moved = _moved(image, right=2 / 11, angle=90.0, scale=2.0)[0, 0]
    wanted = torch.zeros(11, 11, dtype=torch.float64)
    tent = _numbers(0.5, 1, 0.5)
    wanted[0:3, 4:7] = tent.outer(tent)
    torch.testing.assert_close(moved, wanted, rtol=0, atol=1e-9)


def _scipys(image: np.ndarray, angle: float, right: float, down: float, scale: float) -> np.ndarray:
    """The same movement one matrix after the other, in pixels, with SciPy's interpolation."""
    height, width = image.shape
    turn = math.radians(angle)
    to_centre = np.array([[1, 0, -(width - 1) / 2], [0, 1, -(height - 1) / 2], [0, 0, 1]])
    shifted = np.array([[1, 0, right * width], [0, 1, down * height], [0, 0, 1]])
    # y points downwards: counter-clockwise as seen is clockwise in these coordinates
    turned = np.array([[math.cos(turn), math.sin(turn), 0], [-math.sin(turn), math.cos(turn), 0], [0, 0, 1]])
    forth = np.linalg.inv(to_centre) @ np.diag([scale, scale, 1]) @ turned @ shifted @ to_centre
    rows_first = np.eye(3)[[1, 0, 2]]
    back = rows_first @ np.linalg.inv(forth) @ rows_first
    return ndimage.affine_transform(image, back, order=1, mode="grid-constant", cval=0.0)


@given(
    st.tuples(st.integers(2, 9), st.integers(2, 9)),
    st.floats(-360, 360),
    st.floats(-1, 1),
    st.floats(-1, 1),
    st.floats(0.2, 5),
)
def test_any_movement_is_scipys(sides: tuple[int, int], angle: float, right: float, down: float, scale: float) -> None:
    images = _images(1, 1, *sides).double()
    moved = _moved(images, angle=angle, right=right, down=down, scale=scale)
    wanted = _scipys(images[0, 0].numpy(), angle, right, down, scale)
    np.testing.assert_allclose(moved[0, 0].numpy(), wanted, rtol=0, atol=1e-8)


@given(st.floats(-180, 180), st.floats(-0.5, 0.5), st.floats(-0.5, 0.5), st.floats(0.5, 2))
def test_the_gradient_is_that_of_the_linear_map(angle: float, right: float, down: float, scale: float) -> None:
    height, width = 4, 6
    units = torch.eye(height * width, dtype=torch.float64).view(-1, 1, height, width)
    columns = _moved(units, angle=angle, right=right, down=down, scale=scale).flatten(1)  # row i: what pixel i becomes
    at, other, weight = (_images(1, 1, height, width, seed=seed).double() for seed in (1, 2, 3))
    at.requires_grad_()
    (gradient,) = torch.autograd.grad((_moved(at, angle=angle, right=right, down=down, scale=scale) * weight).sum(), at)
    torch.testing.assert_close(gradient.flatten(), columns @ weight.flatten(), rtol=0, atol=1e-9)
    there = (_moved(other, angle=angle, right=right, down=down, scale=scale) * weight).sum()
    torch.testing.assert_close(there, (other * gradient).sum(), rtol=0, atol=1e-9)  # <A x, y> = <x, A^T y>


def _centroids(images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Where each image's light is, to the right of and below the centre, in pixels."""
    light = images[:, 0].double()
    side = images.shape[-1]
    place = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    total = light.sum((1, 2))
    right, down = (light.sum(1) * place).sum(1) / total, (light.sum(2) * place).sum(1) / total
    return right.numpy(), down.numpy()


def _blobs(right: float, down: float, count: int = 400, side: int = 33) -> Tensor:
    place = torch.arange(side) - (side - 1) / 2
    blob = torch.exp(-((place - right) ** 2).view(1, -1) / 4 - ((place - down) ** 2).view(-1, 1) / 4)
    return blob.expand(count, 1, side, side)


def _uniform(values: np.ndarray, low: float, high: float) -> None:
    assert low - 0.002 * (high - low) <= values.min() <= values.max() <= high + 0.002 * (high - low)
    assert stats.kstest(values, stats.uniform(low, high - low).cdf).pvalue > 0.01


def test_angles_are_uniform_to_both_sides() -> None:
    right, down = _centroids(_apply(Affine(rotation=30.0, shift=0.0, scale=0.0), _blobs(8, 0)))
    _uniform(np.degrees(np.arctan2(-down, right)), -30, 30)
    np.testing.assert_allclose(np.hypot(right, down), 8, atol=0.02)


def test_shifts_are_uniform_in_both_directions() -> None:
    right, down = _centroids(_apply(Affine(rotation=0.0, shift=0.2, scale=0.0), _blobs(0, 0)))
    _uniform(right / 33, -0.2, 0.2)
    _uniform(down / 33, -0.2, 0.2)
    assert abs(np.corrcoef(right, down)[0, 1]) < 0.15


def test_scales_are_uniform_about_one() -> None:
    right, down = _centroids(_apply(Affine(rotation=0.0, shift=0.0, scale=0.25), _blobs(6, 0)))
    _uniform(right / 6, 0.75, 1.25)
    np.testing.assert_allclose(down, 0, atol=0.02)


def test_no_movement_is_no_change() -> None:
    images = _images(5, 3, 28, 28)
    still = _apply(Affine(rotation=0.0, shift=0.0, scale=0.0), images)
    torch.testing.assert_close(still, images, rtol=0, atol=1e-5)


# --- mirror ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("horizontal", "vertical", "axes"), [(0.0, 0.0, ()), (1.0, 0.0, (3,)), (0.0, 1.0, (2,)), (1.0, 1.0, (2, 3))]
)
def test_a_sure_flip_is_torchs(horizontal: float, vertical: float, axes: tuple[int, ...]) -> None:
    images = _images(30, 2, 4, 5)
    assert torch.equal(_apply(Flip(horizontal=horizontal, vertical=vertical), images), images.flip(axes))


@pytest.mark.parametrize(("horizontal", "vertical"), [(0.5, 0.5), (0.2, 0.9)])
def test_flips_come_as_often_as_asked_and_independently(horizontal: float, vertical: float) -> None:
    images = _images(4000, 1, 2, 3)
    shown = _apply(Flip(horizontal=horizontal, vertical=vertical), images)
    shares = [float((shown == images.flip(axes)).flatten(1).all(1).float().mean()) for axes in ((), (3,), (2,), (2, 3))]
    wanted = [across * along for along in (1 - vertical, vertical) for across in (1 - horizontal, horizontal)]
    assert shares == pytest.approx(wanted, abs=0.03)
    assert sum(shares) == pytest.approx(1, abs=0.01)  # (but for a few images that are symmetric)


def test_a_flip_tosses_half_and_half_unless_told() -> None:
    assert Flip() == Flip(horizontal=0.5, vertical=0.5)


# --- blur --------------------------------------------------------------------------------------------------------


def _kernel(size: int, sigma: float) -> np.ndarray:
    place = np.arange(size) - size // 2
    kernel = np.exp(-(place[:, None] ** 2 + place[None, :] ** 2) / (2 * sigma**2))
    return kernel / kernel.sum()


@pytest.mark.parametrize(("size", "sigma"), [(3, 1.0), (3, 0.4), (5, 1.5), (7, 3.0), (1, 1.0)])
@pytest.mark.parametrize(("height", "width"), [(7, 9), (2, 1)])
def test_a_blur_is_scipys_correlation(size: int, sigma: float, height: int, width: int) -> None:
    images = _images(3, 2, height, width)
    shown = _apply(GaussianBlur(size=size, sigma=sigma), images)
    for image, blurred in zip(images.flatten(0, 1), shown.flatten(0, 1), strict=True):
        wanted = ndimage.correlate(image.double().numpy(), _kernel(size, sigma), mode="nearest")
        np.testing.assert_allclose(blurred.numpy(), wanted, rtol=0, atol=1e-6)


def test_the_blur_is_the_studys_unless_told() -> None:
    assert GaussianBlur() == GaussianBlur(size=3, sigma=1.0)


@given(st.floats(0, 1, width=32), st.sampled_from([1, 3, 9]), st.floats(0.1, 50))
def test_a_blur_leaves_a_constant_image(grey: float, size: int, sigma: float) -> None:
    images = torch.full((1, 2, 5, 4), grey)
    shown = _apply(GaussianBlur(size=size, sigma=sigma), images)
    torch.testing.assert_close(shown, images, rtol=0, atol=1e-6)


# --- noise -------------------------------------------------------------------------------------------------------


def test_gaussian_noise_is_normal_and_independent() -> None:
    grey = torch.full((30, 3, 28, 28), 0.5)
    noise = (_apply(GaussianNoise(std=0.08), grey) - 0.5).double()
    assert float(noise.mean()) == pytest.approx(0, abs=0.0015)
    assert float(noise.std()) == pytest.approx(0.08, rel=0.01)
    assert stats.kstest(noise.flatten()[::7].numpy(), stats.norm(0, 0.08).cdf).pvalue > 0.01
    for one, two in ((noise[:, 0], noise[:, 1]), (noise[..., 1:], noise[..., :-1]), (noise[1:], noise[:-1])):
        assert float((one * two).mean()) / 0.08**2 == pytest.approx(0, abs=0.03)


def test_gaussian_noise_is_clipped() -> None:
    shown = _apply(GaussianNoise(std=2.0), torch.full((30, 1, 28, 28), 0.5))
    outside = float(stats.norm.cdf(-0.25))
    assert float((shown == 0).float().mean()) == pytest.approx(outside, abs=0.015)
    assert float((shown == 1).float().mean()) == pytest.approx(outside, abs=0.015)


def test_speckle_grows_with_the_light_and_leaves_black_black() -> None:
    images = torch.zeros(30, 1, 28, 28)
    images[10:20], images[20:] = 0.2, 0.4
    noise = (_apply(Speckle(std=0.25), images) - images).double()
    assert not noise[:10].any()
    for grey, part in ((0.2, noise[10:20]), (0.4, noise[20:])):
        assert float(part.mean()) == pytest.approx(0, abs=0.01 * grey)
        assert float(part.std()) == pytest.approx(0.25 * grey, rel=0.03)
        assert stats.kstest(part.flatten()[::5].numpy(), stats.norm(0, 0.25 * grey).cdf).pvalue > 0.01


def test_salt_and_pepper_turn_a_share_of_the_pixels_half_each() -> None:
    images = torch.full((40, 3, 28, 28), 0.5)
    shown = _apply(SaltAndPepper(share=0.3), images)
    assert torch.equal(shown, shown[:, :1].expand_as(shown))  # the channels turn together
    assert set(shown.unique().tolist()) == {0.0, 0.5, 1.0}
    assert float((shown == 1).float().mean()) == pytest.approx(0.15, abs=0.01)
    assert float((shown == 0).float().mean()) == pytest.approx(0.15, abs=0.01)


def test_salt_and_pepper_leave_the_other_pixels() -> None:
    images = 0.25 + 0.5 * _images(10, 3, 28, 28)
    shown = _apply(SaltAndPepper(share=0.3), images)
    turned = (shown == 0) | (shown == 1)
    assert torch.equal(shown[~turned], images[~turned])


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_salt_and_pepper_on_nothing_and_on_everything(share: float) -> None:
    images = torch.full((2, 1, 20, 20), 0.5)
    shown = _apply(SaltAndPepper(share=share), images)
    assert bool((shown == 0.5).all()) == (share == 0)
    assert bool(((shown == 0) | (shown == 1)).all()) == (share == 1)


@pytest.mark.parametrize(
    "change", [GaussianNoise(std=0.0), Speckle(std=0.0), Shift(pixels=0), SaltAndPepper(share=0.0)]
)
def test_none_of_it_is_no_change(change: Augmentation) -> None:
    images = _images(5, 3, 8, 8)
    assert torch.equal(_apply(change, images), images)


# --- sometimes ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Negative:
    """A change that shows on every image."""

    def __call__(self, images: Tensor, index: Tensor, epoch: int, generator: Generator) -> Tensor:
        del index, epoch, generator
        return 1 - images


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_share_of_the_images_is_changed_and_each_as_a_whole(share: float) -> None:
    images = _images(2000, 1, 3, 3)
    shown = _apply(RandomApply(change=_Negative(), share=share), images)
    changed = (shown == 1 - images).flatten(1).all(1)
    assert torch.equal(shown[~changed], images[~changed])
    assert float(changed.float().mean()) == pytest.approx(share, abs=0 if share in (0, 1) else 0.04)


@pytest.mark.parametrize("epoch", [1, 2])
def test_sometimes_hands_on_the_images_numbers_and_the_epoch(epoch: int) -> None:
    images, index = _images(50), torch.randperm(1000, generator=Generator().manual_seed(0))[:50]
    always = RandomApply(change=AlternatingFlip(), share=1.0)
    assert torch.equal(always(images, index, epoch, Generator()), AlternatingFlip()(images, index, epoch, Generator()))


def test_who_is_changed_says_nothing_about_how() -> None:
    images = _images(4000, 1, 3, 3)
    shown = _apply(RandomApply(change=Flip(vertical=0.0), share=0.5), images)
    mirrored = (shown == images.flip(3)).flatten(1).all(1)
    assert float(mirrored.float().mean()) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize("change", [Shift, "shift", None])
def test_what_is_no_augmentation_is_not_applied_at_random(change: Any) -> None:
    with as_installed(), pytest.raises(SettingError, match=r"change = .*; expected an augmentation, such as Shift\(\)"):
        RandomApply(change=change)
