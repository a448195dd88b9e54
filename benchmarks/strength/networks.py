"""Trains the networks of this benchmark on Fashion-MNIST, each by a fixed recipe and seed; see README.md.

`python benchmarks/strength/networks.py [NAME ...]` trains those that `--folder` lacks. `load` reads one of them.
"""

import argparse
import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from casemate import data
from casemate.data import Dataset, LabelledImages
from casemate.defenses import make_objective
from casemate.models import Classifier, ModelMetadata, create, register, save
from casemate.models import load as load_model
from casemate.rng import seeded
from casemate.training import TrainConfig, fit

FOLDER = Path("runs") / "strength" / "networks"
VALIDATION = 1000
"""Images set aside for validation, from which nothing is chosen."""


class Block(nn.Module):
    """Two convolutions beside a shortcut (He et al. 2016, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)])
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        found = self.norms[1](self.second(F.relu(self.norms[0](self.first(x)))))
        return F.relu(found + self.shortcut(x))


def strided(channels: int, size: int, classes: int, *, widths: tuple[int, ...], hidden: int) -> nn.Module:
    """Convolutions of stride 2, each with half the height and width of the one before, and two dense layers."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Conv2d(channels, width, 4, 2, 1), nn.ReLU()]
        channels, size = width, size // 2
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(channels * size**2, hidden), nn.ReLU(), nn.Linear(hidden, classes)
    )


def pooled(channels: int, size: int, classes: int, *, widths: tuple[int, ...], hidden: int) -> nn.Module:
    """Convolutions of stride 1 with a max-pooling behind each, and two dense layers."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Conv2d(channels, width, 3, 1, 1), nn.MaxPool2d(2), nn.ReLU()]
        channels, size = width, size // 2
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(channels * size**2, hidden), nn.ReLU(), nn.Linear(hidden, classes)
    )


def residual(channels: int, size: int, classes: int, *, widths: tuple[int, ...], hidden: int) -> nn.Module:
    """A convolution of stride 2, a residual block for each width, the mean over the positions, and a dense layer."""
    del size
    blocks = [Block(inputs, width, 1 if inputs == width else 2) for inputs, width in zip((hidden, *widths), widths)]  # noqa: B905 (one more before than after)
    stem = [nn.Conv2d(channels, hidden, 3, 2, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))


@final
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained. The seed gives its initial weights, its training images and their order."""

    kind: Literal["plain", "adversarial", "certified"]
    """`plain`: cross-entropy; `adversarial`: on the images that PGD finds; `certified`: interval bound propagation."""
    norm: Literal["linf", "l2", "l1"] = "linf"
    eps: float = 0.0
    steps: int = 5
    """Steps of PGD."""
    epochs: int = 8
    train_images: int = 10_000
    learning_rate: float = 2e-3
    """The largest, of a one-cycle schedule."""
    seed: int = 0


@final
@dataclass(frozen=True, kw_only=True)
class Network:
    """One network of the benchmark."""

    name: str
    title: str
    build: Callable[..., nn.Module]
    widths: tuple[int, ...]
    hidden: int
    recipe: Recipe
    reported: bool = True
    """False: set aside, to choose attacks and their budgets with; no number of it is reported."""
    architecture: str = field(init=False)

    def __post_init__(self) -> None:
        widths = "-".join(map(str, self.widths))
        object.__setattr__(self, "architecture", f"strength-{self.build.__name__}-{widths}-{self.hidden}")

        @register(self.architecture)
        def _(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
            return self.build(input_shape[0], input_shape[1], classes, widths=self.widths, hidden=self.hidden)


NETWORKS = (
    Network(
        name="aside-linf",
        title="trained against Linf 0.08 (set aside)",
        build=pooled,
        widths=(12, 24),
        hidden=64,
        recipe=Recipe(kind="adversarial", norm="linf", eps=0.08, steps=7, epochs=12, train_images=15_000, seed=101),
        reported=False,
    ),
    Network(
        name="aside-plain",
        title="undefended (set aside)",
        build=strided,
        widths=(12, 24, 48),
        hidden=48,
        recipe=Recipe(kind="plain", epochs=12, train_images=15_000, seed=102),
        reported=False,
    ),
    Network(
        name="aside-l2",
        title="trained against L2 0.8 (set aside)",
        build=strided,
        widths=(16, 32, 32),
        hidden=64,
        recipe=Recipe(kind="adversarial", norm="l2", eps=0.8, seed=103),
        reported=False,
    ),
    Network(
        name="aside-certified",
        title="certified, Linf 0.06 (set aside)",
        build=strided,
        widths=(16, 24, 24),
        hidden=64,
        recipe=Recipe(kind="certified", eps=0.06, epochs=25, seed=104),
        reported=False,
    ),
    Network(
        name="aside-resnet",
        title="residual, trained against Linf 0.08 (set aside)",
        build=residual,
        widths=(8, 16, 24),
        hidden=8,
        recipe=Recipe(kind="adversarial", norm="linf", eps=0.08, seed=105),
        reported=False,
    ),
    Network(
        name="plain",
        title="undefended",
        build=pooled,
        widths=(16, 32),
        hidden=100,
        recipe=Recipe(kind="plain", seed=1),
    ),
    Network(
        name="linf",
        title="trained against Linf 0.1",
        build=strided,
        widths=(16, 32),
        hidden=100,
        recipe=Recipe(kind="adversarial", norm="linf", eps=0.1, steps=7, epochs=10, train_images=12_000, seed=2),
    ),
    Network(
        name="certified",
        title="certified, Linf 0.1",
        build=strided,
        widths=(20, 40),
        hidden=100,
        recipe=Recipe(kind="certified", eps=0.1, epochs=25, seed=3),
    ),
    Network(
        name="l2",
        title="trained against L2 1.25",
        build=pooled,
        widths=(8, 16, 32),
        hidden=64,
        recipe=Recipe(kind="adversarial", norm="l2", eps=1.25, seed=4),
    ),
    Network(
        name="resnet",
        title="residual, trained against Linf 0.1",
        build=residual,
        widths=(8, 16, 32),
        hidden=8,
        recipe=Recipe(kind="adversarial", norm="linf", eps=0.1, seed=5),
    ),
    Network(
        name="l1",
        title="trained against L1 5",
        build=strided,
        widths=(16, 48),
        hidden=64,
        recipe=Recipe(kind="adversarial", norm="l1", eps=5, steps=10, seed=6),
    ),
)


def network_of(name: str) -> Network:
    """The network with this name."""
    return next(each for each in NETWORKS if each.name == name)


def path_of(name: str, folder: Path = FOLDER) -> Path:
    """The file of a network's weights."""
    return folder / f"{name}.safetensors"


def load(name: str, folder: Path = FOLDER) -> Classifier:
    """A trained network, in evaluation mode."""
    return load_model(path_of(name, folder))[0]


def weights_of(name: str, folder: Path = FOLDER) -> str:
    """The SHA-256 of the file of a network's weights, hexadecimal."""
    return hashlib.sha256(path_of(name, folder).read_bytes()).hexdigest()


def train(network: Network, dataset: Dataset, folder: Path) -> None:
    """Train a network and save it."""
    recipe = network.recipe
    pool = data.subset(dataset.train, recipe.train_images + VALIDATION, recipe.seed)
    images, validation = data.split(pool, VALIDATION, recipe.seed)
    model = create(network.architecture, input_shape=dataset.image_shape, classes=dataset.classes, seed=recipe.seed)
    settings = TrainConfig(
        epochs=recipe.epochs,
        batch_size=128,
        learning_rate=recipe.learning_rate,
        schedule="one-cycle",
        seed=recipe.seed,
    )
    path = path_of(network.name, folder)
    if recipe.kind == "certified":
        train_certified(model, images, settings, recipe.eps)
    else:
        given: dict[str, Any] = {"norm": recipe.norm, "eps": recipe.eps, "steps": recipe.steps}
        objective = make_objective(
            {"name": "cross-entropy", "settings": {}}
            if recipe.kind == "plain"
            else {"name": "adversarial-training", "settings": given}
        )
        checkpoint = path.with_suffix(".training")
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        fit(model, images, validation, settings, objective=objective, checkpoint=checkpoint)
        checkpoint.unlink()
    save(
        model.eval(),
        path,
        ModelMetadata(architecture=network.architecture, dataset=dataset.name, recipe=asdict(recipe), seed=recipe.seed),
    )


def train_certified(model: Classifier, images: LabelledImages, settings: TrainConfig, eps: float) -> None:
    """Train by interval bound propagation in Linf (Gowal et al. 2018, arXiv 1810.12715), in place.

    The loss is (1 - k) * cross-entropy of the logits + k * cross-entropy of the worst logits within the bounds
    (equation 12). The first twentieth of the steps are ordinary training; then eps rises linearly to its full value,
    and k to 1/2, over half of all steps. The network is `strided` or `pooled`.
    """
    optimizer = settings.make_optimizer(model)
    per_epoch = -(-len(images) // settings.batch_size)
    total = settings.epochs * per_epoch
    with seeded(model.device, settings.seed, "certified training"):
        for step in range(total):
            if step % per_epoch == 0:
                batches = torch.randperm(len(images)).split(settings.batch_size)
            x, labels = images[batches[step % per_epoch]].tensors()
            grown = min(max(step / total - 0.05, 0) / 0.5, 1)
            for group in optimizer.param_groups:
                group["lr"] = settings.rate(step / total)
            worst = worst_logits(model.network, x, labels, grown * eps)
            loss = (1 - grown / 2) * F.cross_entropy(model(x), labels) + grown / 2 * F.cross_entropy(worst, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def worst_logits(network: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """Upper bounds of each logit minus that of the label over an Linf ball within [0, 1], `(n, classes)`, by intervals.

    Where all others are below 0, the label's own, no image in the ball is misclassified. The differences are taken in
    the last layer, which gives tighter bounds than those of the logits themselves.
    """
    *layers, last = network.children()
    low, high = (images - eps).clamp(min=0), (images + eps).clamp(max=1)
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            middle, reach = layer((high + low) / 2), _linear(layer, (high - low) / 2)
            low, high = middle - reach, middle + reach
        else:  # monotone: ReLU, max-pooling, flattening
            low, high = layer(low), layer(high)
    rows = last.weight - last.weight[labels].unsqueeze(1)
    shift = last.bias - last.bias[labels].unsqueeze(1)
    middle, reach = (high + low) / 2, (high - low) / 2
    return torch.einsum("nkd,nd->nk", rows, middle) + torch.einsum("nkd,nd->nk", rows.abs(), reach) + shift


def _linear(layer: nn.Module, reach: Tensor) -> Tensor:
    """How far the layer's outputs reach when its inputs reach that far."""
    if isinstance(layer, nn.Linear):
        return F.linear(reach, layer.weight.abs())
    assert isinstance(layer, nn.Conv2d)
    return F.conv2d(reach, layer.weight.abs(), None, layer.stride, layer.padding)


def main() -> None:
    """Train what is missing, and print accuracies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="the networks to train; default: all")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dataset = data.load("fashion-mnist")
    images, labels = dataset.test.tensors()
    for network in NETWORKS if not options.names else map(network_of, options.names):
        if not path_of(network.name, options.folder).exists():
            train(network, dataset, options.folder)
        model = load(network.name, options.folder)
        with torch.no_grad():
            right = model(images).argmax(1) == labels
            line = f"{network.name}: {right.double().mean():.1%} of the test images right"
            if network.recipe.kind == "certified":
                worst = worst_logits(model.network, images, labels, network.recipe.eps)
                certified = right & (worst.scatter(1, labels[:, None], -1) < 0).all(1)
                line += f", {certified.double().mean():.1%} certified at {network.recipe.eps:g}"
        print(f"{line}; {weights_of(network.name, options.folder)}", flush=True)


if __name__ == "__main__":
    main()
