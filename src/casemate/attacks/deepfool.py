"""DeepFool: step by step to the nearest linearised boundary (Moosavi-Dezfooli et al. 2016, arXiv 1511.04599).

A cheap estimate of the distance to the boundary rather than its minimum: an image ends at the first iterate that
fools. Where the paper ignores the bounds of the pixels and code based on it clips afterwards, each step here goes to
the nearest point of the plane within the bounds.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from casemate.attacks.base import Criterion, MinimumNormAttack, Passes
from casemate.attacks.hyperplane import likeliest_rivals, nearest_boundary, nearest_point
from casemate.errors import SettingError
from casemate.models import Classifier
from casemate.norms import Norm
from casemate.progress import Advance
from casemate.rng import Streams
from casemate.types import Flags, Images

_NUDGE = 1e-6
"""Each step goes this much beyond the plane, as a share of the range of the pixels, so that an image that lies exactly
on a boundary is not left there."""


@final
@dataclass(frozen=True, kw_only=True)
class DeepFool(MinimumNormAttack):
    """DeepFool for L2 (the paper's algorithm 2) and Linf (its section 3.3)."""

    targetable: ClassVar[bool] = False

    norm: Norm = "l2"
    """L2 or Linf."""
    steps: int = 50
    """Most steps; three usually suffice."""
    overshoot: float = 0.02
    """How far beyond the sum of all steps the iterate lies, as a share of it: the paper's eta."""
    candidates: int = 10
    """Most likely classes at the clean image, its own among them, whose boundaries are looked at; a step takes one
    backward pass for each but the own."""

    def __post_init__(self) -> None:
        self.ball()
        if self.norm == "l1":
            raise SettingError("norm = l1; expected l2 or linf (for L1 take FAB)")
        if self.steps < 1:
            raise SettingError(f"steps = {self.steps}; expected at least 1")
        if not 0 <= self.overshoot < math.inf:
            raise SettingError(f"overshoot = {self.overshoot}; expected zero or more and finite")
        if self.candidates < 2:
            raise SettingError(f"candidates = {self.candidates}; expected at least 2")

    def most_passes(self, classes: int) -> Passes:
        """In every step a pass back for each boundary and two passes forward, and one at the clean image."""
        return Passes(1 + 2 * self.steps, self.steps * (min(self.candidates, classes) - 1))

    def run(
        self, model: Classifier, clean: Images, criterion: Criterion, streams: Streams, advance: Advance
    ) -> tuple[Images, Flags, Passes]:
        """Steps until an iterate fools; an image that none does for is handed back clean."""
        del streams
        with torch.no_grad():
            logits = model(clean)
        finite = logits.isfinite().all(1)
        found = clean.where(finite.view(-1, 1, 1, 1), torch.nan)
        steered, passes = torch.zeros_like(finite), Passes(forward=len(clean))
        active = (finite & ~criterion.met(logits)).nonzero().squeeze(1)
        clean, criterion = clean[active], criterion.take(active)
        rivals = likeliest_rivals(logits[active], criterion.classes, self.candidates - 1)
        images, total = clean, torch.zeros_like(clean)
        low, high = model.bounds
        for _ in range(self.steps):
            if not len(active):
                break
            plane = nearest_boundary(model, images, criterion.classes, rivals, self.norm)
            rise = _NUDGE * (high - low) * plane.length - plane.gap
            total = total + nearest_point(images, plane.slope, rise, self.norm, model.bounds)
            images = (clean + (1 + self.overshoot) * total).clamp(low, high)
            with torch.no_grad():
                logits = model(images)
            passes.add(Passes(forward=2 * len(active), backward=rivals.shape[1] * len(active)))
            steered[active] |= plane.length > 0
            finite = plane.finite & logits.isfinite().all(1)
            fooled = criterion.met(logits) & finite
            found[active[fooled]] = images[fooled]
            found[active[~finite]] = torch.nan
            going = finite & ~fooled
            advance(len(active) / self.steps, "")
            if not going.all():
                active, images, clean, total = active[going], images[going], clean[going], total[going]
                criterion, rivals = criterion.take(going), rivals[going]
        return found, steered, passes
