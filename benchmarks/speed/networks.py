"""The networks that are raced on: trained once, by the library's own recipes, and kept in a folder outside git."""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from casemate.data import Dataset, split, subset
from casemate.defenses import AdversarialTraining, Recipe
from casemate.models import Classifier, ModelMetadata, create, load, register, save
from casemate.training import CrossEntropy, Objective, TrainConfig


@register("strided")
def strided(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Two strided convolutions and two dense layers, 0.7 million multiplications (Wong, Rice and Kolter 2020)."""
    channels, height, width = input_shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, kernel_size=4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, kernel_size=4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * (height // 4) * (width // 4), 100),
        nn.ReLU(),
        nn.Linear(100, classes),
    )


@dataclass(frozen=True, kw_only=True)
class Network:
    """How a network is trained."""

    about: str
    architecture: str = "paper-cnn"
    images: int = 12_000
    epochs: int
    rate: float = 1e-3
    objective: Objective = field(default_factory=CrossEntropy)


NETWORKS = {
    "undefended": Network(about="appendix A, over-fitted", epochs=20),
    "small": Network(
        about="two strided convolutions, adversarial training with one step at 0.1",
        architecture="strided",
        images=30_000,
        epochs=6,
        rate=2e-3,
        objective=AdversarialTraining(eps=0.1, steps=1, step=0.125),
    ),
    "adversarial": Network(
        about="appendix A, adversarial training with three steps at 0.1",
        epochs=8,
        objective=AdversarialTraining(eps=0.1, steps=3),
    ),
}


def prepare(name: str, data: Dataset, folder: Path) -> Path:
    """The checkpoint of a network; trains it if it is not in the folder yet."""
    path = folder / f"{name}.safetensors"
    if path.is_file():
        return path
    plan = NETWORKS[name]
    train, validation = split(subset(data.train, plan.images + 1000, 0), 1000, 0)
    model = create(plan.architecture, input_shape=data.image_shape, classes=data.classes)
    schedule = "constant" if name == "undefended" else "one-cycle"
    settings = TrainConfig(epochs=plan.epochs, learning_rate=plan.rate, schedule=schedule)
    Recipe(objective=plan.objective).fit(model, train, validation, settings)
    folder.mkdir(parents=True, exist_ok=True)
    save(model, path, ModelMetadata(architecture=plan.architecture, dataset=data.name, recipe={"epochs": plan.epochs}))
    return path


def as_written(path: Path) -> Classifier:
    """A checkpoint's network as the paper writes it: ReLU before pooling, nothing arranged for speed."""
    model, _ = load(path)
    layers: list[nn.Module] = []
    for layer in model.network.children():
        before = isinstance(layer, nn.ReLU) and layers and isinstance(layers[-1], nn.MaxPool2d)
        layers.insert(len(layers) - bool(before), layer)
    model.network = nn.Sequential(*layers)
    return model.eval().to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
