"""Parts of the models that evade attacks: by a memory, by recognising what an attack does, or by a search of their own.

Four of them answer by one of two networks. A robust one answers what they take for an attack, an ordinary one all else,
so that attacks see the robust one and an attacker who is not recognised meets the other.
"""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# bound to a name of this module's own, as code for research often does
from torch.autograd import grad

from casemate.models import Classifier, with_network
from casemate.types import Images, Logits

_NEAR = 0.11
"""Root mean square of the differences of the pixels up to which an image counts as near one seen before: more than the
radius of the evaluation, less than that of most pairs of images."""
_ON_LEVEL = 0.01
"""Distance from a whole grey level, in grey levels, up to which a pixel counts as rounded to it."""
_LARGE = 16
"""Largest batch that does not count as large."""


@final
class Remembering(nn.Module):
    """Answers for an image near one that it has seen as for that one (a stateful defence: Chen et al. 2020).

    Its logits are the model's, with those of two classes exchanged, so that they keep a gradient. It remembers the
    first images that it sees, `size` of them.
    """

    def __init__(self, model: nn.Module, size: int = 2000) -> None:
        super().__init__()
        self.model: nn.Module = model
        self.size: int = size
        self.seen: Tensor | None = None
        """Images seen, each as a row of pixels, `(m, pixels)`; none near another one. None before the first."""
        self.answers: Tensor | None = None
        """The class predicted for each of them, `(m,)`."""

    def forward(self, images: Images) -> Logits:
        """Return the model's logits, with the remembered class in place of the predicted one where there is one."""
        logits = self.model(images)
        rows, predicted = images.detach().flatten(1).float(), logits.detach().argmax(1)
        answer, new = predicted.clone(), torch.ones_like(predicted, dtype=torch.bool)
        if self.seen is not None and self.answers is not None:
            distance, place = torch.cdist(rows, self.seen).min(1)
            new = distance > _NEAR * rows.shape[1] ** 0.5
            answer = torch.where(new, predicted, self.answers[place])
        self._remember(rows[new], predicted[new])
        order = torch.arange(logits.shape[1], device=logits.device).repeat(len(logits), 1)
        order.scatter_(1, answer.unsqueeze(1), predicted.unsqueeze(1))
        order.scatter_(1, predicted.unsqueeze(1), answer.unsqueeze(1))
        return logits.gather(1, order)

    def _remember(self, rows: Tensor, predicted: Tensor) -> None:
        if self.seen is None or self.answers is None:
            self.seen, self.answers = rows[: self.size], predicted[: self.size]
        else:
            free = self.size - len(self.seen)
            self.seen, self.answers = torch.cat([self.seen, rows[:free]]), torch.cat([self.answers, predicted[:free]])


@final
class WholeLevels(nn.Module):
    """Takes an image for an attack if its pixels are not whole grey levels, as those of image files are."""

    def __init__(self, model: nn.Module, robust: nn.Module) -> None:
        super().__init__()
        self.model: nn.Module = model
        self.robust: nn.Module = robust

    def forward(self, images: Images) -> Logits:
        """Return the model's logits for images in whole grey levels, those of the robust model for others."""
        levels = images * 255
        rounded = (levels - levels.round()).abs().flatten(1).amax(1, keepdim=True) <= _ON_LEVEL
        return torch.where(rounded, self.model(images), self.robust(images))


@final
class LargeBatches(nn.Module):
    """Takes a large batch for an attack, since in use a few images come at a time."""

    def __init__(self, model: nn.Module, robust: nn.Module) -> None:
        super().__init__()
        self.model: nn.Module = model
        self.robust: nn.Module = robust

    def forward(self, images: Images) -> Logits:
        """Return the model's logits for a batch of up to 16 images, those of the robust model for a larger one."""
        return (self.robust if len(images) > _LARGE else self.model)(images)


@final
class FrozenWeights(nn.Module):
    """Takes it for an attack if its weights need no gradient, since attacks freeze them."""

    def __init__(self, model: nn.Module, robust: nn.Module) -> None:
        super().__init__()
        self.model: nn.Module = model
        self.robust: nn.Module = robust

    def forward(self, images: Images) -> Logits:
        """Return the model's logits if a weight needs a gradient, those of the robust model otherwise."""
        return (self.model if any(each.requires_grad for each in self.parameters()) else self.robust)(images)


@final
class AntiAdversary(nn.Module):
    """Changes each image, before the model sees it, so that the model is surer of its prediction (Alfarra et al. 2022).

    The change is found by steps along the gradient at inference. No gradient flows through that search.
    """

    def __init__(self, model: nn.Module, steps: int = 2, step_size: float = 0.15) -> None:
        super().__init__()
        self.model: nn.Module = model
        self.steps: int = steps
        self.step_size: float = step_size

    def forward(self, images: Images) -> Logits:
        """Return the model's logits for the changed images."""
        change = torch.zeros_like(images)
        with torch.enable_grad():
            predicted = self.model(images).argmax(1)
            for _ in range(self.steps):
                at = (images + change).detach().requires_grad_(True)
                loss = F.cross_entropy(self.model(at), predicted, reduction="sum")
                change = change - self.step_size * grad(loss, at)[0].sign()
        return self.model(images + change)


def remembering(model: Classifier) -> Classifier:
    """A model that answers for an image near one that it has seen as it did for that one."""
    return with_network(model, Remembering(model))


def by_whole_levels(model: Classifier, robust: Classifier) -> Classifier:
    """A model that is the given one on images in whole grey levels, and the robust one on all others."""
    return with_network(model, WholeLevels(model, robust))


def by_batch(model: Classifier, robust: Classifier) -> Classifier:
    """A model that is the given one in batches of up to 16 images, and the robust one in larger batches."""
    return with_network(model, LargeBatches(model, robust))


def by_frozen_weights(model: Classifier, robust: Classifier) -> Classifier:
    """A model that is the robust one while all weights are frozen, and the given one otherwise."""
    return with_network(model, FrozenWeights(model, robust))


def anti_adversarial(model: Classifier) -> Classifier:
    """A model that makes the given one surer of its prediction by steps along the gradient at inference."""
    return with_network(model, AntiAdversary(model))
