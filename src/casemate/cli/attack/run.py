"""What `casemate attack` does once PyTorch is loaded: build the attack at every eps, run it, write the results."""

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
    EOT,
    AbstractAttack,
    AbstractGradientAttack,
    AbstractMinimumNormAttack,
    AttackResult,
    Passes,
    Status,
)
from casemate.attacks.gradient import to_last_iterate
from casemate.attacks.parts import record_of
from casemate.cli.attack import pictures as png
from casemate.cli.attack.masks import Box, read_mask
from casemate.cli.shared import inputs, outputs
from casemate.cli.shared.facts import report_facts
from casemate.cli.shared.options import ModelOptions, Reading
from casemate.data import LabelledImages
from casemate.defenses import StochasticAffine, preprocessed, with_noise
from casemate.documents import ATTACK, document
from casemate.errors import SettingError
from casemate.evaluation import Estimate, eps_curve, evaluate_clean, mean, share
from casemate.evaluation.cost import attack_passes
from casemate.evaluation.examples import curve_table, example_table
from casemate.evaluation.fingerprints import fingerprint, fingerprint_of_images
from casemate.evaluation.verdict import guessing_accuracy
from casemate.files import filling, write_bytes, write_json
from casemate.models import Classifier, OpenedModel
from casemate.norms import Norm, parse_eps
from casemate.progress import Observer, Tracked, track
from casemate.provenance import surroundings
from casemate.report.contact_sheet import draw_attack
from casemate.rng import derive
from casemate.tables import Table, write_table

_BY_CHANCE = (
    "the model is randomised: last counts a single prediction, worst any wrong one at an intermediate iterate, even by "
    "chance"
)
_FLATTERED = "a single gradient makes a randomised defence look more robust than it is; average several with --{} 10"


@dataclass(frozen=True)
class AttackSeries:
    """One attack with its wrappers, as a separate object for each value of eps."""

    attacks: Mapping[float, tuple[str, AbstractAttack]]
    """By eps, ascending: (eps as the user wrote it, the attack with that eps). An attack without a field eps is the
    only entry, under the key infinity and with the text ""."""
    radii: Mapping[float, str]
    """The values of eps at which accuracy is reported, ascending, each with the text that the user wrote; empty for an
    attack without eps that is not a minimum-norm attack."""
    core: AbstractAttack
    """The attack without its wrappers (such as random restarts), at the smallest eps."""
    averages: str | None
    """The option that averages gradients over several random passes, "eot-samples", if the attack has it and it was
    not given; None otherwise."""


@dataclass(frozen=True)
class AttackPlan:
    """An attack that is ready to run: its settings, the loaded model, and the images."""

    about: dict[str, Any]
    """The settings as JSON, for result.json; `notes` are remarks for the user."""
    title: str
    series: AttackSeries
    model: Classifier
    test: LabelledImages
    target: int | None
    """Index of the class that a targeted attack aims at; None for an untargeted attack."""
    given: OpenedModel
    """The model as it was opened, with what is known of it."""
    mask: Tensor | None = None
    """Which values may change, of a shape that broadcasts to the images'; None: all."""
    levels: int | None = None
    """Levels of the grid of the adversarial images' values; None: no grid."""


@dataclass(frozen=True)
class EpsPoint:
    """Results of an attack at one eps: accuracies and other measures over all images."""

    eps: float | None
    """None for an attack without eps."""
    measures: dict[str, Estimate | None]
    """By name, as in result.json; which ones there are depends on the attack.

    worst: share of images classified correctly at this and every smaller eps (gradient attacks: at every iterate).
    last: share correct at the last iterate. Instead, with a target, reached: share classified as the target, and
    still_right: share classified correctly. loss: mean cross-entropy. no_gradient: share of images whose gradient was
    zero at every step. distance, at the largest eps: mean norm of the perturbations that fooled. None: no image
    has a finite value."""

    def as_json(self) -> dict[str, Any]:
        """The entry for this eps in result.json: eps and every measure in one mapping."""
        return {"eps": self.eps} | {
            name: None if each is None else each.as_json() for name, each in self.measures.items()
        }


@dataclass
class AttackOutcome:
    """The results of an attack at all values of eps."""

    clean: Estimate
    """Accuracy without an attack."""
    points: list[EpsPoint] = field(default_factory=list)
    """One per eps, ascending."""
    table: Table = field(default_factory=dict)
    """The table of examples: a row per image and eps; of a minimum-norm attack a row per image."""
    images: dict[str, Tensor] = field(default_factory=dict)
    """If images are kept: "clean", "labels", and the adversarial images of each run as "eps-0.1" and so on, or as
    "adversarial" for an attack without eps. Otherwise empty."""
    largest: tuple[str, AttackResult] | None = None
    """For the contact sheet: the largest eps as the user wrote it ("" for an attack without eps) and its result; None
    if images are not kept."""
    fooled: dict[str, Tensor] = field(default_factory=dict)
    """If images are kept: which of them fool, by the same names."""
    saved: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Of the adversarial images written as PNG files, by the same names: how many fooled before, and how many of these
    still do when they are read again."""
    passes: Passes = field(default_factory=Passes)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """The measures at every eps, the passes and the seconds, for result.json."""
        points = [each.as_json() for each in self.points]
        saved = [{"run": name, "fooled": fooled, "still_fool": again} for name, (fooled, again) in self.saved.items()]
        return {
            "clean_accuracy": self.clean.as_json(),
            "points": points,
            "passes": asdict(self.passes),
            "seconds": self.seconds,
            **({"png": saved} if saved else {}),
        }


def build_attacks(
    kind: type[AbstractAttack],
    texts: Sequence[str],
    settings: Mapping[str, Any],
    wrappers: Sequence[tuple[type[AbstractAttack], str, Mapping[str, Any]]],
    *,
    default_eps: Mapping[Norm, Sequence[str]],
    randomised: bool,
) -> AttackSeries:
    """Build the attack, inside its wrappers, at each eps; nothing is run.

    Args:
        kind: the class of the attack.
        texts: the values of eps as the user wrote them; empty to use `default_eps`.
        settings: all settings of the attack except eps.
        wrappers: attacks to wrap around it, the innermost first: the class, its field for the wrapped attack, and a
            mapping with its settings, and perhaps others; a wrapper with a setting of None is not used.
        default_eps: the values of eps to use if `texts` is empty, by norm.
        randomised: the model is randomised, so gradient attacks run to their last iterate: a wrong prediction by
            chance at an intermediate iterate is no success.

    Raises:
        SettingError: a setting is out of range.
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
            elif wrapper is EOT:
                averages = next(iter(own)).replace("_", "-")
        return made, core

    if has_eps:
        radii = {parse_eps(text): text for text in texts or default_eps[settings.get("norm", "linf")]}
    else:
        attack, core = build()
        norm = attack.ball().norm
        nearest = isinstance(core, AbstractMinimumNormAttack)
        radii = {parse_eps(text): text for text in texts or default_eps[norm]} if nearest else {}
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
    loading: ModelOptions,
    inference: str | None,
    file: Path | None,
    dataset: str | None,
    data_dir: Path | None,
    images: int,
    subset: str | None,
    reading: Reading,
    target: str | None,
    mask: Path | None,
    mask_box: Box | None,
    levels: int | None,
    pictures: bool,
    seed: int,
    device: str,
    observer: Observer,
) -> AttackPlan:
    """Load the model and the images, and collect the settings; nothing is attacked.

    Args:
        source: the model's file, or package.module:function.
        series: the attack, from `build_attacks`.
        wrappers: the options of its wrappers; None where one was not given.
        inference: how to randomise the model, "stochastic-affine" or "noise"; None: not at all.
        file: the user's own images; None for test images of a data set.
        dataset: name of the data set; None for the one that the model was trained on.
        data_dir: where to search for the data set.
        images: how many images to attack.
        subset: which of the user's own images to take; see `inputs.load_images`.
        reading: how to read the user's own images.
        target: name or index of a class to aim at; images of this class are then removed.
        mask: a file with a mask; None: none.
        mask_box: the rectangle that may change; None: all.
        levels: of the grid of the adversarial images' values; None: no grid.
        pictures: the adversarial images are to be written as PNG files.
        seed: of all random draws.
        device: where to compute.
        observer: receives progress.

    Raises `CasemateError`.
    """
    given = inputs.load_model(source, device, loading)
    if loading.black_box:
        _expect_no_gradients(series)
    found = inputs.load_images(given, file, dataset, data_dir, observer, count=images, subset=subset, reading=reading)
    report_facts(given, observer)
    test, data = found.images.read(slice(None)), found.name
    model = _randomised(given.model, inference).to(device)
    record = {setting: value for setting, value in series.core.record().items() if setting != "eps"}
    shown = {name: record_of(value) if name == "parts" and value else value for name, value in wrappers.items()}
    around = {name: value for name, value in shown.items() if value is not None}
    if "parts" in around:
        around["parts"] = ", ".join(part["name"] for part in around["parts"])
    name = Path(given.name).name
    who = name if inference is None else f"{name} with {inference}"
    how = ", ".join([record["name"], *(f"{setting.replace('_', ' ')} {value}" for setting, value in around.items())])
    which = f"first {len(test):,} {'test images' if file is None else 'images'}"
    which = which if found.chosen in ("first", "all") else f"{len(test):,} images, {found.chosen}"
    title = f"{how} on {who} ({data}, {which}, seed {seed})"
    wanted = None if target is None else _class(target, model.classes)
    if wanted is not None:
        test = test[test.labels != wanted]
        if not len(test):
            raise SettingError(f"all of the images are of class {model.classes[wanted]}; take more --images")
    found_mask = read_mask(mask, mask_box, test.tensors()[0])
    if found_mask is not None:
        title += f", in the mask {found_mask[1]}"
    if pictures:
        png.check_channels(test.tensors()[0].shape[1])
    if levels is not None and levels < 2:
        raise SettingError(f"--levels {levels}; expected at least 2")
    if levels is not None:
        title += f", {levels} levels"
    attacks = dict(series.attacks.values())
    needed = attack_passes(attacks, len(model.classes), len(test), 1).forward + len(test)
    inputs.expect_queries(given, loading, needed)
    notes = [] if wanted is not None else [_BY_CHANCE]
    notes += [] if series.averages is None else [_FLATTERED.format(series.averages)]
    about = {
        "model": given.name,
        "dataset": data,
        "images": len(test),
        "inference": inference,
        "attack": record,
        **shown,
        "eps": list(series.radii),
        "target": None if wanted is None else model.classes[wanted],
        **({} if found_mask is None else {"mask": found_mask[1]}),
        **({} if levels is None else {"levels": levels}),
        "seed": seed,
        **inputs.about_options(loading, reading, found.chosen),
        "device": device,
        "notes": notes if inference is not None else [],
    }
    return AttackPlan(
        about,
        title,
        series,
        model,
        test,
        wanted,
        given,
        mask=None if found_mask is None else found_mask[0],
        levels=levels,
    )


def _expect_no_gradients(series: AttackSeries) -> None:
    """Raise `SettingError` for an attack that computes gradients."""
    passes = series.core.max_passes(2)
    if passes is not None and passes.backward:
        raise SettingError(
            f"{type(series.core).__name__} computes gradients, but a black box has none; run an attack without, such "
            "as square or hop-skip-jump"
        )


def _randomised(model: Classifier, inference: str | None) -> Classifier:
    """The model, randomised as --inference says (None: unchanged). Raises `ModelError` if it has no noise layers."""
    match inference:
        case "stochastic-affine":
            return preprocessed(model, StochasticAffine())
        case "noise":
            return with_noise(model)
        case _:
            return model


def _class(text: str, classes: tuple[str, ...]) -> int:
    """The index of a class given by name or index. Raises `SettingError`."""
    lowered = [name.lower() for name in classes]
    if text.lower() in lowered:
        return lowered.index(text.lower())
    if text.isdecimal() and int(text) < len(classes):
        return int(text)
    raise SettingError(
        f"target {text!r}; expected an index from 0 to {len(classes) - 1} or one of {', '.join(classes)}"
    )


def run(plan: AttackPlan, *, keep: bool, observer: Observer) -> AttackOutcome:
    """Run the planned attack at every eps; an attack without a field eps, such as a minimum-norm attack, runs once.

    With `keep` the outcome also holds the clean images, the labels, and the adversarial images of each run. For an
    untargeted gradient attack these come from a further run at each eps, which `AttackOutcome.passes` does not count.
    """
    start = time.perf_counter()
    found = AttackOutcome(evaluate_clean(plan.model, plan.test, observer=observer).accuracy)
    if keep:
        images, labels = plan.test.tensors()
        found.images = {"clean": images.contiguous(), "labels": labels.clone()}
    gpus = [plan.model.device] if plan.model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(derive(plan.about["seed"], "answers at random"))  # for the model's own randomness
        _, first = next(iter(plan.series.attacks.values()))
        if (
            isinstance(first, AbstractGradientAttack)
            and plan.target is None
            and plan.mask is None
            and plan.levels is None
        ):
            _run_sweep(plan, first, found, observer)
            if keep:
                for _, text, result in _results(plan, observer):
                    _keep(found, text, result)
        elif plan.series.radii and math.inf in plan.series.attacks:
            _run_minimum_norm(plan, found, keep, observer)
        else:
            _run_each(plan, found, keep, observer)
    found.seconds = time.perf_counter() - start
    track(observer, Tracked(numbers=_numbers(plan, found)))
    guessing = guessing_accuracy(plan.test.labels.numpy(), len(plan.model.classes))
    doubt = plan.given.doubt(found.clean.value, found.clean.low, guessing)
    if doubt is not None and plan.target is None:
        observer.message(doubt)
    if (queries := plan.given.queries) is not None:
        observer.message(f"The black box was called with {queries:,} images.")
    return found


def _numbers(plan: AttackPlan, found: AttackOutcome) -> dict[str, float]:
    """The results as numbers for a tracker, by name."""
    numbers = found.clean.as_numbers("attack/clean_accuracy")
    for point in found.points:
        at = "" if point.eps is None else f"_at_{plan.series.radii[point.eps].replace('/', '_')}"
        for name, each in point.measures.items():
            if each is not None:
                numbers |= each.as_numbers(f"attack/{name}{at}")
    return numbers


def _run_sweep(plan: AttackPlan, first: AbstractGradientAttack, found: AttackOutcome, observer: Observer) -> None:
    """Run an untargeted gradient attack in one sweep over eps (see `eps_curve`), and put the results into `found`."""
    seed = plan.about["seed"]
    curve = eps_curve(plan.model, first, plan.test, list(plan.series.radii), seed=seed, observer=observer)
    found.passes = curve.passes
    found.table = curve_table(curve, plan.test.labels.numpy())
    for column, point in enumerate(curve.points()):
        eps = point.pop("eps")
        measures = {name: None if each is None else Estimate.from_json(each) for name, each in point.items()}
        if curve.last is not None:
            measures["no_gradient"] = share(curve.last.status[:, column] == Status.ZERO_GRADIENT)
        found.points.append(EpsPoint(eps, measures))


def _results(plan: AttackPlan, observer: Observer) -> Iterator[tuple[float, str, AttackResult]]:
    """Run the attack at each eps separately, and yield (eps, eps as the user wrote it, the result)."""
    images, labels = plan.test.tensors(plan.model.device)
    targets = None if plan.target is None else torch.full_like(labels, plan.target)
    for eps, (text, each) in plan.series.attacks.items():
        seed = plan.about["seed"]
        yield (
            eps,
            text,
            each(
                plan.model,
                images,
                labels,
                targets=targets,
                mask=plan.mask,
                levels=plan.levels,
                seed=seed,
                observer=observer,
            ),
        )


def _keep(found: AttackOutcome, text: str, result: AttackResult) -> None:
    """Put a run's adversarial images and result into `found`; must be called last for the largest eps."""
    name = f"eps-{parse_eps(text):g}" if text else "adversarial"
    found.images[name] = result.adversarial.cpu().contiguous()
    found.fooled[name] = result.success.cpu()
    found.largest = (text, result)


def _run_each(plan: AttackPlan, found: AttackOutcome, keep: bool, observer: Observer) -> None:
    """Run the attack once for each eps, or once if it has none, and put the results into `found`."""
    labels = plan.test.labels
    robust = torch.ones(len(labels), dtype=torch.bool)
    tables = []
    for eps, text, result in _results(plan, observer):
        robust &= ~result.success.cpu()
        if plan.target is None:
            left = {"worst": share(robust.numpy())}
        else:
            right = result.prediction.cpu() == labels
            left = {"reached": share(result.success.cpu().numpy()), "still_right": share(right.numpy())}
        found.points.append(EpsPoint(eps if math.isfinite(eps) else None, left | _loss_and_gradient(result)))
        found.passes.add(result.passes)
        tables.append(_table(plan, result, eps))
        if keep:
            _keep(found, text, result)
    found.table = {name: np.concatenate([each[name] for each in tables]) for name in tables[0]}


def _run_minimum_norm(plan: AttackPlan, found: AttackOutcome, keep: bool, observer: Observer) -> None:
    """Run a minimum-norm attack once, and put the accuracy at every eps, which its distances give, into `found`."""
    ((_, text, result),) = _results(plan, observer)
    distance = result.distance.cpu().double().numpy()
    for eps in plan.series.radii:
        left = {"worst": share(distance > eps)} if plan.target is None else {"reached": share(distance <= eps)}
        found.points.append(EpsPoint(eps, dict(left)))
    finite = distance[np.isfinite(distance) & (distance > 0)]
    found.points[-1].measures["distance"] = mean(finite) if finite.size else None
    found.passes, found.table = result.passes, _table(plan, result, math.inf)
    if keep:
        _keep(found, text, result)


def _loss_and_gradient(result: AttackResult) -> dict[str, Estimate | None]:
    """The measures "loss" (mean of the finite ones, None without any) and "no_gradient" (see `EpsPoint.measures`)."""
    loss = result.loss.cpu().numpy()
    finite = loss[np.isfinite(loss)]
    return {
        "loss": mean(finite) if finite.size else None,
        "no_gradient": share(result.status.cpu().numpy() == Status.ZERO_GRADIENT),
    }


def _table(plan: AttackPlan, result: AttackResult, eps: float) -> Table:
    """The table of examples at one eps, a row per image, with columns for eps if finite and the target if any."""
    table = example_table(result, plan.test.labels.numpy())
    added: dict[str, np.ndarray] = {}
    if math.isfinite(eps):
        added["eps"] = np.full(len(plan.test), eps)
    if plan.target is not None:
        added["target"] = np.full(len(plan.test), plan.target)
    return {**table, **added}


def write(folder: Path, plan: AttackPlan, found: AttackOutcome, threads: int, observer: Observer) -> tuple[str, ...]:
    """Write result.json, table of examples, adversarial.safetensors, contact sheet, all or none; return their names."""
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
        facts = {"model_facts": plan.given.facts.as_json()}
        content = plan.about | facts | found.as_json() | {"provenance": provenance}
        write_json(temporary / outputs.RESULT, document(ATTACK, content))
    sheet = () if found.largest is None else (outputs.CONTACT_SHEET,)
    names = outputs.RESULT, table.name, "adversarial.safetensors", *sheet
    track(observer, Tracked(files=[folder / name for name in names]))
    return names


def write_pictures(folder: Path, plan: AttackPlan, found: AttackOutcome) -> None:
    """Write the adversarial images to PNG files, a folder for each eps, and count in `found` which fool when read."""
    for name, fooled in found.fooled.items():
        files = png.write_pngs(folder / name, found.images[name], plan.model.bounds)
        again = png.surviving(plan.model, files, found.images["labels"], plan.target)
        found.saved[name] = (int(fooled.sum()), int((fooled & again).sum()))


def with_hashes(plan: AttackPlan) -> AttackPlan:
    """The plan with hashes of the model's weights and of the images among its settings."""
    hashes = {"fingerprint": fingerprint(plan.model), "images_sha256": fingerprint_of_images(plan.test)}
    return replace(plan, about=plan.about | hashes)
