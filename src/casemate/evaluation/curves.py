"""Accuracy and mean loss against eps or against iterations, with intervals, and every example kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, final

import numpy as np
import torch

from casemate.attacks import (
    COMPARED,
    EOT,
    AbstractGradientAttack,
    Passes,
    Sweep,
    group_size,
    model_of,
    prepare_for_attack,
    sweep_eps,
    sweep_steps,
    with_eps,
)
from casemate.data import LabelledImages
from casemate.evaluation.intervals import mean, share
from casemate.memory import batched
from casemate.models import Classifier, Frozen, Precision, user_call
from casemate.norms import Ball
from casemate.progress import NULL_OBSERVER, Advance, Observer


@final
@dataclass(frozen=True, kw_only=True)
class LastIterates:
    """Arrays `(n, values)`; the fields of `attacks.sweep.Last`."""

    right: np.ndarray
    prediction: np.ndarray
    loss: np.ndarray
    norm: np.ndarray
    status: np.ndarray


@final
@dataclass(frozen=True, kw_only=True)
class Curve:
    """One attack on one model over a range of eps or iterations. Arrays are `(n, values)`."""

    axis: str
    """What varies: "eps" or "steps"."""
    attack: dict[str, Any]
    """The attack's name and hyper-parameters; the field named by `axis` is overridden by each value."""
    values: tuple[float, ...]
    worst: np.ndarray
    """Withstood every iterate up to this value, booleans."""
    last: LastIterates | None
    """The raw last iterates of complete runs; None if only `worst` was computed."""
    passes: Passes

    def points(self) -> list[dict[str, Any]]:
        """One row per value: accuracy `worst` and `last` and mean loss, each with n and 95 % interval."""
        rows = []
        for column, value in enumerate(self.values):
            row: dict[str, Any] = {self.axis: value, "worst": share(self.worst[:, column]).as_json()}
            if self.last is not None:
                row["last"] = share(self.last.right[:, column]).as_json()
                loss = self.last.loss[:, column]
                finite = loss[np.isfinite(loss)]
                row["loss"] = mean(finite).as_json() if finite.size else None
            rows.append(row)
        return rows


def eps_curve(
    model: Classifier,
    attack: AbstractGradientAttack,
    images: LabelledImages,
    values: Sequence[float],
    *,
    only_worst: bool = False,
    warm_start: bool = False,
    seed: int = 0,
    batch_size: int | None = None,
    precision: Precision = "float32",
    observer: Observer = NULL_OBSERVER,
) -> Curve:
    """The curve of `attack` over eps (`values` ascending; 0 = clean); `only_worst` and `warm_start` as in `sweep_eps`.

    `batch_size` is the number of images that pass through the network at a time; if None measured where that pays. What
    the attack holds does not grow with the number of images; they and their results do. `precision` is that of the
    gradients, with `only_worst`; what fools is always said in float32.
    """

    def sweep(prepared: Frozen, pixels: torch.Tensor, labels: torch.Tensor, first: int, advance: Advance) -> Sweep:
        return sweep_eps(
            attack,
            prepared,
            pixels,
            labels,
            values,
            only_worst=only_worst,
            warm_start=warm_start,
            seed=seed,
            first_index=first,
            advance=advance,
        )

    largest = with_eps(attack, max(values, default=0.0)).ball()
    return _curve("eps", model, attack, images, sweep, len(values), batch_size, precision, observer, largest, seed)


def steps_curve(
    model: Classifier,
    attack: AbstractGradientAttack,
    images: LabelledImages,
    values: Sequence[int],
    *,
    seed: int = 0,
    batch_size: int | None = None,
    observer: Observer = NULL_OBSERVER,
) -> Curve:
    """The curve of `attack` over the number of iterations (`values` ascending; 0 = clean); see `eps_curve`."""

    def sweep(prepared: Frozen, pixels: torch.Tensor, labels: torch.Tensor, first: int, advance: Advance) -> Sweep:
        return sweep_steps(attack, prepared, pixels, labels, values, seed=seed, first_index=first, advance=advance)

    return _curve("steps", model, attack, images, sweep, 1, batch_size, "float32", observer, attack.ball(), seed)


def _title(attack: AbstractGradientAttack, axis: str) -> str:
    """What varies, and of averaged gradients whose they are."""
    if isinstance(attack, EOT):
        return f"{_title(attack.attack, axis)}, mean of {attack.eot_samples} gradients"
    return f"{type(attack).__name__} over {axis}"


def _curve(
    axis: str,
    model: Classifier,
    attack: AbstractGradientAttack,
    images: LabelledImages,
    sweep: Callable[[Frozen, torch.Tensor, torch.Tensor, int, Advance], Sweep],
    runs: int,
    batch_size: int | None,
    precision: Precision,
    observer: Observer,
    ball: Ball,
    seed: int,
) -> Curve:
    """Run `sweep`, which is `runs` runs of the attack, on as many images as are worked on in step, and so on."""
    passes = Passes()
    most = attack.max_passes(len(model.classes))
    work = runs * len(images) * (most.forward + most.backward)
    images = images.to_device_if_small(model.device)
    few, _ = images[:COMPARED].tensors(model.device)
    names = [field.name for field in fields(LastIterates)]
    # one array for all groups: kept artifacts between their large arrays would make the memory grow with each
    found: dict[str, np.ndarray] = {}
    no_gradient = not_finite = 0
    with (
        user_call(model_of(model), ball, seed=seed) as call,
        prepare_for_attack(
            model, few, pass_size=batch_size, passes=work, precision=precision, observer=observer
        ) as prepared,
        observer.work(_title(attack, axis), len(images)) as advance,
    ):

        def run(group: slice) -> tuple[float, ...]:
            nonlocal no_gradient, not_finite
            pixels, labels = images[group].tensors(model.device)
            part = sweep(prepared, pixels, labels, group.start, advance)
            passes.add(part.passes)
            no_gradient += int(part.no_gradient.sum())
            not_finite += int(part.not_finite.sum())
            last = {} if part.last is None else {name: getattr(part.last, name) for name in names}
            for name, rows in {"worst": part.worst, **last}.items():
                if name not in found:
                    found[name] = np.empty((len(images), len(part.values)), rows.numpy().dtype)
                found[name][group] = rows.numpy()
            return part.values

        values = batched(len(images), group_size(model.input_shape), run, observer)[0]
    call.warn_of_failures(type(attack).__name__, len(images), no_gradient=no_gradient, not_finite=not_finite)
    worst = found.pop("worst")
    return Curve(
        axis=axis,
        attack=attack.record(),
        values=values,
        worst=worst,
        last=LastIterates(**found) if found else None,
        passes=passes,
    )
