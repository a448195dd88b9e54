"""Fast Adaptive Boundary attack: the nearest image across the boundary (Croce and Hein 2020, arXiv 1907.02044).

Each step linearises the boundary at the iterate, goes a little beyond its nearest point within the bounds, and leans
towards the point of the same plane that is nearest to the clean image (algorithm 1 of the paper). An iterate that fools
is remembered if it is the nearest so far, and drawn back towards the clean image. There is no step size to tune, and
the attack does not mind scaled logits. The paper's final search along the segment to the clean image is left out, as
the original code leaves it out since it became part of AutoAttack.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from casemate.attacks.base import Criterion, MinimumNormAttack, Passes
from casemate.attacks.fab_step import next_iterates
from casemate.attacks.hyperplane import Rivals, is_new, likeliest_rivals, nearest_boundary
from casemate.errors import SettingError
from casemate.logits import is_valid
from casemate.models import Classifier
from casemate.norms import Bounds, Norm, norm_of
from casemate.progress import Advance
from casemate.rng import Streams
from casemate.types import Flags, Images, Logits, PerExample

_RADIUS: dict[Norm, float] = {"linf": 0.3, "l2": 1.0, "l1": 5.0}


@dataclass
class _Found:
    """The nearest images so far, over all runs, one entry per example of the batch."""

    images: Images
    distance: PerExample
    """Infinite where nothing fooled."""
    broken: Flags
    """Logits or a gradient were not finite in some run."""
    steered: Flags
    passes: Passes


@dataclass(frozen=True, kw_only=True)
class _AdaptiveBoundary(MinimumNormAttack):
    """What FAB and FAB-T share: all but the boundaries they look at."""

    norm: Norm = "linf"
    """Linf, L2 or L1."""
    steps: int = 100
    """Steps of each run."""
    restarts: int = 1
    """Runs per boundary: the first from the clean image, the others from random points near it."""
    alpha_max: float = 0.1
    """Largest share of the step that leans towards the clean image."""
    eta: float = 1.05
    """How far to go, 1 being the nearest point of the plane (the paper's extrapolation)."""
    beta: float = 0.9
    """Where an iterate that fools is drawn back to, as a share of its way from the clean image (the backward step)."""
    radius: float | None = None
    """Random starts lie half this far from the clean image, or half the distance found so far if that is less; in
    pixel units. 0.3 (Linf), 1 (L2) or 5 (L1), the original's, if None."""
    enough: float | None = None
    """A distance in pixel units: an example with an image found within it is decided and leaves. None goes on to the
    end. With eps, the share fooled at eps is that of the original, sooner."""

    def __post_init__(self) -> None:
        self.ball()
        for name in ("steps", "restarts"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} = {getattr(self, name)}; expected at least 1")
        if not 0 <= self.alpha_max <= 1:
            raise SettingError(f"alpha_max = {self.alpha_max}; expected a share from 0 to 1")
        if not 1 <= self.eta < math.inf:
            raise SettingError(f"eta = {self.eta}; expected 1 or more and finite")
        if not 0 < self.beta <= 1:
            raise SettingError(f"beta = {self.beta}; expected more than 0 and at most 1")
        if self.radius is not None and not 0 <= self.radius < math.inf:
            raise SettingError(f"radius = {self.radius}; expected zero or more and finite, or None")
        if self.enough is not None and not self.enough >= 0:
            raise SettingError(f"enough = {self.enough}; expected a distance of zero or more, or None")

    @abstractmethod
    def aims(self, logits: Logits, criterion: Criterion) -> list[Rivals | None]:
        """The rivals to consider in each run, from the logits of the clean images; see `nearest_boundary`."""

    @abstractmethod
    def most_aims(self, classes: int) -> tuple[int, int]:
        """How many aims there are at most, and how many rivals each looks at."""

    @final
    def most_passes(self, classes: int) -> Passes:
        """In every step of every run a pass back for each rival and two passes forward, and one at the clean image."""
        aims, rivals = self.most_aims(classes)
        steps = aims * self.restarts * self.steps
        return Passes(1 + 2 * steps, rivals * steps)

    @final
    def run(
        self, model: Classifier, clean: Images, criterion: Criterion, streams: Streams, advance: Advance
    ) -> tuple[Images, Flags, Passes]:
        """Every aim and every restart, on the examples that are not decided yet."""
        with torch.no_grad():
            logits = model(clean)
        fooled, finite = criterion.met(logits), is_valid(logits)
        found = _Found(
            images=clean.clone(),
            distance=torch.where(fooled, 0.0, math.inf).to(clean.dtype),
            broken=~finite,
            steered=torch.zeros_like(fooled),
            passes=Passes(forward=len(clean)),
        )
        left = (~fooled & finite).nonzero().squeeze(1)
        aims = self.aims(logits, criterion)
        work = len(aims) * self.restarts * self.steps
        for number, rivals in enumerate(aims):
            for restart in range(self.restarts):
                left = left[self._open(found.distance[left])]
                if not len(left):
                    break
                first = aims[0] if number else None
                at = left if rivals is None or first is None else left[is_new(rivals, first)[left]]
                origin = clean[at]
                start = origin
                if restart:
                    purpose = ("start", number, restart)
                    start = self._nearby(origin, found.distance[at], streams.take(at), purpose, model.bounds)
                aim = None if rivals is None else rivals[at]
                for moved in self._search(model, origin, start, criterion.take(at), aim, at, found):
                    advance(moved / work, "")
        lost = found.broken & found.distance.isinf()
        return found.images.where(~lost.view(-1, 1, 1, 1), torch.nan), found.steered, found.passes

    def _open(self, distance: PerExample) -> Flags:
        """Who has not come near enough yet."""
        return torch.ones_like(distance, dtype=torch.bool) if self.enough is None else distance > self.enough

    def _nearby(
        self, clean: Images, distance: PerExample, streams: Streams, purpose: tuple[int | str, ...], bounds: Bounds
    ) -> Images:
        """Random points at half the radius (or half of a smaller distance known), brought within the bounds."""
        shape = tuple(clean.shape[1:])
        linf = self.norm == "linf"
        direction = 2 * streams.uniform(shape, *purpose) - 1 if linf else streams.normal(shape, *purpose)
        radius = _RADIUS[self.norm] if self.radius is None else self.radius
        reach = distance.clamp(max=radius) / 2 / norm_of(direction, self.norm).clamp(min=1e-12)
        return (clean + reach.view(-1, 1, 1, 1) * direction).to(clean.dtype).clamp(*bounds)

    def _search(
        self,
        model: Classifier,
        clean: Images,
        images: Images,
        criterion: Criterion,
        rivals: Rivals | None,
        active: Tensor,
        found: _Found,
    ) -> Iterator[int]:
        """One run from `images` of the examples at `active` in `found`. Yields how many moved in each step."""
        for _ in range(self.steps):
            if not len(active):
                break
            plane = nearest_boundary(model, images, criterion.classes, rivals, self.norm)
            images = next_iterates(
                images, clean, plane, self.norm, model.bounds, eta=self.eta, alpha_max=self.alpha_max
            )
            with torch.no_grad():
                logits = model(images)
            looked_at = 1 if rivals is None else rivals.shape[1]
            found.passes.add(Passes(forward=2 * len(active), backward=looked_at * len(active)))
            found.steered[active] |= plane.length > 0
            finite = plane.finite & is_valid(logits)
            found.broken[active] |= ~finite
            fooled = criterion.met(logits) & finite
            delta = images - clean
            distance = norm_of(delta, self.norm)
            nearer = fooled & (distance < found.distance[active])
            found.images[active[nearer]] = images[nearer]
            found.distance[active[nearer]] = distance[nearer]
            images[fooled] = clean[fooled] + self.beta * delta[fooled]
            yield len(active)
            going = finite & self._open(found.distance[active])
            if not going.all():
                active, images, clean, criterion = active[going], images[going], clean[going], criterion.take(going)
                rivals = None if rivals is None else rivals[going]


@final
@dataclass(frozen=True, kw_only=True)
class FAB(_AdaptiveBoundary):
    """FAB, looking at the boundaries with all other classes in every step.

    Untargeted, a step takes a backward pass for every class but one, which for many classes is slow: see
    `TargetedFAB`. Towards a target, which the paper leaves open, it looks at the boundary between the target and the
    class that is most likely at the iterate, in one backward pass.
    """

    stream: ClassVar[str] = "FAB"

    def aims(self, logits: Logits, criterion: Criterion) -> list[Rivals | None]:
        """All other classes at once."""
        if criterion.targeted:
            return [None]
        classes = logits.shape[1]
        offsets = torch.arange(1, classes, device=logits.device)
        return [(criterion.classes.unsqueeze(1) + offsets) % classes]

    def most_aims(self, classes: int) -> tuple[int, int]:
        """All other classes at once."""
        return 1, classes - 1


@final
@dataclass(frozen=True, kw_only=True)
class TargetedFAB(_AdaptiveBoundary):
    """FAB-T, as AutoAttack runs it: one run for each of the most likely wrong classes, at one backward pass a step.

    Each run looks at the boundary between the label and that class; an iterate of any wrong class counts.
    (Croce and Hein 2020, arXiv 2003.01690, section 4.)
    """

    stream: ClassVar[str] = "TargetedFAB"
    targetable: ClassVar[bool] = False

    classes: int = 9
    """Wrong classes that are tried one after the other, the most likely first; at most all there are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes < 1:
            raise SettingError(f"classes = {self.classes}; expected at least 1")

    def aims(self, logits: Logits, criterion: Criterion) -> list[Rivals | None]:
        """One wrong class at a time."""
        return list(likeliest_rivals(logits, criterion.classes, self.classes).split(1, dim=1))

    def most_aims(self, classes: int) -> tuple[int, int]:
        """One wrong class at a time."""
        return min(self.classes, classes - 1), 1
