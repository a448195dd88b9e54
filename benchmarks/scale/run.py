"""What an evaluation costs as it grows, and what two workers gain: rows for `docs/scale.md`.

`python benchmarks/scale/run.py [--parts engines images sizes jobs] [--rounds 2]` measures on one thread a worker, with
nothing else running, and writes `result.json` and the tables in `docs/scale.md`.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import casemate
from casemate import models
from casemate.attacks import prepare_for_attack
from casemate.cli.shared.observers import watching
from casemate.data import LabelledImages, load
from casemate.engine import Compute, Engine, Processes, Ray
from casemate.engine.answers import packed
from casemate.evaluation.budgets import attacks_for
from casemate.evaluation.cascade import run_cascade
from casemate.evaluation.cost import attack_passes
from casemate.evaluation.shards import shard_bounds
from casemate.evaluation.steps import step_setup
from casemate.files import write_json, write_text
from casemate.memory import processors
from casemate.models import Classifier
from casemate.progress import NULL_OBSERVER, Observer
from casemate.provenance import surroundings

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "scale.md"
BEGIN, END = "<!-- benchmarks/scale/run.py {}: begin -->", "<!-- benchmarks/scale/run.py {}: end -->"
WEIGHTS = Path("runs") / "bench" / "scale.safetensors"
EPS = 0.05
PARTS = ("engines", "images", "sizes", "jobs")


def main() -> None:
    """Measure the parts asked for, and write result and page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    file = HERE / "result.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    with watching() as observer:
        for part in chosen.parts:
            rows = {"engines": engines, "images": images, "sizes": sizes, "jobs": jobs}[part](chosen.rounds, observer)
            found[part] = {"surroundings": surroundings("cpu", 1), "cores": processors(), **rows}
            write_json(file, found)
    write_tables(found)


def network() -> Classifier:
    """The study's network, trained for one epoch at first use; its robustness does not matter here."""
    data = load("fashion-mnist")
    made = models.create("paper-cnn", input_shape=(1, 28, 28), classes=data.classes)
    if not WEIGHTS.exists():
        some, few = data.train[torch.arange(5000)], data.train[torch.arange(5000, 5500)]
        settings = casemate.TrainConfig(epochs=1)
        casemate.fit(made, some, few, settings)
        models.save(made, WEIGHTS, models.ModelMetadata(architecture="paper-cnn", dataset=data.name))
    return models.load(WEIGHTS)[0]


def attacked(model: Classifier, given: LabelledImages, engine: Engine | None = None) -> dict[str, float]:
    """The attacks of the quick budget, without checks: wall and processor seconds, passes, bytes of what they found."""
    attacks = attacks_for("quick", "linf", EPS, randomised=False)
    wall, processor = time.perf_counter(), time.process_time()
    found = run_cascade(model, attacks, given, [EPS], engine=engine, batch_size=100)
    passes = found.passes
    fooled = int((found.first_success >= 0).sum())
    return {
        "wall": time.perf_counter() - wall,
        "processor": time.process_time() - processor,
        "passes_per_image": (passes.forward + passes.backward) / len(given),
        "fooled": fooled,
    }


def engines(rounds: int, observer: Observer) -> dict[str, Any]:
    """Wall seconds of the attacks on one process, two worker processes and two tasks of Ray, in turn."""
    model, data = network(), load("fashion-mnist").test[torch.arange(1000)]
    kinds: dict[str, Engine | None] = {
        "one process": None,
        "2 processes": Processes(workers=2),
        "2 Ray": Ray(workers=2),
    }
    rows: dict[str, list[float]] = {name: [] for name in kinds}
    for each in range(rounds):
        for name, engine in kinds.items():
            observer.message(f"round {each + 1}: {name}")
            rows[name].append(attacked(model, data, engine)["wall"])
    ratios = [own / ray for own, ray in zip(rows["2 processes"], rows["2 Ray"], strict=True)]
    return {"images": len(data), "wall": rows, "ray_against_processes": ratios}


def images(rounds: int, observer: Observer) -> dict[str, Any]:
    """What grows with the number of images."""
    del rounds
    model, data = network(), load("fashion-mnist").test
    rows = []
    for count in (250, 500, 1000, 2000):
        observer.message(f"{count} images")
        rows.append({"images": count, **attacked(model, data[torch.arange(count)])})
    return {"rows": rows}


def sizes(rounds: int, observer: Observer) -> dict[str, Any]:
    """What grows with the size of an image: a residual network on random images."""
    rows = []
    for side in (28, 56, 112):
        observer.message(f"{side} x {side}")
        draw = torch.Generator().manual_seed(0)
        pixels = torch.rand(96, 3, side, side, generator=draw)
        made = models.create("resnet-14", input_shape=(3, side, side), classes=tuple("0123456789"))
        labels = made(pixels).argmax(1)
        seconds = []
        for _ in range(rounds):
            start = time.process_time()
            casemate.PGD(eps=EPS, steps=5, restarts=1)(made, pixels, labels)
            seconds.append(time.process_time() - start)
        rows.append({"side": side, "images": len(pixels), "processor_seconds": seconds})
    return {"rows": rows}


class _Nothing:
    """A setup whose jobs do nothing."""

    @contextmanager
    def open(self) -> Iterator[Compute]:
        yield lambda job, observer: job


def jobs(rounds: int, observer: Observer) -> dict[str, Any]:
    """What it costs to give work to another process: bytes of the setup and of a job, seconds of an empty job."""
    model, data = network(), load("fashion-mnist").test[torch.arange(500)]
    pixels, _ = data.tensors()
    with prepare_for_attack(model, pixels[:32], passes=10**6, pass_size=100) as prepared:
        setup = len(packed(step_setup(prepared, {}, pixels[:32], norm="linf", seed=0)))
    weights = sum(each.nbytes for each in model.state_dict().values())
    rows = {}
    for name, engine in (("processes", Processes(workers=2)), ("Ray", Ray(workers=2))):
        observer.message(f"empty jobs, {name}")
        for _ in range(rounds):
            start = time.perf_counter()
            with engine.open(_Nothing(), NULL_OBSERVER) as pool:
                ended = _empty_jobs(pool, 2)
                begun = time.perf_counter()
                ended += _empty_jobs(pool, 400)
                each = (time.perf_counter() - begun) / 400
            rows.setdefault(name, []).append({"start": begun - start, "job": each, "jobs": ended})
    return {"setup": setup, "weights": weights, "job_500_images": len(packed(data)), "rows": rows}


def _empty_jobs(pool: Any, count: int) -> int:
    given = ended = 0
    while ended < count:
        for number in pool.idle:
            if given < count:
                pool.start(number, str(given), None, NULL_OBSERVER)
                given += 1
        ended += len(pool.wait())
    return ended


def write_tables(found: dict[str, Any]) -> None:
    """Write the measured parts into the page, each between its marks."""
    page = PAGE.read_text()
    for part, text in {name: _table(name, found[name]) for name in PARTS if name in found}.items():
        begin, end = BEGIN.format(part), END.format(part)
        before, mark, rest = page.partition(begin)
        if not mark:
            raise SystemExit(f"{PAGE} has no mark {begin}")
        page = f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"
    begin, end = BEGIN.format("imagenet"), END.format("imagenet")
    before, _, rest = page.partition(begin)
    write_text(PAGE, "\n".join([before + begin, *_imagenet(found), end + rest.partition(end)[2]]))


def _table(part: str, found: dict[str, Any]) -> str:
    made = found["surroundings"]
    where = f"{made['processor']}, {found['cores']} cores, PyTorch {made['libraries']['torch']}"
    lines = {"engines": _engines, "images": _images, "sizes": _sizes, "jobs": _jobs}[part](found)
    return "\n".join([*lines, "", f"({where}, commit {made['commit']}.)"])


def _head(*columns: str) -> list[str]:
    return [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]


def _engines(found: dict[str, Any]) -> list[str]:
    lines = _head(f"{found['images']:,} images, attacks of budget quick", "wall seconds by round", "speed")
    one = statistics.mean(found["wall"]["one process"])
    for name, seconds in found["wall"].items():
        lines.append(f"| {name} | {_numbers(seconds, '{:.1f}')} | {one / statistics.mean(seconds):.2f} |")
    ratios = _numbers(found["ray_against_processes"], "{:.2f}")
    return [*lines, "", f"Two Ray workers reach {ratios} of what two processes reach, with the start of the cluster."]


def _images(found: dict[str, Any]) -> list[str]:
    lines = _head("images", "attacks, processor s", "ms per image", "passes per image", "not fooled, %")
    for row in found["rows"]:
        each, left = 1000 * row["processor"] / row["images"], 100 * (1 - row["fooled"] / row["images"])
        numbers = (row["processor"], each, row["passes_per_image"], left)
        lines.append(f"| {row['images']:,} | {' | '.join(f'{each:.1f}' for each in numbers)} |")
    return lines


def _sizes(found: dict[str, Any]) -> list[str]:
    costs = {row["side"]: min(row["processor_seconds"]) / row["images"] / 5 * 1000 for row in found["rows"]}
    lines = _head("side of the image", "processor ms per image and PGD step", "per pixel, against 28 x 28")
    first = costs[28] / 28**2
    return lines + [f"| {side} | {cost:.2f} | {cost / side**2 / first:.2f} |" for side, cost in costs.items()]


def _jobs(found: dict[str, Any]) -> list[str]:
    lines = [
        f"The weights of the network have {found['weights'] / 1e6:.1f} MB, what every worker gets once "
        f"{found['setup'] / 1e6:.1f} MB; a job of 500 images has {found['job_500_images'] / 1000:.0f} KB.",
        "",
        *_head("engine", "until both workers are ready, s", "an empty job, ms"),
    ]
    for name, rows in found["rows"].items():
        starts = _numbers([row["start"] for row in rows], "{:.1f}")
        lines.append(f"| {name} | {starts} | {_numbers([row['job'] * 1000 for row in rows], '{:.1f}')} |")
    return lines


_IMAGES, _SIDE, _CLASSES = 50_000, 224, 1000
"""The validation images of ImageNet."""
_FORWARD, _WEIGHTS = 4.1e9, 25.6e6
"""Multiply-adds of a forward pass of ResNet-50 at 224 x 224 as torchvision builds it (He et al. 2015, Table 1, have
3.8e9 for theirs), and its weights."""
_RATES = (20e12, 100e12)
"""Operations per second that a GPU is assumed to reach, twice `_FORWARD` for each pass."""


def _imagenet(found: dict[str, Any]) -> list[str]:
    """Arithmetic for ImageNet and ResNet-50, from the passes that the budgets make, and from the measured rows."""
    pixels = 3 * _SIDE**2
    parts = len(shard_bounds(_IMAGES, (3, _SIDE, _SIDE)))
    lines = _head(
        "budget, at 4/255", "most passes of an image", *(f"GPU days at {rate / 1e12:g} TFLOP/s" for rate in _RATES)
    )
    for budget in ("quick", "standard"):
        attacks = attacks_for(budget, "linf", 4 / 255, randomised=False)
        passes = attack_passes(attacks, _CLASSES, 1, 1)
        work = 2 * _FORWARD * (passes.forward + 2 * passes.backward) * _IMAGES
        days = [f"{work / rate / 86400:.2g}" for rate in _RATES]
        lines.append(f"| {budget} | {passes.forward:,} forward, {passes.backward:,} backward | {' | '.join(days)} |")
    jobs = {name: statistics.mean(row["job"] for row in rows) for name, rows in found["jobs"]["rows"].items()}
    return [
        *lines,
        "",
        f"- The {_IMAGES:,} images are {parts} parts, so up to {parts} workers have something to do.",
        f"- A part's job has at most {pixels * _IMAGES / parts / 1e6:.0f} MB of bytes; giving it away takes "
        f"{jobs['Ray'] * 1000:.0f} ms beside that.",
        f"- The store grows by at most {4 * pixels / 1e6:.1f} MB for every image that is fooled, "
        f"{4 * pixels * _IMAGES / 1e9:.0f} GB for all.",
        f"- Training: every step exchanges {4 * _WEIGHTS / 1e6:.0f} MB between processes.",
    ]


def _numbers(values: list[float], form: str) -> str:
    return ", ".join(form.format(each) for each in values)


if __name__ == "__main__":
    main()
