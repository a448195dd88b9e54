"""Is a radius in the unit of the pixels? A radius in another unit gives a number that means nothing, and looks sound.

Most radii are written for pixels within [0, 1], such as 8/255. Written as 8, as if pixels were bytes, the ball holds
every image. Taken for images within 0 to 255, or for normalised ones, the ball is far smaller than was meant.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import final

from casemate.norms import Ball, Bounds, Norm

_LEVELS = 255
"""Grey levels of a byte, but for the first."""
_FAR_BELOW: dict[Norm, float] = {"linf": 0.1, "l2": 0.02, "l1": 0.1}
"""Grey levels below which a radius lets next to nothing change: of each pixel (Linf), of the root mean square over all
pixels (L2), of a single pixel that takes all of it (L1)."""
_MOST_LEVELS = 128
"""More than so many 255ths are no usual radius."""


class Kind(StrEnum):
    """What is the matter with a radius."""

    ABOVE = "above the range"
    """The ball holds every image."""
    BELOW = "far below a grey level"
    """Next to nothing can change."""
    OTHER = "in another unit"
    """A whole number of 255ths, where pixels do not run over a range of 1."""
    NORMALISED = "of normalised images"
    """The bounds are those of images from which a mean was taken off and that were divided by a deviation."""
    SCALED = "of another range"
    """Pixels do not run over a range of 1; the radius may well be meant for them."""


@final
@dataclass(frozen=True)
class Doubt:
    """A reason to look at a radius again."""

    kind: Kind
    share: float
    """The radius as a share of the range of the pixels."""
    sentence: str
    """What was seen, what was expected, what to do."""

    @property
    def plain(self) -> bool:
        """It is hard to think of a user who means it."""
        return self.kind in (Kind.ABOVE, Kind.BELOW, Kind.OTHER)


def doubt_of(ball: Ball, bounds: Bounds, pixels: int) -> Doubt | None:
    """What is doubtful about the radius of a ball, for images of so many numbers within `bounds`; None if nothing."""
    eps, norm, (low, high) = ball.eps, ball.norm, bounds
    if not 0 < eps < math.inf:
        return None
    width = high - low
    share = eps / width
    run = f"the pixels run from {low:g} to {high:g}"
    holds_all = width * {"linf": 1.0, "l2": math.sqrt(pixels), "l1": float(pixels)}[norm]
    if eps > holds_all * (1 + 1e-6):
        meant = f" For {eps:g} grey levels of 255 write {eps:g}/255." if eps <= _LEVELS and width == 1 else ""
        return Doubt(
            Kind.ABOVE,
            share,
            f"eps {eps:g} in {norm} is more than the {holds_all:g} that lie between any two images ({run}), so that "
            f"every image may become any other.{meant or f' Write it in units of pixels within {low:g} to {high:g}.'}",
        )
    levels = share * _LEVELS / (math.sqrt(pixels) if norm == "l2" else 1)
    in_bytes = f"eps {eps:.4g} in {norm} is {levels:.2g} grey levels of 255{' a pixel' if norm == 'l2' else ''} ({run})"
    if levels < _FAR_BELOW[norm]:
        return Doubt(
            Kind.BELOW,
            share,
            f"{in_bytes}: next to nothing can change. Write eps in the unit of the pixels{_as(eps, width)}",
        )
    if math.isclose(width, 1, rel_tol=0.01):
        return None
    percent = f"{100 * share:.3g} % of their range"
    counted = eps * _LEVELS
    if (
        norm == "linf"
        and abs(counted - round(counted)) < 1e-4
        and 1 <= counted <= _MOST_LEVELS
        and round(eps, 3) != eps
    ):
        return Doubt(
            Kind.OTHER,
            share,
            f"eps {eps:.4g} is {counted:.0f}/255 of pixels within [0, 1], but here {run}: it is {percent}, "
            f"{levels:.2g} grey levels{_as(eps, width)}",
        )
    kind = Kind.NORMALISED if low < 0 and not math.isclose(width, 2, rel_tol=0.01) else Kind.SCALED
    advice = (
        ". These look like the bounds of normalised images: give images within [0, 1], and the mean and deviation to "
        "the Classifier (mean=, std=), so that eps means what others mean by it"
        if kind is Kind.NORMALISED
        else ""
    )
    return Doubt(kind, share, f"eps {eps:.4g} in {norm} is {percent} ({run}), {levels:.2g} grey levels of 255{advice}")


def _as(eps: float, width: float) -> str:
    """What a radius written for a range of 1 is here."""
    return "" if width == 1 else f". If {eps:.4g} of a range of 1 is meant, write {eps * width:.4g}"
