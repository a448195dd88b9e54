"""One attack at one eps on the images of a shard that the attacks before it left: what is computed for a piece.

A step can be computed in this process, or as the job of a worker to which the prepared model was sent once.
"""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any, final

import torch

from casemate.attacks import AbstractAttack, Passes, Status, prepare_for_attack
from casemate.data import LabelledImages
from casemate.engine import Compute, code_version
from casemate.engine.evaluations import ATTACKS
from casemate.errors import MachineError
from casemate.evaluation.pieces import Nearest, Piece
from casemate.evaluation.time_left import part_size
from casemate.models import Classifier, Frozen, numeric_settings, numeric_settings_as
from casemate.models.accel.equivalence import relative_difference
from casemate.norms import Ball, Norm
from casemate.progress import NULL_OBSERVER, Observer
from casemate.provenance import environment, instruction_set, processor
from casemate.rng import all_seeded, derive
from casemate.types import Flags, Images, Labels, Logits

_SAME = 1e-3
"""Largest relative difference of logits that rounding on another processor can make."""

OnPart = Callable[[Flags, Passes], None]
"""Called after each part of the images with which of the images so far were fooled, and the passes so far."""


@final
@dataclass(frozen=True, kw_only=True)
class Step:
    """One attack at one eps, with its places in the lists of attacks and eps, and its most cost on an image."""

    column: int
    eps: float
    place: int
    name: str
    cost: int


@final
@dataclass(frozen=True, kw_only=True)
class StepJob:
    """A step on the images of a shard that are left."""

    step: Step
    start: int
    """Position of the shard's first image in the data."""
    places: Labels
    """Positions in the shard of the images that are left, int64 `(k,)`."""
    images: LabelledImages
    """These images."""
    pilot: bool
    """Whether the images are attacked in parts, the first of which shows how long the others will take."""
    keeps_nearest: bool
    """Whether the results at every distance are kept too, from which those at larger eps follow."""
    pass_size: int | None
    """Images per pass."""


def compute_step(
    model: Frozen,
    attack: AbstractAttack,
    job: StepJob,
    *,
    norm: Norm,
    seed: int,
    observer: Observer,
    on_part: OnPart | None = None,
) -> Piece:
    """Run an attack at its eps on the images of a job.

    Draws of a model's own, which are not keyed by example, depend on seed, shard and step alone.
    """
    step, left = job.step, job.places
    reach = Ball(eps=step.eps, norm=norm).reach(model.original.bounds)
    device = model.original.device
    made: list[Nearest] = []
    passes, seconds, tried = Passes(), 0.0, 0
    with all_seeded(device, derive(seed, "piece", job.start, step.column, step.place)):
        while tried < len(left):
            part = slice(tried, tried + (part_size(len(left), tried) if job.pilot else len(left)))
            begun = time.perf_counter()
            pixels, labels = job.images[part].tensors(device)
            result = attack(model, pixels, labels, seed=seed, index=left[part] + job.start, observer=observer)
            columns = (result.adversarial, result.success, result.norm, result.status)
            made.append(Nearest(left[part], *(each.cpu() for each in columns)))
            passes.add(result.passes)
            seconds += time.perf_counter() - begun
            tried += len(left[part])
            if on_part is not None:
                on_part(torch.cat([each.success & (each.norm <= reach) for each in made]), passes)
    nearest = Nearest(*(torch.cat([getattr(each, field.name) for each in made]) for field in fields(Nearest)))
    return piece_within(
        nearest, reach, passes=passes, seconds=seconds, pass_size=model.copy.pass_size, keeps_nearest=job.keeps_nearest
    )


def no_images(image_shape: tuple[int, ...]) -> Nearest:
    """The results of an attack on no images."""
    none = torch.zeros(0, dtype=torch.int64)
    return Nearest(none, torch.zeros(0, *image_shape), none.bool(), none.float(), none.to(torch.uint8))


def piece_within(
    found: Nearest, reach: float, *, passes: Passes, seconds: float, pass_size: int | None, keeps_nearest: bool = False
) -> Piece:
    """The piece of results at whatever distance, of which those within `reach` count as fooled.

    Not every attack stays within eps: minimum-norm ones, BIM with clip `range` and Spatial do not.
    """
    hit = found.success & (found.norm <= reach)
    return Piece(
        tried=len(found.places),
        places=found.places[hit],
        adversarial=found.images[hit],
        distance=found.norm[hit],
        status={each.name.lower(): int((found.status == each).sum()) for each in Status},
        passes=passes,
        seconds=seconds,
        pass_size=pass_size,
        nearest=found if keeps_nearest else None,
    )


@final
@dataclass(frozen=True, kw_only=True)
class StepSetup:
    """What workers need to compute steps: a job is a `StepJob`, its result a `Piece`."""

    model: Frozen
    attacks: Mapping[tuple[str, float], AbstractAttack]
    """By name and eps."""
    norm: Norm
    seed: int
    threads: int
    settings: Sequence[Any]
    """PyTorch's global settings, as by `numeric_settings`."""
    versions: Mapping[str, Any]
    """Of the code and of PyTorch, which must be the same where a step is computed."""
    few: Images
    """A few images."""
    logits: Logits
    """The model's logits on them, which must be the same where a step is computed, up to rounding."""

    @contextmanager
    def open(self) -> Iterator[Compute]:
        """Freeze the model. Raises `MachineError` if other versions are installed on this machine."""
        own = versions(self.model.original)
        if own != self.versions:
            differs = [f"{name} {own[name]} here, {self.versions.get(name)} there" for name in own]
            raise MachineError(
                f"a worker has other versions than the process that started it ({'; '.join(differs)}); install the "
                "same versions of casemate and PyTorch on every machine"
            )
        torch.set_num_threads(self.threads)
        with numeric_settings_as(self.settings), prepare_for_attack(self.model, self.few) as model:
            logits = _logits(model, self.few, self.seed)
            on_cpu = self.model.original.device.type == "cpu"  # a GPU may round differently from call to call
            is_other = on_cpu and not torch.equal(logits.nan_to_num(), self.logits.nan_to_num())
            if relative_difference(logits, self.logits) > _SAME:
                raise MachineError(
                    "a worker computes other logits than the process that started it: there the network's code or what "
                    "it reads is another; use the same files everywhere, or no engine (on the command line --workers 1)"
                )

            def compute(job: StepJob, observer: Observer) -> Piece:
                model.copy.pass_size, model.copy.observer = job.pass_size, observer
                attack = self.attacks[job.step.name, job.step.eps]
                piece = compute_step(model, attack, job, norm=self.norm, seed=self.seed, observer=observer)
                return replace(piece, processor=f"{processor()}, {instruction_set()}" if is_other else None)

            yield compute


def step_setup(
    model: Frozen, attacks: Mapping[tuple[str, float], AbstractAttack], few: Images, *, norm: Norm, seed: int
) -> StepSetup:
    """The setup of workers for a prepared model, without its observer, which stays in this process.

    `few` are images on which workers compare their logits with those of this process.
    """
    return StepSetup(
        model=_without_observer(model),
        attacks=attacks,
        norm=norm,
        seed=seed,
        threads=torch.get_num_threads(),
        settings=numeric_settings(),
        versions=versions(model.original),
        few=few,
        logits=_logits(model, few, seed),
    )


@torch.no_grad()
def _logits(model: Frozen, images: Images, seed: int) -> Logits:
    with all_seeded(model.original.device, derive(seed, "workers")):
        return model.verifier(images).cpu()


def versions(model: Classifier) -> dict[str, Any]:
    """The versions of what the bits of a result depend on, where the model is."""
    return {"casemate": code_version(ATTACKS), **environment(model.device.type)}


def _without_observer(model: Frozen) -> Frozen:
    def silent(part: Classifier) -> Classifier:
        same = copy.copy(part)
        same.observer = NULL_OBSERVER
        return same

    low = None if model.low_precision is None else silent(model.low_precision)
    return replace(model, original=silent(model.original), copy=silent(model.copy), low_precision=low)
