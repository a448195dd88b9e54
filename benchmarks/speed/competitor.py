"""One competitor on one task, timed once, in a process of its own. `bench.py` starts it; see README.md.

    python competitor.py NAME TASK FOLDER BATCH LAYOUT

FOLDER holds `images.safetensors` (images, labels) and `plan.json`. Prints one line of JSON: seconds, what was found,
and versions. A run on a part of the images comes first and is not timed.
"""

import contextlib
import io
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from networks import as_written
from torch import Tensor
from within import watched

from casemate.models import Classifier
from casemate.progress import NULL_OBSERVER, Advance

Run = Callable[[Tensor, Tensor, list[float]], dict[str, Any]]
"""(images, labels, values of eps) -> accuracy at each, and what else is known."""


def sweep(model: Classifier, batch: int, craft: Callable[[float, Tensor, Tensor], Tensor]) -> Run:
    """What users of the other libraries write: a loop over eps and batches, then the accuracy."""

    def run(images: Tensor, labels: Tensor, values: list[float]) -> dict[str, Any]:
        found = []
        for eps in values:
            hits = 0
            for part, truth in zip(images.split(batch), labels.split(batch), strict=True):
                made = craft(eps, part, truth)
                with torch.no_grad():
                    hits += int((model(made).argmax(1) == truth).sum())
            found.append(hits / len(labels))
        return {"accuracy": found}

    return run


class Heard:
    """An observer that keeps what it is told, such as that a precision is of no use on this machine."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def message(self, message: str) -> None:
        self.said.append(message)

    def work(self, title: str, total: float) -> contextlib.AbstractContextManager[Advance]:
        return NULL_OBSERVER.work(title, total)


def casemate(model: Classifier, task: str, batch: int, steps: int) -> Run:
    """The functions that `casemate attack` and `casemate evaluate` call; batch 0: the size is its own choice."""
    from casemate.attacks import BIM, FGSM
    from casemate.data import LabelledImages
    from casemate.evaluation import eps_curve
    from casemate.evaluation.budgets import attacks_for
    from casemate.evaluation.cascade import run_cascade

    def stored(images: Tensor, labels: Tensor) -> LabelledImages:
        return LabelledImages(pixels=(images * 255).round().to(torch.uint8), labels=labels)

    precision = "bfloat16" if task.endswith("-bfloat16") else "float32"
    if task.startswith("autoattack"):

        def judge(images: Tensor, labels: Tensor, values: list[float]) -> dict[str, Any]:
            attacks = attacks_for("standard", "linf", values[0], randomised=False)
            heard = Heard()
            found = run_cascade(
                model,
                attacks,
                stored(images, labels),
                values,
                batch_size=batch or None,
                precision=precision,
                observer=heard,
            )
            steps = [{"attack": a.attack, "tried": a.tried, "fooled": a.fooled, "s": a.seconds} for a in found.attempts]
            return {
                "accuracy": found.robust.mean(0).tolist(),
                "left": found.robust[:, -1].tolist(),
                "passes": asdict(found.passes),
                "steps": steps,
                "said": heard.said,
            }

        return judge

    kind, _, track = task.partition("-")
    # `last` is held against the others' accuracies, so it ascends the loss that they ascend
    loss = "torch-ce" if track == "last" else "ce"
    attack = FGSM(eps=0.1, loss=loss) if kind == "fgsm" else BIM(eps=0.1, steps=steps, loss=loss)

    def run(images: Tensor, labels: Tensor, values: list[float]) -> dict[str, Any]:
        heard = Heard()
        found = eps_curve(
            model,
            attack,
            stored(images, labels),
            values,
            only_worst=track != "last",
            batch_size=batch or None,
            precision=precision,
            observer=heard,
        )
        right = found.worst if found.last is None else found.last.right
        return {"accuracy": right.mean(0).tolist(), "passes": asdict(found.passes), "said": heard.said}

    return run


def original(model: Classifier, task: str, batch: int, steps: int) -> Run:
    """The original AutoAttack, from the folder that AUTOATTACK_SRC names."""
    del task, steps
    sys.path.insert(0, os.environ["AUTOATTACK_SRC"])
    from autoattack import AutoAttack  # pyright: ignore[reportMissingImports]

    def run(images: Tensor, labels: Tensor, values: list[float]) -> dict[str, Any]:
        log = io.StringIO()
        with contextlib.redirect_stdout(log):
            attack = AutoAttack(model, norm="Linf", eps=values[0], version="standard", device="cpu", seed=0)
            _, answers = attack.run_standard_evaluation(images, labels, bs=batch, return_labels=True)
        left = answers == labels
        steps = [line for line in log.getvalue().splitlines() if "accuracy" in line]
        return {"accuracy": [float(left.double().mean())], "left": left.tolist(), "steps": steps}

    return run


def torchattacks(model: Classifier, task: str, batch: int, steps: int) -> Run:
    """The library's own classes."""
    import torchattacks as library  # pyright: ignore[reportMissingImports]

    def craft(eps: float, images: Tensor, labels: Tensor) -> Tensor:
        if task.startswith("fgsm"):
            return library.FGSM(model, eps=eps)(images, labels)
        return library.BIM(model, eps=eps, alpha=eps / 4, steps=steps)(images, labels)

    return sweep(model, batch, craft)


def foolbox(model: Classifier, task: str, batch: int, steps: int) -> Run:
    """The library's own classes, all values of eps in one call as it offers."""
    import foolbox as library  # pyright: ignore[reportMissingImports]

    wrapped = library.PyTorchModel(model, bounds=model.bounds, device=model.device)
    if task.startswith("fgsm"):
        made = library.attacks.LinfFastGradientAttack(random_start=False)
    else:
        made = library.attacks.LinfBasicIterativeAttack(rel_stepsize=0.25, steps=steps, random_start=False)

    def run(images: Tensor, labels: Tensor, values: list[float]) -> dict[str, Any]:
        hits = torch.zeros(len(values))
        for part, truth in zip(images.split(batch), labels.split(batch), strict=True):
            _, _, fooled = made(wrapped, part, library.criteria.Misclassification(truth), epsilons=values)
            hits += (~fooled).sum(1)
        return {"accuracy": (hits / len(labels)).tolist()}

    return run


def art(model: Classifier, task: str, batch: int, steps: int) -> Run:
    """The library's own classes, which take and return arrays."""
    from art.attacks.evasion import BasicIterativeMethod, FastGradientMethod  # pyright: ignore[reportMissingImports]
    from art.estimators.classification import PyTorchClassifier  # pyright: ignore[reportMissingImports]

    wrapped = PyTorchClassifier(
        model,
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=model.input_shape,
        nb_classes=len(model.classes),
        clip_values=model.bounds,
        device_type="cpu",
    )

    def run(images: Tensor, labels: Tensor, values: list[float]) -> dict[str, Any]:
        found = []
        pixels, truth = images.numpy(), labels.numpy()
        for eps in values:
            if task.startswith("fgsm"):
                attack = FastGradientMethod(wrapped, eps=eps, batch_size=batch)
            else:
                attack = BasicIterativeMethod(
                    wrapped, eps=eps, eps_step=eps / 4, max_iter=steps, batch_size=batch, verbose=False
                )
            made = attack.generate(pixels, truth)
            found.append(float((wrapped.predict(made, batch_size=batch).argmax(1) == truth).mean()))
        return {"accuracy": found}

    return run


COMPETITORS: dict[str, tuple[Any, str | None]] = {
    "casemate": (casemate, "casemate"),
    "torchattacks": (torchattacks, "torchattacks"),
    "foolbox": (foolbox, "foolbox"),
    "art": (art, "adversarial-robustness-toolbox"),
    "original": (original, None),
}


def main(name: str, task: str, folder: Path, batch: int, layout: str) -> None:
    """Prepare, warm up, time, print."""
    plan = json.loads((folder / "plan.json").read_text())
    torch.set_num_threads(plan["threads"])
    inputs = safetensors.torch.load_file(folder / "images.safetensors")
    images, labels = inputs["images"][: plan["n"]], inputs["labels"][: plan["n"]]
    model = as_written(Path(plan["model"]))
    if layout == "channels-last":
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        images = images.contiguous(memory_format=torch.channels_last)
    make, distribution = COMPETITORS[name]
    run = make(model, task, batch, plan["steps"])
    few = 8 if task.startswith("autoattack") else 2 * max(batch, 128)
    run(images[:few], labels[:few], plan["eps"])
    start, cpu = time.perf_counter(), time.process_time()
    if task.startswith("autoattack"):
        with watched() as within:
            found = run(images, labels, plan["eps"]) | {"within": asdict(within)}
    else:
        found = run(images, labels, plan["eps"])
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(
        json.dumps(
            {
                "seconds": seconds,
                "cpu_seconds": cpu,
                **found,
                "version": metadata.version(distribution) if distribution else None,
                "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
