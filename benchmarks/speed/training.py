"""What does an epoch of training cost in float32 and in bfloat16, where does its time go, and does it end as well?

`python benchmarks/speed/training.py` writes `training.json`, which `page.py` shows. Seconds of the processor, one
thread. `--parts` runs some of:

- `epochs`: an epoch of the study's networks in both precisions, which take turns; beside the limit, the time of the
  arithmetic alone at the rate of a matrix product of that precision;
- `operations`: the share of an epoch that each kind of layer takes (PyTorch's profiler);
- `accuracy`: the accuracies after small trainings in both precisions, with the same seeds;
- `threads`: seconds of the clock that `casemate train` takes on two threads that sleep or spin while they wait, and on
  one, on the free machine and beside a process that keeps a core busy.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from floor import gemm_rate, macs
from torch import Tensor
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from casemate.data import Dataset, LabelledImages, load, split, subset
from casemate.defenses import AdversarialRegularization
from casemate.evaluation import evaluate_clean
from casemate.files import write_json
from casemate.models import Classifier, create
from casemate.provenance import surroundings
from casemate.training import CrossEntropy, Objective, TrainConfig, fit
from casemate.waiting_threads import VARIABLES

HERE = Path(__file__).resolve().parent
NETWORKS = ("paper-cnn", "paper-student")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PARTS = ("epochs", "operations", "accuracy", "threads")
BATCH = 128
EPOCHS = 3
"""Epochs of a timed training; the first one, in which loops are compiled and memory is allocated, is not counted."""
GEMM_SIZE = 512
"""Side of the matrices whose product sets the limit: of those tried, the fastest in bfloat16 on an AMD EPYC."""
OPERATIONS = {
    "changes of type": ("aten::to", "ToCopyBackward"),
    "optimiser": ("Optimizer.",),
    "convolution, backward": ("ConvolutionBackward0", "aten::convolution_backward"),
    "convolution, forward": ("aten::conv2d", "aten::convolution"),
    "dense layers": ("aten::linear", "AddmmBackward0", "aten::mm"),
    "pooling": ("_PoolFunction", "_UnpoolFunction", "aten::max_pool2d", "MaxPool2D"),
    "batch normalisation": ("aten::batch_norm", "NativeBatchNorm"),
    "dropout": ("_Dropout", "aten::dropout", "NativeDropoutBackward", "aten::native_dropout"),
    "ReLU": ("aten::relu", "ReluBackward"),
}
"""Kinds of work, and how the names of their operations begin; an operation inside one of these counts as part of it,
and of the first kind here if there are several.
"""
OTHER, BETWEEN = "other operations", "between operations"


@dataclass
class Watched:
    """An objective that calls a function after every epoch, when its validation has been computed."""

    objective: Objective
    after_epoch: Callable[[], None] = field(repr=False)

    def __call__(self, model: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The objective's loss and logits."""
        return self.objective(model, images, labels)

    def validate(self, model: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The objective's validation; with a single batch, once an epoch."""
        found = self.objective.validate(model, images, labels)
        self.after_epoch()
        return found


def train(network: str, data: Dataset, images: LabelledImages, precision: str, after_epoch: Callable[[], None]) -> None:
    """Train a new network as E1 does, for `EPOCHS` epochs, validated on a single image."""
    model = create(network, input_shape=data.image_shape, classes=data.classes)
    settings = TrainConfig(epochs=EPOCHS, batch_size=BATCH, precision=precision)  # pyright: ignore[reportArgumentType]
    fit(model, images, images[:1], settings, objective=Watched(CrossEntropy(), after_epoch))


def epoch_seconds(network: str, data: Dataset, images: LabelledImages, precision: str) -> list[float]:
    """Seconds of the processor that each epoch but the first takes."""
    ends: list[float] = []
    train(network, data, images, precision, lambda: ends.append(time.process_time()))
    return [after - before for before, after in pairwise(ends)]


def epochs(data: Dataset, images: LabelledImages, rounds: int) -> dict[str, Any]:
    """Seconds of an epoch of each network in each precision, beside the limit."""
    rates = {precision: gemm_rate(1, GEMM_SIZE, dtype=dtype) for precision, dtype in PRECISIONS.items()}
    seconds: dict[tuple[str, str], list[float]] = {(n, p): [] for n in NETWORKS for p in PRECISIONS}
    for turn in range(rounds):
        for network, precision in list(seconds)[:: 1 if turn % 2 == 0 else -1]:
            seconds[network, precision] += epoch_seconds(network, data, images, precision)
    rows = []
    for (network, precision), those in seconds.items():
        # a pass back to the images costs as many operations as a pass forward, and one to the weights too
        operations = 3 * 2 * macs(create(network, input_shape=data.image_shape, classes=data.classes))
        middle = statistics.median(those)
        rows.append(
            {
                "network": network,
                "precision": precision,
                "seconds": middle,
                "least_seconds": min(those),
                "all_seconds": those,
                "limit_seconds": len(images) * operations / rates[precision],
                "speed_up": statistics.median(seconds[network, "float32"]) / middle,
            }
        )
        print(
            f"{network}, {precision}: {middle:.2f} s an epoch ({min(those):.2f} to {max(those):.2f}), "
            f"limit {rows[-1]['limit_seconds']:.2f} s, {rows[-1]['speed_up']:.2f} times as fast as float32",
            flush=True,
        )
    return {"images": len(images), "batch": BATCH, "gemm_flops_per_second": rates, "rows": rows}


def kind_of(event: FunctionEvent) -> str:
    """The kind of work that an operation belongs to, a key of `OPERATIONS` or `OTHER`."""
    names, place = [], event
    while place is not None:
        names.append(place.name.removeprefix("autograd::engine::evaluate_function: "))
        place = place.cpu_parent
    kinds = (kind for kind, begin in OPERATIONS.items() if any(name.startswith(begin) for name in names))
    return next(kinds, OTHER)


def operations(data: Dataset, images: LabelledImages) -> dict[str, Any]:
    """The share of each kind of work in the time of an epoch."""
    rows = []
    for network in NETWORKS:
        for precision in PRECISIONS:
            spent = profiled(network, data, images, precision)
            total = sum(spent.values())
            shares = {kind: spent[kind] / total for kind in (*OPERATIONS, OTHER, BETWEEN)}
            rows.append({"network": network, "precision": precision, "shares": shares})
            print(f"{network}, {precision}: {', '.join(f'{k} {100 * v:.1f} %' for k, v in shares.items())}", flush=True)
    return {"images": len(images), "rows": rows}


def profiled(network: str, data: Dataset, images: LabelledImages, precision: str) -> Counter[str]:
    """Microseconds of each kind of work in the second epoch of a training."""
    found, ends = profile(activities=[ProfilerActivity.CPU]), []

    def after_epoch() -> None:
        ends.append(time.perf_counter())
        if len(ends) == 1:
            found.start()
            ends[0] = time.perf_counter()
        elif len(ends) == 2:
            found.stop()

    train(network, data, images, precision, after_epoch)
    spent: Counter[str] = Counter()
    for event in found.events() or ():
        spent[kind_of(event)] += event.self_cpu_time_total
    spent[BETWEEN] = max(1e6 * (ends[1] - ends[0]) - spent.total(), 0)
    return spent


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A small training whose accuracy is compared."""

    title: str
    images: int
    validation: int
    batch: int
    epochs: int
    seeds: int
    objective: Objective = field(default_factory=CrossEntropy)


PLANS = (
    Plan(title="E1 at scale quick", images=800, validation=200, batch=32, epochs=80, seeds=3),
    Plan(title="E1, more images", images=5000, validation=1000, batch=64, epochs=8, seeds=3),
    Plan(
        title="E6 (adversarial regularisation), from a new network",
        images=5000,
        validation=1000,
        batch=64,
        epochs=6,
        seeds=1,
        objective=AdversarialRegularization(multiplier=0.5, step_size=0.2, norm="linf", clip_min=0.25),
    ),
)


def accuracy(data: Dataset, plans: tuple[Plan, ...] = PLANS) -> dict[str, Any]:
    """Accuracies of `paper-cnn` at the end of each plan, in both precisions with the same seeds."""
    rows = []
    for plan in plans:
        for seed in range(plan.seeds):
            pool = subset(data.train, plan.images + plan.validation, seed)
            images, validation = split(pool, plan.validation, seed)
            for precision in PRECISIONS:
                model = create("paper-cnn", input_shape=data.image_shape, classes=data.classes, seed=seed)
                settings = TrainConfig(epochs=plan.epochs, batch_size=plan.batch, seed=seed, precision=precision)  # pyright: ignore[reportArgumentType]
                before = time.process_time()
                trained = fit(model, images, validation, settings, objective=plan.objective)
                seconds = time.process_time() - before
                test = evaluate_clean(trained.model, data.test)
                last = trained.history[-1]
                row = {
                    "plan": plan.title,
                    "images": plan.images,
                    "validation_images": plan.validation,
                    "batch": plan.batch,
                    "epochs": plan.epochs,
                    "seed": seed,
                    "precision": precision,
                    "cpu_seconds": seconds,
                    "loss": last["loss"],
                    "validation_accuracy": last["val_accuracy"],
                    "test_accuracy": test.accuracy.as_json(),
                    "test_loss": test.mean_loss.as_json(),
                }
                rows.append(row)
                print(
                    f"{plan.title}, seed {seed}, {precision}: {seconds:.1f} s, training loss {last['loss']:.4f}, "
                    f"validation {last['val_accuracy']:.1%}, test {test.accuracy}, loss {test.mean_loss:.3f}",
                    flush=True,
                )
    return {"rows": rows}


COMMAND = ("train", "--dataset", "fashion-mnist", "--train-images", "3000", "--epochs", "8", "--overwrite")
WAYS: dict[str, tuple[str, dict[str, str]]] = {
    "2 threads that spin while they wait, PyTorch's default": ("2", {}),
    "2 threads that sleep while they wait, casemate's default": ("2", {"OMP_WAIT_POLICY": "passive"}),
    "1 thread": ("1", {"OMP_WAIT_POLICY": "passive"}),
}
"""The number of threads and the environment of each way to train."""
_IMPORTED_FIRST = "import sys, torch; from casemate.cli.main import main; sys.exit(main())"
"""Where PyTorch is imported first, the environment is as it is given."""


def threads(rounds: int, data_dir: Path | None) -> dict[str, Any]:
    """Seconds of the clock of `COMMAND` in each way, free and beside a busy process: the least of some rounds."""
    seconds: dict[tuple[str, str], list[float]] = {(way, beside): [] for way in WAYS for beside in ("free", "busy")}
    for _ in range(rounds):
        for way, beside in seconds:
            with busy() if beside == "busy" else nullcontext():
                seconds[way, beside].append(trained_beside(*WAYS[way], data_dir))
            print(f"{way}, {beside}: {seconds[way, beside][-1]:.1f} s", flush=True)
    rows = [
        {"way": way, "beside": beside, "least_seconds": min(those), "all_seconds": those}
        for (way, beside), those in seconds.items()
    ]
    return {"trained": f"casemate {' '.join(COMMAND)}", "rows": rows}


@contextmanager
def busy() -> Iterator[None]:
    """Inside, another process keeps one core busy."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def trained_beside(count: str, environment: dict[str, str], data_dir: Path | None) -> float:
    """Seconds of the clock of `COMMAND` on a number of threads."""
    without = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    place = [] if data_dir is None else ["--data-dir", str(data_dir)]
    with tempfile.TemporaryDirectory() as folder:
        command = [*COMMAND, "--threads", count, "--device", "cpu", "--out", f"{folder}/model.safetensors", *place]
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", _IMPORTED_FIRST, *command],
            check=True,
            capture_output=True,
            env={**without, **environment},
        )
        return time.perf_counter() - start


def main() -> None:
    """Measure, and write each finished part at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=4000, help="images of an epoch")
    parser.add_argument("--rounds", type=int, default=3, help="of trainings that are timed")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--out", type=Path, default=HERE / "training.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    around = surroundings("cpu", 1)  # now, since the checkout may have another commit when a part ends
    document: dict[str, Any] = json.loads(args.out.read_text()) if args.out.is_file() else {}
    data = load("fashion-mnist", args.data_dir)
    images = subset(data.train, args.n, 0)
    for part in args.parts:
        if part == "epochs":
            found = epochs(data, images, args.rounds)
        elif part == "operations":
            found = operations(data, images)
        elif part == "accuracy":
            found = accuracy(data)
        else:
            found = threads(args.rounds, args.data_dir)
        document[part] = found | {
            "command": f"python benchmarks/speed/training.py --n {args.n} --rounds {args.rounds} --parts {part}",
            "load": os.getloadavg()[0],
            "surroundings": around,
        }
        write_json(args.out, document)


if __name__ == "__main__":
    main()
