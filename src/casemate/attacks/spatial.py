"""Rotations and translations, tried until one fools (Engstrom et al. 2019, arXiv 1712.02779).

It searches without gradients: according to the paper, the loss as a function of angle and shift is too non-convex for
them. The defaults are the paper's for small images: up to 30 degrees and 3 pixels, a grid of 31 angles and 5 x 5
shifts, or with `num_samples` the worst of that many random ones, of which the paper takes 10.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from casemate.attacks._worst_case import BestCandidates
from casemate.attacks.base import AbstractAttack
from casemate.attacks.criterion import Criterion
from casemate.attacks.result import Passes, RunResult
from casemate.geometry import affine
from casemate.logits import is_valid
from casemate.losses import margin
from casemate.models import Classifier
from casemate.norms import Bounds
from casemate.progress import Advance
from casemate.rng import Streams
from casemate.settings import at_least, between, not_negative
from casemate.types import Images


@final
@dataclass(frozen=True, kw_only=True)
class Spatial(AbstractAttack):
    """Rotations about the centre and shifts, tried until one fools; new pixels at the border are black (lower bound).

    Returned is the first transformed image that fools, or else the one with the largest margin of error, which may be
    the clean image. Interpolation is bilinear. The change is small to the eye but large in every norm, so the ball of
    this attack is unbounded, and its results cannot be compared with those of an attack within a small ball.
    """

    stream: ClassVar[str] = "Spatial"
    maskable: ClassVar[bool] = False  # it moves every pixel

    max_rotation: Annotated[float, between(0, 180, "degrees")] = 30.0
    """Largest angle in either direction, in degrees."""
    max_shift: Annotated[float, not_negative("in pixels")] = 3.0
    """Largest shift along each axis, in pixels."""
    rotations: Annotated[int, at_least(1)] = 31
    """Number of angles in the grid, evenly spaced from minus to plus `max_rotation`; 1: no rotation."""
    shifts: Annotated[int, at_least(1)] = 5
    """Number of shifts in the grid along each axis, evenly spaced from minus to plus `max_shift`; 1: no shift."""
    num_samples: Annotated[int, at_least(1)] | None = None
    """Number of random transformations, uniform within the limits and drawn per image, instead of the grid."""

    @property
    def tries(self) -> int:
        """Largest number of transformations tried on an image, the clean image not counted."""
        return self.rotations * self.shifts**2 if self.num_samples is None else self.num_samples

    def max_passes(self, classes: int) -> Passes:
        """Per image at most: a forward pass for the clean image, and one for each transformation."""
        del classes
        return Passes(forward=1 + self.tries)

    def run(
        self, model: Classifier, clean: Images, criterion: Criterion, streams: Streams, advance: Advance
    ) -> RunResult:
        """Try the clean images, then one transformation after the other, on the examples not yet fooled."""
        best, passes = BestCandidates(clean, criterion), Passes()
        for number in range(self.tries + 1):
            left = best.left
            if not len(left):
                break
            images = clean[left]
            if number > 0:
                angle, shift = self._transformation(number - 1, streams[left])
                images = transformed(images, angle, shift, model.bounds)
            with torch.no_grad():
                logits = model(images)
            passes.forward += len(left)
            part, finite = criterion[left], is_valid(logits)
            loss = part.objective(margin, logits).where(finite, -torch.inf)
            best.update(left, images, loss, part.is_adversarial(logits), finite)
            advance(len(clean) / (self.tries + 1), "")
        return RunResult(best.images, best.finite, torch.ones_like(best.finite), passes)

    def _transformation(self, number: int, streams: Streams) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 2"]]:
        """The angle in degrees and the shift in pixels, right and down, of transformation `number` for each image.

        Those of the grid are equal for all images; with `num_samples` they are drawn for each image.
        """
        if self.num_samples is not None:
            limits = torch.tensor([self.max_rotation, self.max_shift, self.max_shift], device=streams.index.device)
            chosen = limits * (2 * streams.uniform((3,), "placement", number) - 1)
        else:
            turn, place = divmod(number, self.shifts**2)
            across, down = divmod(place, self.shifts)
            numbers = (
                _even(turn, self.rotations, self.max_rotation),
                _even(across, self.shifts, self.max_shift),
                _even(down, self.shifts, self.max_shift),
            )
            chosen = torch.tensor(numbers, device=streams.index.device).expand(len(streams.index), 3)
        return chosen[:, 0], chosen[:, 1:]


def _even(number: int, count: int, limit: float) -> float:
    """The entry `number` of `count` evenly spaced numbers from -limit to limit; zero if there is only one."""
    return limit * (2 * number / (count - 1) - 1) if count > 1 else 0.0


def transformed(images: Images, angle: Float[Tensor, " n"], shift: Float[Tensor, "n 2"], bounds: Bounds) -> Images:
    """Images rotated counter-clockwise, in degrees, then shifted right and down, in pixels; new pixels are black."""
    height, width = images.shape[2:]
    # `affine` shifts before it rotates: by the inverse rotation of the shift that is wanted
    turn, (right, down) = torch.deg2rad(angle.double()), shift.double().unbind(1)
    cosine, sine = turn.cos(), turn.sin()
    before = torch.stack([(right * cosine - down * sine) / width, (right * sine + down * cosine) / height], 1)
    low, high = bounds
    moved = affine(images - low, angle.double(), before, torch.ones_like(turn)) + low  # `affine` fills with zeros
    return moved.clamp(low, high)
