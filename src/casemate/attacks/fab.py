"""Fast Adaptive Boundary attack: the nearest image across the boundary (Croce and Hein 2020, arXiv 1907.02044).

Each step (algorithm 1 of the paper) linearises the boundary at the iterate. The next iterate is the mean, with weights
1 - alpha and alpha, of two points slightly beyond that plane: the one nearest to the iterate and the one nearest to the
clean image, both within the bounds. An iterate that fools is kept if it is the nearest so far, and then moved back
towards the clean image. There is no step size to tune, and scaling the logits changes nothing. The paper's final search
along the segment to the clean image is left out, as in the original code since it became part of AutoAttack.

On a CPU, for Linf and L2, a step is one compiled loop: about forty passes over an image, which took 38 microseconds as
tensor operations for 784 pixels on one core of a Xeon, take 5. On other devices, and for L1, it is tensor operations.
Both agree up to rounding.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, final, no_type_check

import numpy as np
import torch
from torch import Tensor

from casemate import compiled
from casemate.attacks._hyperplane import (
    Hyperplane,
    NormalizedNormal,
    TargetClasses,
    is_new,
    likeliest_classes,
    nearest_boundary,
    nearest_point,
)
from casemate.attacks.base import AbstractMinimumNormAttack
from casemate.attacks.criterion import Criterion
from casemate.attacks.result import Passes, RunResult
from casemate.logits import is_valid
from casemate.models import Classifier
from casemate.norms import Bounds, ConvexNorm, Eps, Norm, norm_of
from casemate.progress import Advance
from casemate.rng import Streams
from casemate.settings import at_least, between
from casemate.types import Flags, Images, Logits, PerExample

_RESTART_EPS: dict[Norm, float] = {"linf": 0.3, "l2": 1.0, "l1": 5.0}
_CACHED = 50_000
"""Number of pixels that the tensor operations process at a time: about ten arrays of that size fit into a cache of 2
MB."""
_LEAST = 1e-8
"""Shorter steps count as this long when alpha is computed, against division by zero (the original code's value)."""


def next_iterates(
    images: Images, clean: Images, plane: Hyperplane, norm: Norm, bounds: Bounds, *, eta: float, alpha_max: float
) -> Images:
    """One step of FAB: the iterates after `images`, within the bounds; undefined where the plane is not `finite`.

    Args:
        plane: the nearest linearised boundary at each iterate.
        eta: length of both steps, as a multiple of the distance to the plane.
        alpha_max: largest weight of the step from the clean image.
    """
    if norm != "l1" and compiled.supports(images):
        return _in_one_loop(images, clean, plane, norm, bounds, eta, alpha_max)
    size = max(1, _CACHED // clean[0].numel())
    parts = (slice(start, start + size) for start in range(0, len(clean), size))
    return torch.cat(
        [
            _by_operations(
                images[part], clean[part], plane.normal[part], plane.offset[part], norm, bounds, eta, alpha_max
            )
            for part in parts
        ]
    )


def _by_operations(
    images: Images,
    clean: Images,
    normal: Images,
    offset: PerExample,
    norm: Norm,
    bounds: Bounds,
    eta: float,
    alpha_max: float,
) -> Images:
    scaled = NormalizedNormal(normal)
    across = nearest_point(images, scaled, -offset, norm, bounds)
    from_clean = -offset - (clean - images).mul_(normal).flatten(1).sum(1)
    back = nearest_point(clean, scaled, from_clean, norm, bounds)
    near, far = (norm_of(each, norm).clamp(min=_LEAST) for each in (across, back))
    alpha = (near / (near + far)).clamp(max=alpha_max).view(-1, 1, 1, 1)
    step = (images + across.mul_(eta)).mul_(1 - alpha)
    return step.add_(back.mul_(eta).add_(clean).mul_(alpha)).clamp_(*bounds)


def _in_one_loop(
    images: Images, clean: Images, plane: Hyperplane, norm: Norm, bounds: Bounds, eta: float, alpha_max: float
) -> Images:
    found = compiled.empty_maps(images, *images.shape)
    rows = (compiled.channels_last(each).flatten(1) for each in (images, clean, plane.normal))
    settings = images.new_tensor([*bounds, eta, alpha_max, norm == "l2"])
    offset = plane.offset.detach().to(images.dtype)
    compiled.over_images(_loop, *rows, offset, compiled.channels_last(found).flatten(1), fixed=(settings,))
    return found


@compiled.reordering_loop
@no_type_check
def _loop(images, clean, normal, offset, found, settings):
    """`_by_operations` as a compiled loop over images, for Linf and L2."""
    count, pixels = images.shape
    kind = images.dtype.type
    low, high, eta, alpha_max, squared = settings
    room, size = np.empty(pixels, images.dtype), np.empty(pixels, images.dtype)
    across, back = np.empty(pixels, images.dtype), np.empty(pixels, images.dtype)
    for n in range(count):
        largest, apart = kind(0), 0.0
        for i in range(pixels):
            largest = max(largest, abs(normal[n, i]))
            apart += (clean[n, i] - images[n, i]) * normal[n, i]
        largest = max(largest, np.finfo(images.dtype).tiny)
        _nearest(images[n], normal[n], largest, -offset[n], low, high, squared > 0, room, size, across)
        _nearest(clean[n], normal[n], largest, kind(-offset[n] - apart), low, high, squared > 0, room, size, back)
        near, far = 0.0, 0.0
        for i in range(pixels):
            if squared > 0:
                near += across[i] * across[i]
                far += back[i] * back[i]
            else:
                near, far = max(near, abs(across[i])), max(far, abs(back[i]))
        if squared > 0:
            near, far = np.sqrt(near), np.sqrt(far)
        near, far = max(near, _LEAST), max(far, _LEAST)
        alpha = kind(min(near / (near + far), alpha_max))
        for i in range(pixels):
            step = (images[n, i] + eta * across[i]) * (kind(1) - alpha) + (clean[n, i] + eta * back[i]) * alpha
            found[n, i] = min(max(step, low), high)


@compiled.reordering_loop
@no_type_check
def _nearest(image, normal, largest, rise, low, high, squared, room, size, move):
    """`nearest_point` of one image, written to `move`: for Linf or, with `squared`, L2, by the iteration used there.

    `largest` is the largest absolute value in `normal`; `room` and `size` are overwritten.
    """
    pixels, kind = len(image), image.dtype.type
    tiny, most, rounding = np.finfo(image.dtype).tiny, np.finfo(image.dtype).max, np.finfo(image.dtype).eps
    need, total = min(abs(rise) / largest, most), 0.0
    for i in range(pixels):
        room[i] = high - image[i] if (normal[i] > 0) == (rise > 0) else image[i] - low
        size[i] = abs(normal[i]) / largest
        total += size[i] * size[i] if squared else size[i]
    scale = min(need / max(total, tiny), most)
    while True:
        risen, left = 0.0, 0.0
        for i in range(pixels):
            wanted = kind(scale) * size[i] if squared else kind(scale)
            gain = size[i] * size[i] if squared else size[i]
            risen += size[i] * min(room[i], wanted)
            left += gain if room[i] > wanted else kind(0)
        missing = need - risen
        better = min(scale + missing / max(left, tiny), most)
        if not (missing > 4 * rounding * need and left > 0 and kind(better) > kind(scale)):
            break
        scale = better
    for i in range(pixels):
        length = min(room[i], kind(scale) * size[i] if squared else kind(scale))
        move[i] = np.sign(normal[i]) * np.sign(rise) * length


@final
@dataclass
class _Found:
    """The nearest adversarial images of all runs so far, one entry per example of the batch."""

    images: Images
    distance: PerExample
    """Norm of the perturbation in `images`: 0 where the clean image fools already, infinite where nothing fooled."""
    broken: Flags
    """Logits or a gradient were not finite in some run."""
    has_gradient: Flags
    passes: Passes


@dataclass(frozen=True, kw_only=True)
class AbstractFAB(AbstractMinimumNormAttack):
    """Base of `FAB` and `TargetedFAB`, which differ only in the target classes that their runs step towards."""

    norm: ConvexNorm = "linf"
    """Norm of the perturbation that is minimised: Linf, L2 or L1."""
    steps: Annotated[int, at_least(1)] = 100
    """Number of steps of each run."""
    restarts: Annotated[int, at_least(1)] = 1
    """Runs per target class or set of them: the first from the clean image, the others from random points near it."""
    alpha_max: Annotated[float, between(0, 1, "a share")] = 0.1
    """Largest weight of the step from the clean image in the mean of both steps."""
    eta: Annotated[float, between(1, math.inf, without_high=True)] = 1.05
    """Length of a step as a multiple of the distance to the plane (the paper's extrapolation)."""
    beta: Annotated[float, between(0, 1, without_low=True)] = 0.9
    """The backward step: an iterate that fools is replaced by clean image + beta * perturbation."""
    restart_eps: Eps | None = None
    """Random starts lie at half this distance from the clean image, or at half the distance found so far if that is
    less; in pixel units. If None the original's: 0.3 (Linf), 1 (L2) or 5 (L1)."""
    stop_at_distance: Annotated[float, between(0, math.inf, "a distance of")] | None = None
    """Stop attacking an example once an adversarial image within this distance is found; in pixel units. None: never.
    With the value of eps, the success rate at eps stays the same and is reached sooner."""

    @abstractmethod
    def target_classes(self, logits: Logits, criterion: Criterion) -> list[TargetClasses | None]:
        """One entry per run: the target classes whose boundaries its steps consider, `(n, target_classes)`.

        None stands for the most likely other class at each iterate. `logits` are of the clean images.
        """

    @abstractmethod
    def max_boundaries(self, classes: int) -> tuple[int, int]:
        """The largest number of runs per restart, and of target classes in each run, for that number of classes."""

    @final
    def max_passes(self, classes: int) -> Passes:
        """Per image at most: a forward pass for the clean image; per step two, and one backward per target class."""
        runs, target_classes = self.max_boundaries(classes)
        steps = runs * self.restarts * self.steps
        return Passes(1 + 2 * steps, target_classes * steps)

    @final
    def run(
        self, model: Classifier, clean: Images, criterion: Criterion, streams: Streams, advance: Advance
    ) -> RunResult:
        """Make every run from every start, on the examples without an image that fools within `stop_at_distance` yet.

        The candidates are the nearest images that fooled in any run.
        """
        with torch.no_grad():
            logits = model(clean)
        fooled, finite = criterion.is_adversarial(logits), is_valid(logits)
        found = _Found(
            images=clean.clone(),
            distance=torch.where(fooled, 0.0, math.inf).to(clean.dtype),
            broken=~finite,
            has_gradient=torch.zeros_like(fooled),
            passes=Passes(forward=len(clean)),
        )
        left = (~fooled & finite).nonzero().squeeze(1)
        chosen = self.target_classes(logits, criterion)
        work = len(chosen) * self.restarts * self.steps
        for number, target_classes in enumerate(chosen):
            # not `Restarts`: a random start lies within the distance found by the runs before
            for restart in range(self.restarts):
                left = left[self._is_far(found.distance[left])]
                if not len(left):
                    break
                first = chosen[0] if number else None
                at = left if target_classes is None or first is None else left[is_new(target_classes, first)[left]]
                origin = clean[at]
                start = origin
                if restart:
                    purpose = ("start", number, restart)
                    start = self._random_start(
                        origin, found.distance[at], criterion[at], streams[at], purpose, model.bounds
                    )
                targets = None if target_classes is None else target_classes[at]
                for moved in self._search(model, origin, start, criterion[at], targets, at, found):
                    advance(moved / work, "")
        usable = ~found.broken | found.distance.isfinite()
        return RunResult(found.images, usable, found.has_gradient, found.passes)

    def _is_far(self, distance: PerExample) -> Flags:
        """Mask of the examples whose nearest adversarial image so far is beyond `stop_at_distance` (None: all)."""
        return distance > (-math.inf if self.stop_at_distance is None else self.stop_at_distance)

    def _random_start(
        self,
        clean: Images,
        distance: PerExample,
        criterion: Criterion,
        streams: Streams,
        purpose: tuple[int | str, ...],
        bounds: Bounds,
    ) -> Images:
        """A random point per image, as far from it as half of `restart_eps`, or half of `distance` if that is less.

        Points are clipped to the bounds; `purpose` keys the random numbers.
        """
        shape = tuple(clean.shape[1:])
        linf = self.norm == "linf"
        direction = 2 * streams.uniform(shape, *purpose) - 1 if linf else streams.normal(shape, *purpose)
        direction = criterion.masked(direction)
        radius = _RESTART_EPS[self.norm] if self.restart_eps is None else self.restart_eps
        reach = distance.clamp(max=radius) / 2 / norm_of(direction, self.norm).clamp(min=1e-12)
        return (clean + reach.view(-1, 1, 1, 1) * direction).to(clean.dtype).clamp(*bounds)

    def _search(
        self,
        model: Classifier,
        clean: Images,
        images: Images,
        criterion: Criterion,
        target_classes: TargetClasses | None,
        active: Tensor,
        found: _Found,
    ) -> Iterator[int]:
        """One run from `images` for the examples at positions `active`, updating `found`.

        Yields, after every step, the number of examples that made it.
        """
        for _ in range(self.steps):
            if not len(active):
                break
            plane = nearest_boundary(model, images, criterion, target_classes, self.norm)
            images = next_iterates(
                images, clean, plane, self.norm, model.bounds, eta=self.eta, alpha_max=self.alpha_max
            )
            images = criterion.restricted(images, clean)  # means of two equal values round
            with torch.no_grad():
                logits = model(images)
            boundaries = 1 if target_classes is None else target_classes.shape[1]
            found.passes.add(Passes(forward=2 * len(active), backward=boundaries * len(active)))
            found.has_gradient[active] |= plane.length > 0
            finite = plane.finite & is_valid(logits)
            found.broken[active] |= ~finite
            fooled = criterion.is_adversarial(logits) & finite
            delta = images - clean
            distance = norm_of(delta, self.norm)
            nearer = fooled & (distance < found.distance[active])
            found.images[active[nearer]] = images[nearer]
            found.distance[active[nearer]] = distance[nearer]
            images[fooled] = clean[fooled] + self.beta * delta[fooled]
            yield len(active)
            going = finite & self._is_far(found.distance[active])
            if not going.all():
                active, images, clean, criterion = active[going], images[going], clean[going], criterion[going]
                target_classes = None if target_classes is None else target_classes[going]


@final
@dataclass(frozen=True, kw_only=True)
class FAB(AbstractFAB):
    """FAB: each step goes to the nearest of the boundaries with all other classes.

    Untargeted, a step takes a backward pass for every class but one, which is slow for many classes: see `TargetedFAB`.
    With targets, which the paper does not cover, a step goes to the boundary between the target and the class that is
    most likely at the iterate, in one backward pass.
    """

    stream: ClassVar[str] = "FAB"

    def target_classes(self, logits: Logits, criterion: Criterion) -> list[TargetClasses | None]:
        """A single run, whose target classes are all but the label, `(n, classes - 1)`.

        For a targeted attack the entry is None: each step goes to the boundary between the target and the class other
        than it that is most likely at the iterate. So it is for a criterion without classes, with its one boundary.
        """
        if criterion.targeted or not criterion.by_class:
            return [None]
        classes = logits.shape[1]
        offsets = torch.arange(1, classes, device=logits.device)
        return [(criterion.classes.unsqueeze(1) + offsets) % classes]

    def max_boundaries(self, classes: int) -> tuple[int, int]:
        """One run, with every class but the label as a target class."""
        return 1, classes - 1


@final
@dataclass(frozen=True, kw_only=True)
class TargetedFAB(AbstractFAB):
    """FAB-T, as in AutoAttack: one run for each of the most likely wrong classes, with one backward pass per step.

    Each run steps to the boundary between the label and one class; an iterate of any wrong class counts as a success.
    (Croce and Hein 2020, arXiv 2003.01690, section 4.)
    """

    stream: ClassVar[str] = "TargetedFAB"
    targetable: ClassVar[bool] = False
    without_classes: ClassVar[str] = "FAB"

    classes: Annotated[int, at_least(1)] = 9
    """Number of wrong classes to try, one after the other, the most likely first; at most all there are."""

    def target_classes(self, logits: Logits, criterion: Criterion) -> list[TargetClasses | None]:
        """One run for each of the most likely wrong classes at the clean images, `(n, 1)` each, most likely first."""
        return list(likeliest_classes(logits, criterion.classes, self.classes).split(1, dim=1))

    def max_boundaries(self, classes: int) -> tuple[int, int]:
        """One run for each wrong class to try, with that class alone."""
        return min(self.classes, classes - 1), 1
