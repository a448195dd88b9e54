"""How long is a verdict compared with its attacks, and does the time left, as it is shown, hold?

`python benchmarks/speed/verdict.py` evaluates five models with the budget "quick" and writes `verdict.json`: seconds
of the attacks and of the whole evaluation (wall clock and processor), images passed through the network in each phase,
and whether the time that the evaluation then took lay in the range shown. The networks are trained at first use, for a
minute or two each, and kept in `runs/bench`.

`--clock cpu` estimates the range in seconds of the processor, for a machine that has other work: with `--threads 1`
only, where they are the time that the same run takes on an idle machine.
"""

import argparse
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from casemate.data import Dataset, LabelledImages, split, subset
from casemate.data import load as load_data
from casemate.defenses import AdversarialTraining, Recipe, with_noise
from casemate.evaluation import cascade, evaluate
from casemate.evaluation.time_left import TimeLeft
from casemate.files import write_json
from casemate.models import Classifier, ModelMetadata, create, load, register, save
from casemate.progress import Advance, no_progress
from casemate.provenance import surroundings
from casemate.training import CrossEntropy, Objective, TrainConfig

HERE = Path(__file__).resolve().parent
SIDE = 224
"""Height and width of the large images."""


@register("depthwise-224")
def depthwise(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Convolutions in each channel and across them, by turns, halved five times; as MobileNet with a quarter width."""

    def conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]

    layers, inputs = conv(input_shape[0], 8, 3, 2), 8
    for outputs, stride in ((16, 2), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1)):
        layers += conv(inputs, inputs, 3, stride, groups=inputs) + conv(inputs, outputs, 1)
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


@register("vision-transformer")
class VisionTransformer(nn.Module):
    """Patches of 7 x 7 pixels as tokens, three encoder layers, the mean token (Dosovitskiy et al. 2021)."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int, width: int = 64, patch_size: int = 7) -> None:
        super().__init__()
        channels, height, width_of_images = input_shape
        tokens = (height // patch_size) * (width_of_images // patch_size)
        self.patches = nn.Conv2d(channels, width, patch_size, patch_size)
        self.places = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.places
        return self.head(self.encoder(tokens).mean(1))


def enlarged(images: LabelledImages) -> LabelledImages:
    """The images at 224 x 224."""
    pixels = F.interpolate(images.pixels.float(), size=SIDE, mode="bilinear").round().clamp(0, 255).to(torch.uint8)
    return LabelledImages(pixels=pixels, labels=images.labels)


def unchanged(model: Classifier) -> Classifier:
    """The model itself."""
    return model


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model to be evaluated, and how its network is trained."""

    about: str
    architecture: str = "paper-cnn"
    change: Callable[[Classifier], Classifier] = unchanged
    """Made of the trained network."""
    images: int = 200
    large: bool = False
    eps: float | str = 0.1
    train: int = 6000
    epochs: int = 3
    rate: float = 1e-3
    objective: Objective = field(default_factory=CrossEntropy)


SUBJECTS = {
    "undefended": Subject(about="appendix A, 200 images"),
    "adversarial": Subject(
        about="appendix A, adversarial training with two steps at 0.1; it withstands on a part of the images",
        epochs=5,
        objective=AdversarialTraining(eps=0.1, steps=2),
    ),
    "randomised": Subject(
        about="appendix A with noise layers left on",
        architecture="paper-cnn-noise",
        change=with_noise,
        images=100,
    ),
    "large": Subject(
        about="depthwise convolutions on images of 224 x 224, adversarial training with one step at 1/255",
        architecture="depthwise-224",
        images=40,
        large=True,
        eps="2/255",
        train=2000,
        epochs=4,
        rate=5e-3,
        objective=AdversarialTraining(eps=1 / 255, steps=1),
    ),
    "transformer": Subject(about="a vision transformer", architecture="vision-transformer", epochs=8, rate=2e-3),
}


def prepare(name: str, data: Dataset, folder: Path) -> Classifier:
    """The network of a subject, trained unless it is in the folder."""
    subject, path = SUBJECTS[name], folder / f"verdict-{name}.safetensors"
    if not path.is_file():
        train, validation = split(subset(data.train, subject.train + 500, 0), 500, 0)
        shape = data.image_shape
        if subject.large:
            train, validation, shape = enlarged(train), enlarged(validation), (shape[0], SIDE, SIDE)
        model = create(subject.architecture, input_shape=shape, classes=data.classes)
        settings = TrainConfig(epochs=subject.epochs, batch_size=64, learning_rate=subject.rate, schedule="one-cycle")
        Recipe(objective=subject.objective).fit(model, train, validation, settings)
        folder.mkdir(parents=True, exist_ok=True)
        save(model, path, ModelMetadata(architecture=subject.architecture, dataset=data.name))
    return load(path)[0]


class Phases:
    """An observer that measures the phases of an evaluation: seconds, and images passed through the network."""

    def __init__(self) -> None:
        self.depth = 0
        self.forward = self.differentiated = 0
        self.found: dict[str, dict[str, float]] = {}
        self.shown: float = math.inf
        """When the first message on the time left was shown; infinite if none was, since little was left."""

    @contextmanager
    def work(self, title: str, total: float) -> Iterator[Advance]:
        """Measure the work, unless it is a part of other work."""
        del total
        self.depth += 1
        before = self.now()
        try:
            yield no_progress
        finally:
            self.depth -= 1
            if self.depth == 0:
                spent = {key: value - before[key] for key, value in self.now().items()}
                known = self.found.get(title, dict.fromkeys(spent, 0.0))
                self.found[title] = {key: known[key] + value for key, value in spent.items()}

    def now(self) -> dict[str, float]:
        """The clocks and counters."""
        return {
            "wall": time.perf_counter(),
            "cpu": time.process_time(),
            "forward": self.forward,
            "differentiated": self.differentiated,
        }

    def message(self, message: str) -> None:
        """Show what a user reads."""
        if message.startswith("Time left"):
            self.shown = min(self.shown, time.perf_counter())
        print(f"    {message}")

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Inside, every image that passes through a network is counted; `differentiated` with gradients."""
        inner = Classifier._logits

        def logits(model: Classifier, images: Tensor) -> Tensor:
            if not any(isinstance(each, Classifier) for each in model.network.modules()):
                if torch.is_grad_enabled():
                    self.differentiated += len(images)
                else:
                    self.forward += len(images)
            return inner(model, images)

        with patch.object(Classifier, "_logits", logits):
            yield


@contextmanager
def ranges(clock: str) -> Iterator[list[tuple[float, TimeLeft]]]:
    """Inside, every range of the time left is recorded, with the time at which it was estimated."""
    found: list[tuple[float, TimeLeft]] = []
    inner, now = cascade.time_left, time.process_time if clock == "cpu" else time.perf_counter

    def time_left(*arguments: Any, **options: Any) -> TimeLeft:
        found.append((now(), inner(*arguments, **options)))
        return found[-1][1]

    with ExitStack() as stack:
        stack.enter_context(patch.object(cascade, "time_left", time_left))
        if clock == "cpu":
            stack.enter_context(patch.object(cascade.time, "perf_counter", time.process_time))
        yield found


def measure(name: str, model: Classifier, images: LabelledImages, clock: str) -> dict[str, Any]:
    """Evaluate a model with the budget "quick"; return what was measured."""
    phases = Phases()
    with phases.counting(), ranges(clock) as told:
        before = phases.now()
        evaluation = evaluate(model, images, eps=SUBJECTS[name].eps, budget="quick", observer=phases)
        after = phases.now()
    end = time.process_time() if clock == "cpu" else time.perf_counter()
    whole = {key: value - before[key] for key, value in after.items()}
    attacks = phases.found["Attacking"]
    return {
        "about": SUBJECTS[name].about,
        "images": len(images),
        "clean": evaluation.clean.accuracy.as_json(),
        "robust": evaluation.robust[-1].as_json(),
        "verdict": evaluation.verdict.word,
        "attacks": attacks,
        "whole": whole,
        "phases": phases.found,
        "ratio": {key: whole[key] / attacks[key] for key in whole},
        "ranges": [
            {"low": each.low, "high": each.high, "took": end - at, "holds": each.low <= end - at <= each.high}
            for at, each in told
        ],
        "shown": None if math.isinf(phases.shown) else max(i for i, (at, _) in enumerate(told) if at <= phases.shown),
    }


def in_words(row: dict[str, Any], clock: str) -> str:
    """What was measured, in a line."""
    attacks, whole, estimates = row["attacks"][clock], row["whole"], row["ranges"]
    held = sum(each["holds"] for each in estimates)
    first = None if row["shown"] is None else estimates[row["shown"]]
    said = "no range shown"
    if first is not None:
        said = f"shown {first['low']:.1f} to {first['high']:.1f} s, took {first['took']:.1f} s: "
        said += "holds" if first["holds"] else "does not hold"
    return (
        f"{row['verdict']}; attacks {attacks:.1f} s, whole {whole[clock]:.1f} s, {row['ratio'][clock]:.2f} times; "
        f"{whole['forward']:.0f} images passed, and {whole['differentiated']:.0f} with gradients; {said}; "
        f"{held} of {len(estimates)} ranges hold"
    )


def main() -> None:
    """Measure the models named, or all, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"))
    parser.add_argument("--out", type=Path, default=HERE / "verdict.json")
    chosen = parser.parse_args()
    if chosen.clock == "cpu" and chosen.threads != 1:
        parser.error("--clock cpu needs --threads 1")
    torch.set_num_threads(chosen.threads)
    data = load_data("fashion-mnist")
    found: dict[str, Any] = {}
    for name in chosen.only:
        model, subject = prepare(name, data, chosen.folder), SUBJECTS[name]
        images = subset(data.test, subject.images, 0)
        print(f"{name}: {subject.about}")
        images = enlarged(images) if subject.large else images
        row = found[name] = measure(name, subject.change(model), images, chosen.clock)
        print(f"    {in_words(row, chosen.clock)}", flush=True)
    surrounding = surroundings("cpu", chosen.threads) | {"load": os.getloadavg()[0], "clock": chosen.clock}
    write_json(chosen.out, {"surroundings": surrounding, "models": found})


if __name__ == "__main__":
    main()
