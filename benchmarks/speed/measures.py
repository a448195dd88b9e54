"""What one pass costs beside the machine's limit, where the time goes, and how cost grows with images and eps."""

import resource
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from floor import macs
from networks import as_written
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from casemate.attacks import FGSM, Misclassification, input_gradient, prepare_for_attack
from casemate.data import LabelledImages
from casemate.evaluation import eps_curve
from casemate.models import Classifier, optimized_training
from casemate.training import CrossEntropy, TrainConfig

_BATCHES = (32, 64, 128, 250)
_SECONDS = 2.0


def _rate(run: Callable[[], Any], images: int) -> float:
    """Images a second: the best of what fits into two seconds."""
    run()
    best, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < _SECONDS:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return images / best


def passes(path: Path, images: LabelledImages, rate: float) -> dict[str, Any]:
    """Input gradients and training steps of a network, as written and frozen, as shares of the machine's limit."""
    forward = 2 * macs(as_written(path))  # operations; a pass back to the images costs as many, to the weights too
    rows: dict[str, Any] = {}
    plain = as_written(path)
    for batch in _BATCHES:
        pixels, labels = images[:batch].tensors()
        with prepare_for_attack(plain, pixels, pass_size=batch) as prepared:
            for name, model in (("as written", plain), ("frozen", prepared.copy)):
                gradient = partial(input_gradient, model, pixels, Misclassification(labels), "ce")
                found = _rate(gradient, batch)
                rows[f"gradient, {name}, batch {batch}"] = {
                    "images_per_second": found,
                    "share_of_limit": found * 2 * forward / rate,
                }
    model = as_written(path).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    pixels, labels = images[:128].tensors()
    with optimized_training(model, pixels[:32]):  # as `fit` does
        found = _rate(training_step(model, pixels, labels), len(labels))
    rows["training step, batch 128"] = {"images_per_second": found, "share_of_limit": found * 3 * forward / rate}
    pixels, labels = images[:64].tensors()
    with prepare_for_attack(as_written(path), pixels, pass_size=64) as prepared:
        where = _kernels(lambda: input_gradient(prepared.copy, pixels, Misclassification(labels), "ce"))
    pixels, labels = images[:128].tensors()
    with optimized_training(model, pixels[:32]):
        training = _kernels(training_step(model, pixels, labels))
    return {"forward_flops": forward, "rows": rows, "gradient_kernels": where, "training_kernels": training}


def training_step(model: Classifier, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """A training step."""
    objective, optimizer = CrossEntropy(), TrainConfig().make_optimizer(model)
    model.train().requires_grad_(True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        objective(model, images, labels)[0].backward()
        optimizer.step()

    return step


def _kernels(run: Callable[[], Any]) -> list[dict[str, Any]]:
    """The kernels that take most time, as shares of all."""
    for _ in range(3):
        run()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(20):
            run()
    rows = sorted(found.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    return [{"kernel": row.key, "share": row.self_cpu_time_total / total} for row in rows[:12]]


def scaling(path: Path, images: LabelledImages, counts: Sequence[int] = (1_000, 10_000, 100_000)) -> dict[str, Any]:
    """Seconds and memory of an FGSM sweep against the number of images, and of eps; images are repeated as needed."""
    model = as_written(path)
    by_images, by_eps = [], []
    for count in counts:
        chosen = torch.arange(count) % len(images)
        some = images[chosen]
        start = time.process_time()
        eps_curve(model, FGSM(eps=0.1), some, [0.05, 0.1], only_worst=True, batch_size=64)
        seconds = time.process_time() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        by_images.append(
            {"images": count, "cpu_seconds": seconds, "peak_memory": peak, "of_images": some.pixels.nbytes}
        )
    for values in (1, 2, 4, 8, 16):
        grid = [0.2 * (step + 1) / values for step in range(values)]
        row: dict[str, Any] = {"eps": values}
        for name, worst in (("worst", True), ("last", False)):
            start = time.process_time()
            eps_curve(model, FGSM(eps=0.1), images[:2000], grid, only_worst=worst, batch_size=64)
            row[f"{name}_cpu_seconds"] = time.process_time() - start
        by_eps.append(row)
    return {"by_images": by_images, "by_eps": by_eps}
