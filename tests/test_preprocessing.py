"""Preprocessing held against slow literal versions, SciPy and Pillow; and the gradient that sees through it."""

import copy
import io
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import fft, ndimage
from torch import Tensor, nn

from casemate.attacks import EOT, PGD
from casemate.data.fashion_mnist import first_test_images
from casemate.defenses import preprocessed
from casemate.defenses.preprocessing import (
    JPEG,
    FeatureDistillation,
    MedianFilter,
    PixelDeflection,
    ReducedDepth,
    attackable,
    band_deviation,
)
from casemate.errors import CasemateWarning, ModelError, SettingError, ShapeError
from casemate.models import Classifier, open_model
from conftest import TINY_CLASSES, TINY_SHAPE, tiny_images, tiny_model
from oracles import as_installed, classifier, generator

GREY = torch.rand(3, 1, 12, 10, generator=generator(0))
COLOUR = torch.rand(3, 3, 12, 10, generator=generator(1))
ALL: dict[str, Callable[[], nn.Module]] = {
    "depth": lambda: ReducedDepth(3),
    "median": lambda: MedianFilter(3),
    "jpeg": lambda: JPEG(50),
    "distillation": FeatureDistillation,
    "deflection": lambda: PixelDeflection(deflections=10, window=2),
}


def smooth_images(count: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Images with long waves and a little noise, as photographs have, so that compression changes them little."""
    random = generator(seed)
    rows, columns = torch.arange(height).view(-1, 1) / height, torch.arange(width) / width
    phase = 6 * torch.rand(count, channels, 3, 1, 1, generator=random)
    waves = torch.sin(4 * rows + phase[:, :, 0]) + torch.sin(5 * columns + phase[:, :, 1]) + phase[:, :, 2].sin()
    noise = 0.05 * torch.randn(count, channels, height, width, generator=random)
    return ((0.5 + waves / 8 + noise).clamp(0, 1) * 255).round() / 255


def nearest(values: np.ndarray) -> np.ndarray:
    """Whole numbers, halves away from zero, where a half is meant within the rounding of float64."""
    return np.sign(values) * np.floor(np.abs(values) + 0.5 + 1e-7)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("images", [GREY, COLOUR], ids=["grey", "colour"])
def test_shape_type_and_range_are_kept_and_the_images_untouched(name: str, images: Tensor) -> None:
    kept = images.clone()
    for given in (images, images.double(), images.contiguous(memory_format=torch.channels_last)):
        found = ALL[name]()(given)
        assert (found.shape, found.dtype) == (given.shape, given.dtype)
        assert 0 <= found.min() <= found.max() <= 1
        assert (found - given).abs().amax() > 1e-3
    assert torch.equal(images, kept)


@pytest.mark.parametrize("name", ["depth", "median", "jpeg", "distillation"])
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    change = ALL[name]()
    for images in (GREY, COLOUR, (GREY * 255).round() / 255):
        assert torch.equal(change(images), torch.cat([change(images[i : i + 1]) for i in range(3)]))


# ------------------------------------------------------------------------------------------------------------- depth


@pytest.mark.parametrize("bits", [1, 2, 5, 8])
def test_every_pixel_goes_to_the_nearest_level(bits: int) -> None:
    levels = np.linspace(0, 1, 2**bits)
    pixels = COLOUR.numpy().astype(np.float64)
    expected = levels[np.abs(pixels[..., None] - levels).argmin(-1)]
    found = ReducedDepth(bits)(COLOUR)
    assert np.allclose(found.numpy(), expected, atol=1e-6)
    assert torch.equal(ReducedDepth(bits)(found), found)


# ------------------------------------------------------------------------------------------------------------ median


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("images", [GREY, COLOUR], ids=["grey", "colour"])
def test_the_median_is_scipys(size: int, images: Tensor) -> None:
    found = MedianFilter(size)(images)
    for image, filtered in zip(images, found, strict=True):
        for channel, one in zip(image.numpy(), filtered.numpy(), strict=True):
            assert np.array_equal(one, ndimage.median_filter(channel, size=size, mode="reflect"))


def test_a_window_larger_than_the_image_is_reflected_as_well() -> None:
    small = torch.rand(1, 1, 3, 2, generator=generator(4))
    expected = ndimage.median_filter(small[0, 0].numpy(), size=5, mode="reflect")
    assert np.array_equal(MedianFilter(5)(small)[0, 0].numpy(), expected)


# -------------------------------------------------------------------------------------------------------------- JPEG


def tables_of_pillow(quality: int) -> tuple[np.ndarray, np.ndarray]:
    """The tables of a file that Pillow wrote, in the order of rows."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", quality=quality)
    found: dict[int, list[int]] = Image.open(file).quantization  # type: ignore[attr-defined]
    return np.array(found[0]).reshape(8, 8), np.array(found[1]).reshape(8, 8)


def transform(block: np.ndarray) -> np.ndarray:
    """SciPy's orthonormal cosine transform in two dimensions."""
    return np.asarray(fft.dctn(block, norm="ortho"))


def literal_jpeg(image: np.ndarray, tables: list[np.ndarray]) -> np.ndarray:
    """Block by block with SciPy's transform, `(channels, height, width)` within [0, 1]."""
    levels = nearest(image.astype(np.float64) * 255)
    if len(levels) == 3:
        red, green, blue = levels
        bright = 0.299 * red + 0.587 * green + 0.114 * blue
        planes = [bright, 128 + 0.5 * (blue - bright) / (1 - 0.114), 128 + 0.5 * (red - bright) / (1 - 0.299)]
        levels = np.clip(nearest(np.stack(planes)), 0, 255)
    _, height, width = levels.shape
    padded = np.pad(levels, ((0, 0), (0, -height % 8), (0, -width % 8)), mode="edge")
    coded = np.empty_like(padded)
    for plane, out, table in zip(padded, coded, tables, strict=True):
        for top in range(0, plane.shape[0], 8):
            for left in range(0, plane.shape[1], 8):
                block = transform(plane[top : top + 8, left : left + 8] - 128)
                block = nearest(block / table) * table
                out[top : top + 8, left : left + 8] = np.asarray(fft.idctn(block, norm="ortho")) + 128
    coded = np.clip(nearest(coded), 0, 255)[:, :height, :width]
    if len(coded) == 3:
        bright, blue, red = coded
        red, blue = bright + 1.402 * (red - 128), bright + 1.772 * (blue - 128)
        green = (bright - 0.299 * red - 0.114 * blue) / 0.587
        coded = np.clip(nearest(np.stack([red, green, blue])), 0, 255)
    return coded / 255


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 75, 95, 100])
def test_jpeg_is_that_of_single_blocks_with_the_tables_that_pillow_writes(quality: int) -> None:
    luminance, chrominance = tables_of_pillow(quality)
    for images, tables in ((GREY, [luminance]), (COLOUR, [luminance, chrominance, chrominance])):
        found = JPEG(quality)(images).numpy()
        for image, one in zip(images.numpy(), found, strict=True):
            assert np.abs(one - literal_jpeg(image, tables)).max() < 1e-6


@pytest.mark.parametrize("quality", [20, 50, 75, 95])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pillows_to_within_a_few_levels(quality: int, channels: int) -> None:
    """Pillow's transform is in whole numbers, which moves single coefficients to the next step."""
    images = smooth_images(4, channels, 29, 27)
    found = (JPEG(quality)(images) * 255).round()
    pixels = (images * 255).round().to(torch.uint8)
    for image, one in zip(pixels, found, strict=True):
        file = io.BytesIO()
        shown = image.squeeze(0).numpy() if channels == 1 else image.permute(1, 2, 0).numpy()
        Image.fromarray(shown).save(file, "JPEG", quality=quality, subsampling=0)
        theirs = torch.from_numpy(np.array(Image.open(file)).astype(np.float32))
        apart = (one - (theirs.unsqueeze(0) if channels == 1 else theirs.permute(2, 0, 1))).abs()
        changed = (one - image).abs().mean()
        assert apart.mean() < 1
        assert apart.mean() < 0.3 * changed
        assert apart.max() <= 12


def test_the_lower_the_quality_the_more_changes() -> None:
    images = smooth_images(4, 3, 16, 16)
    change = [(JPEG(quality)(images) - images).abs().mean().item() for quality in (95, 75, 50, 20, 5)]
    assert change == sorted(change)


# ----------------------------------------------------------------------------------------------- feature distillation


def test_distillation_is_jpeg_with_a_table_of_two_steps() -> None:
    table = np.where(np.add.outer(np.arange(8), np.arange(8)) <= 4, 2.0, 25.0)
    assert (table == 2).sum() == 15
    change = FeatureDistillation(small=2, large=25)
    for images in (GREY, COLOUR):
        for image, one in zip(images.numpy(), change(images).numpy(), strict=True):
            assert np.abs(one - literal_jpeg(image, [table] * len(image))).max() < 1e-6


def test_the_bands_that_vary_most_are_kept() -> None:
    deviation = torch.zeros(8, 8)
    deviation[7, 7], deviation[3, 0] = 2.0, 1.0
    table = np.full((8, 8), 40.0)
    table[7, 7] = table[3, 0] = 1.0
    found = FeatureDistillation(kept=2, small=1, large=40, deviation=deviation)(GREY)
    for image, one in zip(GREY.numpy(), found.numpy(), strict=True):
        assert np.abs(one - literal_jpeg(image, [table])).max() < 1e-6


def test_the_deviation_of_a_band_is_that_of_its_coefficients() -> None:
    images = smooth_images(5, 1, 16, 24)
    blocks = [
        transform(255 * image[0, top : top + 8, left : left + 8].astype(np.float64) - 128)
        for image in images.numpy()
        for top in (0, 8)
        for left in (0, 8, 16)
    ]
    assert np.allclose(band_deviation(images).numpy(), np.std(blocks, axis=0), atol=1e-4)
    assert band_deviation(images)[0, :2].min() > 2 * band_deviation(images)[4:, 4:].max()


# --------------------------------------------------------------------------------------------------- pixel deflection


def test_deflection_draws_from_the_global_generator_another_change_in_every_pass() -> None:
    change = PixelDeflection(deflections=20, window=2)
    torch.manual_seed(5)
    one, two = change(GREY), change(GREY)
    torch.manual_seed(5)
    assert torch.equal(change(GREY), one)
    assert not torch.equal(one, two)
    same = change(GREY[:1].expand(4, -1, -1, -1))
    assert not torch.equal(same[0], same[1])  # each image of a batch has its own draw


@pytest.mark.parametrize("window", [1, 3])
def test_deflected_pixels_are_whole_neighbours_within_the_window(window: int) -> None:
    height, width = 20, 18
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    images = torch.stack([rows / height, columns / width, rows / height]).expand(40, -1, -1, -1)
    torch.manual_seed(0)
    found = PixelDeflection(deflections=1, window=window, sigma=0)(images)
    down = ((found[:, 0] - images[:, 0]) * height).round()
    right = ((found[:, 1] - images[:, 1]) * width).round()
    assert torch.equal(found[:, 0], found[:, 2])
    assert max(down.abs().max(), right.abs().max()) == window
    moved = ((down != 0) | (right != 0)).flatten(1).sum(1)
    assert moved.max() == 1
    assert moved.sum() >= 20


def test_deflections_are_uniform_over_the_image() -> None:
    """All pixels differ, and with one deflection a changed one is the one that was drawn."""
    torch.manual_seed(0)
    images = torch.arange(36.0).view(1, 1, 6, 6).expand(6000, -1, -1, -1) / 36
    found = PixelDeflection(deflections=1, window=5, sigma=0)(images)
    share = (found != images).float().mean(0)[0]
    # the window covers the image, so one pixel in 36 gets itself
    assert float(share.sum()) == pytest.approx(1 - 1 / 36, abs=0.01)
    assert share.min() > 0.6 / 36
    assert share.max() < 1.4 / 36


def literal_denoised(plane: np.ndarray, sigma: float) -> np.ndarray:
    """One Haar level, two by two pixels, each detail band shrunk by BayesShrink."""
    a, b, c, d = plane[::2, ::2], plane[::2, 1::2], plane[1::2, ::2], plane[1::2, 1::2]
    average = (a + b + c + d) / 2
    details = [(a + b - c - d) / 2, (a - b + c - d) / 2, (a - b - c + d) / 2]
    for number, band in enumerate(details):
        signal = math.sqrt(max((band**2).mean() - sigma**2, np.finfo(np.float64).eps))
        details[number] = np.sign(band) * np.maximum(np.abs(band) - sigma**2 / signal, 0)
    down, right, cross = details
    out = np.empty_like(plane)
    out[::2, ::2], out[::2, 1::2] = (average + down + right + cross) / 2, (average + down - right - cross) / 2
    out[1::2, ::2], out[1::2, 1::2] = (average - down + right - cross) / 2, (average - down - right + cross) / 2
    return out


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.5])
def test_denoising_is_bayesshrink_of_the_haar_bands(sigma: float) -> None:
    change = PixelDeflection(deflections=0, sigma=sigma)
    images = GREY.double()
    for image, one in zip(images.numpy(), change(images).numpy(), strict=True):
        assert np.allclose(one[0], literal_denoised(image[0], sigma).clip(0, 1), atol=1e-12)


def test_without_noise_to_remove_nothing_changes_at_any_level() -> None:
    images = torch.rand(2, 3, 13, 16, generator=generator(2)).double()
    for levels in (1, 2, 3):
        assert torch.allclose(PixelDeflection(deflections=0, sigma=1e-9, levels=levels)(images), images, atol=1e-12)


def test_denoising_brings_noisy_images_nearer_to_the_clean_ones() -> None:
    clean = smooth_images(6, 3, 32, 32, seed=3)
    clean = F.avg_pool2d(clean, 9, 1, 4)
    noisy = (clean + 0.08 * torch.randn(clean.shape, generator=generator(3))).clamp(0, 1)
    one, two = (PixelDeflection(deflections=0, sigma=0.08, levels=levels)(noisy) for levels in (1, 2))
    before, after, best = ((each - clean)[..., 4:-4, 4:-4].square().mean() for each in (noisy, one, two))
    assert after < 0.7 * before
    assert best < after


# ------------------------------------------------------------------------------------------------------- the attack


@pytest.fixture(scope="module")
def trained() -> Classifier:
    """A tiny network that is nearly always right on the tiny images."""
    torch.manual_seed(0)
    model = tiny_model().train()
    images, labels = tiny_images(150, seed=1).tensors()
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(80):
        some = torch.randperm(150)[:50]
        optimiser.zero_grad()
        F.cross_entropy(model(images[some]), labels[some]).backward()
        optimiser.step()
    return model.eval()


IMAGES, LABELS = tiny_images(40, seed=2).tensors()


@pytest.mark.parametrize("name", [name for name in ALL if name != "median"])
def test_the_gradient_is_that_of_the_bare_model_at_the_changed_image(name: str, trained: Classifier) -> None:
    change = ALL[name]()
    through, plain = attackable(trained, change), preprocessed(trained, change)
    leaf = IMAGES.clone().requires_grad_(True)
    torch.manual_seed(3)
    logits = through(leaf)
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), leaf)
    torch.manual_seed(3)
    changed = change(IMAGES).requires_grad_(True)
    (expected,) = torch.autograd.grad(trained(changed)[:, 0].sum(), changed)
    assert torch.allclose(gradient, expected, atol=1e-6)
    assert gradient.flatten(1).ne(0).any(1).all()
    torch.manual_seed(3)
    assert torch.equal(plain(IMAGES), logits.detach())


def test_a_median_filter_keeps_its_own_gradient(trained: Classifier) -> None:
    """Of tied pixels only one is the median, so half a grey level of noise breaks the ties before differences."""
    change, length = MedianFilter(3), 1e-7
    through = copy.deepcopy(attackable(trained, change)).double()
    noise = torch.rand(IMAGES.shape, generator=generator(1), dtype=torch.float64)
    leaf = (0.1 + 0.8 * IMAGES.double() + noise / 510).requires_grad_(True)
    (gradient,) = torch.autograd.grad(through(leaf)[:, 0].sum(), leaf)
    ahead, behind = (through(leaf.detach() + sign * length * (noise - 0.5))[:, 0] for sign in (1, -1))
    slope = (gradient * (noise - 0.5)).flatten(1).sum(1)
    assert torch.allclose((ahead - behind) / (2 * length), slope, atol=1e-5)


def test_its_own_gradient_fools_more_images_through_a_median_filter() -> None:
    model, change = open_model("undefended").model, MedianFilter(3)
    images, labels = first_test_images()[:60].tensors()
    attack = PGD(eps=0.03, steps=15)
    own, identity = attackable(model, change), attackable(model, change, lambda images: images)
    fooled = [int(attack(through, images, labels).success.sum()) for through in (own, identity)]
    assert fooled[0] >= fooled[1] + 5


def test_another_smooth_function_has_its_derivative_in_the_gradient(trained: Classifier) -> None:
    through = attackable(trained, ReducedDepth(2), lambda images: 3 * images)
    gradients = []
    for model in (through, attackable(trained, ReducedDepth(2))):
        leaf = IMAGES.clone().requires_grad_(True)
        gradients.append(torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)[0])
    assert torch.allclose(gradients[0], 3 * gradients[1], rtol=1e-4)


@pytest.mark.parametrize("name", ["depth", "jpeg", "distillation"])
def test_pgd_sees_through_what_has_no_derivative(name: str, trained: Classifier) -> None:
    change = ALL[name]()
    plain, attack = preprocessed(trained, change), PGD(eps=0.25, steps=15)
    with pytest.warns(CasemateWarning, match="had no gradient to follow"):
        blind = attack(plain, IMAGES, LABELS)
    seeing = attack(attackable(trained, change), IMAGES, LABELS)
    assert seeing.success.sum() >= blind.success.sum() + 10
    assert seeing.success.float().mean() > 0.6
    # what fools the one fools the other
    assert torch.equal(plain(seeing.adversarial).argmax(1), seeing.prediction)


@pytest.mark.parametrize(("name", "draws", "noise"), [("median", 1, 0.0), ("deflection", 8, 2.0)])
def test_pgd_through_the_others_fools_no_fewer_images(name: str, draws: int, noise: float, trained: Classifier) -> None:
    """How many a random layer lets be fooled varies by 5 from draw to draw: the mean over several is compared."""
    change = ALL[name]()
    attack = PGD(eps=0.25, steps=15)
    if name == "deflection":
        attack = EOT(attack=attack, eot_samples=16)
    both = []
    for model in (trained, attackable(trained, change)):
        found, fooled = attack(model, IMAGES, LABELS).adversarial, 0
        with torch.no_grad():
            for seed in range(draws):
                torch.manual_seed(seed)
                fooled += int((preprocessed(trained, change)(found).argmax(1) != LABELS).sum())
        both.append(fooled / draws)
    assert both[1] >= both[0] - noise
    assert both[1] > 20


# --------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReducedDepth(0), "bits = 0; expected a whole number of bits from 1 to 8"),
        (lambda: ReducedDepth(9), "bits = 9"),
        (lambda: ReducedDepth(1.5), "bits = 1.5"),  # type: ignore[arg-type]
        (lambda: MedianFilter(0), "size = 0; expected at least 1"),
        (lambda: JPEG(0), "quality = 0; expected a whole number from 1"),
        (lambda: JPEG(101), "quality = 101"),
        (lambda: FeatureDistillation(kept=65), "kept = 65; expected a whole number of bands"),
        (lambda: FeatureDistillation(small=0.5), "small = 0.5"),
        (lambda: FeatureDistillation(large=math.inf), "large = inf"),
        (lambda: PixelDeflection(deflections=-1), "deflections = -1"),
        (lambda: PixelDeflection(window=0), "window = 0"),
        (lambda: PixelDeflection(sigma=-0.1), "sigma = -0.1"),
        (lambda: PixelDeflection(levels=0), "levels = 0"),
        (lambda: PixelDeflection(levels=4)(GREY), "levels = 4 for images of 12 x 10; expected at most 3"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(make: Callable[[], object], message: str) -> None:
    with as_installed(), pytest.raises(SettingError, match=message):
        make()


def test_images_of_other_channels_and_bounds_are_refused() -> None:
    for change in (JPEG(), FeatureDistillation(), PixelDeflection()):
        with pytest.raises(ShapeError, match=r"images of 2 channels; expected 1 \(grey\) or 3"):
            change(torch.rand(2, 2, 8, 8))
    with pytest.raises(ShapeError, match=r"deviation of shape \(4,\); expected \(8, 8\)"):
        FeatureDistillation(deviation=torch.ones(4))
    wide = Classifier(tiny_model().network, input_shape=TINY_SHAPE, classes=TINY_CLASSES, bounds=(-1, 1))
    with pytest.raises(ModelError, match=r"a model with bounds .*; expected \(0, 1\)"):
        attackable(wide, JPEG())


def test_layers_show_their_settings() -> None:
    assert repr(ReducedDepth(3)) == "ReducedDepth(bits=3)"
    assert repr(MedianFilter(2)) == "MedianFilter(size=2)"
    assert repr(JPEG(60)) == "JPEG(quality=60)"
    assert repr(FeatureDistillation()) == "FeatureDistillation(kept=15, small=1.0, large=31.0)"
    assert "sigma=0.04" in repr(PixelDeflection())


def test_a_layer_without_changes_is_the_model_itself() -> None:
    model = classifier(nn.Sequential(nn.Flatten(), nn.Linear(36, 2)))
    images = (torch.rand(4, 1, 6, 6, generator=generator(6)) * 255).round() / 255
    for change in (ReducedDepth(8), MedianFilter(1), PixelDeflection(deflections=0, sigma=0)):
        assert torch.allclose(attackable(model, change)(images), model(images), atol=1e-6)
