"""Clean against robust accuracy of the recipes that were tried for the benchmark's models; see README.md.

`python benchmarks/frontier/run.py` trains the models that are missing, and writes the table and the figure.
"""

import argparse
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from casemate.benchmark import ENTRIES, BenchmarkPlan, Entry, plan_benchmark, run_benchmark
from casemate.data import Dataset, load, split
from casemate.models import register
from casemate.models.strided import pixelwise
from casemate.report.benchmark import write_benchmark

HERE = Path(__file__).resolve().parent
RUNS = HERE.parent.parent / "runs" / "frontier"
MEASURED = 1000
"""Training images that are set aside to measure on; no model sees them before."""

_BOUNDS: dict[str, Any] = {"eps": 0.1, "train_eps_factor": 1.05, "ramp_end": 0.4}
_EPS = 0.11
_STEP = {2: 0.6, 3: 0.5}
"""Size of the steps as a share of the radius, by their number."""


def adversarial(network: str, epochs: int, steps: int, *, awp: float = 0.0) -> Entry:
    """Adversarial training."""
    return Entry(
        network=network,
        recipe="adversarial-training",
        settings={"eps": _EPS, "steps": steps, "step_size": _STEP[steps] * _EPS, "weight_perturbation": awp},
        training={**ENTRIES["fast"].training, "epochs": epochs},
    )


def bounds(network: str, **settings: Any) -> Entry:
    """A training for interval bounds like that of `certified`, but shorter and with other settings."""
    longer = ENTRIES["certified"]
    return replace(longer, network=network, settings=settings, training={**longer.training, "epochs": 14})


@register("widest-pixelwise-cnn")
def widest(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Twice as wide as the network of `robust`."""
    return pixelwise(input_shape, classes, 128)


def in_bfloat16(entry: Entry, **more: Any) -> Entry:
    """The same training in bfloat16."""
    return replace(entry, training={**entry.training, "precision": "bfloat16"}, **more)


CASES: Mapping[str, Entry] = {
    "adversarial, 2 steps": adversarial("strided-cnn", 12, 2),
    "adversarial, 3 steps, pixelwise": adversarial("pixelwise-cnn", 10, 3),
    "adversarial, 3 steps, pixelwise, AWP": adversarial("pixelwise-cnn", 10, 3, awp=0.005),
    "adversarial, 4 steps, pixelwise (fast)": ENTRIES["fast"],
    "adversarial, 4 steps, pixelwise, bfloat16": in_bfloat16(ENTRIES["fast"]),
    "adversarial, 4 steps, wide pixelwise (robust)": ENTRIES["robust"],
    "adversarial, 4 steps, widest pixelwise, bfloat16": in_bfloat16(ENTRIES["robust"], network="widest-pixelwise-cnn"),
    "IBP": bounds("strided-cnn", **_BOUNDS),
    "IBP 0.5, pixelwise": bounds("pixelwise-cnn", **_BOUNDS, kappa_end=0.5),
}
"""Recipes by the name that the figure shows."""


def planned(names: list[str]) -> BenchmarkPlan:
    """The benchmark of these cases on the images set aside, by the budget "quick" at one radius."""
    images = load("fashion-mnist")
    train, aside = split(images.train, MEASURED, 1)
    name = "training images set aside"
    held: Dataset = replace(
        images, name=f"fashion-mnist, {name}", title=f"{images.title}, {name}", train=train, test=aside
    )
    return plan_benchmark(held, names, entries=CASES, others=(), images=MEASURED, budget="quick")


def main() -> None:
    """Train and measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", help="names of the cases; all if there are none")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    plan = planned(given.cases)
    rows = run_benchmark(plan, RUNS)
    write_benchmark(RUNS, plan, rows)
    if not given.cases:
        for file in ("benchmark.md", "benchmark.json", "benchmark.svg"):
            shutil.copy(RUNS / file, HERE / file)


if __name__ == "__main__":
    main()
