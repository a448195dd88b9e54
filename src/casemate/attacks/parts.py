"""Parts of the gradient loop that make adversarial images fool other models too, in any combination.

A part changes where, or from which inputs, the gradient of a step is computed; `Transferable` gives them to an attack.
With all of them the gradient at the iterate x_t is, in this order,

    x'   = x_t + look-ahead along the accumulated gradient       Nesterov
    g    = W * (1/m) sum_i of the gradient of J(D(S_i(x')), y)   TranslationKernel W, InputDiversity D, ScaledCopies S_i
    g + v_t                                                      VarianceTuning
    accumulated = decay * accumulated + (g + v_t) / its L1 norm  Momentum, or an attack that has it

where v_t is the mean of g at points around x_t-1 minus g there. Every random draw is keyed by example.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, TypeVar, final

import torch
import torch.nn.functional as F
from torch import Tensor

from casemate.errors import SettingError, kind_of
from casemate.norms import Ball, Bounds, norm_of
from casemate.rng import Streams
from casemate.settings import Rule, at_least, between, expect, not_negative, positive
from casemate.types import Images, Mask, PerExample

P = TypeVar("P")


@final
@dataclass(frozen=True, kw_only=True)
class Momentum:
    """Steps along accumulated gradients, each divided by its L1 norm (Dong et al. 2018), as `MIFGSM` makes them."""

    decay: Annotated[float, not_negative()] = 1.0
    """Factor on the accumulated gradient at every step, before the new gradient is added (the paper's mu)."""

    def __post_init__(self) -> None:
        expect(self)


@final
@dataclass(frozen=True, kw_only=True)
class Nesterov:
    """Nesterov's look-ahead: the gradient where the momentum leads (Lin et al. 2020, arXiv 1908.06281).

    For attacks with momentum. The look-ahead is step size times decay times the accumulated gradient, in which every
    gradient counts with a mean absolute value of 1, as in the authors' code; with an L1 norm of 1, as printed, it would
    be shorter by the number of pixels. In an L2 or L1 ball every gradient counts with norm 1.
    """

    def look_ahead(self, images: Images, velocity: Images, ball: Ball, length: float) -> Images:
        """The points at which the gradients are computed; they may lie outside the ball and the bounds.

        Args:
            velocity: the accumulated gradients, each divided by its L1 norm.
            length: the step size times the decay.
        """
        steps = norm_of(velocity, "l1")
        size = steps / velocity[0].numel() if ball.norm == "linf" else norm_of(velocity, ball.norm)
        scale = steps / size.clamp(min=torch.finfo(velocity.dtype).tiny)
        return images + length * scale.view(-1, 1, 1, 1) * velocity


@final
@dataclass(frozen=True, kw_only=True)
class InputDiversity:
    """Diverse inputs: gradients at images shrunk and padded at random (Xie et al. 2019, arXiv 1803.06978).

    The paper enlarges the canvas instead, from 299 to 330 pixels; most networks take images of one size only. Shrunk
    images have the nearest pixels' values, and the lower bound around them.
    """

    probability: Annotated[float, between(0, 1)] = 0.5
    """Probability that an image is changed."""
    smallest: Annotated[float, between(0, 1, without_low=True)] = 0.9
    """The least height and width of a shrunk image, as a share of the image's; they are drawn from there to one pixel
    less than the image's."""

    def __post_init__(self) -> None:
        expect(self)

    def transform(self, images: Images, bounds: Bounds, streams: Streams, *purpose: int | str) -> Images:
        """The images, changed at random with draws of a `purpose` (see `Streams`)."""
        draws = streams.uniform((4,), *purpose).double()  # float32 could round a product up to the next whole number
        rows, in_rows = self._places(images.shape[2], draws[:, 1], draws[:, 2])
        columns, in_columns = self._places(images.shape[3], draws[:, 1], draws[:, 3])
        taken = images.gather(2, rows[:, None, :, None].expand_as(images))
        taken = taken.gather(3, columns[:, None, None, :].expand_as(images))
        inside = in_rows[:, None, :, None] & in_columns[:, None, None, :]
        changed = (draws[:, 0] < self.probability).view(-1, 1, 1, 1)
        return torch.where(changed, taken.where(inside, bounds[0]), images)

    def _places(self, length: int, size: PerExample, offset: PerExample) -> tuple[Tensor, Tensor]:
        """For every position along one side, `(n, length)`: the position in the image, and whether it is in it.

        Args:
            length: of the side.
            size, offset: random numbers in [0, 1) for the length of the shrunk side and its place.
        """
        least = max(1, math.floor(self.smallest * length))
        sizes = (least + (size * max(length - least, 1)).floor().long()).unsqueeze(1)
        first = (offset.unsqueeze(1) * (length - sizes + 1)).floor().long()
        position = torch.arange(length, device=size.device) - first
        inside = (position >= 0) & (position < sizes)
        return (position.clamp(min=0) * length // sizes).clamp(max=length - 1), inside


@final
@dataclass(frozen=True, kw_only=True)
class ScaledCopies:
    """Scale invariance: the mean gradient over copies x / 2^i, i from 0 (Lin et al. 2020, arXiv 1908.06281).

    The copies are darker: it is the distance from the lower bound that is divided, whatever the bounds are.
    """

    copies: Annotated[int, at_least(1)] = 5
    """Number of copies, the image itself included (the paper's m)."""

    def __post_init__(self) -> None:
        expect(self)

    def scaled(self, images: Images, copy: int, bounds: Bounds) -> Images:
        """The copies with the number `copy`, from 0; those with 0 are the images."""
        return images if copy == 0 else bounds[0] + (images - bounds[0]) / 2**copy


_ODD = Rule("an odd number, at least 1", lambda size: size >= 1 and size % 2 == 1, at_least(1).read)


@final
@dataclass(frozen=True, kw_only=True)
class TranslationKernel:
    """Translation invariance: gradients smoothed by a Gaussian kernel (Dong et al. 2019, arXiv 1904.02884).

    This stands for the mean gradient over shifted images. The default size is for images of 299 pixels.
    """

    size: Annotated[int, _ODD] = 15
    """Height and width of the kernel, in pixels, an odd number."""
    sigma: Annotated[float, positive("in pixels")] | None = None
    """Standard deviation in pixels; if None the kernel's radius (size - 1) / 2, divided by the root of 3, as in the
    paper. The authors' code has (size - 1) / 6."""

    def __post_init__(self) -> None:
        expect(self)

    def smooth(self, gradient: Images) -> Images:
        """The gradient convolved with the kernel, each channel by itself, with zeros around the image."""
        radius = self.size // 2
        sigma = max(radius, 1) / math.sqrt(3) if self.sigma is None else self.sigma
        weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / sigma) ** 2)
        row = (weights / weights.sum()).to(gradient).view(1, 1, 1, -1)
        maps = gradient.flatten(0, 1).unsqueeze(1)
        smoothed = F.conv2d(F.conv2d(maps, row, padding="same"), row.transpose(2, 3), padding="same")
        return smoothed.view_as(maps).squeeze(1).view(gradient.shape)


@final
@dataclass(frozen=True, kw_only=True)
class VarianceTuning:
    """Variance tuning: gradients corrected by those around the last iterate (Wang and He 2021, arXiv 2103.15571).

    Added to each step's gradient is the mean gradient at points around the iterate before, minus the gradient used
    there; with `Nesterov` that is the one at the look-ahead, as in the authors' code.
    """

    samples: Annotated[int, at_least(0)] = 20
    """Number of points around each iterate (the paper's N)."""
    beta: Annotated[float, not_negative()] = 1.5
    """Radius of the neighbourhood that they are drawn from, as a multiple of eps, in the norm of the ball."""

    def __post_init__(self) -> None:
        expect(self)

    def neighbour(
        self, images: Images, ball: Ball, streams: Streams, *purpose: int | str, mask: Mask | None = None
    ) -> Images:
        """A point drawn uniformly around each image, perhaps outside the bounds; `purpose` and `mask` as for
        `Ball.sample`.
        """
        around = Ball(eps=self.beta * ball.eps, norm=ball.norm)
        return around.sample(images, (-math.inf, math.inf), streams, *purpose, mask=mask)


Part = Momentum | Nesterov | ScaledCopies | InputDiversity | TranslationKernel | VarianceTuning
"""A part of the gradient loop."""
PARTS: dict[str, type[Part]] = {
    "momentum": Momentum,
    "nesterov": Nesterov,
    "scaled-copies": ScaledCopies,
    "input-diversity": InputDiversity,
    "translation-kernel": TranslationKernel,
    "variance-tuning": VarianceTuning,
}
"""The classes of parts by name, in the order in which attacks hold them."""


def _read(given: Any, name: str) -> tuple[Part, ...]:
    """The parts that a caller gave, one or several, in the order of `PARTS`: their order has no meaning.

    Raises `SettingError`, which begins with `name`, for what is no part, and for two of a kind.
    """
    parts = list(given) if isinstance(given, Iterable) else [given]
    kinds = list(PARTS.values())
    for each in parts:
        if type(each) not in kinds:
            known = ", ".join(f"{kind.__name__}()" for kind in kinds)
            raise SettingError(f"{name}: {kind_of(each)}; expected one or several of {known}")
    for kind in kinds:
        if sum(type(each) is kind for each in parts) > 1:
            raise SettingError(f"{name}: {kind.__name__} more than once; expected at most one of each kind")
    return tuple(sorted(parts, key=lambda part: kinds.index(type(part))))


AnyParts = Annotated[tuple[Part, ...], Rule("parts", lambda parts: True, _read)]
"""Parts of an attack: one or several, at most one of each kind, stored in the order of `PARTS`."""


def find_part(parts: Sequence[Part], kind: type[P]) -> P | None:
    """The part of a kind, or None."""
    return next((each for each in parts if isinstance(each, kind)), None)


def record_of(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """The parts as data for results, each a mapping with its class name ("name") and its settings."""
    return [{"name": type(each).__name__, **asdict(each)} for each in parts]
