"""What `casemate selftest` does once PyTorch is loaded: estimate the time, and run."""

from collections.abc import Sequence
from pathlib import Path

from casemate import data
from casemate.cli.shared import console
from casemate.evaluation.budgets import Budget
from casemate.progress import Observer
from casemate.selftest import ModelFactory, Outcome, Sizes, choose_cases, self_test, self_test_seconds


def run(
    only: Sequence[str],
    *,
    budget: Budget,
    images: int,
    dataset: str,
    data_dir: Path | None,
    device: str,
    seed: int,
    observer: Observer,
) -> list[Outcome]:
    """Train and evaluate the models of the self-test named in `only` (empty: all), each on `images` test images.

    First the observer receives an estimate of the longest time. Raises `CasemateError`, as for an unknown name.
    """
    cases = choose_cases(only)
    with observer.work("Reading the images", 0):
        whole = data.load(dataset, data_dir, observer=observer)
    factory = ModelFactory(whole, Sizes(test=images), device=device, seed=seed, observer=observer)
    with observer.work("Measuring the speed", 0):
        seconds = self_test_seconds(factory, cases, budget)
    observer.message(
        f"{len(cases)} models, budget {budget}: at most about {console.duration(seconds)} here; less where attacks "
        "succeed."
    )
    return list(self_test(factory, cases, budget=budget, seed=seed, observer=observer))
