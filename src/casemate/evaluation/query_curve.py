"""How far an attack gets with how many queries: its curve over the number of forward passes, from one run."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor, nn

from casemate.attacks import (
    AbstractAttack,
    Misclassification,
    as_attack,
    check_first,
    group_size,
    prepare_for_attack,
)
from casemate.attacks.base import stream_key
from casemate.attacks.criterion import Watched
from casemate.attacks.prepare import prepare_images
from casemate.data import Array, ImageSource, as_labelled
from casemate.errors import SettingError
from casemate.evaluation.intervals import Estimate, share
from casemate.memory import batched
from casemate.models import Classifier, Frozen, as_model, model_of, user_call
from casemate.norms import Ball, norm_of
from casemate.notebook import html_table
from casemate.progress import NULL_OBSERVER, Observer
from casemate.rng import Streams, derive
from casemate.settings import at_least, listed
from casemate.types import Images, Labels, Logits

_MOST = 128
"""Largest number of images attacked together: where an attack judges more logits than it has computed, the new ones are
found among them by comparing all pairs."""


@final
@dataclass(frozen=True, kw_only=True)
class QueryCurve:
    """How near an attack came to each image within several numbers of queries. Arrays are `(n, values)`."""

    axis: ClassVar[str] = "queries"
    """What varies."""
    attack: dict[str, Any]
    """The attack's name and settings."""
    norm: str
    """The norm in which distances are measured."""
    values: tuple[int, ...]
    """The numbers of queries, ascending."""
    distance: np.ndarray
    """Distance of the nearest image that fooled among the first queries, in the ball of the attack; infinite if none,
    0 where the clean image was among them and is misclassified. Float64 `(n, values)`."""
    queries: np.ndarray
    """Queries that the attack made for each image, int64 `(n,)`; it ends by itself once it is done."""

    @property
    def worst(self) -> np.ndarray:
        """Whether none of the first queries of an image fooled, booleans `(n, values)`."""
        return np.isinf(self.distance)

    def robust(self, eps: float = math.inf) -> list[Estimate]:
        """For each of `values` the share of images that no query within `eps` fooled, with n and 95 % interval.

        Of a minimum-norm attack it is the robust accuracy at `eps`; other attacks search their own ball anyway.
        """
        left = self.worst | (self.distance > eps)
        return [share(left[:, column]) for column in range(len(self.values))]

    def quantile(self, share_of_images: float = 0.5) -> np.ndarray:
        """For each of `values` the distance within which that share of the images is fooled; the median by default.

        Infinite where fewer are fooled. Float64 `(values,)`.
        """
        return np.quantile(self.distance, share_of_images, axis=0, method="inverted_cdf")

    def points(self, eps: float = math.inf) -> list[dict[str, Any]]:
        """One dictionary per value: `worst`, the accuracy left at `eps`, and the `median` distance.

        The median is None where fewer than half of the images are fooled.
        """
        medians = [float(each) if math.isfinite(each) else None for each in self.quantile()]
        return [
            {"queries": value, "worst": left.as_json(), "median": median}
            for value, left, median in zip(self.values, self.robust(eps), medians, strict=True)
        ]

    def __repr__(self) -> str:
        left = self.robust()
        words = " to ".join(f"{left[at]:n} after {self.values[at]:,} queries" for at in (0, -1)[: len(self.values)])
        return (
            f"QueryCurve({self.attack['name']}; robust accuracy {words}; {self.queries.mean():,.0f} queries an image)"
        )

    def _repr_html_(self) -> str:
        rows = [
            (f"{value:,}", f"{left:n}", f"{median:.4g}")
            for value, left, median in zip(self.values, self.robust(), self.quantile(), strict=True)
        ]
        head = ["queries", "robust accuracy", f"median distance ({self.norm})"]
        return html_table(f"{self.attack['name']} over queries", rows, head)


def query_curve(
    model: nn.Module | Frozen,
    attack: AbstractAttack,
    images: ImageSource,
    values: Sequence[int],
    *,
    labels: Array | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    observer: Observer = NULL_OBSERVER,
) -> QueryCurve:
    """Run `attack` once on all images, and return how near it came to each within each number of queries of `values`.

    A query is a forward pass of one image through the model. An image counts as fooled after q queries if one of the
    first q images with which the model was queried for it is misclassified, and lies within the bounds and the ball of
    the attack, also if the attack makes no use of it. The attack runs on the model itself, not on an optimised copy.

    Args:
        model: a `Classifier`, or a module that maps images within [0, 1] to logits.
        attack: any; its own budget limits the queries. Gradients are not counted.
        images, labels: as for `evaluate`.
        values: numbers of queries, ascending.
        seed: of all random draws, which are keyed by example: the result is that of the attack with this seed.
        batch_size: images attacked at a time, at most 128. With 1 it is known of any attack to which image a query
            belongs; otherwise from the logits that the attack judges by its `Criterion`, as all attacks here do.

    Raises:
        SettingError: no values, or values that do not ascend from 1; an attack whose queries belong to no known image.
    """
    attack = as_attack(attack)
    counts = tuple(at_least(0).check(each, "values") for each in listed(values, "values"))
    if not counts or counts[0] < 1 or any(later <= one for one, later in itertools.pairwise(counts)):
        raise SettingError(f"values = {counts}; expected numbers of queries that ascend, the first of them at least 1")
    batch_size = at_least(1).check_optional(batch_size, "batch_size")
    model, images = as_model(model), as_labelled(images, labels)
    known, ball = model_of(model), attack.ball()
    few = check_first(known, images)
    size = min(batch_size or _MOST, _MOST, group_size(known.input_shape))
    with (
        user_call(known, ball, seed=seed),
        prepare_for_attack(model, few, pass_size=batch_size, passes=0, observer=observer) as prepared,
        observer.work(f"{type(attack).__name__} over queries", len(images)) as advance,
    ):
        queried = prepared.verifier

        def run(group: slice) -> tuple[Tensor, Tensor]:
            pixels, truth = images[group].tensors(known.device)
            clean = prepare_images(pixels, known)
            log = _QueryLog(clean, truth, ball, known, counts)
            everyone = torch.arange(len(clean), device=known.device)
            criterion = Misclassification(truth).with_changes(watched=Watched(everyone, log.judged))
            streams = Streams(derive(seed, stream_key(attack)), everyone + group.start)
            hook = queried.register_forward_hook(log.passed)
            try:
                attack.run(queried, clean, criterion, streams, advance)
            finally:
                hook.remove()
            return log.result(type(attack).__name__)

        parts = batched(len(images), size, run, observer)
    distance, queries = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    return QueryCurve(attack=attack.record(), norm=ball.norm, values=counts, distance=distance, queries=queries)


@final
class _QueryLog:
    """Counts the queries of each image of a batch, and keeps the distance of its nearest one that fooled.

    A forward pass says which images were classified, and the criterion, by which the attack then judges the logits,
    to which example each of them belongs.
    """

    def __init__(self, clean: Images, truth: Labels, ball: Ball, model: Classifier, values: tuple[int, ...]) -> None:
        self.clean, self.criterion, self.ball, self.bounds = clean, Misclassification(truth), ball, model.bounds
        self.values = torch.tensor(values, device=clean.device)
        self.spent = torch.zeros(len(clean), dtype=torch.int64, device=clean.device)
        # a column for each value, of the queries after the value before; and one for those after the last value
        self.nearest = torch.full((len(clean), len(values) + 1), math.inf, dtype=torch.float64, device=clean.device)
        self._pending: list[tuple[Images, Logits]] = []

    def passed(self, model: nn.Module, inputs: tuple[Images, ...], logits: Logits) -> None:
        """A forward hook: keep images and logits until it is known whose they are."""
        del model
        images, logits = inputs[0].detach(), logits.detach()
        if len(self.clean) == 1:
            self._record(torch.zeros(len(images), dtype=torch.int64, device=images.device), images, logits)
        else:
            self._pending.append((images, logits.clone()))

    def judged(self, positions: Tensor, logits: Logits) -> None:
        """Record the last passes, now that the examples at `positions` are known to have the `logits`."""
        if not self._pending:
            return
        images, seen = (torch.cat(column) for column in zip(*self._pending, strict=True))
        if len(seen) == len(logits):
            self._record(positions, images, seen)
        else:  # an attack may judge logits again together with new ones
            same = ((seen.unsqueeze(1) == logits) | (seen.isnan().unsqueeze(1) & logits.isnan())).all(2)
            if not same.any(1).all():
                return
            self._record(positions[same.long().argmax(1)], images, seen)
        self._pending = []

    def result(self, attack: str) -> tuple[Tensor, Tensor]:
        """Distances `(n, values)` and numbers of queries `(n,)`.

        Raises `SettingError` if some passes were never judged.
        """
        if self._pending:
            raise SettingError(
                f"it is not known to which images some queries of {attack} belong, since it does not judge their "
                "logits by its criterion; use batch_size=1"
            )
        return self.nearest.cummin(1).values[:, :-1], self.spent

    def _record(self, whose: Tensor, images: Images, logits: Logits) -> None:
        order = whose.argsort(stable=True)
        whose, images, logits = whose[order], images[order], logits[order]
        made = torch.bincount(whose, minlength=len(self.spent))
        number = torch.arange(1, len(whose) + 1, device=whose.device) - (made.cumsum(0) - made)[whose]
        column = torch.searchsorted(self.values, self.spent[whose] + number)
        self.spent += made
        hit = self.criterion[whose].is_adversarial(logits)
        if not hit.any():
            return
        whose, images, column = whose[hit], images[hit], column[hit]
        distance = norm_of(images.double() - self.clean[whose].double(), self.ball.norm)
        low, high = self.bounds
        inside = (images >= low).flatten(1).all(1) & (images <= high).flatten(1).all(1)
        distance = distance.masked_fill(~inside | (distance > self.ball.reach(self.bounds)), math.inf)
        place = whose * self.nearest.shape[1] + column
        self.nearest.view(-1).scatter_reduce_(0, place, distance, "amin")
