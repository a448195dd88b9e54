"""What randomised smoothing certifies of the networks that each recipe for it trains; see README.md.

`python benchmarks/smoothing/run.py [RECIPE ...]` trains and measures what is missing, and writes the page.
"""

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from casemate.attacks import EOT, PGD
from casemate.benchmark import ENTRIES
from casemate.certification import Smoothing, certify_smoothed, predict_smoothed, smoothed
from casemate.certification.smoothing import ABSTAINED
from casemate.data import LabelledImages, load, split
from casemate.defenses import make_objective
from casemate.evaluation.intervals import share
from casemate.files import write_json, write_text
from casemate.models import Classifier, create
from casemate.provenance import commit, processor
from casemate.training import TrainConfig, fit

HERE = Path(__file__).resolve().parent
PAGE, RESULTS = HERE / "results.md", HERE / "results"
NETWORK = "strided-cnn"
TRAINING: Mapping[str, Any] = {**ENTRIES["undefended"].training, "seed": 0}
"""That of the benchmark's undefended network."""
SIGMA = 0.25
SMOOTHING = Smoothing(sigma=SIGMA, n0=100, n=10_000, alpha=0.001)
CERTIFIED, ATTACKED = 300, 100
"""Test images, the first ones: those that are certified, and those that are attacked."""
RADII = (0.0, 0.25, 0.5, 0.75)
STEPS, DRAWS = 20, 16
VOTES = Smoothing(sigma=SIGMA, n=1000, alpha=0.001)
"""By which the class of an adversarial image is decided."""
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "cross-entropy": {},
    "gaussian-noise": {"sigma": SIGMA},
    "consistency": {"sigma": SIGMA},
    "smooth-adv": {"sigma": SIGMA, "eps": 0.5, "steps": 2, "draws": 2},
}
"""The settings of each recipe; the others are its defaults."""


def run(name: str) -> dict[str, Any]:
    """Train one network, certify it, and attack it."""
    images = load("fashion-mnist")
    train, validation = split(images.train, 6000, 0)
    torch.set_num_threads(1)
    model = create(NETWORK, input_shape=images.image_shape, classes=images.classes, seed=0)
    objective = make_objective({"name": name, "settings": dict(RECIPES[name])})
    done = fit(model, train, validation, TrainConfig(**TRAINING), objective=objective)
    start = time.process_time()
    certificate = certify_smoothed(done.model, *images.test[:CERTIFIED].tensors(), SMOOTHING)
    seconds = time.process_time() - start
    few = images.test[:ATTACKED]
    return {
        "recipe": name,
        "settings": dict(RECIPES[name]),
        "certified": {f"{radius:g}": certificate.right_within(radius).tolist() for radius in RADII},
        "attacked": {f"{radius:g}": attacked(done.model, few, radius) for radius in RADII[1:]},
        "mean_radius": float((certificate.radius * certificate.right).mean()),
        "training_seconds": sum(row["processor_seconds"] for row in done.history),
        "certification_seconds": seconds,
        "commit": commit(),
        "processor": processor(),
    }


def attacked(model: Classifier, images: LabelledImages, radius: float) -> dict[str, list[bool]]:
    """Which images the smoothed classifier still gets right after PGD on it, and which wrong, as its votes decide.

    Where it abstains it is neither.
    """
    pixels, labels = images.tensors()
    attack = EOT(attack=PGD(eps=radius, norm="l2", steps=STEPS, keep="last"), eot_samples=1)
    torch.manual_seed(0)
    moved = attack(smoothed(model, SMOOTHING, draws=DRAWS), pixels, labels).adversarial
    clean = predict_smoothed(model, pixels, VOTES) == labels
    after = predict_smoothed(model, moved, VOTES, seed=1)
    wrong = (after != labels) & (after != ABSTAINED)
    return {"right": (clean & (after == labels)).tolist(), "wrong": wrong.tolist()}


def page(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The results in Markdown."""
    commits = ", ".join(dict.fromkeys(each["commit"] for each in found.values()))
    processors = ", ".join(dict.fromkeys(each["processor"] for each in found.values()))
    heads = ["Recipe", *(f"Certified {radius:g}" for radius in RADII), "Mean radius"]
    heads += [f"Attacked {radius:g}" for radius in RADII[1:]] + ["Certified but fooled", "Training", "Certification"]
    lines = [
        "# Results",
        "",
        f"Written by `run.py`: `{NETWORK}`, {TRAINING['epochs']} epochs, sigma {SIGMA:g}, alpha {SMOOTHING.alpha:g}, "
        f"{SMOOTHING.n:,} draws, seed 0, commit {commits}, {processors}. Certified: the first "
        f"{CERTIFIED} test images, at radii in L2. Attacked: the first {ATTACKED}, by PGD with {STEPS} steps on the "
        f"smoothed classifier of {DRAWS} draws; its votes decide. With 95 % intervals; "
        "seconds of the processor.",
        "",
        f"| {' | '.join(heads)} |",
        f"|{' --- |' * len(heads)}",
    ]
    for name, each in found.items():
        certified = [_share(each["certified"][f"{radius:g}"]) for radius in RADII]
        left = [_share(each["attacked"][f"{radius:g}"]["right"]) for radius in RADII[1:]]
        cells = [name, *certified, f"{each['mean_radius']:.3f}", *left, str(contradicted(each))]
        cells += [f"{each['training_seconds']:.0f} s", f"{each['certification_seconds']:.0f} s"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def contradicted(found: Mapping[str, Any]) -> int:
    """How many certificates, over all radii, an attack contradicts; each is false with a probability of alpha."""
    return sum(
        proven and wrong
        for radius, after in found["attacked"].items()
        for proven, wrong in zip(found["certified"][radius], after["wrong"], strict=False)
    )


def _share(values: list[bool]) -> str:
    return str(share(torch.tensor(values).numpy()))


def main() -> None:
    """Train and measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", choices=[*RECIPES, []], help="all if there are none")
    RESULTS.mkdir(exist_ok=True)
    for name in parser.parse_args().recipes or RECIPES:
        path = RESULTS / f"{name}.json"
        if not path.exists():
            write_json(path, run(name))
    found = {name: json.loads(path.read_text()) for name in RECIPES if (path := RESULTS / f"{name}.json").exists()}
    write_text(PAGE, page(found))


if __name__ == "__main__":
    main()
