"""DeepFool: step by step to the nearest linearised boundary (Moosavi-Dezfooli et al. 2016, arXiv 1511.04599).

A cheap estimate of the distance to the boundary rather than its minimum: an image ends at the first iterate that
fools. The paper knows no bounds of the pixels: each step is the shortest to the plane whatever the bounds. Here the
clean image plus the sum of all steps is clipped to them, as by Foolbox. Clipping loses a part of every step, so
near the bounds, as with black backgrounds, it takes ten to forty steps instead of three; in return the boundary is
looked at anew on the way. Between two classes of a linear classifier the sum keeps to the slope (Linf: its sign), and
clipped it is the nearest point within the bounds once it reaches the plane. FAB goes to that point at once; where an
image ends at the first iterate that fools, that is too far wherever the boundary bends.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, final

import torch

from casemate.attacks._hyperplane import Hyperplane, likeliest_classes, nearest_boundary
from casemate.attacks.base import AbstractMinimumNormAttack
from casemate.attacks.criterion import Criterion
from casemate.attacks.result import Passes, RunResult
from casemate.logits import is_valid
from casemate.models import Classifier
from casemate.norms import Norm
from casemate.progress import Advance
from casemate.rng import Streams
from casemate.settings import at_least, expect, not_negative, one_of
from casemate.types import Images

_NUDGE = 1e-4
"""Each step is longer by this share of the range of the pixels, as in the authors' code: an image exactly on a boundary
is not left there, and iterates that lose more by clipping than `overshoot` adds do not creep up to a plane for ever."""


def _shortest_step(plane: Hyperplane, norm: Norm, longer: float) -> Images:
    """The shortest to the plane whatever the bounds, and `longer` than that; zero where there is no slope."""
    limits = torch.finfo(plane.offset.dtype)
    length = plane.length.clamp(min=limits.tiny)
    distance = (plane.offset.abs() / length).clamp(max=limits.max**0.5) + longer
    direction = plane.normal.sign() if norm == "linf" else plane.normal / length.view(-1, 1, 1, 1)
    return distance.view(-1, 1, 1, 1) * direction


@final
@dataclass(frozen=True, kw_only=True)
class DeepFool(AbstractMinimumNormAttack):
    """DeepFool for L2 (the paper's algorithm 2) and Linf (its section 3.3)."""

    stream: ClassVar[str] = "DeepFool"
    targetable: ClassVar[bool] = False

    norm: Annotated[Norm, one_of("l2", "linf", why="for l1 take FAB")] = "l2"
    """L2 or Linf."""
    steps: Annotated[int, at_least(1)] = 50
    """Most steps; three usually suffice far from the bounds, ten to forty near them."""
    overshoot: Annotated[float, not_negative()] = 0.02
    """How far beyond the sum of all steps the iterate lies, as a share of it: the paper's eta."""
    candidates: Annotated[int, at_least(2)] = 10
    """Most likely classes at the clean image, its own among them, whose boundaries are looked at; a step takes one
    backward pass for each but the own."""

    def __post_init__(self) -> None:
        expect(self)

    def max_passes(self, classes: int) -> Passes:
        """In every step a pass back for each boundary and two passes forward, and one at the clean image."""
        return Passes(1 + 2 * self.steps, self.steps * (min(self.candidates, classes) - 1))

    def run(
        self, model: Classifier, clean: Images, criterion: Criterion, streams: Streams, advance: Advance
    ) -> RunResult:
        """Steps until an iterate fools; an image that none does for is handed back clean."""
        del streams
        with torch.no_grad():
            logits = model(clean)
        finite = is_valid(logits)
        result = RunResult(clean.clone(), finite, torch.zeros_like(finite), Passes(forward=len(clean)))
        active = (finite & ~criterion.is_adversarial(logits)).nonzero().squeeze(1)
        clean, criterion = clean[active], criterion[active]
        target_classes = likeliest_classes(logits[active], criterion.classes, self.candidates - 1)
        images, total = clean, torch.zeros_like(clean)
        low, high = model.bounds
        for _ in range(self.steps):
            if not len(active):
                break
            plane = nearest_boundary(model, images, criterion.classes, target_classes, self.norm)
            total = total + _shortest_step(plane, self.norm, _NUDGE * (high - low))
            images = (clean + (1 + self.overshoot) * total).clamp(low, high)
            with torch.no_grad():
                logits = model(images)
            result.passes.add(Passes(forward=2 * len(active), backward=target_classes.shape[1] * len(active)))
            result.has_gradient[active] |= plane.length > 0
            finite = plane.finite & is_valid(logits)
            fooled = criterion.is_adversarial(logits) & finite
            result.images[active[fooled]] = images[fooled]
            result.finite[active] = finite
            going = finite & ~fooled
            advance(len(active) / self.steps, "")
            if not going.all():
                active, images, clean, total = active[going], images[going], clean[going], total[going]
                criterion, target_classes = criterion[going], target_classes[going]
        return result
