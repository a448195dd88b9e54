"""What `casemate attack` does once PyTorch is loaded: aim, run, gather per eps, write."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from casemate import data
from casemate.attacks import ATTACKS, EOT, AbstractGradientAttack, Passes, Status
from casemate.cli import outputs
from casemate.data import LabelledImages
from casemate.defenses import StochasticAffine, preprocessed, with_noise
from casemate.errors import ModelError, SettingError
from casemate.evaluation import eps_curve, mean, share
from casemate.evaluation.examples import attack_table, curve_table
from casemate.evaluation.record import fingerprint, fingerprint_of_images
from casemate.files import filling, write_bytes, write_json
from casemate.models import Classifier, load
from casemate.norms import parse_eps
from casemate.progress import Observer
from casemate.provenance import surroundings
from casemate.rng import derive
from casemate.tables import Table, write_table

_BY_CHANCE = "the model answers at random: last counts one answer, worst any wrong one on the way, if by chance"
_FLATTERED = "one gradient flatters a defence that answers at random; average over several with --draws 10"


@dataclass(frozen=True)
class Ready:
    """An attack about to begin."""

    about: dict[str, Any]
    """What it is, as JSON."""
    title: str
    attacks: Mapping[float, tuple[str, AbstractGradientAttack]]
    """By eps, ascending, with the eps as it was written."""
    model: Classifier
    test: LabelledImages
    target: int | None


@dataclass
class Found:
    """What an attack found, over all eps."""

    points: list[dict[str, Any]] = field(default_factory=list)
    """One entry per eps, ascending."""
    table: Table = field(default_factory=dict)
    """One row per image and eps."""
    images: dict[str, Tensor] = field(default_factory=dict)
    """Clean and adversarial images, if they are kept."""
    passes: Passes = field(default_factory=Passes)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """All but the images and the table."""
        return {"points": self.points, "passes": asdict(self.passes), "seconds": self.seconds}


def make(
    name: str, texts: Sequence[str], options: Mapping[str, Any], *, inference: str | None, draws: int | None
) -> dict[float, tuple[str, AbstractGradientAttack]]:
    """The attack at each eps, ascending, with the eps as it was written.

    `options` holds everything that could be set; what is None is left at the attack's default. With `draws` every
    gradient is the mean of so many. On a model that answers at random at `inference` an attack goes on to its last
    iterate, since a lucky answer on the way is no success. Raises `SettingError` for a bad value, and for an option
    that the attack does not have, naming those it has.
    """
    kind = ATTACKS[name]
    given = {option: value for option, value in options.items() if value is not None}
    known = {each.name for each in fields(kind)}
    foreign = [f"--{option.replace('_', '-')}" for option in given if option not in known]
    if foreign:
        own = ", ".join(f"--{option.replace('_', '-')}" for option in options if option in known)
        raise SettingError(f"{name} has no {', '.join(foreign)}; it has {own}")
    if "step_size" in given:
        given["step_size"] = parse_eps(given["step_size"])
    if inference is not None:
        given["keep"] = "last"
    made = {}
    for text in texts:
        eps = parse_eps(text)
        preset: AbstractGradientAttack = kind(eps=eps, **given)  # type: ignore[call-arg]  # all of them have the field eps
        made[eps] = (text, preset if draws is None else EOT(attack=preset, eot_samples=draws))
    return dict(sorted(made.items()))


def prepare(
    path: Path,
    attacks: Mapping[float, tuple[str, AbstractGradientAttack]],
    *,
    inference: str | None,
    dataset: str | None,
    data_dir: Path | None,
    images: int,
    target: str | None,
    seed: int,
    device: str,
    observer: Observer,
) -> Ready:
    """Load the model and the images it is attacked on. Raises `CasemateError`."""
    model, description = load(path)
    name = dataset or description.dataset
    if name not in data.NAMES:
        raise SettingError(f"the model was trained on {name!r}; say with --dataset which of {', '.join(data.NAMES)}")
    with observer.work("Reading the images", 0):
        whole = data.load(name, data_dir, observer=observer)
    if whole.classes != model.classes:
        raise ModelError(
            f"{path} tells {', '.join(model.classes[:3])}, ... apart, but {whole.title} has the classes "
            f"{', '.join(whole.classes[:3])}, ...; choose the data set it was trained on"
        )
    model = _answering(model, inference).to(device)
    test = whole.test[:images]
    record, draws = _record(next(iter(attacks.values()))[1])
    who = path.name if inference is None else f"{path.name} with {inference}"
    how = record["name"] if draws is None else f"{record['name']}, mean gradient of {draws} draws,"
    title = f"{how} on {who} ({name}, first {len(test):,} test images, seed {seed})"
    wanted = None if target is None else _class(target, model.classes)
    if wanted is not None:
        test = test[test.labels != wanted]
        if not len(test):
            raise SettingError(f"all of the images are of class {model.classes[wanted]}; take more --images")
    about = {
        "model": str(path),
        "dataset": name,
        "images": len(test),
        "inference": inference,
        "attack": record,
        "draws": draws,
        "eps": list(attacks),
        "target": None if wanted is None else model.classes[wanted],
        "seed": seed,
        "device": device,
        "notes": [] if inference is None else _notes(draws, targeted=wanted is not None),
    }
    return Ready(about, title, attacks, model, test, wanted)


def _answering(model: Classifier, inference: str | None) -> Classifier:
    """The model, or one that answers at random. Raises `ModelError` if there is no noise in it to leave on."""
    match inference:
        case "stochastic-affine":
            return preprocessed(model, StochasticAffine())
        case "noise":
            return with_noise(model)
        case _:
            return model


def _notes(draws: int | None, *, targeted: bool) -> list[str]:
    """What to know of an attack on a model that answers at random."""
    return [*([] if targeted else [_BY_CHANCE]), *([_FLATTERED] if draws in (None, 1) else [])]


def _record(attack: AbstractGradientAttack) -> tuple[dict[str, Any], int | None]:
    """The settings of an attack but for eps, which varies, and the draws that its gradients are the mean of."""
    inner, draws = (attack.attack, attack.eot_samples) if isinstance(attack, EOT) else (attack, None)
    return {setting: value for setting, value in inner.record().items() if setting != "eps"}, draws


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


def attack(ready: Ready, *, keep: bool, observer: Observer) -> Found:
    """Run the attack at every eps; with `keep` the images on which each one ends are kept."""
    start = time.perf_counter()
    found = Found()
    if keep:
        images, labels = ready.test.tensors()
        found.images = {"clean": images.contiguous(), "labels": labels.clone()}
    gpus = [ready.model.device] if ready.model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.manual_seed(derive(ready.about["seed"], "answers at random"))  # what randomised models draw from
        if ready.target is None:
            _sweep(ready, found, observer)
            if keep:
                _keep(ready, found, observer)
        else:
            _reach(ready, ready.target, found, keep, observer)
    found.seconds = time.perf_counter() - start
    return found


def _sweep(ready: Ready, found: Found, observer: Observer) -> None:
    """Any wrong class will do."""
    _, first = next(iter(ready.attacks.values()))
    seed = ready.about["seed"]
    curve = eps_curve(ready.model, first, ready.test, list(ready.attacks), seed=seed, observer=observer)
    found.points, found.passes = curve.points(), curve.passes
    found.table = curve_table(curve, ready.test.labels.numpy())
    if curve.last is not None:
        for column, point in enumerate(found.points):
            point["no_gradient"] = share(curve.last.status[:, column] == Status.ZERO_GRADIENT).as_json()


def _keep(ready: Ready, found: Found, observer: Observer) -> None:
    """The attack once more at each eps on its own, for its adversarial images."""
    images, labels = ready.test.tensors(ready.model.device)
    for eps, (_, each) in ready.attacks.items():
        result = each(ready.model, images, labels, seed=ready.about["seed"], observer=observer)
        found.images[f"eps-{eps:g}"] = result.adversarial.cpu().contiguous()


def _reach(ready: Ready, target: int, found: Found, keep: bool, observer: Observer) -> None:
    """The images, all of other classes, are to be taken for the target."""
    images, labels = ready.test.tensors(ready.model.device)
    targets = torch.full_like(labels, target)
    tables = []
    for eps, (_, each) in ready.attacks.items():
        result = each(ready.model, images, labels, targets=targets, seed=ready.about["seed"], observer=observer)
        loss = result.loss.cpu().numpy()
        finite = loss[np.isfinite(loss)]
        found.points.append(
            {
                "eps": eps,
                "reached": share(result.success.cpu().numpy()).as_json(),
                "still_right": share((result.prediction == labels).cpu().numpy()).as_json(),
                "loss": mean(finite).as_json() if finite.size else None,
                "no_gradient": share(result.status.cpu().numpy() == Status.ZERO_GRADIENT).as_json(),
            }
        )
        found.passes.add(result.passes)
        table = attack_table(result, ready.test.labels.numpy())
        tables.append({**table, "eps": np.full(len(labels), eps), "target": np.full(len(labels), target)})
        if keep:
            found.images[f"eps-{eps:g}"] = result.adversarial.cpu().contiguous()
    found.table = {name: np.concatenate([each[name] for each in tables]) for name in tables[0]}


def write(folder: Path, ready: Ready, found: Found, threads: int) -> list[str]:
    """Write result.json, the table of examples and adversarial.safetensors, all or none; return their names."""
    provenance = surroundings(ready.about["device"], threads)
    with filling(folder, outputs.FILES, outputs.RESULT) as temporary:
        write_bytes(temporary / "adversarial.safetensors", safetensors.torch.save(found.images))
        table = write_table(found.table, temporary / "examples")
        write_json(temporary / outputs.RESULT, ready.about | found.as_json() | {"provenance": provenance})
    return [outputs.RESULT, table.name, "adversarial.safetensors"]


def with_hashes(ready: Ready) -> Ready:
    """The same attack, which also says what tells the model's weights and the images from all others."""
    hashes = {"fingerprint": fingerprint(ready.model), "images_sha256": fingerprint_of_images(ready.test)}
    return replace(ready, about=ready.about | hashes)
