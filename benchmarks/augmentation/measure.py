"""How much does each augmentation slow the training of `paper-cnn` down, on one thread and on two?

A step of training (batch 128) with the augmentation and one without are timed in turn, so that whatever else the
machine does hits both; the result is the median over the repeats of (time with / time without - 1), with its quartiles.
"nothing" is a control that returns the images as they are: what it shows is the error of the measurement. The
augmentation is timed by itself too. The limits stand beside the numbers: exit code 0 if every median keeps its own,
1 if not. It takes about five minutes.

    python benchmarks/augmentation/measure.py
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from casemate.data.augment import Affine, Augmentation
from casemate.data.named import AUGMENTATIONS
from casemate.files import write_json
from casemate.models import create
from casemate.provenance import surroundings
from casemate.training import CrossEntropy, TrainConfig

HERE = Path(__file__).resolve().parent
BATCH = 128
SHAPE = (1, 28, 28)
STEPS = 3
"""Steps of training that are timed at a time."""


@dataclass(frozen=True)
class _Nothing:
    def __call__(self, images: Tensor, index: Tensor, epoch: int, generator: Generator) -> Tensor:
        del index, epoch, generator
        return images


CHANGES: dict[str, Augmentation] = {
    "nothing": _Nothing(),
    **{name: kind() for name, kind in AUGMENTATIONS.items()},
    "rotation": Affine(shift=0.0, scale=0.0),
}
LIMITS = {"alternating-flip": 15.0, "flip": 15.0, "shift": 15.0, "gaussian-blur": 15.0, "rotation": 40.0}
"""Percent by which training may become slower."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One augmentation on a number of threads; percentages are of the step without it."""

    threads: int
    name: str
    settings: str
    slower: float
    """Median over the repeats, in percent."""
    quartiles: tuple[float, float]
    extremes: tuple[float, float]
    step_us: float
    """Median time per image of a step without the augmentation, in microseconds."""
    alone_us: float
    """Median time per image of the augmentation by itself, in microseconds."""
    alone_percent: float
    """The same in percent of the step."""
    limit: float | None


def _seconds(run: Callable[[], object], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - start) / times


def measure(threads: int, repeats: int) -> list[Row]:
    """Time every augmentation on `threads` threads."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = create("paper-cnn", input_shape=SHAPE, classes=tuple("0123456789")).train()
    pixels = torch.rand(BATCH, *SHAPE).contiguous(memory_format=torch.channels_last)
    labels, index, generator = torch.arange(BATCH) % 10, torch.arange(BATCH), Generator().manual_seed(0)
    objective, optimizer = CrossEntropy(), TrainConfig().make_optimizer(model)

    def step(images: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        objective(model, images, labels)[0].backward()
        optimizer.step()

    def one(name: str, change: Augmentation) -> Row:
        def plain() -> None:
            step(pixels)

        def changed() -> None:
            step(change(pixels, index, 1, generator))

        def alone() -> None:
            change(pixels, index, 1, generator)

        plain()  # the first of each allocates
        changed()
        ratios, steps, alones = [], [], []
        for repeat in range(repeats):
            if repeat % 2:  # who goes first takes turns too
                without, with_it = _seconds(plain, STEPS), _seconds(changed, STEPS)
            else:
                with_it, without = _seconds(changed, STEPS), _seconds(plain, STEPS)
            ratios.append(100 * (with_it / without - 1))
            steps.append(without)
            alones.append(_seconds(alone, STEPS))
        low, middle, high = statistics.quantiles(ratios, n=4)
        return Row(
            threads=threads,
            name=name,
            settings=repr(change),
            slower=round(middle, 2),
            quartiles=(round(low, 2), round(high, 2)),
            extremes=(round(min(ratios), 2), round(max(ratios), 2)),
            step_us=round(1e6 * statistics.median(steps) / BATCH, 2),
            alone_us=round(1e6 * statistics.median(alones) / BATCH, 3),
            alone_percent=round(100 * statistics.median(alones) / statistics.median(steps), 2),
            limit=LIMITS.get(name),
        )

    return [one(name, change) for name, change in CHANGES.items()]


def show(rows: list[Row]) -> None:
    """Print the table."""
    print("Slower by, in % of a training step of paper-cnn: median, quartiles, extremes; times in us per image;")
    print("the augmentation alone in us per image and in % of the step")
    names = f"{'threads':8}{'augmentation':18}{'slower':>8}{'quartiles':>17}{'extremes':>17}"
    print(names + f"{'step':>8}{'alone':>7}{'in %':>7}  limit")
    for row in rows:
        quartiles, extremes = (f"{low:+.1f} to {high:+.1f}" for low, high in (row.quartiles, row.extremes))
        limit = "" if row.limit is None else f"{row.limit:5.0f} {'ok' if row.slower <= row.limit else 'EXCEEDED'}"
        print(
            f"{row.threads:<8}{row.name:18}{row.slower:+8.1f}{quartiles:>17}{extremes:>17}"
            f"{row.step_us:8.1f}{row.alone_us:7.2f}{row.alone_percent:7.2f}  {limit}"
        )


def main() -> int:
    """Read the command line, measure, write; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=21, help="pairs of times for each augmentation, 5 or more")
    parser.add_argument("--out", type=Path, default=HERE / "result.json", help="where the result is written")
    arguments = parser.parse_args()
    if arguments.repeats < 5:
        parser.error(f"--repeats {arguments.repeats}: at least 5")
    before = os.getloadavg()
    rows = [row for threads in (1, 2) for row in measure(threads, arguments.repeats)]
    show(rows)
    kept = all(row.limit is None or row.slower <= row.limit for row in rows)
    write_json(
        arguments.out,
        {
            "command": f"python benchmarks/augmentation/measure.py --repeats {arguments.repeats}",
            "settings": {"batch": BATCH, "images": SHAPE, "repeats": arguments.repeats, "steps_at_a_time": STEPS},
            "surroundings": {key: value for key, value in surroundings("cpu", 0).items() if key != "threads"},
            "load_average": {"before": before, "after": os.getloadavg()},
            "load_note": "one, five and fifteen minutes, this script's own load included; other jobs ran beside it",
            "rows": [asdict(row) for row in rows],
            "within_limits": kept,
        },
    )
    print(f"load average before {before}, after {os.getloadavg()}: {'all within limits' if kept else 'LIMIT EXCEEDED'}")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
