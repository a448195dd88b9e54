"""Balls around images in Linf, L2, L1 and L0: norm, exact projection, steepest step, random sample.

L0 is the number of values that differ, which is a norm only by name: it does not shrink when a perturbation does. A
pixel with three channels is three values.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal, final

import numpy as np
import torch
from torch import Tensor

from casemate.errors import SettingError
from casemate.rng import Streams
from casemate.settings import Rule, expect, one_of
from casemate.types import Images, Mask, PerExample

Norm = Literal["linf", "l2", "l1", "l0"]
Bounds = tuple[float, float]

_L1_SHARE = 0.01
"""Share of an image's coordinates that one L1 step moves, since moving only one converges slowly (Tramer and Boneh
2019, section 3)."""


@final
class WrittenEps(float):
    """A radius or step size that keeps the text it was given as, such as "8/255", to be shown so; else a float."""

    __slots__ = ("text",)

    def __new__(cls, value: float, text: str) -> "WrittenEps":
        """The number `value` with its text."""
        made = super().__new__(cls, value)
        made.text = text
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return WrittenEps, (float(self), self.text)


def parse_eps(text: str | float, name: str = "eps") -> float:
    """Read a radius or step size in pixel units from a number or a fraction such as "8/255".

    Of a text the result is a `WrittenEps`, which `format_eps` shows as it was written.

    Raises `SettingError`, with `name` in its message, if it is not a number, negative, or not finite.
    """
    if isinstance(text, WrittenEps):
        return text
    if not isinstance(text, str) and np.ndim(text):
        raise SettingError(
            f"{name} = {text}, which is {math.prod(np.shape(text))} numbers; expected one {name} per attack: for "
            "several, eps_curve or sweep_eps takes them as values, and evaluate as eps="
        )
    if isinstance(text, bool | np.bool_):
        raise SettingError(f"{name} {text} is not a number; write 0.03 or 8/255")
    try:
        value = float(Fraction(text)) if isinstance(text, str) and "/" in text else float(text)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise SettingError(f"{name} {text!r} is not a number; write 0.03 or 8/255") from error
    if not 0 <= value < math.inf:
        raise SettingError(f"{name} = {text}; expected zero or more and finite, in units of pixels within [0, 1]")
    return WrittenEps(value, text.strip()) if isinstance(text, str) else value


def parse_radii(eps: str | float | Sequence[str | float] | np.ndarray) -> list[float]:
    """Read one radius or several, in the order given, see `parse_eps`.

    Raises `SettingError` if there is none, or one is not a number above zero.
    """
    given = np.atleast_1d(np.asarray(eps, dtype=object)).tolist()
    found = [parse_eps(each) for each in given]
    if not found or min(found) <= 0:
        raise SettingError(f"eps = {given}; expected one or more, all above zero")
    return found


def with_text(value: float, text: Any) -> float:
    """The radius `value` with the text that a file gives for it; without one unless it is a text of that number.

    The file may be another program's, so `text` may be anything.
    """
    try:
        written = parse_eps(text) if isinstance(text, str) else value
    except SettingError:
        return value
    return written if written == value else value


Eps = Annotated[
    float, Rule("zero or more and finite, in units of pixels, such as 0.03 or 8/255", lambda eps: eps >= 0, parse_eps)
]
"""A radius or step size, given as a number or as text such as "8/255", and stored as a number."""

_NORM = one_of("linf", "l2", "l1", "l0")
AnyNorm = Annotated[Norm, _NORM]
"""The name of a norm (linf, l2, l1 or l0), given in lower or upper case and stored in lower case."""
ConvexNorm = Annotated[Norm, one_of("linf", "l2", "l1", why="for l0 take SigmaZero, FMN, PDPGD, PGD or SparseRS")]
"""The name of a norm whose ball is convex, for attacks that need one."""


def parse_norm(text: str) -> Norm:
    """The name of a norm in lower case, from one in any case, such as "Linf". Raises `SettingError` for another."""
    return _NORM.check(text, "norm")


def format_eps(eps: float) -> str:
    """A radius as text: as it was written if that is known (`WrittenEps`), else "8/255" or a short number.

    It is "8/255" for a whole number of 255ths that is no short decimal.
    """
    if isinstance(eps, WrittenEps):
        return eps.text
    short = f"{eps:g}"
    if not math.isfinite(eps * 255):
        return short
    levels = round(eps * 255)
    exact = levels > 0 and math.isclose(eps * 255, levels, rel_tol=1e-9)
    return f"{levels}/255" if exact and len(short) > len("0.0125") else short


def _expanded(values: PerExample, like: Tensor) -> Tensor:
    """Per-example values `(n,)` with trailing dimensions of size 1, so that they broadcast over `like`, `(n, ...)`."""
    return values.view(-1, *[1] * (like.ndim - 1))


def norm_of(delta: Tensor, norm: Norm) -> Tensor:
    """The norm of each example's perturbation, `(n,)`, in the type of `delta`."""
    flat = delta.flatten(1)
    if norm == "linf":
        return flat.abs().amax(1)
    if norm == "l0":
        return flat.count_nonzero(1).to(flat.dtype)
    return flat.norm(p=2 if norm == "l2" else 1, dim=1)


def unit_length(gradient: Images) -> Images:
    """Gradients divided by their L2 norm; zero where they are zero.

    They are divided by the largest entry first, since the squares of gradients below 1e-19 underflow in float32.
    """
    largest = gradient.flatten(1).abs().amax(1).clamp(min=torch.finfo(gradient.dtype).tiny)
    scaled = gradient / _expanded(largest, gradient)
    return scaled / _expanded(scaled.flatten(1).norm(dim=1).clamp(min=1e-12), scaled)


def dual_norm_of(gradient: Images, norm: Norm) -> PerExample:
    """The dual norm of each gradient, float64 `(n,)`: by how much a step of norm 1 raises a linear function at most.

    That is L1 for Linf, L2 for L2, Linf for L1. L0, which limits no value, has none: it raises `ValueError`.
    """
    if norm == "l0":
        raise ValueError("L0 has no dual norm")
    flat = gradient.flatten(1)
    if norm == "l1":
        return flat.abs().amax(1).double()
    # in float32 the squares of gradients below 1e-19 would be zero
    return flat.double().norm(p=1 if norm == "linf" else 2, dim=1)


def project_onto_balls(delta: Images, radius: PerExample, norm: Norm) -> Images:
    """The nearest perturbation in L2 to each of `delta` whose norm is at most its `radius`, `(n,)`, without bounds."""
    if norm == "linf":
        limit = _expanded(radius, delta)
        return delta.minimum(limit).maximum(-limit)
    if norm == "l2":
        length = norm_of(delta, "l2").clamp(min=torch.finfo(delta.dtype).tiny)
        return delta * _expanded((radius / length).clamp(max=1), delta)
    size = delta.abs().flatten(1)
    largest, order = size.sort(dim=1, descending=True)
    rank = torch.arange(size.shape[1], device=size.device)
    if norm == "l0":
        kept = torch.zeros_like(size, dtype=torch.bool).scatter_(1, order, rank < radius.unsqueeze(1))
        return delta * kept.view_as(delta)
    # soft threshold t such that the sum of max(size - t, 0) is the radius (Duchi et al. 2008, figure 1)
    excess = (largest.cumsum(1) - radius.unsqueeze(1)) / (rank + 1)
    above = (largest > excess).sum(1, keepdim=True).clamp(min=1)
    threshold = excess.gather(1, above - 1).clamp(min=0)
    return delta.sign() * (size - threshold).clamp(min=0).view_as(delta)


@final
@dataclass(frozen=True, kw_only=True)
class Ball:
    """The ball of a threat model: all images within `eps` of a clean one in a norm, with pixels within their bounds."""

    eps: Annotated[float, Rule("zero or more", lambda eps: eps >= 0)]
    """Radius over all pixels and channels of an image, in pixel units, or for L0 the number of values that may differ,
    a whole number; infinite for no limit but the bounds."""
    norm: AnyNorm = "linf"
    """The norm in which `eps` is measured: linf, l2, l1 or l0."""

    def __post_init__(self) -> None:
        expect(self)
        if self.norm == "l0" and math.isfinite(self.eps) and self.eps != int(self.eps):
            raise SettingError(
                f"eps = {format_eps(self.eps)} in l0; expected a whole number, of the values (pixels times channels) "
                "that may change, such as 10"
            )

    @property
    def tolerance(self) -> float:
        """By how much a float32 image may exceed `eps` and still count as inside the ball, in units of the norm.

        clean + eps is rounded to float32, so a strict comparison would reject images on the boundary. An L1 norm adds
        up the rounding errors of all pixels, so its tolerance is relative. Values are counted (L0) without error.
        """
        if self.norm == "l0":
            return 0.0
        return 1e-6 if self.norm != "l1" else 1e-5 * max(self.eps, 1.0)

    def reach(self, bounds: Bounds) -> float:
        """The largest distance at which a float32 image counts as inside the ball: `eps` plus the tolerance.

        The tolerance is scaled up for pixels beyond [-1, 1], since the rounding errors of float32 grow with them.
        """
        return self.eps + self.tolerance * max(1.0, -bounds[0], bounds[1])

    def project(self, images: Images, clean: Images, bounds: Bounds) -> Images:
        """Project images onto the ball and the bounds (L2: onto the ball, then the bounds, which stays in the ball).

        L1 and L0 are solved exactly for ball and bounds together. L2 and L1 are computed in float64 and rounded towards
        the clean image, since errors of rounding to nearest could add up to more than the tolerance.
        """
        if self.norm == "linf":
            return images.clamp(*self.limits(clean, bounds))
        if self.norm == "l0":
            return self._keep_largest(images, clean, bounds)
        delta = images.double() - clean.double()
        if self.norm == "l2":
            length = delta.flatten(1).norm(dim=1)
            delta = delta * _expanded(torch.where(length > self.eps, self.eps / length, 1.0), delta)
        else:
            room = torch.where(delta >= 0, bounds[1] - clean.double(), clean.double() - bounds[0])
            delta = _l1_project(delta.flatten(1), room.flatten(1), self.eps).view_as(delta)
        return _add_inward(clean, delta).clamp_(*bounds)

    def limits(self, clean: Images, bounds: Bounds) -> tuple[Images, Images]:
        """The smallest and the largest value of each pixel within `eps` of the clean one and within the bounds."""
        return (clean - self.eps).clamp_(min=bounds[0]), (clean + self.eps).clamp_(max=bounds[1])

    def _keep_largest(self, images: Images, clean: Images, bounds: Bounds) -> Images:
        """For L0: `images` within the bounds, and equal to `clean` but for the `eps` values that moved furthest.

        What a value is worth is by how much nearer to it the image comes, which is less where the bounds cut it off.
        """
        inside = images.clamp(*bounds)
        moved = (images - clean).flatten(1)
        if self.eps >= moved.shape[1]:
            return inside
        worth = moved.square() - (images - inside).flatten(1).square()
        kept = torch.zeros_like(moved, dtype=torch.bool)
        kept.scatter_(1, worth.topk(int(self.eps), dim=1).indices, value=True)
        return torch.where(kept.view_as(images), inside, clean)

    def ascend(self, gradient: Images, images: Images, clean: Images, bounds: Bounds, size: float) -> Images:
        """The images of the ball after a step of norm `size` of steepest ascent of a function with `gradient`.

        In L0 `size` values move to their bounds, rounded down but at least one; where more than `eps` differ from the
        clean image then, those are undone that count least. The values that gain most by this exchange move.
        """
        if self.norm == "l0":
            return self._exchange(gradient, images, clean, bounds, size)
        return self.project(images + size * self.steepest_step(gradient, images, bounds), clean, bounds)

    def _exchange(self, gradient: Images, images: Images, clean: Images, bounds: Bounds, size: float) -> Images:
        """`ascend` for L0."""
        slope, delta = gradient.flatten(1), (images - clean).flatten(1)
        bound = torch.where(gradient > 0, bounds[1] - clean, bounds[0] - clean).flatten(1)
        now, then = (slope * delta).masked_fill(delta == 0, 0), slope * bound
        count = int(min(self.eps, delta.shape[1]))
        # a value that joins a full set takes the place of the one that counts least
        least = torch.where(delta == 0, math.inf, now).amin(1, keepdim=True)
        is_full = delta.count_nonzero(1).unsqueeze(1) >= count
        gain = then - torch.where((delta == 0) & is_full, least, now)
        top, place = gain.topk(min(max(1, int(min(size, delta.shape[1]))), delta.shape[1]), dim=1)
        chosen = torch.zeros_like(delta, dtype=torch.bool).scatter_(1, place, top > 0)
        moved = torch.where(chosen, bound, delta)
        worth = (slope * moved).masked_fill(moved == 0, -math.inf)
        kept = torch.zeros_like(chosen).scatter_(1, worth.topk(count, dim=1).indices, value=True)
        return self.project(clean + torch.where(kept, moved, 0.0).view_as(clean), clean, bounds)

    def steepest_step(self, gradient: Images, images: Images, bounds: Bounds) -> Images:
        """The direction of steepest ascent: the step of norm 1 that most increases a linear function with `gradient`.

        Linf: the sign. L2: the gradient over its length. L1: equal moves, by the sign, of the one per cent of the
        coordinates with the largest gradient, without those at the bounds. Zero where the gradient is zero. In L0 a
        direction has no length, and `ascend` makes the step: it raises `ValueError`.
        """
        if self.norm == "l0":
            raise ValueError("L0 has no direction of steepest ascent")
        if self.norm == "linf":
            return gradient.sign()
        if self.norm == "l2":
            return unit_length(gradient)
        sign = gradient.sign()
        stuck = ((sign > 0) & (images >= bounds[1])) | ((sign < 0) & (images <= bounds[0]))
        size = gradient.abs().masked_fill(stuck, 0).flatten(1)
        moved = max(1, math.ceil(_L1_SHARE * size.shape[1]))
        top, place = size.topk(moved, dim=1)
        chosen = torch.zeros_like(size).scatter_(1, place, (top > 0).to(size.dtype))
        chosen /= chosen.sum(1, keepdim=True).clamp(min=1)
        return chosen.view_as(sign) * sign

    def sample(
        self, clean: Images, bounds: Bounds, streams: Streams, *purpose: int | str, mask: Mask | None = None
    ) -> Images:
        """A point drawn uniformly from the ball around each clean image, then clipped to the bounds.

        L0: `eps` values, chosen at random, are drawn uniformly from the bounds.

        `purpose` is a part of the key of the random numbers; see `Streams`. With a `mask` the ball is that of the
        values where it is True, and the others stay as they are.
        """
        shape = tuple(clean.shape[1:])
        if self.norm == "linf":
            delta = (2 * streams.uniform(shape, *purpose) - 1) * self.eps
            moved = (clean + delta).clamp_(*bounds)
            return moved if mask is None else moved.where(mask, clean)
        if self.norm == "l0":
            anywhere = bounds[0] + (bounds[1] - bounds[0]) * streams.uniform(shape, *purpose)
            place = streams.uniform(shape, *purpose, "place")
            place = place if mask is None else place.masked_fill(~mask, math.inf)
            chosen = place.flatten(1).argsort(1).argsort(1).view_as(clean) < self.eps
            return torch.where(chosen if mask is None else chosen & mask, anywhere.to(clean.dtype), clean)
        if self.norm == "l2":
            direction = streams.normal(shape, *purpose)
        else:
            magnitude = -torch.log1p(-streams.uniform(shape, *purpose))
            direction = torch.where(streams.uniform(shape, *purpose, "sign") < 0.5, -magnitude, magnitude)
        direction = direction.double() if mask is None else direction.double().where(mask, 0.0)
        one_over_dimension = 1 / math.prod(shape) if mask is None else 1 / mask.flatten(1).sum(1).clamp(min=1).double()
        radius = self.eps * streams.uniform((1,), *purpose, "length").squeeze(1).double() ** one_over_dimension
        length = norm_of(direction, self.norm).clamp(min=1e-12)
        return _add_inward(clean, direction * _expanded(radius / length, direction)).clamp_(*bounds)


def _add_inward(clean: Images, delta: Images) -> Images:
    """`clean` + float64 `delta` in the type of `clean`, rounded towards `clean`, so that no entry moves further."""
    moved = (clean.double() + delta).to(clean.dtype)
    return torch.where((moved.double() - clean.double()).abs() > delta.abs(), moved.nextafter(clean), moved)


def _l1_project(delta: Tensor, room: Tensor, eps: float) -> Tensor:
    """Project `delta`, float64 `(n, d)`, onto the L1 ball with each entry at most its `room` from zero.

    The projection is sign(d) * min(max(|d| - t, 0), room) with the smallest t >= 0 that meets the norm. The norm is
    piecewise linear in t, with corners at |d| and |d| - room, so t is found by sorting the corners.
    """
    size = delta.abs()
    inside = size.minimum(room).sum(1) <= eps
    corners, order = torch.cat([size, (size - room).clamp(min=0)], 1).sort(dim=1, descending=True)
    # as t falls from the largest corner, an entry starts to grow at |d| and reaches its room at |d| - room
    slope_change = torch.cat([torch.ones_like(size), -torch.ones_like(size)], 1).gather(1, order)
    slope = slope_change.cumsum(1)
    rise = slope[:, :-1] * (corners[:, :-1] - corners[:, 1:])
    total = torch.cat([torch.zeros_like(rise[:, :1]), rise.cumsum(1)], 1)
    segment = (total <= eps).sum(1, keepdim=True).clamp(min=1) - 1
    threshold = corners.gather(1, segment) - (eps - total.gather(1, segment)) / slope.gather(1, segment).clamp(min=1)
    threshold = threshold.masked_fill(inside.unsqueeze(1), 0).clamp(min=0)
    return delta.sign() * (size - threshold).clamp(min=0).minimum(room)
