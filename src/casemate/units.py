"""Detection of a radius that is not in the unit of the pixels, which gives meaningless numbers that look plausible.

Most radii are written for pixels within [0, 1], such as 8/255. Written as 8, as if pixels were bytes, the ball contains
every image. Used on images within 0 to 255, or on normalised ones, the ball is far smaller than intended.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import final

from casemate.norms import Ball, Bounds, Norm, WrittenEps, format_eps

_LEVELS = 255
"""The largest grey level of an 8-bit image; radii are often written in 255ths of the range, such as 8/255."""
_FAR_BELOW: dict[Norm, float] = {"linf": 0.1, "l2": 0.02, "l1": 0.1}
"""Radius, in grey levels (255ths of the pixels' range), below which an image can hardly change: of each pixel (Linf),
of the root mean square over all pixels (L2), of a single pixel (L1)."""
_MOST_LEVELS = 128
"""Largest k for which a radius of k/255 is recognised as meant for pixels within [0, 1] (`EpsIssueKind.OTHER`)."""


class EpsIssueKind(StrEnum):
    """Why a radius may be in the wrong unit."""

    ABOVE = "above the range"
    """The radius is so large that the ball contains every image."""
    BELOW = "far below a grey level"
    """The radius is so small that almost nothing can change."""
    OTHER = "in another unit"
    """The radius is a whole number of 255ths, as for pixels in [0, 1], although the range of the pixels is not 1."""
    NORMALISED = "of normalised images"
    """The bounds look like those of images that were normalised by a mean and a standard deviation."""
    SCALED = "of another range"
    """The range of the pixels is not 1, but the radius may be correct for it."""


@final
@dataclass(frozen=True)
class EpsIssue:
    """A reason to doubt that a radius eps is in the unit of the pixels."""

    kind: EpsIssueKind
    share: float
    """The radius divided by the range of the pixels, largest minus smallest value; in L0 by the number of values."""
    message: str
    """Sentences for the user: what was seen, what was expected, what to do."""

    @property
    def is_obvious(self) -> bool:
        """Whether the radius is almost certainly in the wrong unit."""
        return self.kind in (EpsIssueKind.ABOVE, EpsIssueKind.BELOW, EpsIssueKind.OTHER)


def share_of_range(eps: float, bounds: Bounds, norm: str) -> str:
    """A radius as a share of the range of the pixels, such as "3.14 % of the range 0 to 255".

    "" for a range of 1, and for L0, where eps is a number of values.
    """
    low, high = bounds
    if high - low == 1 or norm == "l0":
        return ""
    return f"{100 * eps / (high - low):.3g} % of the range {low:g} to {high:g}"


def eps_with_share(eps: float, bounds: Bounds, norm: str) -> str:
    """A radius as it was written, and in brackets its `share_of_range`, if there is one."""
    share = share_of_range(eps, bounds, norm)
    return f"{format_eps(eps)} ({share})" if share else format_eps(eps)


def find_eps_issue(ball: Ball, bounds: Bounds, pixels: int) -> EpsIssue | None:
    """The reason to doubt the unit of a ball's radius, for images of `pixels` numbers (all channels) within `bounds`.

    None if nothing is suspicious, and for a radius of zero or infinity.
    """
    eps, norm, (low, high) = ball.eps, ball.norm, bounds
    if not 0 < eps < math.inf:
        return None
    width = high - low
    share = eps / width
    run = f"the pixels run from {low:g} to {high:g}"
    if norm == "l0":
        return _issue_of_count(eps, pixels)
    holds_all = width * {"linf": 1.0, "l2": math.sqrt(pixels), "l1": float(pixels)}[norm]
    if eps > holds_all * (1 + 1e-6):
        unit = f" Write it in units of pixels within {low:g} to {high:g}."
        meant = f" For {eps:g} grey levels of 255 write {eps:g}/255." if eps <= _LEVELS and width == 1 else ""
        return EpsIssue(
            EpsIssueKind.ABOVE,
            share,
            f"eps {format_eps(eps)} in {norm} is more than the {holds_all:g} that any two images differ by ({run}), so "
            f"that every image may become any other.{meant or unit}",
        )
    levels = share * _LEVELS / (math.sqrt(pixels) if norm == "l2" else 1)
    in_bytes = (
        f"eps {_short(eps)} in {norm} is {levels:.2g} grey levels of 255{' a pixel' if norm == 'l2' else ''} ({run})"
    )
    if levels < _FAR_BELOW[norm]:
        return EpsIssue(
            EpsIssueKind.BELOW,
            share,
            f"{in_bytes}: almost nothing can change. Write eps in the unit of the pixels{_as(eps, width)}",
        )
    in_levels = abs(eps * _LEVELS - round(eps * _LEVELS)) < 1e-4 and round(eps, 3) != eps
    if norm != "linf" and in_levels and eps * _LEVELS <= _MOST_LEVELS:
        return EpsIssue(
            EpsIssueKind.SCALED,
            share,
            f"{in_bytes}: {_short(eps)} looks like a radius of Linf, which limits each pixel; {norm} adds all pixels "
            "up. In l2 eps is often 0.5 to 2, in l1 5 to 20",
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
        return EpsIssue(
            EpsIssueKind.OTHER,
            share,
            f"eps {_short(eps)} is {counted:.0f}/255 of pixels within [0, 1], but here {run}: it is {percent}, "
            f"{levels:.2g} grey levels{_as(eps, width)}",
        )
    kind = EpsIssueKind.NORMALISED if low < 0 and not math.isclose(width, 2, rel_tol=0.01) else EpsIssueKind.SCALED
    advice = (
        ". These look like the bounds of normalised images: give images within [0, 1], and mean and standard "
        "deviation to the Classifier (mean=, std=), so that eps has its usual meaning"
        if kind is EpsIssueKind.NORMALISED
        else ""
    )
    question = f". Was eps meant in this unit?{_as(eps, width).removeprefix('.') if eps <= 1 else ''}"
    return EpsIssue(
        kind,
        share,
        f"eps {_short(eps)} in {norm} is {percent} ({run}), {levels:.2g} grey levels of 255{question}{advice}",
    )


def _issue_of_count(eps: float, values: int) -> EpsIssue | None:
    """As `find_eps_issue` for L0, where eps counts the values of an image that may change, of which it has `values`."""
    if eps < values:
        return None
    return EpsIssue(
        EpsIssueKind.ABOVE,
        eps / values,
        f"eps {format_eps(eps)} in l0 is all of the {values:,} values of an image (pixels times channels), so that "
        "every image may become any other. Write how many values may change, such as 10.",
    )


def _short(eps: float) -> str:
    """A radius as it was written, or else as a number with four digits."""
    return eps.text if isinstance(eps, WrittenEps) else f"{eps:.4g}"


def _as(eps: float, width: float) -> str:
    """Advice, as the end of a message, for an eps meant for a range of 1; "" if the pixels' range `width` is 1."""
    return "" if width == 1 else f". If {eps:.4g} of a range of 1 is meant, write {eps * width:.4g}"
