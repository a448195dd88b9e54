"""A recipe: what a defence changes of an ordinary training. The one loop trains them all."""

from dataclasses import dataclass, field
from typing import Any, final

import torch

from casemate.data import LabelledImages, to_float
from casemate.data.augment import Augmentation
from casemate.models import Classifier
from casemate.rng import derive
from casemate.training import CrossEntropy, Objective, TrainConfig, TrainResult, fit

_BATCH = 1000


@final
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A defended training: more images, changed images, another objective. Empty, it is ordinary training."""

    objective: Objective = field(default_factory=CrossEntropy)
    """The loss, and what early stopping watches."""
    extra: tuple[Augmentation, ...] = ()
    """Each adds to the training images one changed copy of them all, drawn once (rounded to 8 bits)."""
    augment: tuple[Augmentation, ...] = ()
    """Changes every batch in this order, drawn afresh in every epoch."""

    def images(self, train: LabelledImages, seed: int = 0) -> LabelledImages:
        """The training images with the copies that `extra` adds; labels go with their images."""
        parts = [train.pixels]
        for number, change in enumerate(self.extra):
            generator = torch.Generator().manual_seed(derive(seed, "extra images", number))
            for start in range(0, len(train), _BATCH):
                part = train.pixels[start : start + _BATCH]
                index = torch.arange(start, start + len(part))
                changed = change(to_float(part), index, 0, generator)
                parts.append((changed * 255).round().to(torch.uint8).contiguous())
        return LabelledImages(pixels=torch.cat(parts), labels=train.labels.repeat(1 + len(self.extra)))

    def fit(
        self,
        model: Classifier,
        train: LabelledImages,
        validation: LabelledImages,
        settings: TrainConfig,
        **options: Any,
    ) -> TrainResult:
        """Train `model` in place by this recipe; `options` are those of `casemate.training.fit`; so are the errors."""
        images = self.images(train, settings.seed)
        return fit(model, images, validation, settings, objective=self.objective, augment=self.augment, **options)
