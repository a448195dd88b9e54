"""Changes of the image before it is classified: fewer levels, median filter, JPEG, pixel deflection; and their attack.

Each is a layer for `preprocessed(model, change)`, from images within [0, 1] to images of the same shape within [0, 1].

Most have no useful derivative, so gradients are zero or misleading and an ordinary gradient attack fails, although the
model is little more robust: none of them holds against backward pass differentiable approximation (Athalye, Carlini and
Wagner 2018, arXiv 1802.00420, section 5). Evaluate a model with one of them by attacking `attackable(model, change)`,
which predicts the same classes and has the gradient of the bare model at the changed image. Only `MedianFilter` has a
gradient of its own worth following: it fools images that the other does not. `PixelDeflection` is random too: attack it
with expectation over transformation as well (`casemate.attacks.EOT`).

Nothing here searches for the settings that a data set needs, and no JPEG file is written or read.
"""

import math
from functools import cache
from operator import index
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from casemate.attacks.bpda import BPDA, Change
from casemate.defenses.randomized import preprocessed
from casemate.errors import SettingError, ShapeError
from casemate.models import Classifier
from casemate.settings import Rule, at_least, not_negative
from casemate.types import Images

_SIDE = 8
"""Pixels along the side of a block of JPEG."""
_LEVELS = 255
"""Largest level of a pixel in JPEG, which codes bytes."""
_BITS = Rule("a whole number of bits from 1 to 8", lambda bits: 1 <= index(bits) <= 8)
_QUALITY = Rule("a whole number from 1 (worst) to 100 (best)", lambda quality: 1 <= index(quality) <= 100)
_BANDS = Rule("a whole number of bands from 0 to 64", lambda bands: 0 <= index(bands) <= _SIDE * _SIDE)
_STEP = Rule("a finite step of at least 1 level", lambda step: 1 <= step < math.inf)


def attackable(model: nn.Module, change: nn.Module, smooth: Change | None = None) -> Classifier:
    """The classifier `preprocessed(model, change)` with a gradient that an attack can follow.

    Its predictions are the same. Its gradient is that of `model` at the changed image, times the derivative of `smooth`
    at the image (BPDA). What fools it fools `preprocessed(model, change)` too, as far as that is not random.

    Args:
        model: as for `preprocessed`.
        change: a layer of this module, or any other whose derivative is useless.
        smooth: a differentiable function similar to `change`. None for a `MedianFilter`'s own derivative, and for the
            identity in place of any other layer.

    Raises `ModelError` as `preprocessed` does.
    """
    if smooth is None and isinstance(change, MedianFilter):
        return preprocessed(model, change)
    return preprocessed(model, BPDA(change, smooth))


@final
class ReducedDepth(nn.Module):
    """Rounds every pixel to one of 2 ** bits levels from 0 to 1 (Xu, Evans and Qi 2018, section 3.1).

    Its derivative is zero everywhere.

    Args:
        bits: bits of a level, from 1 (black and white) to 8 (the levels of a byte). The paper takes 1 for digits and 4
            or 5 for colour images.

    Raises `SettingError` for another number of bits.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits: int = _BITS.check(bits, "bits")

    def forward(self, images: Images) -> Images:
        """Return the rounded images."""
        most = 2**self.bits - 1
        return (images * most).round() / most

    def extra_repr(self) -> str:
        """The setting as text, for `repr`."""
        return f"bits={self.bits}"


@final
class MedianFilter(nn.Module):
    """Replaces every pixel by the median of the window round it, in each channel (Xu, Evans and Qi 2018, section 3.2).

    The borders are reflected, the outermost pixels included. A window of even size reaches one pixel further up and to
    the left, and of its two middle values the larger one counts, as in SciPy, which the paper used. Gradients flow to
    the pixel that is the median.

    Args:
        size: pixels along the side of the window; the paper takes 2 and 3.

    Raises `SettingError` for a size below 1.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size: int = at_least(1).check(size, "size")

    def forward(self, images: Images) -> Images:
        """Return the filtered images."""
        before = self.size // 2
        after = self.size - 1 - before
        height, width = images.shape[2:]
        rows = _reflected(height, before, after, images.device)
        columns = _reflected(width, before, after, images.device)
        padded = images.index_select(2, rows).index_select(3, columns)
        windows = padded.unfold(2, self.size, 1).unfold(3, self.size, 1).flatten(4)
        return windows.kthvalue(self.size**2 // 2 + 1, dim=4).values

    def extra_repr(self) -> str:
        """The setting as text, for `repr`."""
        return f"size={self.size}"


def _reflected(length: int, before: int, after: int, device: torch.device) -> Tensor:
    """Positions along an axis, continued by reflection at the edge of the first and of the last one."""
    place = torch.arange(-before, length + after, device=device) % (2 * length)
    return torch.minimum(place, 2 * length - 1 - place)


# The two example tables of the standard (ITU-T T.81, annex K, tables K.1 and K.2), which libjpeg scales by the quality.
_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)


@final
class JPEG(nn.Module):
    """Compresses and decompresses images as JPEG does (Dziugaite, Ghahramani and Roy 2016, arXiv 1608.00853).

    (Also Das et al. 2017, arXiv 1705.02900.) Images of one channel are grey, of three RGB; the latter are coded as
    YCbCr in full resolution, without the subsampling of the chrominance that encoders often add. Sides that are no
    multiple of 8 are continued by their last pixels. Computed in float64, since rounding decides. Its derivative is
    zero almost everywhere.

    Args:
        quality: from 1 to 100, with which libjpeg's rule scales the standard's quantisation tables.

    Raises `SettingError` for another quality.
    """

    def __init__(self, quality: int = 75) -> None:
        super().__init__()
        self.quality: int = _QUALITY.check(quality, "quality")
        scale = 5000 // self.quality if self.quality < 50 else 200 - 2 * self.quality
        tables = torch.tensor([_LUMINANCE, _CHROMINANCE])
        self._tables = ((tables * scale + 50) // 100).clamp(1, 255).double()

    def forward(self, images: Images) -> Images:
        """Return the decompressed images. Raises `ShapeError` unless they have one channel or three."""
        return _recoded(images, self._tables)

    def extra_repr(self) -> str:
        """The setting as text, for `repr`."""
        return f"quality={self.quality}"


@final
class FeatureDistillation(nn.Module):
    """JPEG with a quantisation table for networks, not for the eye (Liu et al. 2019, arXiv 1803.05787).

    The bands of the cosine transform in which images vary most, which the network needs, keep a small step; the others,
    in which a perturbation has most of its effect, get a large one. Luminance and chrominance have the same table. This
    is one pass with fixed steps. The paper finds its steps by experiments on photographs, for which there is no code
    here, and its authors' program (github.com/zihaoliu123/Feature-Distillation-DNN-Oriented-JPEG-Compression-Against-
    Adversarial-Examples) has 25 for the 4 x 4 lowest bands and 30 for the others: `kept=16, small=25, large=30`, with a
    `deviation` of 1 for these bands and 0 for the others. The defaults are not theirs: choose yours on held-out images.

    Args:
        kept: number of bands with the small step, of 64; 15 are those with row + column up to 4.
        small: their step, in levels of 255.
        large: the step of all other bands, in levels of 255.
        deviation: standard deviation of the coefficients of each band, `(8, 8)`, as `band_deviation` measures it, by
            which the bands are sorted; None to sort them by their frequency, row + column, which on photographs is
            nearly the same. Of equal ones the upper, then the left one comes first.

    Raises `SettingError` for a setting outside its range, `ShapeError` for deviations of another shape.
    """

    def __init__(
        self, *, kept: int = 15, small: float = 1.0, large: float = 31.0, deviation: Tensor | None = None
    ) -> None:
        super().__init__()
        self.kept: int = _BANDS.check(kept, "kept")
        self.small: float = _STEP.check(small, "small")
        self.large: float = _STEP.check(large, "large")
        if deviation is None:
            along = torch.arange(_SIDE)
            deviation = -(along.unsqueeze(1) + along).double()
        if deviation.shape != (_SIDE, _SIDE):
            raise ShapeError(
                f"deviation of shape {tuple(deviation.shape)}; expected (8, 8), as from band_deviation(images)"
            )
        order = deviation.detach().cpu().double().flatten().argsort(descending=True, stable=True)
        table = torch.full((_SIDE * _SIDE,), float(self.large), dtype=torch.float64)
        table[order[: self.kept]] = float(self.small)
        self._tables = table.view(1, _SIDE, _SIDE).expand(2, -1, -1)

    def forward(self, images: Images) -> Images:
        """Return the changed images. Raises `ShapeError` unless they have one channel or three."""
        return _recoded(images, self._tables)

    def extra_repr(self) -> str:
        """The settings as text, for `repr`."""
        return f"kept={self.kept}, small={self.small}, large={self.large}"


def band_deviation(images: Images) -> Tensor:
    """The standard deviation of each band's coefficients over all blocks and channels, `(8, 8)`, in levels of 255.

    `images` are within [0, 1], of one channel or three; otherwise it raises `ShapeError`.
    """
    blocks = _transformed(_levels(images))
    return blocks.movedim((3, 5), (0, 1)).flatten(2).std(2, correction=0)


def _levels(images: Tensor) -> Tensor:
    """Images as levels of YCbCr, or grey levels, whole numbers in float64. Raises `ShapeError` for other channels."""
    if images.shape[1] not in (1, 3):
        raise ShapeError(f"images of {images.shape[1]} channels; expected 1 (grey) or 3 (red, green, blue) for JPEG")
    levels = _nearest(images.double() * _LEVELS)
    return levels if images.shape[1] == 1 else _nearest(_to_ycbcr(levels, _LEVELS + 1)).clamp(0, _LEVELS)


def _recoded(images: Tensor, tables: Tensor) -> Tensor:
    """Images after quantisation of their blocks' coefficients by `tables`, `(2, 8, 8)`: luminance, chrominance."""
    height, width = images.shape[2:]
    channels = [0] if images.shape[1] == 1 else [0, 1, 1]
    steps = tables.to(images.device)[channels].view(1, -1, 1, _SIDE, 1, _SIDE)
    blocks = _transformed(_levels(images))
    basis = _basis().to(images.device)
    restored = torch.einsum("ki,nchkwl,lj->nchiwj", basis, _nearest(blocks / steps) * steps, basis)
    count, _, rows, _, columns, _ = restored.shape
    levels = restored.reshape(count, -1, rows * _SIDE, columns * _SIDE)[:, :, :height, :width] + (_LEVELS + 1) // 2
    levels = _nearest(levels).clamp(0, _LEVELS)
    if images.shape[1] == 3:
        levels = _nearest(_to_rgb(levels, _LEVELS + 1)).clamp(0, _LEVELS)
    return (levels / _LEVELS).to(images.dtype)


def _transformed(levels: Tensor) -> Tensor:
    """The cosine transform of blocks, `(n, channels, rows of blocks, 8, columns of blocks, 8)`; sides are continued."""
    count, channels, height, width = levels.shape
    padded = F.pad(levels, (0, -width % _SIDE, 0, -height % _SIDE), mode="replicate") - (_LEVELS + 1) // 2
    blocks = padded.reshape(count, channels, padded.shape[2] // _SIDE, _SIDE, padded.shape[3] // _SIDE, _SIDE)
    basis = _basis().to(levels.device)
    return torch.einsum("ki,nchiwj,lj->nchkwl", basis, blocks, basis)


@cache
def _basis() -> Tensor:
    """The orthonormal cosine basis of 8 values, float64 `(8, 8)`, a frequency by row."""
    place = torch.arange(_SIDE, dtype=torch.float64)
    waves = torch.cos(math.pi / _SIDE * (place + 0.5) * place.unsqueeze(1)) * math.sqrt(2 / _SIDE)
    waves[0] /= math.sqrt(2)
    return waves


def _nearest(values: Tensor) -> Tensor:
    """The nearest whole numbers, halves away from zero, as encoders round.

    Halves occur exactly, so the small number keeps rounding errors, which depend on the batch, from deciding them.
    """
    return values.sign() * (values.abs() + (0.5 + 1e-7)).floor()


def _to_ycbcr(rgb: Tensor, scale: float) -> Tensor:
    """Luminance and the two differences of colour (JFIF), the latter shifted by half the `scale`."""
    red, green, blue = rgb.unbind(1)
    bright = 0.299 * red + 0.587 * green + 0.114 * blue
    return torch.stack([bright, (blue - bright) / 1.772 + scale / 2, (red - bright) / 1.402 + scale / 2], 1)


def _to_rgb(ycbcr: Tensor, scale: float) -> Tensor:
    """The inverse of `_to_ycbcr`."""
    bright = ycbcr[:, 0]
    red, blue = bright + 1.402 * (ycbcr[:, 2] - scale / 2), bright + 1.772 * (ycbcr[:, 1] - scale / 2)
    return torch.stack([red, (bright - 0.299 * red - 0.114 * blue) / 0.587, blue], 1)


@final
class PixelDeflection(nn.Module):
    """Replaces random pixels by neighbours, then removes noise by a wavelet (Prakash et al. 2018, arXiv 1801.08926).

    The pixels are drawn uniformly from the image, one after the other, and each gets all channels of one drawn
    uniformly from the window round it, itself included (algorithm 1). The Haar coefficients of luminance and
    chrominance are then shrunk by BayesShrink's threshold for each image and band (Chang, Yu and Vetterli 2000). The
    paper's map, which spares the pixels that matter for the predicted class, is not included. The authors' program
    (github.com/iamaaditya/pixel-deflection) differs from the paper in drawing pixels for each channel by itself.

    In every pass it draws from PyTorch's global generator, for each image by itself.

    Args:
        deflections: number of pixels replaced; the default is the paper's for images of 299 x 299, and small images
            need far fewer.
        window: by how many rows and columns a neighbour may be away at most.
        sigma: standard deviation of the noise to remove, in pixel units; 0 for no denoising.
        levels: how often the wavelet transform is repeated on its own averages.

    Raises `SettingError` for a setting outside its range.
    """

    def __init__(self, *, deflections: int = 200, window: int = 10, sigma: float = 0.04, levels: int = 1) -> None:
        super().__init__()
        self.deflections: int = at_least(0).check(deflections, "deflections")
        self.window: int = at_least(1).check(window, "window")
        self.sigma: float = not_negative("in pixel units").check(sigma, "sigma")
        self.levels: int = at_least(1).check(levels, "levels")

    def forward(self, images: Images) -> Images:
        """Return the changed images.

        Raises `ShapeError` for images that are denoised and have neither one channel nor three, and `SettingError` for
        more levels than their sides can be halved.
        """
        moved = self._deflected(images)
        return moved if self.sigma == 0 else self._denoised(moved)

    def extra_repr(self) -> str:
        """The settings as text, for `repr`."""
        return f"deflections={self.deflections}, window={self.window}, sigma={self.sigma}, levels={self.levels}"

    def _deflected(self, images: Tensor) -> Tensor:
        count, channels, height, width = images.shape
        draws = torch.rand(4, self.deflections, count).to(images.device)
        row, column = _drawn(draws[0], 0, height - 1), _drawn(draws[1], 0, width - 1)
        near_row = _drawn(draws[2], (row - self.window).clamp(min=0), (row + self.window).clamp(max=height - 1))
        near_column = _drawn(draws[3], (column - self.window).clamp(min=0), (column + self.window).clamp(max=width - 1))
        pixel, neighbour = row * width + column, near_row * width + near_column
        source = torch.arange(height * width, device=images.device).repeat(count, 1)
        image = torch.arange(count, device=images.device)
        for here, there in zip(pixel, neighbour, strict=True):
            source[image, here] = source[image, there]
        taken = source.unsqueeze(1).expand(-1, channels, -1)
        return images.flatten(2).gather(2, taken).view(count, channels, height, width)

    def _denoised(self, images: Tensor) -> Tensor:
        channels, height, width = images.shape[1:]
        if channels not in (1, 3):
            raise ShapeError(f"images of {channels} channels; expected 1 (grey) or 3 (red, green, blue), or sigma=0")
        if 2**self.levels > min(height, width):
            raise SettingError(
                f"levels = {self.levels} for images of {height} x {width}; expected at most "
                f"{int(math.log2(min(height, width)))}, so that each halves them"
            )
        step = 2**self.levels
        planes = images if channels == 1 else _to_ycbcr(images, 1)
        padded = F.pad(planes, (0, -width % step, 0, -height % step), mode="replicate")
        smooth = _shrunk(padded, self.levels, self.sigma)[:, :, :height, :width]
        return (smooth if channels == 1 else _to_rgb(smooth, 1)).clamp(0, 1)


def _drawn(uniform: Tensor, low: Tensor | int, high: Tensor | int) -> Tensor:
    """Whole numbers from `low` to `high`, both included, from uniform numbers in [0, 1)."""
    place = low + (uniform * (high - low + 1)).long()
    return place.minimum(torch.as_tensor(high, device=place.device))  # the product may round up to the next number


def _shrunk(planes: Tensor, levels: int, sigma: float) -> Tensor:
    """Planes with the bands of their Haar transform soft-thresholded; both sides are multiples of 2 ** levels."""
    left, right = planes[..., 0::2], planes[..., 1::2]
    low, high = left + right, left - right
    average = (low[:, :, 0::2] + low[:, :, 1::2]) / 2
    bands = [(low[:, :, 0::2] - low[:, :, 1::2]) / 2]
    bands += [(high[:, :, 0::2] + sign * high[:, :, 1::2]) / 2 for sign in (1, -1)]
    if levels > 1:
        average = _shrunk(average, levels - 1, sigma)
    across, along, diagonal = (_soft(band, sigma) for band in bands)
    low_rows = torch.stack([average + across, average - across], 3).flatten(2, 3)
    high_rows = torch.stack([along + diagonal, along - diagonal], 3).flatten(2, 3)
    return torch.stack([low_rows + high_rows, low_rows - high_rows], 4).flatten(3, 4) / 2


def _soft(band: Tensor, sigma: float) -> Tensor:
    """A band, moved towards zero by sigma ** 2 over the standard deviation of the noiseless coefficients."""
    signal = (band.square().mean((2, 3), keepdim=True) - sigma**2).clamp(min=torch.finfo(band.dtype).eps)
    return band.sign() * (band.abs() - sigma**2 / signal.sqrt()).clamp(min=0)
