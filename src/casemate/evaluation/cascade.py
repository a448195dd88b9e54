"""The worst case per example: a list of attacks in order, each on the images that the ones before it left, over eps.

An image fooled at one eps counts as fooled at every larger one, so later attacks and larger radii get fewer and fewer
images. Minimum-norm attacks run once, at the smallest eps, and count at every eps that the distance found is within.
All attacks run on one shard of the images after the other (`shards.py`), on the survivors of the whole shard, so that
the batches of later attacks stay full; within one batch `AutoAttack` does the same. What an attack at one eps finds on
a shard is a piece, which a store can keep (`pieces.py`). `worst_case` (in `curves.py`) runs each attack on all images
instead, to compare them.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor, nn

from casemate.attacks import (
    COMPARED_IMAGES,
    AbstractAttack,
    AbstractMinimumNormAttack,
    Passes,
    Status,
    innermost,
    is_unlimited,
    model_of,
    prepare_for_attack,
    with_eps,
)
from casemate.data import LabelledImages, ReadableImages
from casemate.errors import SettingError
from casemate.evaluation.adversarial import AdversarialImages
from casemate.evaluation.clean import is_right
from casemate.evaluation.intervals import share
from casemate.evaluation.pieces import Nearest, Piece, PieceStore, piece_key, shard_key
from casemate.evaluation.shards import shards_of
from casemate.evaluation.time_left import Afterwards, cost_of, part_size, time_left
from casemate.models import Classifier, Frozen, Precision, as_model, full_precision, user_call
from casemate.norms import Ball, Norm, format_eps, parse_eps
from casemate.progress import NULL_OBSERVER, Advance, Observer, Tracked, track
from casemate.rng import all_seeded, derive
from casemate.timing import duration

ROBUST = -1
"""In `Cascade.first_success`: no attack fooled the image."""
MISCLASSIFIED = -2
"""In `Cascade.first_success`: the image is misclassified without an attack."""
_UNKNOWN = Passes(forward=100, backward=100)
"""Passes per image that estimates of the remaining time assume for an attack without a known upper bound."""


@final
@dataclass(kw_only=True)
class Attempt:
    """One attack at one eps of a `Cascade`: how many images it was run on, how many it fooled, and its cost."""

    attack: str
    """Name of the attack in `Cascade.attacks`."""
    eps: float
    tried: int = 0
    """Number of images that the attack was run on: those correctly classified that no attempt before had fooled."""
    fooled: int = 0
    """Number of images fooled within eps."""
    seconds: float = 0.0
    passes: Passes = field(default_factory=Passes)
    """Forward and backward passes over all images; zero if a minimum-norm attack's earlier result was used again."""
    status: dict[str, int] = field(default_factory=lambda: {each.name.lower(): 0 for each in Status})
    """Number of the images tried that ended with each `Status`, by its name in lower case."""
    unlimited: bool = False
    """Whether it is a minimum-norm attack on the model (not on a substitute), which searches at any distance."""

    @property
    def not_found(self) -> int:
        """Number of images for which a minimum-norm attack found no adversarial image at all; 0 for other attacks."""
        return self.status[Status.FAILED.name.lower()] if self.unlimited else 0

    def add(self, piece: Piece) -> None:
        """Add the result of the attack on the images of one shard."""
        self.tried += piece.tried
        self.fooled += len(piece.places)
        self.seconds += piece.seconds
        self.passes.add(piece.passes)
        for name, count in piece.status.items():
            self.status[name] += count


@final
@dataclass(kw_only=True)
class Cascade:
    """The result of `run_cascade`: the worst case over a list of attacks, per image and eps."""

    norm: Norm
    values: tuple[float, ...]
    """The values of eps, ascending."""
    attacks: dict[str, dict[str, Any]]
    """The settings of each attack by its name, in the order in which the attacks were run."""
    robust: np.ndarray
    """Whether each image is classified correctly under all attacks at this and every smaller eps, `(n, values)`."""
    first_success: np.ndarray
    """Position in `attacks` of the first attack that fooled each image, `ROBUST` or `MISCLASSIFIED`, int64 `(n,)`."""
    examples: AdversarialImages
    """The first adversarial image found for each image, at the smallest eps that gave one, or else the clean image."""
    distance: np.ndarray
    """Norm of the perturbation in `adversarial`, `(n,)`: 0 if the clean image is misclassified, infinite if no attack
    succeeded."""
    attempts: list[Attempt] = field(default_factory=list)
    """One for each attack and eps, in the order in which they were run; left out where no image was left to attack."""
    resumed_seconds: float = 0.0
    """Seconds of an earlier, stopped evaluation in those of the attempts."""

    @property
    def adversarial(self) -> Tensor:
        """All images of `examples`, `(n, channels, height, width)`, on the CPU; they are put together at every use."""
        return self.examples.whole()

    @property
    def passes(self) -> Passes:
        """Forward and backward passes of all attempts together."""
        total = Passes()
        for attempt in self.attempts:
            total.add(attempt.passes)
        return total

    def attempt(self, eps: float, name: str) -> Attempt | None:
        """The attempt of the attack `name` at `eps`; None if no image was left for it."""
        return next((each for each in self.attempts if each.attack == name and each.eps == eps), None)


def run_cascade(
    model: nn.Module | Frozen,
    attacks: Mapping[str, AbstractAttack],
    images: ReadableImages,
    values: Sequence[float],
    *,
    norm: Norm = "linf",
    correct: np.ndarray | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    precision: Precision = "float32",
    afterwards: Afterwards | None = None,
    pieces: PieceStore | None = None,
    observer: Observer = NULL_OBSERVER,
) -> Cascade:
    """Run `attacks` in order, at every eps of `values`, on the images that no attack before has fooled.

    The observer receives the time left, as a range: after a pilot, which is a twentieth of the first attack on the
    first shard of the images, as a message, and after each attack in the note on the progress.

    Args:
        attacks: by name. An attack with a field `eps` is run at each of `values` instead of at its own eps.
        values: of eps, ascending, in pixel units.
        norm: the norm of every attack, in which eps is measured.
        correct: which images are classified correctly without an attack, booleans `(n,)`; computed if None.
        seed: of all random draws, which are keyed by example.
        batch_size: images that pass through the network at a time; measured if None.
        precision: of the gradients of attacks within a ball; whether an image fools is decided in float32.
        afterwards: the most passes that the caller makes after the attacks, for the time left; none if None.
        pieces: where finished pieces are kept; those that are there already are not computed again.

    Raises:
        SettingError: no attacks, no values or values that do not ascend, an attack in another norm.
    """
    values = tuple(parse_eps(value) for value in values)
    _check(attacks, values, norm)
    model = as_model(model)
    known = model_of(model)
    few, _ = images.read(slice(0, COMPARED_IMAGES)).tensors(known.device)
    known.infer(few)
    work = most_work(attacks, len(images), len(known.classes))
    with (
        user_call(known, Ball(eps=values[-1], norm=norm), seed=seed) as call,
        prepare_for_attack(
            model, few, pass_size=batch_size, passes=work, precision=precision, observer=observer
        ) as prepared,
    ):
        if correct is None:
            correct = _correct(prepared.verifier, images)
        found = _Run(
            prepared, attacks, images, values, norm, correct, seed, afterwards or Afterwards(), pieces, observer
        ).whole()
    for attempt in (each for each in found.attempts if each.eps == values[-1]):
        status = {each: attempt.status[each.name.lower()] for each in Status}
        call.warn_of_failures(
            attempt.attack,
            attempt.tried,
            no_gradient=status[Status.ZERO_GRADIENT],
            not_finite=status[Status.NON_FINITE],
            not_found=attempt.not_found,
        )
    return found


class _Step(NamedTuple):
    """One attack at one eps, with its places in the lists of attacks and eps, and its most cost on an image."""

    column: int
    eps: float
    place: int
    name: str
    attack: AbstractAttack
    cost: int


@final
@dataclass
class _Shard:
    """A shard of the images while the attacks run on it."""

    at: slice
    images: LabelledImages
    keys: Sequence[str]
    """The keys of its pieces, one for each step; empty if they are not kept."""
    nearest: dict[str, Nearest]
    """The results of minimum-norm attacks at the first eps."""
    remaining: int
    """The most cost on an image of the steps that are still to run."""


@final
class _Run:
    """`run_cascade` on a model prepared for attacks, without checks of its arguments and without warnings."""

    def __init__(
        self,
        model: Frozen,
        attacks: Mapping[str, AbstractAttack],
        images: ReadableImages,
        values: tuple[float, ...],
        norm: Norm,
        correct: np.ndarray,
        seed: int,
        afterwards: Afterwards,
        pieces: PieceStore | None,
        observer: Observer,
    ) -> None:
        self.model, self.images, self.seed = model, images, seed
        self.norm: Norm = norm
        self.afterwards, self.pieces, self.observer = afterwards, pieces, observer
        self.found = Cascade(
            norm=norm,
            values=values,
            attacks={name: attack.record() for name, attack in attacks.items()},
            robust=np.zeros((len(images), len(values)), dtype=bool),
            # both in half the bytes, or less, while attacks run and memory is short
            first_success=np.where(correct, np.int16(ROBUST), np.int16(MISCLASSIFIED)),
            examples=AdversarialImages(images),
            distance=np.where(correct, np.float32(np.inf), np.float32(0)),
        )
        self.left = correct.copy()
        self.run_once = {
            name for name, attack in attacks.items() if isinstance(innermost(attack), AbstractMinimumNormAttack)
        }
        self.steps = list(self._steps(attacks, values, len(model.original.classes)))
        self.attempts = [
            Attempt(attack=each.name, eps=each.eps, unlimited=is_unlimited(each.attack)) for each in self.steps
        ]
        self.passes = Passes()
        self.there: set[str] = set()
        self.held = np.zeros(len(values), dtype=np.int64)
        self.piloted = self.announced = False
        self.taken = 0
        self.start = time.perf_counter()

    def _steps(self, attacks: Mapping[str, AbstractAttack], values: Sequence[float], classes: int) -> Iterator[_Step]:
        for column, eps in enumerate(values):
            for place, (name, attack) in enumerate(attacks.items()):
                cost = 0 if column and name in self.run_once else _work(attack, classes)
                yield _Step(column, eps, place, name, with_eps(attack, eps), cost)

    def whole(self) -> Cascade:
        """Run all attacks on all shards."""
        shards = shards_of(self.images)
        keys = [self._keys(each) for each in shards]
        total = sum(each.cost for each in self.steps)
        with self.observer.work("Attacking", total * len(self.images)) as advance:
            self._look_for_pieces(shards, keys, advance)
            self.start = time.perf_counter()  # not before: to hash many images takes longer than to attack the first
            for at, some in zip(shards, keys, strict=True):
                images = self.images.read(at).to_device_if_small(self.model.original.device)
                shard = _Shard(at, images, some, {}, total)
                for number in range(len(self.steps)):
                    self._take(shard, number, advance)
        self.found.attempts = [each for each in self.attempts if each.tried]
        self.found.first_success = self.found.first_success.astype(np.int64)
        self.found.distance = self.found.distance.astype(np.float64)
        return self.found

    def _keys(self, at: slice) -> list[str]:
        """The keys of the pieces of a shard, one for each step; none if they are not kept."""
        found: list[str] = []
        if self.pieces is not None:
            correct = self.found.first_success[at] != MISCLASSIFIED
            key = shard_key(self.model.changes, at.start, self.images.read(at), correct)
            for step in self.steps:
                key = piece_key(key, step.attack, step.eps)
                found.append(key)
        return found

    def _look_for_pieces(self, shards: Sequence[slice], keys: Sequence[Sequence[str]], advance: Advance) -> None:
        """Say how many pieces are there already, and advance by all of them at once, as by work of an earlier run."""
        if self.pieces is None:
            return
        self.there = {key for some in keys for key in some if self.pieces.has(key)}
        if self.there:
            took = duration(self.pieces.seconds(self.there))
            count = len(shards) * len(self.steps)
            self.observer.message(f"Resumed: {len(self.there)} of {count} pieces are there already, which took {took}")
            found = sum(
                step.cost * (at.stop - at.start)
                for at, some in zip(shards, keys, strict=True)
                for step, key in zip(self.steps, some, strict=True)
                if key in self.there
            )
            advance(found, "")

    def _take(self, shard: _Shard, number: int, advance: Advance) -> None:
        """Take one step on a shard: find its piece or compute it, and add it to the results."""
        step, attempt = self.steps[number], self.attempts[number]
        shard.remaining -= step.cost
        left = torch.from_numpy(np.flatnonzero(self.left[shard.at]))
        piece, part = None, None
        if self.pieces is not None:
            piece = self._kept(shard.keys[number], left)
            part = None if isinstance(self.images, LabelledImages) else self.pieces.path(shard.keys[number])
        note = ""
        if piece is not None:
            self.found.resumed_seconds += piece.seconds
            self.model.copy.pass_size = piece.pass_size
        else:
            piece, note = self._computed(shard, step, left)
            if self.pieces is not None:
                self.pieces.put(shard.keys[number], piece)
        if piece.nearest is not None:
            shard.nearest[step.name] = piece.nearest
        self._add(shard, step, piece, part)
        attempt.add(piece)
        self.passes.add(piece.passes)
        self.piloted |= piece.tried > 0
        images = len(self.left)
        words = f"{step.name} at eps {format_eps(step.eps)}: {int(self.left.sum())} of {images} left{note}"
        done = bool(shard.keys) and shard.keys[number] in self.there
        advance(0 if done else step.cost * len(shard.images), words)
        self.taken += 1
        left_of_seen = float(self.left[: shard.at.stop].mean())
        track(self.observer, Tracked(numbers={"attacks/left": left_of_seen}, step=self.taken))
        if step.place == len(self.found.attacks) - 1:
            robust = self.left[shard.at]
            self.found.robust[shard.at, step.column] = robust
            self.held[step.column] += robust.sum()
            if self.held[step.column] > self.afterwards.fallen_up_to:  # it stands here, whatever larger eps show
                self.afterwards = Afterwards(self.afterwards.standing, self.afterwards.standing)

    def _kept(self, key: str, left: Tensor) -> Piece | None:
        """The stored piece with a key; None if there is none that fits the images that are left."""
        if self.pieces is None or not self.pieces.has(key):
            return None
        piece = self.pieces.find(key)
        if piece is not None and piece.tried == len(left) and bool(torch.isin(piece.places, left).all()):
            return piece
        self.observer.message(f"{self.pieces.path(key)}, a piece of the evaluation, is damaged; it is computed again")
        return None

    def _add(self, shard: _Shard, step: _Step, piece: Piece, part: Path | None) -> None:
        """Add the images that a piece fooled to the results; they stay in `part`, the piece's file, if it is given."""
        places = piece.places.numpy() + shard.at.start
        self.found.examples.add(places, piece.adversarial if part is None else part)
        self.found.distance[places] = piece.distance.numpy()
        self.found.first_success[places] = step.place
        self.left[places] = False

    def _computed(self, shard: _Shard, step: _Step, left: Tensor) -> tuple[Piece, str]:
        """The piece of one step on the images of a shard that are left, and the end of a note: the time left.

        Draws of a model's own, which are not keyed by example, depend on seed, shard and step alone.
        """
        device = self.model.original.device
        reach = Ball(eps=step.eps, norm=self.norm).reach(self.model.original.bounds)
        made: list[Nearest] = []
        passes, seconds, tried, note = Passes(), 0.0, 0, ""
        whole = self.piloted or step.name in self.run_once
        with all_seeded(device, derive(self.seed, "piece", shard.at.start, step.column, step.place)):
            while tried < len(left):
                part = left[tried:][: len(left) if whole else part_size(len(left), tried)]
                begun = time.perf_counter()
                result, spent = self._attacked(shard, step, part)
                made.append(result)
                passes.add(spent)
                seconds += time.perf_counter() - begun
                tried += len(part)
                fooled = torch.cat([each.success & (each.norm <= reach) for each in made])
                note = self._time_left(shard, step, fooled, len(left), passes)
        if not made:
            shape = shard.images.pixels.shape[1:]
            none = torch.zeros(0, dtype=torch.int64)
            made = [Nearest(none, torch.zeros(0, *shape), none.bool(), none.float(), none.to(torch.uint8))]
        places, images, success, norm, status = (
            torch.cat([getattr(each, name) for each in made]) for name in Nearest.__dataclass_fields__
        )
        # not every attack stays within eps: minimum-norm ones, BIM with clip `range`, Spatial
        hit = success & (norm <= reach)
        once = step.name in self.run_once and not step.column
        piece = Piece(
            tried=tried,
            places=places[hit],
            adversarial=images[hit],
            distance=norm[hit],
            status={each.name.lower(): int((status == each).sum()) for each in Status},
            passes=passes,
            seconds=seconds,
            pass_size=self.model.copy.pass_size,
            nearest=Nearest(places, images, success, norm, status) if once else None,
        )
        return piece, note

    def _attacked(self, shard: _Shard, step: _Step, part: Tensor) -> tuple[Nearest, Passes]:
        """The result of an attack at its eps on the images at some positions; of a minimum-norm attack, the first."""
        if step.name in shard.nearest:
            nearest = shard.nearest[step.name]
            return nearest[torch.searchsorted(nearest.places, part)], Passes()
        pixels, labels = shard.images[part].tensors(self.model.original.device)
        index = part + shard.at.start
        result = step.attack(self.model, pixels, labels, seed=self.seed, index=index, observer=self.observer)
        columns = (result.adversarial, result.success, result.norm, result.status)
        return Nearest(part, *(each.cpu() for each in columns)), result.passes

    def _time_left(self, shard: _Shard, step: _Step, fooled: Tensor, given: int, passes: Passes) -> str:
        """The end of a note: the time left after the first of the `given` images, of which some were `fooled`.

        It is also said in a message as soon as it is known well enough, once.
        """
        now, tried = time.perf_counter() - self.start, len(fooled)
        cost, seen = cost_of(passes), shard.at.stop
        spent = cost_of(self.passes) + cost
        to_go = time_left(
            (now + self.found.resumed_seconds) / max(spent, 1),
            share(~fooled.numpy()),
            given=given,
            rest=given - tried,
            cost=cost / tried,
            most=step.cost,
            later=shard.remaining,
            afterwards=self.afterwards,
            before=spent,
            standing=int(self.left[: shard.at.start].sum()),
            more=(len(self.left) - seen) / seen,
        )
        known = tried == given or to_go.is_known(now)
        if not self.announced and known and to_go.is_worth_saying:
            self.announced = True
            images = len(self.left)
            self.observer.message(f"Time left, by {step.name} on {tried} of {images} images: {to_go}")
        return f", {to_go} to go"


def most_work(attacks: Mapping[str, AbstractAttack], images: int, classes: int) -> int | None:
    """Upper bound of the passes, forward and backward added up, of all attacks on `images` images at one eps.

    None if one of the attacks has no known bound.
    """
    found = [attack.max_passes(classes) for attack in attacks.values()]
    known = [most.total for most in found if most is not None]
    return images * sum(known) if len(known) == len(found) else None


def _work(attack: AbstractAttack, classes: int) -> int:
    """Most passes of an attack on one image, a backward pass counting as two; a guess for an attack without a bound."""
    most = attack.max_passes(classes) or _UNKNOWN
    return most.forward + 2 * most.backward


def _check(attacks: Mapping[str, AbstractAttack], values: Sequence[float], norm: Norm) -> None:
    if not attacks:
        raise SettingError("no attacks; expected at least one, such as {'pgd': PGD(eps=8 / 255)}")
    if not values or list(values) != sorted(set(values)) or values[0] < 0:
        raise SettingError(f"eps = {list(values)}; expected at least one value, ascending, none below zero")
    for name, attack in attacks.items():
        if attack.ball().norm != norm:
            raise SettingError(f"the attack {name} has norm {attack.ball().norm}; expected {norm}, the norm of eps")


@torch.no_grad()
@full_precision()
def _correct(model: Classifier, images: ReadableImages) -> np.ndarray:
    """Which images are classified correctly without an attack, booleans `(n,)`."""

    def classify(part: slice) -> tuple[Tensor, ...]:
        pixels, labels = images.read(part).tensors(model.device)
        return (is_right(model(pixels), labels),)

    return model.in_parts(len(images), classify)[0].cpu().numpy()
