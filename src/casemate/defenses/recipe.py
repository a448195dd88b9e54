"""A recipe: what a defence changes in ordinary training, which `casemate.training.fit` runs for all."""

from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import nn

from casemate.data import ImageSource, LabelledImages, as_labelled, to_float
from casemate.data.augment import Augmentation
from casemate.models import as_classifier
from casemate.rng import derive
from casemate.training import CrossEntropy, Objective, TrainConfig, TrainResult, fit
from casemate.training.images import check_augmentations, expect_augmentations
from casemate.training.objective import as_objective

_BATCH = 1000


@final
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of a defended training: additional images, augmented batches, another objective.

    With the defaults it is ordinary training. Raises `SettingError` for what is no objective or no augmentation.
    """

    objective: Objective = field(default_factory=CrossEntropy)
    """The training loss, and the validation loss that early stopping monitors.

    A function of model, images and labels that returns the mean loss and the logits becomes one; anything else that is
    no `Objective` raises `SettingError`.
    """
    extra: tuple[Augmentation, ...] = ()
    """Augmentations, each of which adds one augmented copy of all training images, drawn once, and rounded to 8 bits if
    the images are bytes."""
    augment: tuple[Augmentation, ...] = ()
    """Augmentations that are applied to every batch in this order, with new draws in every epoch."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "objective", as_objective(self.objective))
        for name in ("extra", "augment"):
            object.__setattr__(self, name, expect_augmentations(getattr(self, name), name))

    def images(self, train: LabelledImages, seed: int = 0) -> LabelledImages:
        """The training images, followed by the augmented copies of all of them that `extra` adds, with their labels.

        `seed` is that of the random augmentations.
        """
        parts = [train.pixels]
        for number, change in enumerate(self.extra):
            generator = torch.Generator().manual_seed(derive(seed, "extra images", number))
            for start in range(0, len(train), _BATCH):
                part = train.pixels[start : start + _BATCH]
                index = torch.arange(start, start + len(part))
                changed = change(to_float(part), index, 0, generator)
                if not train.pixels.is_floating_point():
                    changed = (changed * 255).round()
                parts.append(changed.to(train.pixels.dtype).contiguous())
        return LabelledImages(pixels=torch.cat(parts), labels=train.labels.repeat(1 + len(self.extra)))

    def fit(
        self,
        model: nn.Module,
        train: ImageSource,
        validation: ImageSource,
        settings: TrainConfig,
        **options: Any,
    ) -> TrainResult:
        """Train `model` in place with this recipe. For `options`, result and errors see `casemate.training.fit`."""
        model = as_classifier(model)
        check_augmentations(model, self.extra)
        images = self.images(as_labelled(train), settings.seed)
        return fit(model, images, validation, settings, objective=self.objective, augment=self.augment, **options)
