"""What the guard against catastrophic overfitting and images without labels are worth; see README.md.

`python benchmarks/demonstrations/run.py [CASE ...]` trains the networks that are missing and writes the page.
"""

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, final

import torch

from casemate.attacks import PGD
from casemate.data import Dataset, LabelledImages, load, split, subset
from casemate.data.dataset import keep_labels
from casemate.defenses import make_objective
from casemate.evaluation import evaluate_clean
from casemate.files import write_text
from casemate.models import create
from casemate.provenance import commit, processor
from casemate.training import TrainConfig, TrainResult, fit

HERE = Path(__file__).resolve().parent
PAGE, RESULTS = HERE / "results.md", HERE / "results"
SEEDS = (0, 1, 2)
VALIDATION = 1000
ATTACKED = 1000
"""Test images that PGD attacks, the first ones."""


@final
@dataclass(frozen=True, kw_only=True)
class Case:
    """One way of training; those of one subject are compared."""

    subject: Literal["guard", "labels"]
    recipe: str
    network: str = "strided-cnn"
    settings: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    images: int | None = None
    """A stratified sample of the training images; None for all."""
    labels: int | None = None
    """Number of images that keep their labels; None for all."""
    eps: float | None = None
    """Radius in Linf at which the trained network is attacked."""

    @property
    def spec(self) -> dict[str, Any]:
        """All of it as JSON."""
        return json.loads(json.dumps(self.__dict__))


_FGSM: dict[str, Any] = {
    "subject": "guard",
    "recipe": "adversarial-training",
    "network": "paper-cnn",
    "settings": {"eps": 0.15, "steps": 1, "step_size": 0.15, "random_start": False},
    "images": 6000,
    "eps": 0.15,
}
_RATE = {"epochs": 12, "optimizer": "sgd", "learning_rate": 0.05, "schedule": "one-cycle", "monitor": "robust-accuracy"}
_LABELS = 500
_POOL: dict[str, Any] = {"subject": "labels", "images": 12_000, "training": {"epochs": 12}}
_FEW: dict[str, Any] = {"subject": "labels", "images": _LABELS, "training": {"epochs": 135, "batch_size": 50}}
"""About as many steps as the 12 epochs of those that see all images (500 labels repeated: 14,375 a pass)."""
CASES = {
    "FGSM without the guard": Case(**_FGSM, training=_RATE),
    "FGSM with the guard": Case(**_FGSM, training={**_RATE, "guard": True}),
    "cross-entropy, 500 images": Case(recipe="cross-entropy", **_FEW),
    "virtual-adversarial, 500 images": Case(recipe="virtual-adversarial", **_FEW),
    "virtual-adversarial, 500 labels": Case(recipe="virtual-adversarial", labels=_LABELS, **_POOL),
    "adversarial-regularization, 500 labels": Case(
        recipe="adversarial-regularization",
        settings={"step_size": 0.03, "norm": "linf", "multiplier": 1.0},
        labels=_LABELS,
        **_POOL,
    ),
    "cross-entropy, all labels": Case(recipe="cross-entropy", **_POOL),
}


TITLES = {"guard": "The guard", "labels": "Images without labels"}
"""Headings by subject."""


def path_of(name: str, seed: int) -> Path:
    """The file of a training."""
    return RESULTS / f"{name.lower().replace(', ', '-').replace(' ', '-')}-{seed}.json"


def read(name: str, seed: int) -> dict[str, Any] | None:
    """A training's results; None if there are none, or of other settings."""
    path = path_of(name, seed)
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return found if found is not None and found["spec"] == CASES[name].spec else None


def run(name: str, seed: int, images: Dataset) -> dict[str, Any]:
    """Train one network, and measure it."""
    case = CASES[name]
    train, validation = split(images.train, VALIDATION, 0)
    if case.images is not None:
        train = subset(train, case.images, seed)
    if case.labels is not None:
        train = keep_labels(train, case.labels, seed)
    model = create(case.network, input_shape=images.image_shape, classes=images.classes, seed=seed)
    objective = make_objective({"name": case.recipe, "settings": dict(case.settings)})
    done = fit(model, train, validation, TrainConfig(**{**case.training, "seed": seed}), objective=objective)
    return {
        "case": name,
        "seed": seed,
        "spec": case.spec,
        "seconds": sum(row["processor_seconds"] for row in done.history),
        "history": done.history,
        "measured": measured(done, images.test, case.eps),
        "commit": commit(),
        "processor": processor(),
    }


def measured(done: TrainResult, test: LabelledImages, eps: float | None) -> dict[str, float]:
    """Accuracy on all test images, and under PGD with 50 steps on the first ones."""
    found = {"clean": evaluate_clean(done.model, test).accuracy.value}
    if eps is not None:
        found["pgd"] = PGD(eps=eps, steps=50)(done.model, *test[:ATTACKED].tensors()).robust_accuracy
    return found


def page() -> str:
    """The results in Markdown."""
    lines = ["# Results", "", "Written by `run.py`; in percent, one value for each seed, from 0."]
    for subject, title in TITLES.items():
        if any(read(name, seed) for name, case in CASES.items() if case.subject == subject for seed in SEEDS):
            lines += ["", f"## {title}", "", *table(subject)]
    return "\n".join([*lines, ""])


def table(subject: str) -> list[str]:
    """The rows of one subject."""
    attacked = subject == "guard"
    heads = ["Training", f"Clean, {10_000:,}"]
    heads += [f"PGD-50, first {ATTACKED:,}", "Validation, best epoch", "Undone epochs"] if attacked else []
    lines = [f"| {' | '.join([*heads, 'Processor seconds'])} |", f"|{' --- |' * (len(heads) + 1)}"]
    for name, case in CASES.items():
        rows = [found for seed in SEEDS if (found := read(name, seed)) is not None]
        if case.subject != subject or not rows:
            continue
        cells = [name, shares(found["measured"]["clean"] for found in rows)]
        if attacked:
            histories = [found["history"] for found in rows]
            cells += [
                shares(found["measured"]["pgd"] for found in rows),
                shares(max(row.get("val_robust_accuracy", float("nan")) for row in each) for each in histories),
                ", ".join(str(sum(bool(row.get("rolled_back")) for row in each)) for each in histories),
            ]
        cells.append(", ".join(f"{found['seconds']:.0f}" for found in rows))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def shares(values: Any) -> str:
    """Shares in percent, with one decimal."""
    return ", ".join(f"{100 * value:.1f}" for value in values)


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", help="words of the names of the cases; all if there are none")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    images = load("fashion-mnist")
    RESULTS.mkdir(exist_ok=True)
    for seed in given.seeds:
        for name in CASES:
            if read(name, seed) is None and all(word in name for word in given.cases):
                start = time.perf_counter()
                found = run(name, seed, images)
                write_text(path_of(name, seed), json.dumps(found, indent=1) + "\n")
                print(f"{name}, seed {seed}: {found['measured']}, {time.perf_counter() - start:.0f} s", flush=True)
    write_text(PAGE, page())


if __name__ == "__main__":
    main()
