"""DeepFool: steps to the nearest linearised boundary (Moosavi-Dezfooli et al. 2016, arXiv 1511.04599).

It estimates the distance to the boundary cheaply instead of minimising it: an image ends at the first iterate that
fools. The paper ignores the bounds of the pixels: each step is the shortest one to the plane. Here, as in Foolbox, the
clean image plus the sum of all steps is clipped to the bounds. Clipping shortens every step, so near the bounds, as
with black backgrounds, ten to forty steps are needed instead of three; in return the boundary is linearised again at
more points. Between two classes of a linear classifier the sum is parallel to the gradient (Linf: to its sign), and,
clipped, becomes the nearest point within the bounds once it reaches the plane. FAB goes to that point in one step;
for an attack that ends at the first iterate that fools, that would be too far wherever the boundary curves.
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
from casemate.settings import at_least, not_negative, one_of
from casemate.types import Images

_NUDGE = 1e-4
"""Added to the length of each step, as a share of the range of the pixels, as in the authors' code: otherwise an image
exactly on a boundary would stay there, and iterates that lose more by clipping than `overshoot` adds would approach the
plane without ever reaching it."""


def _shortest_step(plane: Hyperplane, norm: Norm, longer: float) -> Images:
    """The shortest step to the plane, ignoring the bounds, lengthened by `longer`; zero where the normal is zero."""
    limits = torch.finfo(plane.offset.dtype)
    length = plane.length.clamp(min=limits.tiny)
    distance = (plane.offset.abs() / length).clamp(max=limits.max**0.5) + longer
    direction = plane.normal.sign() if norm == "linf" else plane.normal / length.view(-1, 1, 1, 1)
    return distance.view(-1, 1, 1, 1) * direction


@final
@dataclass(frozen=True, kw_only=True)
class DeepFool(AbstractMinimumNormAttack):
    """Steps to the nearest linearised boundary (the paper's algorithm 2, section 3.3)."""

    stream: ClassVar[str] = "DeepFool"
    targetable: ClassVar[bool] = False

    norm: Annotated[Norm, one_of("l2", "linf", why="for l1 take FAB")] = "l2"
    """Norm of the perturbation that is minimised: L2 or Linf."""
    steps: Annotated[int, at_least(1)] = 50
    """Largest number of steps; three usually suffice far from the bounds, ten to forty near them."""
    overshoot: Annotated[float, not_negative()] = 0.02
    """The perturbation is the sum of all steps times 1 + overshoot (the paper's eta)."""
    candidates: Annotated[int, at_least(2)] = 10
    """Number of classes considered: the label, and the most likely others at the clean image. A step takes one backward
    pass for each but the label."""

    def max_passes(self, classes: int) -> Passes:
        """Per image at most: a forward pass for the clean image; per step two forward and `candidates` - 1 backward."""
        return Passes(1 + 2 * self.steps, self.steps * (min(self.candidates, classes) - 1))

    def run(
        self, model: Classifier, clean: Images, criterion: Criterion, streams: Streams, advance: Advance
    ) -> RunResult:
        """Step until an iterate fools, which is the candidate; where none does, the clean image is."""
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
            plane = nearest_boundary(model, images, criterion.classes, target_classes, self.norm, mask=criterion.mask)
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
