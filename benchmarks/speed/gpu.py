"""What the frozen copy and bfloat16 are worth on a GPU: input gradients, training epochs, sweeps, APGD.

`python benchmarks/speed/gpu.py` writes `gpu.json`. With `--device cpu`: few images, to see that it runs. (The rows with
graphs in the file are of CUDA graphs, which are no longer part of the library.)
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from networks import resnet18
from torch import Tensor

from casemate import (
    APGD,
    BIM,
    FGSM,
    Classifier,
    LabelledImages,
    TrainConfig,
    eps_curve,
    fit,
)
from casemate.attacks import Misclassification, input_gradient, prepare_for_attack
from casemate.data import load as load_data
from casemate.data import split, subset
from casemate.models import create
from casemate.models.accel.equivalence import relative_difference
from casemate.models.accel.precision import Precision, in_bfloat16

HERE = Path(__file__).resolve().parent
EPS = [0.01, 0.025, 0.05, 0.1, 0.15, 0.2]
SEED = 0


class Bench:
    """The measures, on one device."""

    def __init__(self, device: str) -> None:
        self.device, self.few = device, device == "cpu"
        self.seconds = 0.05 if self.few else 0.25

    def wait(self) -> None:
        """Until the GPU is done."""
        if not self.few:
            torch.cuda.synchronize()

    def rate(self, run: Callable[[], Any], images: int) -> float:
        """Images a second: the median of what fits into a quarter of a second, after three runs."""
        for _ in range(3):
            run()
        self.wait()
        times: list[float] = []
        begun = time.perf_counter()
        while time.perf_counter() - begun < self.seconds or len(times) < 5:
            start = time.perf_counter()
            run()
            self.wait()
            times.append(time.perf_counter() - start)
        return images / statistics.median(times)

    def gradients(self, name: str, model: Classifier, images: Tensor, labels: Tensor) -> dict[str, Any]:
        """Input gradients of one batch by every copy, and by how much logits and gradients are apart."""
        batch = len(images)
        images = images.contiguous(memory_format=torch.channels_last)
        ask = partial(_gradient, images=images, labels=labels)
        row: dict[str, Any] = {"network": name, "batch": batch, "tf32": torch.backends.cudnn.allow_tf32}
        rates: dict[str, float] = {}
        with prepare_for_attack(model, images, pass_size=batch) as prepared:
            plain = prepared.copy
            expected = ask(plain)
            rates["original"] = self.rate(partial(ask, model), batch)
            rates["frozen"] = self.rate(partial(ask, plain), batch)
            row["frozen_used"] = plain.network is not model.network
            row["frozen_difference"] = prepared.difference
            row["frozen_apart"] = _apart(ask(model), expected)
            row["same_bits_twice"] = _same(expected, ask(plain))
            low = in_bfloat16(plain)
            rates["bfloat16"] = self.rate(partial(ask, low), batch)
            row["bfloat16_apart"] = _apart(expected, ask(low))
        with prepare_for_attack(model, images, pass_size=batch, precision="bfloat16") as prepared:
            row["bfloat16_chosen"] = prepared.precision == "bfloat16"
        return row | {"gradients_per_second": rates}

    def timed(self, what: str, run: Callable[[], Any], **more: Any) -> tuple[dict[str, Any], Any]:
        """Seconds by the clock."""
        self.wait()
        start = time.perf_counter()
        found = run()
        self.wait()
        row = {"what": what, "seconds": time.perf_counter() - start, "tf32": torch.backends.cudnn.allow_tf32, **more}
        return row, found

    def apgd(self, name: str, model: Classifier, images: Tensor, labels: Tensor, eps: float, steps: int) -> list[Any]:
        """APGD; the first run only loads kernels."""
        attack = partial(APGD(eps=eps, steps=steps), model, images, labels, seed=SEED)
        attack()
        row, result = self.timed(f"APGD-{steps} at {eps:.4f} on {name}", attack, n=len(images))
        return [row | {"robust_accuracy": result.robust_accuracy, "forward": result.passes.forward}]

    def sweeps(self, model: Classifier, images: LabelledImages) -> list[Any]:
        """FGSM and BIM over six values of eps; BIM by `worst` in bfloat16 too."""
        rows = []
        kinds: list[tuple[Precision, bool]] = [("float32", True), ("float32", False), ("bfloat16", True)]
        for title, attack in (("FGSM", FGSM(eps=0.1)), ("BIM-10", BIM(eps=0.1, steps=10))):
            for precision, worst in kinds:
                run = partial(eps_curve, model, attack, images, EPS, only_worst=worst, precision=precision, seed=SEED)
                what = f"{title}, {len(EPS)} values of eps, {'worst' if worst else 'last'}, {precision}"
                row, curve = self.timed(what, run, n=len(images))
                rows.append(row | {"accuracy": curve.worst.mean(0).tolist()})
        return rows


def _gradient(model: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return input_gradient(model, images, Misclassification(labels), "ce")


def _apart(expected: tuple[Tensor, ...], seen: tuple[Tensor, ...]) -> list[float]:
    """Largest difference of logits and of gradients, as shares of the largest."""
    return [relative_difference(one.double(), other.double()) for one, other in zip(expected, seen, strict=True)]


def _same(expected: tuple[Tensor, ...], seen: tuple[Tensor, ...]) -> list[bool]:
    return [torch.equal(one, other) for one, other in zip(expected, seen, strict=True)]


def main() -> None:
    """Measure everything and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=HERE / "gpu.json")
    args = parser.parse_args()
    bench = Bench(args.device)
    data = load_data("digits" if bench.few else "fashion-mnist")
    train, validation = split(subset(data.train, 1000 if bench.few else 60_000, SEED), 200 if bench.few else 6000, SEED)
    found: dict[str, Any] = {"seed": SEED, "torch": torch.__version__, "device": args.device, "epochs": {}}
    if not bench.few:
        found |= {"device": torch.cuda.get_device_name(), "cudnn": torch.backends.cudnn.version()}
    model = create("paper-cnn", input_shape=data.image_shape, classes=data.classes, seed=SEED)
    for tf32 in (True, False):
        torch.backends.cudnn.allow_tf32 = tf32
        model = create("paper-cnn", input_shape=data.image_shape, classes=data.classes, seed=SEED)
        settings = TrainConfig(epochs=1 if bench.few else 3, seed=SEED)
        history = fit(model, train, validation, settings, device=args.device).history
        found["epochs"]["tf32" if tf32 else "float32"] = [row["seconds"] for row in history]
    model.eval()
    unit, labels = (each.to(args.device) for each in data.test[:1024].tensors())
    colours = torch.rand(1024, 3, 32, 32, generator=torch.Generator().manual_seed(SEED)).to(args.device)
    resnet = resnet18(16 if bench.few else 64).to(args.device)
    few = 64 if bench.few else 1024
    with torch.no_grad():
        theirs = torch.cat([resnet(colours[start : start + 64]).argmax(1) for start in range(0, few, 64)])
    networks = {"paper-cnn": (model, unit, labels, 0.02, 100), "resnet-18": (resnet, colours, theirs, 1 / 255, 30)}
    rows: list[Any] = []
    work: list[Any] = []
    for tf32 in (True, False):
        torch.backends.cudnn.allow_tf32 = tf32
        for name, (each, images, classes, eps, steps) in networks.items():
            for batch in (16,) if bench.few else (64, 256, 1024):
                rows.append(bench.gradients(name, each, images[:batch], classes[:batch]))
            count = 16 if bench.few else 512
            work += bench.apgd(name, each, images[:count], classes[:count], eps, 3 if bench.few else steps)
        work += bench.sweeps(model, data.test[: 50 if bench.few else 10_000])
    args.out.write_text(json.dumps(found | {"gradients": rows, "attacks": work}, indent=1) + "\n")
    print(args.out)


if __name__ == "__main__":
    main()
