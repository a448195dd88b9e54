"""Accuracy and mean loss of one attack or several against eps or iterations, on all images, with every example kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, final

import numpy as np
import torch
from torch import nn

from casemate.attacks import (
    COMPARED_IMAGES,
    EOT,
    AbstractGradientAttack,
    Passes,
    Sweep,
    as_attack,
    check_first,
    group_size,
    prepare_for_attack,
    sweep_eps,
    sweep_steps,
    with_eps,
)
from casemate.attacks.named import Attacks, named_attacks
from casemate.data import Array, ImageSource, LabelledImages, as_labelled
from casemate.errors import SettingError
from casemate.evaluation.intervals import mean, share
from casemate.memory import batched
from casemate.models import Classifier, Frozen, Precision, as_classifier, as_model, model_of, user_call
from casemate.norms import Ball, format_eps, parse_eps
from casemate.notebook import html_table
from casemate.progress import NULL_OBSERVER, Advance, Observer
from casemate.settings import at_least, listed


@final
@dataclass(frozen=True, kw_only=True)
class LastIterates:
    """Results at each image's last iterate, fooling or not: `(n, values)`, a column per eps or number of steps."""

    right: np.ndarray
    """Whether each image's last iterate does not fool, booleans `(n, values)`: a column per eps or number of steps."""
    prediction: np.ndarray
    """Class predicted for each image's last iterate, int64 `(n, values)`: a column per eps or number of steps."""
    loss: np.ndarray
    """Cross-entropy of the label at each image's last iterate, `(n, values)`: a column per eps or number of steps."""
    norm: np.ndarray
    """Norm of the perturbation of each image's last iterate, in the norm of the attack, `(n, values)`: a column per eps
    or number of steps."""
    status: np.ndarray
    """`Status` code of each image, uint8 `(n, values)`: a column per eps or number of steps."""


@final
@dataclass(frozen=True, kw_only=True)
class Curve:
    """Per-image results of one attack on one model at several eps or numbers of steps. Arrays are `(n, values)`."""

    axis: str
    """What varies: "eps" or "steps"."""
    attack: dict[str, Any]
    """The attack's name and settings; its setting that `axis` names was replaced by each of `values` in turn."""
    values: tuple[float, ...]
    """The values of eps or numbers of iterations, ascending."""
    worst: np.ndarray
    """Whether each image is classified correctly at every iterate, at this and every smaller value, `(n, values)`."""
    last: LastIterates | None
    """Results at the last iterates of complete runs; None if only `worst` was computed."""
    passes: Passes

    def points(self) -> list[dict[str, Any]]:
        """One dictionary per value: the accuracies `worst` and `last` and the mean `loss`, with n and 95 % interval.

        `last` and `loss` are missing if only `worst` was computed; losses that are not finite do not enter the mean.
        """
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

    def _shown(self, value: float) -> str:
        """One of `values` as text."""
        return format_eps(value) if self.axis == "eps" else f"{value:g}"

    def __repr__(self) -> str:
        ends = [(self._shown(self.values[at]), share(self.worst[:, at])) for at in (0, -1)][: len(self.values)]
        words = " to ".join(f"{estimate:n} at {self.axis} {value}" for value, estimate in ends)
        passes = f"{self.passes.forward:,} forward, {self.passes.backward:,} backward"
        name = self.attack["name"]
        return f"Curve({name}, {len(self.values)} values of {self.axis}; robust accuracy {words}; passes {passes})"

    def _repr_html_(self) -> str:
        head = [self.axis, "robust accuracy (worst)"]
        columns = [[self._shown(value) for value in self.values]]
        columns.append([f"{share(self.worst[:, at]):n}" for at in range(len(self.values))])
        if self.last is not None:
            head.append("at the last iterate")
            columns.append([f"{share(self.last.right[:, at]):n}" for at in range(len(self.values))])
        return html_table(f"{self.attack['name']} over {self.axis}", list(zip(*columns, strict=True)), head)


@final
@dataclass(frozen=True, kw_only=True)
class WorstCase:
    """Which images withstood each of several attacks, and all of them. Arrays are booleans `(n, values)`."""

    values: tuple[float, ...]
    """The values of eps, ascending."""
    each: dict[str, np.ndarray]
    """By attack: whether each image is classified correctly under it at this and every smaller eps, `(n, values)`."""
    passes: Passes

    def __repr__(self) -> str:
        ends = [
            (value, share(self.every[:, at])) for at, value in enumerate(self.values) if at in {0, len(self.values) - 1}
        ]
        words = " to ".join(f"{estimate:n} at eps {format_eps(value)}" for value, estimate in ends)
        return f"WorstCase({', '.join(self.each)}; robust accuracy {words})"

    @property
    def every(self) -> np.ndarray:
        """Whether each image is classified correctly under all attacks at this and every smaller eps, `(n, values)`."""
        return np.logical_and.reduce(list(self.each.values()))


def eps_curve(
    model: nn.Module | Frozen,
    attack: AbstractGradientAttack,
    images: ImageSource,
    values: Sequence[float | str],
    *,
    labels: Array | None = None,
    only_worst: bool = False,
    warm_start: bool = False,
    seed: int = 0,
    batch_size: int | None = None,
    precision: Precision = "float32",
    observer: Observer = NULL_OBSERVER,
) -> Curve:
    """Run `attack` on all images at each eps of `values`; return the results per image and eps.

    Memory, apart from images and results, does not grow with the number of images.

    Args:
        model: a `Classifier`, or a module that maps images within [0, 1] to logits, or a frozen model, which keeps its
            pass size.
        images, labels: as for `evaluate`.
        values: of eps, ascending; 0 means the clean images.
        only_worst: compute only `Curve.worst`, which is cheaper: an image is attacked until it is fooled.
        warm_start: start each run where the run at the eps before ended; see `sweep_eps`.
        seed: of all random draws, which are keyed by example.
        batch_size: images that pass through the network at a time; measured if None and worth while.
        precision: of the gradients, with `only_worst`; whether an image fools is decided in float32.

    Raises:
        SettingError: no values, or values that do not ascend.
    """

    def sweep(prepared: Frozen, pixels: torch.Tensor, truth: torch.Tensor, first: int, advance: Advance) -> Sweep:
        return sweep_eps(
            attack,
            prepared,
            pixels,
            truth,
            radii,
            only_worst=only_worst,
            warm_start=warm_start,
            seed=seed,
            first_index=first,
            advance=advance,
        )

    attack = as_attack(attack, AbstractGradientAttack)
    radii = [parse_eps(value) for value in listed(values, "values")]
    largest = with_eps(attack, max(radii, default=0.0)).ball()
    model, images = as_model(model), as_labelled(images, labels)
    return _curve("eps", model, attack, images, sweep, len(radii), batch_size, precision, observer, largest, seed)


def steps_curve(
    model: nn.Module | Frozen,
    attack: AbstractGradientAttack,
    images: ImageSource,
    values: Sequence[int],
    *,
    labels: Array | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    observer: Observer = NULL_OBSERVER,
) -> Curve:
    """Run `attack` on all images with each number of steps of `values`; the other arguments are those of `eps_curve`.

    One run with the largest number gives all results, unless the attack's step size depends on that number.

    Args:
        attack: without restarts.
        values: numbers of steps, ascending; 0 means the clean images.
    """

    def sweep(prepared: Frozen, pixels: torch.Tensor, truth: torch.Tensor, first: int, advance: Advance) -> Sweep:
        return sweep_steps(attack, prepared, pixels, truth, steps, seed=seed, first_index=first, advance=advance)

    attack = as_attack(attack, AbstractGradientAttack)
    steps = tuple(at_least(0).check(each, "values") for each in listed(values, "values"))
    model, images = as_model(model), as_labelled(images, labels)
    return _curve("steps", model, attack, images, sweep, 1, batch_size, "float32", observer, attack.ball(), seed)


def worst_case(
    model: nn.Module,
    attacks: Attacks,
    images: ImageSource,
    values: Sequence[float | str],
    *,
    labels: Array | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    observer: Observer = NULL_OBSERVER,
) -> WorstCase:
    """Run every attack at every eps on all images, as `eps_curve` with `only_worst` does; see there for the arguments.

    `attacks` are named as `evaluate` names them.

    Unlike in `run_cascade`, an image fooled by one attack is attacked by the others too, so that they can be compared.

    Raises:
        SettingError: no attacks, no values, or values that do not ascend.
    """
    named = named_attacks(attacks, AbstractGradientAttack)
    if not named:
        raise SettingError("no attacks; expected at least one, such as {'pgd': PGD(eps=8 / 255)}")
    model, images = as_classifier(model), as_labelled(images, labels)
    each: dict[str, np.ndarray] = {}
    passes = Passes()
    with observer.work("Worst case", len(named)) as advance:
        for name, attack in named.items():
            curve = eps_curve(
                model,
                attack,
                images,
                values,
                only_worst=True,
                seed=seed,
                batch_size=batch_size,
                observer=observer,
            )
            each[name] = curve.worst
            passes.add(curve.passes)
            advance(1, name)
    return WorstCase(values=tuple(parse_eps(value) for value in values), each=each, passes=passes)


def _title(attack: AbstractGradientAttack, axis: str) -> str:
    """The title of the progress bar: the attack's class, what varies (`axis`), and the number of samples of EOT."""
    if isinstance(attack, EOT):
        return f"{_title(attack.attack, axis)}, mean of {attack.eot_samples} gradients"
    return f"{type(attack).__name__} over {axis}"


def _curve(
    axis: str,
    model: Classifier | Frozen,
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
    """Run `sweep` on one group of `group_size` images after the other, and join the results of all images.

    Args:
        axis: what varies, "eps" or "steps".
        sweep: runs the attack on one group at all values.
        runs: how often a sweep runs the attack on an image, about, for an estimate of the passes.
        batch_size: images that pass through the network at a time; measured if None.
        ball: the one with the largest eps, for the warning if eps is not in the unit of the pixels.
    """
    batch_size = at_least(1).check_optional(batch_size, "batch_size")
    passes, known = Passes(), model_of(model)
    check_first(known, images)
    most = attack.max_passes(len(known.classes))
    work = runs * len(images) * most.total
    images = images.to_device_if_small(known.device)
    few, _ = images[:COMPARED_IMAGES].tensors(known.device)
    names = [field.name for field in fields(LastIterates)]
    # one array for all groups: small arrays per group would fragment the memory, which then grows with every group
    found: dict[str, np.ndarray] = {}
    no_gradient = not_finite = 0
    with (
        user_call(known, ball, seed=seed) as call,
        prepare_for_attack(
            model, few, pass_size=batch_size, passes=work, precision=precision, observer=observer
        ) as prepared,
        observer.work(_title(attack, axis), len(images)) as advance,
    ):

        def run(group: slice) -> tuple[float, ...]:
            nonlocal no_gradient, not_finite
            pixels, labels = images[group].tensors(known.device)
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

        values = batched(len(images), group_size(known.input_shape), run, observer)[0]
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
