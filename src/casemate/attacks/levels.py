"""Images on a grid of levels, such as the 256 that 8 bits hold, that stay in the ball and still fool.

Rounding an adversarial image to the nearest levels can undo it, or take it out of the ball. `Grid.round_into` rounds
within the ball: values go back towards the clean image, those that cost least first, until the image is inside.
`restore` helps the images that rounding undid: it rounds values up or down as the gradient says, those that gain most
first. Both are of this library; the DDN attack (Rony et al. 2019, arXiv 1811.09600, section 3) rounds to the nearest
level.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from casemate.attacks.criterion import Criterion
from casemate.attacks.differentiate import input_gradient
from casemate.attacks.result import Passes
from casemate.errors import ModelError
from casemate.losses import margin
from casemate.models import Classifier
from casemate.norms import Ball, Bounds
from casemate.settings import at_least, expect
from casemate.types import Flags, Images, Logits, Mask

_TIES = 0.01
"""Share of a level within which a value counts as on it, when values are rounded up or down."""
_FACTORS = (1.5, 4.0, math.inf)
"""How much more the margin is to rise, by the gradient, than it has to, in each try of `restore`."""

_Levels = Int64[Tensor, "n values"]
_Values = Float[Tensor, "n values"]


@final
@dataclass(frozen=True)
class Grid:
    """The values low + k (high - low) / (levels - 1) within the bounds, k from 0: for [0, 1] and 256 levels k / 255."""

    bounds: Bounds
    levels: Annotated[int, at_least(2)]

    def __post_init__(self) -> None:
        expect(self)

    def values(self, like: Tensor) -> Tensor:
        """All values, ascending, `(levels,)`, in the type of `like` and on its device."""
        low, high = self.bounds
        number = torch.arange(self.levels, dtype=torch.float64, device=like.device)
        return (low + number * (high - low) / (self.levels - 1)).to(like.dtype)

    def round_into(
        self, images: Images, clean: Images, ball: Ball, mask: Mask | None = None, slope: Images | None = None
    ) -> tuple[Images, Flags]:
        """The images rounded to the grid within the ball, and for which there is such an image; the others are clean.

        Each value becomes the nearest of the grid, or with a `slope` the next one in its direction. Where the ball does
        not allow that, Linf takes the nearest value within eps; in L2 and L1 values go back towards the clean image,
        those first that cost least for what they shorten the perturbation by: in the product with the slope, or else
        in rounding error; in L0 those that cost least become as in the clean image.

        Args:
            images: within ball and bounds.
            mask: where it is False, the value stays that of the clean image.
            slope: the gradient of what the images are to raise.
        """
        shape, values = images.shape, self.values(images)
        exact, flat, origin = values.double(), images.flatten(1).double(), clean.flatten(1).double()
        home, position = self._position(origin).round().long(), self._position(flat)
        level = position.round().long()
        if slope is not None:
            sign = slope.flatten(1).sign()
            up, down = (position - _TIES).ceil().long(), (position + _TIES).floor().long()
            level = torch.where(sign > 0, up, torch.where(sign < 0, down, level)).clamp(0, self.levels - 1)
        fixed = torch.zeros_like(home, dtype=torch.bool) if mask is None else ~mask.flatten(1)
        unlike = exact[home] != origin
        level = level.where(~fixed, home)
        possible = ~(fixed & unlike).any(1)
        price = None if slope is None else slope.flatten(1).double()
        if ball.norm == "linf":
            reach = ball.reach(self.bounds)
            first = torch.searchsorted(exact, (origin - reach).contiguous())
            last = torch.searchsorted(exact, (origin + reach).contiguous(), right=True) - 1
            possible &= ((first <= last) | fixed).all(1)
            level = level.clamp(max=self.levels - 1).maximum(first).minimum(last).clamp(min=0).where(~fixed, home)
        elif ball.norm == "l0":
            possible &= (unlike & ~fixed).sum(1) <= ball.eps
            level = self._fewer(level, home, flat, origin, exact, unlike, ball.eps, price)
        elif math.isfinite(ball.eps):
            level, inside = self._nearer(level, home, flat, origin, exact, ball, price)
            possible &= inside
        rounded = values[level].view(shape)
        rounded = rounded if mask is None else rounded.where(mask, clean)
        return rounded.where(possible.view(-1, 1, 1, 1), clean), possible

    def _position(self, numbers: Tensor) -> Tensor:
        """Values in units of the distance of two levels from the lower bound, float64."""
        low, high = self.bounds
        return ((numbers.double() - low) * ((self.levels - 1) / (high - low))).clamp(0, self.levels - 1)

    def _nearer(
        self,
        level: _Levels,
        home: _Levels,
        wanted: _Values,
        origin: _Values,
        exact: Tensor,
        ball: Ball,
        price: _Values | None,
    ) -> tuple[_Levels, Flags]:
        """For L2 and L1: levels whose distance is at most eps, and whether there are any."""
        order = 2 if ball.norm == "l2" else 1
        limit = ball.reach(self.bounds) ** order
        apart = (exact[home] - origin).abs().pow(order)
        possible = apart.sum(1) <= limit
        while True:
            here = (exact[level] - origin).abs().pow(order)
            excess = here.sum(1) - limit
            far = (possible & (excess > 0)).nonzero().squeeze(1)
            if not len(far):
                return level, possible
            now = level[far]
            back = now - (now - home[far]).sign()
            saved = (here[far] - (exact[back] - origin[far]).abs().pow(order)).clamp(min=0)
            cost = self._cost(now, back, wanted[far], exact, None if price is None else price[far])
            ratio = (cost / saved.clamp(min=1e-300)).masked_fill(now == home[far], math.inf)
            sequence = ratio.argsort(1)
            before = saved.gather(1, sequence).cumsum(1) - saved.gather(1, sequence)
            chosen = torch.zeros_like(now, dtype=torch.bool).scatter(1, sequence, before <= excess[far].unsqueeze(1))
            level = level.index_put((far,), torch.where(chosen, back, now))

    def _fewer(
        self,
        level: _Levels,
        home: _Levels,
        wanted: _Values,
        origin: _Values,
        exact: Tensor,
        unlike: Tensor,
        eps: float,
        price: _Values | None,
    ) -> _Levels:
        """For L0: levels of which at most eps values differ from the clean ones, if as many can be equal."""
        changed = exact[level] != origin
        excess = changed.sum(1, keepdim=True) - eps
        lost = (level - home).abs().double() if price is None else self._cost(level, home, wanted, exact, price)
        cost = lost.masked_fill(~changed | unlike, math.inf)
        rank = cost.argsort(1).argsort(1)
        return torch.where((rank < excess) & changed & ~unlike, home, level)

    def _cost(self, level: _Levels, other: _Levels, wanted: _Values, exact: Tensor, price: _Values | None) -> _Values:
        """What is lost where values take another level: the fall of the linear function, or the rounding error."""
        if price is None:
            return ((exact[other] - wanted).abs() - (exact[level] - wanted).abs()).clamp(min=0)
        return price * (exact[level] - exact[other])


def restore(
    model: Classifier,
    classify: Callable[[Images], Logits],
    grid: Grid,
    images: Images,
    rounded: Images,
    logits: Logits,
    clean: Images,
    ball: Ball,
    criterion: Criterion,
) -> tuple[Images, Logits, Passes]:
    """Images on the grid that fool, where one is found, for those that rounding undid; and their logits.

    A value is rounded up or down, as the gradient of the margin at the image before rounding says; those that gain
    most first, at first as many as the margin lacks, at last all. Then, and where there is no gradient, all values are
    rounded away from the clean image.

    Args:
        model: the copy that gradients are computed on.
        classify: returns the logits of images.
        images: before rounding.
        rounded: after it; they are returned where no try fools.
        logits: of `rounded`.
    """
    passes = Passes(len(images), len(images))
    found, logits, left = rounded.clone(), logits.clone(), torch.arange(len(images), device=images.device)
    missing = (-criterion.objective(margin, logits)).double().clamp(min=0).nan_to_num(0.0)
    gradient = _slope(model, images, criterion)
    tries = [(gradient, factor) for factor in _FACTORS] + [(images - clean, math.inf)]
    for slope, factor in tries:
        part, here, now = criterion[left], slope[left], rounded[left]
        towards, _ = grid.round_into(images[left], clean[left], ball, part.mask, here)
        top, order = (here * (towards - now)).flatten(1).double().sort(dim=1, descending=True)
        wanted = (factor * missing[left]).nan_to_num(math.inf).unsqueeze(1)
        enough = (top.cumsum(1) - top <= wanted) & (top > 0)
        chosen = torch.zeros_like(enough).scatter(1, order, enough).view_as(now)
        tried, _ = grid.round_into(towards.where(chosen, now), clean[left], ball, part.mask, here)
        with torch.no_grad():
            new = classify(tried)
        passes.forward += len(left)
        fooled = part.is_adversarial(new)
        found[left[fooled]], logits[left[fooled]] = tried[fooled], new[fooled]
        left = left[~fooled]
        if not len(left):
            break
    return found, logits, passes


def _slope(model: Classifier, images: Images, criterion: Criterion) -> Images:
    """The gradient of the margin by which images fool, with respect to them; zero where the model has none."""
    try:
        _, slope = input_gradient(model, images, criterion, "margin")
    except ModelError:  # a black box, or a layer without a backward pass
        return torch.zeros_like(images)
    return slope.nan_to_num(0.0, 0.0, 0.0)
