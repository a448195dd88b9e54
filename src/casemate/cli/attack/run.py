"""What `casemate attack` does once PyTorch is loaded: series, run, gather per eps, write."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from casemate.attacks import (
    AbstractAttack,
    AbstractGradientAttack,
    AbstractMinimumNormAttack,
    AttackResult,
    Passes,
    Status,
)
from casemate.attacks.gradient import to_last_iterate
from casemate.cli.shared import inputs, outputs
from casemate.data import LabelledImages
from casemate.defenses import StochasticAffine, preprocessed, with_noise
from casemate.errors import SettingError
from casemate.evaluation import eps_curve, mean, share
from casemate.evaluation.examples import attack_table, curve_table
from casemate.evaluation.record import fingerprint, fingerprint_of_images
from casemate.files import filling, write_bytes, write_json
from casemate.models import Classifier
from casemate.norms import Norm, parse_eps
from casemate.progress import Observer
from casemate.provenance import surroundings
from casemate.report.contact_sheet import draw_attack
from casemate.rng import derive
from casemate.tables import Table, write_table

_EPS: Mapping[Norm, tuple[str, ...]] = {
    "linf": ("0.01", "0.025", "0.05", "0.1"),
    "l2": ("0.1", "0.25", "0.5", "1"),
    "l1": ("1", "2.5", "5", "10"),
}
"""What is taken if no eps is given, by norm."""
EPS_WORDS = "; ".join(f"{norm}: {' '.join(values)}" for norm, values in _EPS.items())
_BY_CHANCE = "the model answers at random: last counts one answer, worst any wrong one on the way, if by chance"
_FLATTERED = "one gradient flatters a defence that answers at random; average over several with --{} 10"


@dataclass(frozen=True)
class AttackSeries:
    """An attack at every eps, and how it was put together."""

    attacks: Mapping[float, tuple[str, AbstractAttack]]
    """By eps, ascending, with the eps as it was written; by infinity one that has none."""
    radii: Mapping[float, str]
    """The values of eps at which the accuracy left is reported, ascending, as they were written."""
    core: AbstractAttack
    """The attack inside all wrappers, at the smallest eps."""
    averages: str | None
    """The option that averages its gradients, where it has one and it was not given."""


@dataclass(frozen=True)
class AttackPlan:
    """An attack about to begin."""

    about: dict[str, Any]
    """What it is, as JSON."""
    title: str
    series: AttackSeries
    model: Classifier
    test: LabelledImages
    target: int | None

    @property
    def first(self) -> AbstractAttack:
        """The attack at the smallest eps."""
        return next(iter(self.series.attacks.values()))[1]


@dataclass
class AttackOutcome:
    """What an attack found, over all eps."""

    points: list[dict[str, Any]] = field(default_factory=list)
    """One entry per eps, ascending; one entry of an attack without eps."""
    table: Table = field(default_factory=dict)
    """One row per image and eps."""
    images: dict[str, Tensor] = field(default_factory=dict)
    """Clean and adversarial images, if they are kept."""
    largest: tuple[str, AttackResult] | None = None
    """The eps as it was written, and the result, that the contact sheet shows, if they are kept."""
    passes: Passes = field(default_factory=Passes)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """All but the images and the table."""
        return {"points": self.points, "passes": asdict(self.passes), "seconds": self.seconds}


def build_attacks(
    kind: type[AbstractAttack],
    texts: Sequence[str],
    settings: Mapping[str, Any],
    wrappers: Sequence[tuple[type[AbstractAttack], str, Mapping[str, Any]]],
    *,
    randomised: bool,
) -> AttackSeries:
    """The attack at each eps, ascending, with the eps as it was written.

    Args:
        kind: the class of the attack.
        texts: values of eps; empty for the defaults of the norm.
        settings: all its settings but eps.
        wrappers: attacks round it, the innermost first: a class, its field for the attack inside, and settings, among
            which those that are its own; with None for one the wrapper is left out.
        randomised: the model answers at random, so that an attack goes on to its last iterate: a lucky answer on the
            way is no success.

    Raises:
        SettingError: a bad value.
    """
    has_eps = "eps" in {each.name for each in fields(kind)}
    averages = None

    def build(**radius: float) -> tuple[AbstractAttack, AbstractAttack]:
        nonlocal averages
        core = kind(**settings, **radius)
        if randomised and isinstance(core, AbstractGradientAttack):
            core = to_last_iterate(core)
        made = core
        for wrapper, inside, values in wrappers:
            own = {each.name: values[each.name] for each in fields(wrapper) if each.name != inside}
            if None not in own.values():
                made = wrapper(**{inside: made}, **own)
            elif issubclass(wrapper, AbstractGradientAttack):
                averages = next(iter(own)).replace("_", "-")
        return made, core

    if has_eps:
        radii = {parse_eps(text): text for text in texts or _EPS[settings.get("norm", "linf")]}
    else:
        attack, core = build()
        norm = attack.ball().norm
        nearest = isinstance(core, AbstractMinimumNormAttack)
        radii = {parse_eps(text): text for text in texts or _EPS[norm]} if nearest else {}
        return AttackSeries({math.inf: ("", attack)}, dict(sorted(radii.items())), core, averages)
    radii = dict(sorted(radii.items()))
    built = {eps: build(eps=eps) for eps in radii}
    attacks = {eps: (radii[eps], attack) for eps, (attack, _) in built.items()}
    return AttackSeries(attacks, radii, next(iter(built.values()))[1], averages)


def prepare(
    source: str,
    series: AttackSeries,
    wrappers: Mapping[str, Any],
    *,
    inference: str | None,
    file: Path | None,
    dataset: str | None,
    data_dir: Path | None,
    images: int,
    target: str | None,
    seed: int,
    device: str,
    observer: Observer,
) -> AttackPlan:
    """Load the model and the images it is attacked on. Raises `CasemateError`."""
    given = inputs.load_model(source, device)
    found = inputs.load_images(given, file, dataset, data_dir, observer)
    model = _answering(given.model, inference).to(device)
    test = found.images[:images]
    record = {setting: value for setting, value in series.core.record().items() if setting != "eps"}
    around = {name: value for name, value in wrappers.items() if value is not None}
    name = Path(given.name).name
    who = name if inference is None else f"{name} with {inference}"
    how = ", ".join([record["name"], *(f"{setting.replace('_', ' ')} {value}" for setting, value in around.items())])
    which = f"first {len(test):,} {'test images' if file is None else 'images'}"
    title = f"{how} on {who} ({found.name}, {which}, seed {seed})"
    wanted = None if target is None else _class(target, model.classes)
    if wanted is not None:
        test = test[test.labels != wanted]
        if not len(test):
            raise SettingError(f"all of the images are of class {model.classes[wanted]}; take more --images")
    about = {
        "model": given.name,
        "dataset": found.name,
        "images": len(test),
        "inference": inference,
        "attack": record,
        **wrappers,
        "eps": list(series.radii),
        "target": None if wanted is None else model.classes[wanted],
        "seed": seed,
        "device": device,
        "notes": [] if inference is None else _notes(series.averages, targeted=wanted is not None),
    }
    return AttackPlan(about, title, series, model, test, wanted)


def _answering(model: Classifier, inference: str | None) -> Classifier:
    """The model, or one that answers at random. Raises `ModelError` if there is no noise in it to leave on."""
    match inference:
        case "stochastic-affine":
            return preprocessed(model, StochasticAffine())
        case "noise":
            return with_noise(model)
        case _:
            return model


def _notes(averages: str | None, *, targeted: bool) -> list[str]:
    """What to know of an attack on a model that answers at random."""
    return [*([] if targeted else [_BY_CHANCE]), *([] if averages is None else [_FLATTERED.format(averages)])]


def _class(text: str, classes: tuple[str, ...]) -> int:
    """The number of a class given by name or number."""
    lowered = [name.lower() for name in classes]
    if text.lower() in lowered:
        return lowered.index(text.lower())
    if text.isdecimal() and int(text) < len(classes):
        return int(text)
    raise SettingError(
        f"target {text!r}; expected a number from 0 to {len(classes) - 1} or one of {', '.join(classes)}"
    )


def run(plan: AttackPlan, *, keep: bool, observer: Observer) -> AttackOutcome:
    """Run the attack at every eps; with `keep` the images on which each one ends are kept."""
    start = time.perf_counter()
    found = AttackOutcome()
    if keep:
        images, labels = plan.test.tensors()
        found.images = {"clean": images.contiguous(), "labels": labels.clone()}
    gpus = [plan.model.device] if plan.model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(derive(plan.about["seed"], "answers at random"))  # what randomised models draw from
        if isinstance(plan.first, AbstractGradientAttack) and plan.target is None:
            _sweep(plan, plan.first, found, observer)
            if keep:
                for _, text, result in _results(plan, observer):
                    _keep(found, text, result)
        elif plan.series.radii and math.inf in plan.series.attacks:
            _nearest(plan, found, keep, observer)
        else:
            _each(plan, found, keep, observer)
    found.seconds = time.perf_counter() - start
    return found


def _sweep(plan: AttackPlan, first: AbstractGradientAttack, found: AttackOutcome, observer: Observer) -> None:
    """Any wrong class will do, and one sweep serves every eps."""
    seed = plan.about["seed"]
    curve = eps_curve(plan.model, first, plan.test, list(plan.series.radii), seed=seed, observer=observer)
    found.points, found.passes = curve.points(), curve.passes
    found.table = curve_table(curve, plan.test.labels.numpy())
    if curve.last is not None:
        for column, point in enumerate(found.points):
            point["no_gradient"] = share(curve.last.status[:, column] == Status.ZERO_GRADIENT).as_json()


def _results(plan: AttackPlan, observer: Observer) -> Iterator[tuple[float, str, AttackResult]]:
    """The attack at each eps on its own."""
    images, labels = plan.test.tensors(plan.model.device)
    targets = None if plan.target is None else torch.full_like(labels, plan.target)
    for eps, (text, each) in plan.series.attacks.items():
        seed = plan.about["seed"]
        yield eps, text, each(plan.model, images, labels, targets=targets, seed=seed, observer=observer)


def _keep(found: AttackOutcome, text: str, result: AttackResult) -> None:
    """Keep the adversarial images, and the result for the contact sheet: that of the largest eps comes last."""
    name = f"eps-{parse_eps(text):g}" if text else "adversarial"
    found.images[name] = result.adversarial.cpu().contiguous()
    found.largest = (text, result)


def _each(plan: AttackPlan, found: AttackOutcome, keep: bool, observer: Observer) -> None:
    """One run for each eps, or one run of an attack that has none."""
    labels = plan.test.labels
    standing = torch.ones(len(labels), dtype=torch.bool)
    tables = []
    for eps, text, result in _results(plan, observer):
        standing &= ~result.success.cpu()
        if plan.target is None:
            left = {"worst": share(standing.numpy()).as_json()}
        else:
            right = result.prediction.cpu() == labels
            left = {
                "reached": share(result.success.cpu().numpy()).as_json(),
                "still_right": share(right.numpy()).as_json(),
            }
        found.points.append({"eps": eps if math.isfinite(eps) else None, **left, **_loss_and_gradient(result)})
        found.passes.add(result.passes)
        tables.append(_table(plan, result, eps))
        if keep:
            _keep(found, text, result)
    found.table = {name: np.concatenate([each[name] for each in tables]) for name in tables[0]}


def _nearest(plan: AttackPlan, found: AttackOutcome, keep: bool, observer: Observer) -> None:
    """One run, whose distances give the accuracy left at every eps."""
    ((_, text, result),) = _results(plan, observer)
    distance = result.distance.cpu().double().numpy()
    for eps in plan.series.radii:
        if plan.target is None:
            found.points.append({"eps": eps, "worst": share(distance > eps).as_json()})
        else:
            found.points.append({"eps": eps, "reached": share(distance <= eps).as_json()})
    near = distance[np.isfinite(distance) & (distance > 0)]
    found.points[-1] |= {"distance": mean(near).as_json() if near.size else None}
    found.passes, found.table = result.passes, _table(plan, result, math.inf)
    if keep:
        _keep(found, text, result)


def _loss_and_gradient(result: AttackResult) -> dict[str, Any]:
    """The mean loss, and the share of images without a gradient."""
    loss = result.loss.cpu().numpy()
    finite = loss[np.isfinite(loss)]
    return {
        "loss": mean(finite).as_json() if finite.size else None,
        "no_gradient": share(result.status.cpu().numpy() == Status.ZERO_GRADIENT).as_json(),
    }


def _table(plan: AttackPlan, result: AttackResult, eps: float) -> Table:
    """A row per image."""
    table = attack_table(result, plan.test.labels.numpy())
    added: dict[str, np.ndarray] = {}
    if math.isfinite(eps):
        added["eps"] = np.full(len(plan.test), eps)
    if plan.target is not None:
        added["target"] = np.full(len(plan.test), plan.target)
    return {**table, **added}


def write(folder: Path, plan: AttackPlan, found: AttackOutcome, threads: int) -> tuple[str, ...]:
    """Write result.json, the table of examples, adversarial.safetensors and the contact sheet; return their names."""
    provenance = surroundings(plan.about["device"], threads)
    with filling(folder, outputs.FILES, outputs.RESULT) as temporary:
        write_bytes(temporary / "adversarial.safetensors", safetensors.torch.save(found.images))
        table = write_table(found.table, temporary / "examples")
        if found.largest is not None:
            text, result = found.largest
            draw_attack(
                found.images["clean"],
                result.adversarial.cpu(),
                found.images["labels"],
                result.prediction.cpu(),
                plan.model.classes,
                temporary / outputs.CONTACT_SHEET,
                title=f"{plan.about['attack']['name']}{f', eps {text}' if text else ''}",
                bounds=plan.model.bounds,
            )
        write_json(temporary / outputs.RESULT, plan.about | found.as_json() | {"provenance": provenance})
    sheet = () if found.largest is None else (outputs.CONTACT_SHEET,)
    return outputs.RESULT, table.name, "adversarial.safetensors", *sheet


def with_hashes(plan: AttackPlan) -> AttackPlan:
    """The same attack, which also says what tells the model's weights and the images from all others."""
    hashes = {"fingerprint": fingerprint(plan.model), "images_sha256": fingerprint_of_images(plan.test)}
    return replace(plan, about=plan.about | hashes)
