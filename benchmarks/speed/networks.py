"""The networks that are raced on, trained once, by the library's own recipes, and kept in a folder outside git.

And two as users bring them, a ResNet-18 and one of depthwise convolutions, with random weights.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

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
        objective=AdversarialTraining(eps=0.1, steps=1, step_size=0.125),
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
    return unarranged(model)


def unarranged(model: Classifier) -> Classifier:
    """A network with every ReLU before its pooling, contiguous; changed in place."""
    layers: list[nn.Module] = []
    for layer in model.network.children():
        before = isinstance(layer, nn.ReLU) and layers and isinstance(layers[-1], nn.MaxPool2d)
        layers.insert(len(layers) - bool(before), layer)
    model.network = nn.Sequential(*layers)
    return model.eval().to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]


class Block(nn.Module):
    """Two convolutions and a short cut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.one, self.n1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.two, self.n2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        project = [] if same else [nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)]
        self.short = nn.Sequential(*project)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the maps that come out."""
        out = torch.relu(self.n1(self.one(maps)))
        return torch.relu(self.n2(self.two(out)) + self.short(maps))


def resnet18(images: int) -> Classifier:
    """A ResNet-18 for 3 x 32 x 32 with random weights, its batch norms fitted to that much noise."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    inputs = 64
    for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(inputs, outputs, stride), Block(outputs, outputs, 1)]
        inputs = outputs
    return _on_colours([*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)], images)


def depthwise(images: int) -> Classifier:
    """Convolutions of 3 x 3 in each channel and of 1 x 1 across them, by turns, for 3 x 32 x 32 with random weights.

    As MobileNet (Howard et al. 2017, arXiv 1704.04861, table 1) from its first 32 channels to 512, with fewer halvings.
    """
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 1, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    inputs = 32
    for outputs, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        layers += [
            nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
        ]
        layers += [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        inputs = outputs
    return _on_colours([*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)], images)


def _on_colours(layers: list[nn.Module], images: int) -> Classifier:
    network = nn.Sequential(*layers).train()
    with torch.no_grad():
        for _ in range(20):
            network(torch.rand(images, 3, 32, 32))
    mean, std = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
    return Classifier(network, input_shape=(3, 32, 32), classes=tuple("0123456789"), mean=mean, std=std).eval()
