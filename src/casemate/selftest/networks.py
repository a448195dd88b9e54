"""The training settings of the self-test's networks, and a factory that trains each network once."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
import torch.nn.functional as F
from torch import nn

from casemate.data import Dataset, LabelledImages, split, subset
from casemate.defenses import (
    AdversarialRegularization,
    AdversarialTraining,
    Distillation,
    StochasticAffine,
    TemperatureCrossEntropy,
)
from casemate.models import Classifier
from casemate.progress import NULL_OBSERVER, Observer
from casemate.selftest.odd import Transformer
from casemate.selftest.parts import KWinners, ResizeAndPad, small
from casemate.training import CrossEntropy, Objective, TrainConfig, fit

EPS = 0.1
"""Radius in Linf at which most models of the self-test are evaluated, and of the adversarial training."""
FAR = 0.3
"""Radius in Linf at which the network that learns to recognise FGSM is trained and evaluated; large, so that it can."""
_TEMPERATURE = 100.0


@final
@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Numbers of images and epochs of a self-test, which decide how long it takes."""

    train: int = 3000
    """Number of images drawn, stratified by class, from the training set; a tenth of them are for validation."""
    epochs: int = 10
    """Epochs of training of most networks; `TrainSpec.epochs` is a factor on it."""
    test: int = 200
    """Number of test images on which each model is evaluated."""


@final
@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """Architecture and training settings of one network of the self-test; the defaults are ordinary training."""

    network: Callable[[tuple[int, int, int], int], nn.Module] = small
    before: Callable[[], nn.Module] | None = None
    """Makes a module in front of the network, in training and at inference; None if there is no such module."""
    objective: Callable[[], Objective] = CrossEntropy
    teacher: str | None = None
    """Name of the network whose outputs are the targets instead of the labels (distillation); None: no teacher."""
    normalised: bool = False
    """Whether the classifier subtracts the mean of the training images and divides by their standard deviation."""
    images: int | None = None
    """Number of training images; all of them if None."""
    epochs: float = 1.0
    """Factor on `Sizes.epochs`, which gives the epochs of this network."""
    gradients: int = 1
    """Number of backward passes per image and epoch, for the estimate of the training time."""
    rate: float = 2e-3
    """Peak learning rate."""
    patience: int | None = None
    weight_decay: float = 0.0


TRAIN_SPECS: Mapping[str, TrainSpec] = {
    "undefended": TrainSpec(network=partial(small, dropout=0.25)),
    "normalised": TrainSpec(normalised=True),
    "early-stopped": TrainSpec(epochs=4, patience=2),
    "weight-decayed": TrainSpec(weight_decay=0.05),
    "adversarial": TrainSpec(objective=partial(AdversarialTraining, eps=EPS), gradients=8),
    "single-step": TrainSpec(
        objective=partial(
            AdversarialRegularization, multiplier=1.0, step_size=FAR, norm="linf", clip_min=0.0, clip_max=1.0
        ),
        epochs=2,
        gradients=2,
        rate=4e-3,
    ),
    "teacher": TrainSpec(objective=partial(TemperatureCrossEntropy, temperature=_TEMPERATURE), rate=1e-2),
    "distilled": TrainSpec(teacher="teacher", rate=1e-2),
    "over-fitted": TrainSpec(images=1000, epochs=6, rate=2e-2),
    "k-winners": TrainSpec(network=partial(small, activation=partial(KWinners, 0.02))),
    "noisy": TrainSpec(network=partial(small, noise=0.2)),
    "resized": TrainSpec(before=ResizeAndPad),
    "moved": TrainSpec(before=StochasticAffine),
    "transformer": TrainSpec(network=Transformer, rate=1e-2),
}


def training_passes(names: Iterable[str], sizes: Sizes) -> int:
    """Upper bound of the forward passes (and also of the backward passes) of single images in training these networks.

    `names` are names in `TRAIN_SPECS`; the training of their teachers counts too.
    """
    whole = {name for each in names for name in (each, TRAIN_SPECS[each].teacher) if name is not None}
    return sum(
        round(each.epochs * sizes.epochs) * min(each.images or sizes.train, sizes.train) * each.gradients
        for each in map(TRAIN_SPECS.__getitem__, whole)
    )


class ModelFactory:
    """Trains the networks of `TRAIN_SPECS` on images of half the size, each when it is first needed, and keeps them."""

    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages

    def __init__(
        self, data: Dataset, sizes: Sizes, *, device: str = "cpu", seed: int = 0, observer: Observer = NULL_OBSERVER
    ) -> None:
        self.data = data
        self.sizes = sizes
        self.device = device
        self.seed = seed
        self.observer = observer
        drawn = halved(subset(data.train, sizes.train, seed))
        self.train, self.validation = split(drawn, max(len(drawn) // 10, 1), seed)
        self.test = halved(subset(data.test, sizes.test, seed))
        self._made: dict[str, Classifier] = {}

    def network(self, name: str) -> Classifier:
        """The network called `name` in `TRAIN_SPECS`, trained at the first call, in evaluation mode."""
        if name not in self._made:
            self._made[name] = self._trained(name)
        return self._made[name]

    def _trained(self, name: str) -> Classifier:
        spec, model = TRAIN_SPECS[name], self.fresh(name)
        objective = (
            spec.objective()
            if spec.teacher is None
            else Distillation(teacher=self.network(spec.teacher), temperature=_TEMPERATURE)
        )
        settings = TrainConfig(
            epochs=round(spec.epochs * self.sizes.epochs),
            batch_size=64,
            optimizer="adamw",
            learning_rate=spec.rate,
            schedule="one-cycle",
            patience=spec.patience,
            weight_decay=spec.weight_decay,
            seed=self.seed,
        )
        images = self.train if spec.images is None else subset(self.train, spec.images, self.seed)
        return fit(
            model,
            images,
            self.validation,
            settings,
            objective=objective,
            device=self.device,
            observer=self.observer,
        ).model

    def fresh(self, name: str) -> Classifier:
        """A new classifier, untrained, with the architecture and normalisation of `TRAIN_SPECS[name]`."""
        spec = TRAIN_SPECS[name]
        channels, height, width = self.train.pixels.shape[1:]
        shape = channels, height, width
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            network = spec.network(shape, len(self.data.classes))
        if spec.before is not None:
            network = nn.Sequential(spec.before(), network)
        pixels = self.train.pixels.float() / 255
        dims = (0, 2, 3)
        return Classifier(
            network,
            input_shape=shape,
            classes=self.data.classes,
            mean=tuple(pixels.mean(dims).tolist()) if spec.normalised else None,
            std=tuple(pixels.std(dims).tolist()) if spec.normalised else None,
        )


def halved(images: LabelledImages) -> LabelledImages:
    """The images at half the height and width, to save time: each pixel is the mean of four."""
    pixels = F.avg_pool2d(images.pixels.float(), 2).round().to(torch.uint8)
    return LabelledImages(pixels=pixels, labels=images.labels)
