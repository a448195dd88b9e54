"""The images that bounds hold for: a box, and inside it a ball in L2 or L1."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from casemate.certification.operations import Interval, per_row
from casemate.norms import Ball, Bounds, Norm, dual_norm_of
from casemate.types import Images


@final
@dataclass(frozen=True)
class Region:
    """All images in a box, `(n, channels, height, width)` on both sides; with `radius` only those in a ball too."""

    box: Interval
    centre: Images
    """The middle of the ball."""
    radius: float | None = None
    """Of the ball in `norm`; None for no ball."""
    norm: Norm = "linf"
    """l2 or l1, where there is a ball."""

    def lowest(self, rows: Tensor, owner: Tensor) -> Tensor:
        """A lower bound of linear functions, `(r, channels, height, width)`, over the regions of their images, `(r,)`.

        It is the larger of the minima over the box, which is exact without a ball, and over the ball (by the dual
        norm).
        """
        found = self.box.lowest(rows, owner)
        if self.radius is None:
            return found
        middle = per_row(rows * self.centre[owner]).sum(1)
        return found.maximum(middle - self.radius * dual_norm_of(rows, self.norm).to(rows.dtype))


def region_around(images: Images, ball: Ball, bounds: Bounds) -> Region:
    """The images within a ball in linf, l2 or l1 around each of `images`, with pixels within the bounds."""
    box = Interval(*ball.limits(images, bounds))
    if ball.norm == "linf":
        return Region(box=box, centre=images)
    return Region(box=box, centre=images, radius=ball.eps, norm=ball.norm)
