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
from typing import final

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
from casemate.engine import Deaths, Engine
from casemate.errors import SettingError
from casemate.evaluation.adversarial import AdversarialImages
from casemate.evaluation.cascade_result import MISCLASSIFIED, ROBUST, Attempt, Cascade
from casemate.evaluation.intervals import share
from casemate.evaluation.pieces import Nearest, Piece, PieceStore, piece_key, shard_key
from casemate.evaluation.shards import shards_of, speedup_at_most
from casemate.evaluation.steps import Step, StepJob, compute_step, no_images, piece_within, step_setup
from casemate.evaluation.time_left import Afterwards, TimeLeft, cost_of, time_left
from casemate.float32_precision import full_precision
from casemate.logits import is_right
from casemate.models import Classifier, Frozen, Precision, as_model, user_call
from casemate.norms import Ball, Norm, format_eps, parse_eps
from casemate.progress import NULL_OBSERVER, Advance, Observer, Tracked, side_by_side, track
from casemate.timing import duration
from casemate.types import Flags, Labels

_UNKNOWN = Passes(forward=100, backward=100)
"""Passes per image that estimates of the remaining time assume for an attack without a known upper bound."""


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
    engine: Engine | None = None,
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
        engine: whose workers attack shards side by side; this process attacks one after the other if None.

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
        ).whole(engine)
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


@final
@dataclass
class _Shard:
    """A shard of the images while the attacks run on it."""

    at: slice
    keys: Sequence[str]
    """The keys of its pieces, one for each step; empty if they are not kept."""
    remaining: int
    """The most cost on an image of the steps that are still to run."""
    number: int = 0
    """The place of the next step in the list of steps."""
    nearest: dict[str, Nearest] = field(default_factory=dict)
    """The results of minimum-norm attacks at the first eps."""


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
        self.first_correct = int(correct.argmax()) if len(correct) else 0
        self.run_once = {
            name for name, attack in attacks.items() if isinstance(innermost(attack), AbstractMinimumNormAttack)
        }
        self.steps = list(self._steps(attacks, values, len(model.original.classes)))
        self.attacks = {(each.name, each.eps): with_eps(attacks[each.name], each.eps) for each in self.steps}
        self.attempts = [
            Attempt(attack=each.name, eps=each.eps, unlimited=is_unlimited(self.attacks[each.name, each.eps]))
            for each in self.steps
        ]
        self.passes = Passes()
        self.there: set[str] = set()
        self.held = np.zeros(len(values), dtype=np.int64)
        self.announced = False
        self.other_processors: set[str] = set()
        self.taken = 0
        self.start = time.perf_counter()

    def _steps(self, attacks: Mapping[str, AbstractAttack], values: Sequence[float], classes: int) -> Iterator[Step]:
        for column, eps in enumerate(values):
            for place, (name, attack) in enumerate(attacks.items()):
                cost = 0 if column and name in self.run_once else _work(with_eps(attack, eps), classes)
                yield Step(column=column, eps=eps, place=place, name=name, cost=cost)

    def whole(self, engine: Engine | None) -> Cascade:
        """Run all attacks on all shards, by the workers of an engine or in this process."""
        bounds = shards_of(self.images)
        keys = [self._keys(each) for each in bounds]
        total = sum(each.cost for each in self.steps)
        shards = [_Shard(at, some, total) for at, some in zip(bounds, keys, strict=True)]
        with self.observer.work("Attacking", total * len(self.images)) as advance:
            self._look_for_pieces(shards, advance)
            self.start = time.perf_counter()  # not before: to hash many images takes longer than to attack the first
            if engine is None or engine.works_here(len(shards)):
                if engine is not None and not engine.works_here(2):
                    self.observer.message(f"{len(self.images)} images are one part, which this process attacks")
                for shard in shards:
                    self._attack_here(shard, advance)
            else:
                self._attack_in(engine, shards, advance)
        self.found.attempts = [each for each in self.attempts if each.tried]
        self.found.first_success = self.found.first_success.astype(np.int64)
        self.found.distance = self.found.distance.astype(np.float64)
        return self.found

    def _attack_here(self, shard: _Shard, advance: Advance) -> None:
        images = self.images.read(shard.at).to_device_if_small(self.model.original.device)
        while shard.number < len(self.steps):
            piece, note = self._without_attack(shard), ""
            if piece is None:
                job = self._job(shard, images)

                def on_part(fooled: Flags, passes: Passes) -> None:
                    nonlocal note
                    note = self._time_left(shard, fooled, passes)

                attack = self.attacks[job.step.name, job.step.eps]
                piece = compute_step(
                    self.model,
                    attack,
                    job,
                    norm=self.norm,
                    seed=self.seed,
                    observer=self.observer,
                    on_part=on_part,
                )
                piece = self._keep(shard, piece)
            self._take(shard, piece, note, advance)

    def _attack_in(self, engine: Engine, shards: Sequence[_Shard], advance: Advance) -> None:
        """Attack the shards side by side. If a worker dies, the step of the shard that it computed is repeated."""
        waiting, running, deaths = self._unfinished(shards, advance), dict[str, _Shard](), Deaths()
        if not waiting:  # every piece is there already
            return
        few, _ = self.images.read(slice(0, COMPARED_IMAGES)).tensors(self.model.original.device)
        setup = step_setup(self.model, self.attacks, few, norm=self.norm, seed=self.seed)
        with engine.open(setup, self.observer) as pool:
            if words := _waiting_workers(shards, pool.count):
                self.observer.message(words)
            lanes = side_by_side(self.observer, pool.count)
            while waiting or running:
                waiting.sort(key=lambda each: each.remaining * len(self._left(each)), reverse=True)  # most to do first
                for number in pool.idle[: len(waiting)]:
                    shard = waiting.pop(0)
                    step = self.steps[shard.number]
                    name = f"{step.name} at eps {format_eps(step.eps)}, images from {shard.at.start}"
                    running[name] = shard
                    pool.start(number, name, self._job(shard), lanes[number])
                ended, errors = list[_Shard](), list[Exception]()
                for found in pool.wait():
                    shard = running.pop(found.name)
                    error = found.error
                    if found.death is not None:
                        error = deaths.after(found.name, found.death, self.observer)
                    if error is not None:
                        errors.append(error)
                    elif found.result is not None:
                        piece = self._keep(shard, found.result)
                        self._take(shard, piece, self._time_left_of(shards, piece, pool.count), advance)
                    ended.append(shard)
                if errors:  # after what else has ended is kept
                    raise errors[0]
                waiting += self._unfinished(ended, advance)

    def _unfinished(self, shards: Sequence[_Shard], advance: Advance) -> list[_Shard]:
        """The shards whose next step needs an attack; steps that need none are done before."""
        found: list[_Shard] = []
        for shard in shards:
            while shard.number < len(self.steps):
                piece = self._without_attack(shard)
                if piece is None:
                    found.append(shard)
                    break
                self._take(shard, piece, "", advance)
        return found

    def _keys(self, at: slice) -> list[str]:
        """The keys of the pieces of a shard, one for each step; none if they are not kept."""
        found: list[str] = []
        if self.pieces is not None:
            correct = self.found.first_success[at] != MISCLASSIFIED
            key = shard_key(self.model.changes, at.start, self.images.read(at), correct)
            for step in self.steps:
                key = piece_key(key, self.attacks[step.name, step.eps], step.eps)
                found.append(key)
        return found

    def _look_for_pieces(self, shards: Sequence[_Shard], advance: Advance) -> None:
        """Say how many pieces are there already, and advance by all of them at once, as by work of an earlier run."""
        if self.pieces is None:
            return
        self.there = {key for shard in shards for key in shard.keys if self.pieces.has(key)}
        if self.there:
            took = duration(self.pieces.seconds(self.there))
            count = len(shards) * len(self.steps)
            self.observer.message(f"Resumed: {len(self.there)} of {count} pieces are there already, which took {took}")
            found = sum(
                step.cost * (shard.at.stop - shard.at.start)
                for shard in shards
                for step, key in zip(self.steps, shard.keys, strict=True)
                if key in self.there
            )
            advance(found, "")

    def _left(self, shard: _Shard) -> Labels:
        """The positions in a shard of the images that are left, int64."""
        return torch.from_numpy(np.flatnonzero(self.left[shard.at]))

    def _job(self, shard: _Shard, images: LabelledImages | None = None) -> StepJob:
        """The next step of a shard on its images that are left, taken from `images`, all of it, or else read."""
        step, left = self.steps[shard.number], self._left(shard)
        is_first = not shard.number and shard.at.start <= self.first_correct < shard.at.stop
        return StepJob(
            step=step,
            start=shard.at.start,
            places=left,
            images=self.images.read(left + shard.at.start) if images is None else images[left],
            pilot=is_first and step.name not in self.run_once,
            keeps_nearest=self._keeps_nearest(step),
            pass_size=self.model.copy.pass_size,
        )

    def _without_attack(self, shard: _Shard) -> Piece | None:
        """The piece of a shard's next step, if no attack is needed for it; else None.

        It may be stored already, follow from what a minimum-norm attack found at a smaller eps, or have no images.
        """
        step, left = self.steps[shard.number], self._left(shard)
        if self.pieces is not None and (kept := self._kept(shard.keys[shard.number], left)) is not None:
            self.found.resumed_seconds += kept.seconds
            self.model.copy.pass_size = kept.pass_size
            return kept
        found = shard.nearest.get(step.name)
        if found is not None:
            found = found[torch.searchsorted(found.places, left)]
        elif not len(left):
            found = no_images(self.model.original.input_shape)
        else:
            return None
        piece = piece_within(
            found,
            Ball(eps=step.eps, norm=self.norm).reach(self.model.original.bounds),
            passes=Passes(),
            seconds=0.0,
            pass_size=self.model.copy.pass_size,
            keeps_nearest=self._keeps_nearest(step),
        )
        return self._keep(shard, piece)

    def _keeps_nearest(self, step: Step) -> bool:
        """Whether the results of a step at every distance are needed for larger eps."""
        return step.name in self.run_once and not step.column

    def _keep(self, shard: _Shard, piece: Piece) -> Piece:
        """Store a piece of a shard's next step that was computed now; return the one that counts.

        That is another client's if it stored one first.
        """
        if self.pieces is not None:
            piece = self.pieces.put(shard.keys[shard.number], piece)
        self.model.copy.pass_size = piece.pass_size
        return piece

    def _take(self, shard: _Shard, piece: Piece, note: str, advance: Advance) -> None:
        """Add the piece of a shard's next step to the results; the step is then done."""
        number, step = shard.number, self.steps[shard.number]
        shard.number += 1
        shard.remaining -= step.cost
        if piece.nearest is not None:
            shard.nearest[step.name] = piece.nearest
        if piece.processor is not None and piece.processor not in self.other_processors:
            self.other_processors.add(piece.processor)
            self.observer.message(
                f"A part was computed on another kind of processor ({piece.processor}), which rounds differently: on "
                "one machine alone results may differ in the last digits"
            )
        in_file = self.pieces is not None and not isinstance(self.images, LabelledImages)
        self._add(shard, step, piece, self.pieces.path(shard.keys[number]) if self.pieces and in_file else None)
        self.attempts[number].add(piece)
        self.passes.add(piece.passes)
        images = len(self.left)
        words = f"{step.name} at eps {format_eps(step.eps)}: {int(self.left.sum())} of {images} left{note}"
        done = bool(shard.keys) and shard.keys[number] in self.there
        advance(0 if done else step.cost * (shard.at.stop - shard.at.start), words)
        self.taken += 1
        track(self.observer, Tracked(numbers={"attacks/left": float(self.left.mean())}, step=self.taken))
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

    def _add(self, shard: _Shard, step: Step, piece: Piece, part: Path | None) -> None:
        """Add the images that a piece fooled to the results; they stay in `part`, the piece's file, if it is given."""
        places = piece.places.numpy() + shard.at.start
        self.found.examples.add(places, piece.adversarial if part is None else part)
        self.found.distance[places] = piece.distance.numpy()
        self.found.first_success[places] = step.place
        self.left[places] = False

    def _time_left(self, shard: _Shard, fooled: Flags, passes: Passes) -> str:
        """The end of a note: the time left after the first images of a shard's next step, some of which were `fooled`.

        It is also said in a message as soon as it is known well enough, once.
        """
        step, given = self.steps[shard.number], int(self.left[shard.at].sum())
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
            later=shard.remaining - step.cost,
            afterwards=self.afterwards,
            before=spent,
            standing=int(self.left[: shard.at.start].sum()),
            more=(len(self.left) - seen) / seen,
        )
        if tried == given or to_go.is_known(now):
            self._announce(to_go, f"{step.name} on {tried} of {len(self.left)} images")
        return f", {to_go} to go"

    def _time_left_of(self, shards: Sequence[_Shard], ended: Piece, workers: int) -> str:
        """The end of a note: the time left of shards that are attacked side by side, when a piece of one has ended."""
        seconds = sum(each.seconds for each in self.attempts) + ended.seconds
        spent = cost_of(self.passes) + cost_of(ended.passes)
        left = [len(self._left(each)) for each in shards]
        work = sum(count * each.remaining for count, each in zip(left, shards, strict=True))
        given = sum(count for count, each in zip(left, shards, strict=True) if each.remaining)
        to_go = time_left(
            seconds / min(workers, len(shards)) / max(spent, 1),
            share(np.ones(max(given, 1), dtype=bool)),
            given=given,
            rest=0,
            cost=0,
            most=0,
            later=work / max(given, 1),
            afterwards=self.afterwards,
            before=spent,
            standing=sum(left) - given,
        )
        if to_go.is_known(seconds):
            self._announce(to_go, "the first pieces")
        return f", {to_go} to go"

    def _announce(self, to_go: TimeLeft, by: str) -> None:
        """Say the time left in a message, once, if users have to wait for it."""
        if not self.announced and to_go.is_worth_saying:
            self.announced = True
            self.observer.message(f"Time left, by {by}: {to_go}")


def _waiting_workers(shards: Sequence[_Shard], workers: int) -> str:
    """The message that workers will wait, if the largest shard keeps one busy for much longer than the others."""
    factor = speedup_at_most([each.at for each in shards], workers)
    if factor > 0.75 * workers:
        return ""
    sizes = [each.at.stop - each.at.start for each in shards]
    return (
        f"{sum(sizes):,} images are {len(sizes)} parts, of which the largest has {max(sizes):,} and one worker attacks "
        f"it: {workers} workers are at most {factor:.1f} times as fast as one, and wait meanwhile; with more images "
        "they have more to do"
    )


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
