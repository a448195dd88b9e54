"""What is each change of the frozen copy worth? Passes through the copy with all of them, and with all but one.

`python benchmarks/speed/transformations.py` writes `transformations.json`, which `page.py` shows: for each network and
change how many times as long a pass takes without it, as the median of interleaved rounds with its quartiles. Seconds
of the processor, one thread. The same of what training exchanges.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from measures import training_step
from networks import depthwise, resnet18, strided, unarranged
from torch import Tensor

from casemate.attacks import Misclassification, frozen, input_gradient
from casemate.files import write_json
from casemate.models import Classifier, create, freeze, optimized_training
from casemate.models.accel import optimize
from casemate.provenance import surroundings

HERE = Path(__file__).resolve().parent
CLASSES = tuple("0123456789")
LAYOUT = "channels-last"
ALL, NONE = "all", "as it is written"
NETWORKS = ("paper-cnn", "two strided convolutions", "ResNet-18", "depthwise")
TRAINING = "training"
_AROUND = "convolution of few channels"
"""Done beside `optimize._STEPS`."""
_TOGETHER = (("pooling with ReLU", _AROUND),)
"""Left out together too: where only one is, the other does some of its work."""
_NOT_ALONE = ("ReLU behind pooling",)
"""Not left out by itself: what follows would not be found."""


def network(name: str) -> tuple[Classifier, int]:
    """A network, and how many images pass at a time."""
    torch.manual_seed(0)
    if name == "paper-cnn":
        return unarranged(create(name, input_shape=(1, 28, 28), classes=CLASSES)).eval(), 32
    if name == "two strided convolutions":
        return Classifier(strided((1, 28, 28), 10), input_shape=(1, 28, 28), classes=CLASSES).eval(), 64
    return (resnet18(64), 8) if name == "ResNet-18" else (depthwise(64), 16)


@contextmanager
def without(*changes: str) -> Iterator[None]:
    """Inside, copies are frozen without some changes."""
    steps = {name: step for name, step in optimize._STEPS.items() if name not in changes}
    with patch.object(optimize, "_STEPS", steps):
        if _AROUND in changes:
            with patch.object(optimize, "_replace_small_input_convs", lambda model: iter(())):
                yield
        else:
            yield


def copies(model: Classifier, images: Tensor) -> dict[str, Classifier]:
    """The copy with all changes, with all but each one that took place, and the model itself."""
    whole = freeze(model, images, pass_size=len(images))
    found = {ALL: whole.copy, NONE: model}
    each = [(change,) for change in whole.changes if change not in _NOT_ALONE]
    for changes in (*each, *(some for some in _TOGETHER if some[0] in whole.changes)):
        with without(*changes):
            less = freeze(model, images, pass_size=len(images))
        if not less.matches_original:
            raise RuntimeError(f"without {changes} the copy answers otherwise: {less.difference}")
        if LAYOUT in changes:
            less.copy.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
            less.copy.memory_format = torch.contiguous_format
        found[", ".join(changes)] = less.copy
    return found


def compared(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """How many times as long each run takes as the one of `ALL`: all in turn, in an order that turns round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for name in [*runs, *runs]:
        runs[name]()
    for turn in range(rounds):
        for name in list(runs)[:: 1 if turn % 2 else -1]:
            start = time.process_time()
            runs[name]()
            seconds[name].append(time.process_time() - start)
    found = {}
    for name, those in seconds.items():
        ratios = [one / other for one, other in zip(those, seconds[ALL], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        found[name] = {"times": middle, "low": low, "high": high, "least_seconds": min(those)}
    return found


def measured(model: Classifier, count: int, rounds: int) -> dict[str, Any]:
    """Input gradients, and passes forward, of one network."""
    images = torch.rand(count, *model.input_shape, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(count) % len(CLASSES)

    def answer(copy: Classifier) -> None:
        with torch.no_grad():
            copy(images)

    with frozen(model):
        made = copies(model, images)
        ascents: dict[str, Callable[[], Any]] = {
            name: partial(input_gradient, each, images, Misclassification(labels), "ce") for name, each in made.items()
        }
        gradient = compared(ascents, rounds)
        forward = compared({name: partial(answer, each) for name, each in made.items()}, rounds)
    return {"images": count, "tasks": {"gradient": gradient, "forward": forward}}


def training(rounds: int) -> dict[str, Any]:
    """Training steps of `paper-cnn`, with and without what is exchanged in them."""
    images, labels = torch.rand(128, 1, 28, 28), torch.arange(128) % len(CLASSES)
    omitted: dict[str, Any] = {
        ALL: nullcontext(),
        "dropout": patch.object(optimize, "HashDropout", lambda layer: layer),
        "pooling with ReLU": patch.object(optimize, "_apply", lambda steps, model: None),
    }
    steps: dict[str, Callable[[], Any]] = {}
    with ExitStack() as stack:
        for name, omission in omitted.items():
            model, _ = network("paper-cnn")
            model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
            with omission:
                stack.enter_context(optimized_training(model, images[:32]))
            steps[name] = training_step(model, images, labels)
        written = network("paper-cnn")[0].to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        steps[NONE] = training_step(written, images, labels)
        return {"images": len(images), "tasks": {"step": compared(steps, rounds)}}


def main() -> None:
    """Measure, and write each finished part at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--parts", nargs="+", default=[*NETWORKS, TRAINING], choices=[*NETWORKS, TRAINING])
    parser.add_argument("--out", type=Path, default=HERE / "transformations.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    document: dict[str, Any] = json.loads(args.out.read_text()) if args.out.is_file() else {}
    for part in args.parts:
        found = training(args.rounds) if part == TRAINING else measured(*network(part), args.rounds)
        for task in found["tasks"]:
            line = ", ".join(f"{change} {row['times']:.2f}" for change, row in found["tasks"][task].items())
            print(f"{part}, {task}: {line}", flush=True)
        document[part] = found | {
            "rounds": args.rounds,
            "command": f'python benchmarks/speed/transformations.py --rounds {args.rounds} --parts "{part}"',
            "load": os.getloadavg()[0],
            "surroundings": surroundings("cpu", 1),
        }
        write_json(args.out, document)


if __name__ == "__main__":
    main()
