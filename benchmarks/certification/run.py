"""How much time a certificate saves an evaluation: images that it proves robust need no attack.

`python benchmarks/certification/run.py` trains a small network by interval bound propagation on Fashion-MNIST, and
evaluates it twice on the same images, in turn: with all images attacked, and by `evaluate_certified`, which attacks
what is not certified and a sample of what is. It writes `result.json` and the table in `docs/certificates.md`. With the
names of cases as arguments it runs only these, and keeps the other rows of `result.json`.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from casemate import Classifier, LabelledImages, TrainConfig, evaluate_clean, fit
from casemate.data import load, subset
from casemate.defenses import RECIPES
from casemate.evaluation import Budget, run_cascade
from casemate.evaluation.budgets import attacks_for
from casemate.evaluation.certified import SAMPLE, evaluate_certified
from casemate.files import write_json, write_text
from casemate.provenance import commit, surroundings

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "certificates.md"
RESULT = HERE / "result.json"
WEIGHTS = Path("runs") / "bench" / "certification.pt"
BEGIN, END = "<!-- benchmarks/certification/run.py: begin -->", "<!-- benchmarks/certification/run.py: end -->"
SEED, TRAIN, EPOCHS, TRAIN_EPS = 0, 12_000, 20, 0.1
_T = TypeVar("_T")


class Case(NamedTuple):
    """One evaluation, made in both ways."""

    images: int
    eps: tuple[float, ...]
    budget: Budget


CASES = {
    "few images": Case(500, (0.05,), "standard"),
    "more images": Case(1000, (0.05,), "standard"),
    "many images": Case(1500, (0.05,), "standard"),
    "a quick look": Case(2000, (0.05, 0.1), "quick"),
}


def network() -> nn.Module:
    """Two strided convolutions and two dense layers."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 49, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def main() -> None:
    """Train, evaluate in both ways, write the result."""
    torch.set_num_threads(1)
    chosen = sys.argv[1:] or list(CASES)
    found: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() and sys.argv[1:] else {}
    data = load("fashion-mnist")
    torch.manual_seed(SEED)
    model = Classifier(network(), input_shape=(1, 28, 28), classes=data.classes)
    found.setdefault("training", {"images": TRAIN, "epochs": EPOCHS, "eps": TRAIN_EPS, "recipe": "ibp"})
    if WEIGHTS.exists():
        model.network.load_state_dict(torch.load(WEIGHTS))
    else:
        found["training"]["cpu_seconds"] = timed(lambda: train(model, data.train))[1]
        WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.network.state_dict(), WEIGHTS)
    rows = found.setdefault("rows", {})
    for name in chosen:
        rows[name] = compared(model.eval(), data.test[: CASES[name].images], CASES[name])
        print(name, {key: each for key, each in rows[name].items() if not isinstance(each, list)}, flush=True)
    found |= {"command": "python benchmarks/certification/run.py", "sample": SAMPLE, "seed": SEED}
    write_json(RESULT, found | {"surroundings": surroundings("cpu", 1)})
    write_table()


def train(model: Classifier, images: LabelledImages) -> None:
    """Train by interval bound propagation."""
    part = subset(images, TRAIN, SEED)
    settings = TrainConfig(epochs=EPOCHS, schedule="cosine", learning_rate=2e-3, keep_best=False, seed=SEED)
    fit(model, part, part[torch.arange(500)], settings, objective=RECIPES["ibp"].objective(eps=TRAIN_EPS))


def timed(work: Callable[[], _T]) -> tuple[_T, float]:
    """What `work` returns, and the seconds of processor time that it took; other programs change it too, but less."""
    start = time.process_time()
    return work(), time.process_time() - start


def compared(model: Classifier, images: LabelledImages, case: Case) -> dict[str, Any]:
    """The same evaluation with all images attacked, and with a certificate."""

    def attacked() -> Any:
        attacks = attacks_for(case.budget, "linf", case.eps[0], randomised=False)
        clean = evaluate_clean(model, images).correct
        return run_cascade(model, attacks, images, case.eps, correct=clean, seed=SEED)

    def certified() -> Any:
        return evaluate_certified(model, images, eps=case.eps, budget=case.budget, seed=SEED)

    all_attacked, slow = timed(attacked)
    spared, fast = timed(certified)
    return {
        "images": len(images),
        "eps": list(case.eps),
        "budget": case.budget,
        "certified": [each.value for each in spared.certified_accuracy],
        "attacked": [each.value for each in spared.robust_accuracy],
        "clean": spared.clean_accuracy.value,
        "void": spared.is_void,
        "undecided": spared.undecided,
        "sampled": spared.sampled,
        "share_of_time_for_bounds": spared.certificate_seconds / spared.seconds,
        "different_outcomes": int((all_attacked.robust != spared.robust).any(1).sum()),
        "attacked_images": {
            "all attacked": int(spared.clean.sum()),
            "certified": int(spared.attacked.any(1).sum()),
        },
        "cpu_seconds": {"all attacked": slow, "certified": fast},
        "factor": slow / fast,
        "commit": commit(),
    }


def write_table() -> None:
    """Write the table from `result.json` into the page."""
    found = json.loads(RESULT.read_text())
    made, training = found["surroundings"], found["training"]
    rows = [found["rows"][name] for name in CASES if name in found["rows"]]
    text = [
        BEGIN,
        f"`{found['command']}`: a network of two convolutions, trained by the recipe `{training['recipe']}` at eps "
        f"{training['eps']} on {training['images']:,} Fashion-MNIST images ({training['epochs']} epochs); one thread, "
        f"processor time ({made['processor']}, PyTorch {made['libraries']['torch']}, commits "
        f"{', '.join(sorted({row['commit'] for row in rows}))}); Linf, `crown`, a sample of {found['sample']}, seed "
        f"{found['seed']}, one run each. Other programs ran beside it, and times are rough: in an earlier run, not "
        "shown, the 1,000 images took 597 and 141 s. The numbers of images attacked do not depend on that.",
        "",
        "| test images | eps | budget | certified, % | withstood attacks, % | images attacked: all, with certificate | "
        "seconds: all, with certificate | faster | images with another outcome |",
        f"|{' --- |' * 9}",
        *(
            f"| {row['images']:,} | {', '.join(f'{each:g}' for each in row['eps'])} | {row['budget']} | "
            f"{_percent(row['certified'])} | {_percent(row['attacked'])} | {_both(row['attacked_images'])} | "
            f"{_both(row['cpu_seconds'])} | {row['factor']:.1f} times | {row['different_outcomes']} |"
            for row in rows
        ),
        END,
    ]
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    write_text(PAGE, before + "\n".join(text) + rest.partition(END)[2])


def _both(found: dict[str, float]) -> str:
    return f"{found['all attacked']:,.0f}, {found['certified']:,.0f}"


def _percent(shares: list[float]) -> str:
    return ", ".join(f"{100 * each:.1f}" for each in shares)


if __name__ == "__main__":
    main()
