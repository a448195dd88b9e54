"""Is the model one function of an image: whatever it saw before, however it is called, and without jumps?"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import final

import torch
from torch import Tensor

from casemate.attacks import Misclassification, frozen, input_gradient
from casemate.errors import ModelError
from casemate.evaluation.findings.check import Measured, check
from casemate.evaluation.findings.context import CheckContext
from casemate.evaluation.intervals import percent
from casemate.float32_precision import full_precision
from casemate.logits import difference, is_valid, magnitude
from casemate.memory import batched
from casemate.models import Classifier, copied
from casemate.models.state import restored
from casemate.norms import Ball
from casemate.rng import Streams, derive
from casemate.types import Flags, Images, Logits

_MAX_NEW = 12
"""Largest number of new images, near which others are shown first. Where a step along the gradient changes every third
prediction, a memory shows with probability 0.99."""
_MAX_CALLED = 4
"""Largest number of images that are classified in every way of calling the model."""
_MAX_WALKED, _PARTS, _HALVINGS = 8, 4, 4
"""Largest number of images from which a way is searched for a jump, equal parts of the way, and number of times that
the part with the largest change is halved, down to a 64th of the way: further down a steep ramp would look smooth."""
_CLEARLY = 0.05
"""Difference of logits, as a share of the largest one, that other kernels or half precision do not explain."""
_JUMP = 0.25
"""Share of the whole change of the logits on a way above which the change in a 64th of it is a jump. On sixteen smooth
networks it was 0.05 at most, with pixels rounded to 8 bits 0.16, with a detector of changed images 0.99."""


@check(
    "memory",
    "An image gets the same logits whatever the model saw before it",
    voids=0,
    models="deterministic",
    why="A model that remembers its inputs, and answers for an image near one of them as it did for that one, looks "
    "robust to every attack that begins with the clean image (stateful detection: Chen, Carlini and Wagner 2020, arXiv "
    "1907.05587). The first query of an attacker need not be the clean image.",
    advice="Evaluate the model without its memory.",
    reads="inputs",
)
def memory(context: CheckContext) -> Measured:
    """Share of a few new images whose logits are different if the model has just seen an image near them.

    New are the means of two images each, and the images a step of length eps along the gradient away from these.
    """
    images = context.sample_tensors[0][:_MAX_NEW]
    first = (images + images.flip(-1).roll(1, 0)) / 2
    near = _along_the_gradient(context, first)
    alone = _last_logits(context.original_model, near)
    after = _last_logits(context.original_model, first, near)
    value = _differ(after, alone).double().mean().item()
    return Measured(
        value,
        f"the logits of {percent(value, 0)} of the images change if the model has seen an image near them before: it "
        "remembers its inputs",
        flatters=False,
    )


def _along_the_gradient(context: CheckContext, images: Images) -> Images:
    """The images after a step of length eps that raises the loss of the model's predictions for them most.

    It is a step in a random direction where the gradient is zero, as that of an answer from memory is.
    """
    ball = Ball(eps=context.eps, norm=context.norm)
    predicted = _last_logits(context.original_model, images).argmax(1).to(images.device)
    with _fresh(context.original_model) as model:

        def gradient_of(part: slice) -> Images:
            return input_gradient(model, images[part], Misclassification(predicted[part]), "ce")[1]

        gradient = torch.cat(batched(len(images), len(images), gradient_of))
    streams = Streams(derive(context.seed, "memory"), torch.arange(len(images), device=images.device))
    random = streams.uniform(tuple(images.shape[1:]), "step") - 0.5
    gradient = gradient.where(gradient.flatten(1).any(1).view(-1, 1, 1, 1), random)
    return ball.ascend(gradient, images, images, model.bounds, context.eps)


@contextmanager
def _fresh(model: Classifier) -> Iterator[Classifier]:
    """The model in the state in which it is now, in evaluation mode; what happens to it inside is forgotten.

    It is a copy; of a model that cannot be copied the model itself, restored at the end.
    """
    model = copied(model) or model
    with restored(model), frozen(model), torch.no_grad(), full_precision():
        yield model


def _last_logits(model: Classifier, *batches: Images) -> Logits:
    """The logits of the last of several batches, which the model sees one after another, on the CPU."""
    with _fresh(model) as fresh:
        return [
            torch.cat(batched(len(each), len(each), lambda part, of=each: fresh(of[part]).cpu())) for each in batches
        ][-1]


def _differ(logits: Logits, others: Logits) -> Flags:
    """On which images the logits differ by more than other kernels or half precision explain.

    Not where neither is valid: another check is about that.
    """
    same = difference(logits, others) <= _CLEARLY * magnitude(others).clamp(min=1e-30)
    return ~same & (is_valid(logits) | is_valid(others))


@check(
    "way-of-calling",
    "An image gets the same logits whether gradients are computed or not",
    voids=0,
    models="deterministic",
    why="An attack computes gradients of the images, with the weights frozen; in use neither is so. A model that "
    "takes another path in one of these cases, such as a faster one without gradients, is two models, and the attacks "
    "see one of them.",
    advice="Let the model compute the same in all cases, whatever `torch.is_grad_enabled()` and `requires_grad` say.",
    reads="inputs",
)
def way_of_calling(context: CheckContext) -> Measured:
    """Share of a few images whose logits change with gradients of the images, or with weights that are not frozen."""
    images = context.sample_tensors[0][:_MAX_CALLED]
    frozen_logits = _last_logits(context.original_model, images)
    ways = ((False, True, True), (True, True, False), (True, False, True))
    others = [_logits_called(context.original_model, images, *way) for way in ways]
    changed = [_differ(logits, frozen_logits) for logits in others if logits is not None]
    value = torch.stack(changed).any(0).double().mean().item() if changed else 0.0
    return Measured(
        value,
        f"the logits of {percent(value, 0)} of {len(images)} images depend on whether gradients are computed, or on "
        "whether the weights are frozen: the model takes another path under attack than in use",
        flatters=False,
    )


def _logits_called(model: Classifier, images: Images, weights: bool, enabled: bool, of_images: bool) -> Logits | None:
    """The logits with or without gradients of weights and of images, on the CPU; None if the model fails then."""
    with _fresh(model) as fresh, torch.set_grad_enabled(enabled):
        for parameter in fresh.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(weights)
        try:
            return fresh(images.detach().clone().requires_grad_(of_images)).detach().cpu()
        except ModelError:  # such as one that writes into its weights, which autograd forbids
            return None


@check(
    "jumps",
    "The logits do not jump on the way to a random point of the ball",
    weakens=0.25,
    voids=0.5,
    models="deterministic",
    condition=f"a jump is more than {percent(_JUMP, 0)} of the whole change on the way, and more than "
    f"{percent(_CLEARLY, 0)} of the largest logit",
    why="A model that recognises changed images, and answers for them in another way, shows attacks that other way "
    "only: they search where it is at its best. An attacker who knows what it looks for avoids being recognised "
    "(Carlini and Wagner 2017, arXiv 1705.07263; Tramer et al. 2020, arXiv 2002.08347).",
    advice="Attack both ways: the model without its detector, and what the detector does not recognise (such as images "
    "rounded to whole grey levels).",
    only_flattery=True,
)
def jumps(context: CheckContext) -> Measured:
    """Share of a few images whose logits jump on the straight way to a random point of the ball."""
    images = context.sample_tensors[0][:_MAX_WALKED]
    streams = Streams(derive(context.seed, "jumps"), torch.arange(len(images), device=images.device))
    ends = Ball(eps=context.eps, norm=context.norm).sample(images, context.model.bounds, streams, "end")
    value = _jumps(context, images, ends).double().mean().item()
    return Measured(
        value,
        f"on {percent(value, 0)} of the images the logits jump between the image and a random point of the ball: the "
        "model answers otherwise for changed images, and the attacks saw these only",
    )


def _jumps(context: CheckContext, starts: Images, ends: Images) -> Flags:
    """Whether the logits jump somewhere on the straight way from each start to its end, booleans `(n,)`."""

    def logits_at(share: Tensor) -> Logits:
        points = starts + share.to(starts.device).view(-1, 1, 1, 1) * (ends - starts)
        return context.logits_from(context.model, len(points), lambda part: points[part])

    shares = [torch.full((len(starts),), number / _PARTS) for number in range(_PARTS + 1)]
    logits = [logits_at(share) for share in shares]
    changes = torch.stack([difference(later, before) for before, later in pairwise(logits)])
    largest = changes.argmax(0)
    low, high = (_Point.chosen(shares, logits, largest + end) for end in (0, 1))
    for _ in range(_HALVINGS):
        share = (low.share + high.share) / 2
        middle = _Point(share, logits_at(share))
        first = difference(middle.logits, low.logits) > difference(high.logits, middle.logits)
        low, high = middle.where(~first, low), middle.where(first, high)
    jump = difference(high.logits, low.logits)
    return (jump > _JUMP * changes.sum(0)) & (jump > _CLEARLY * magnitude(high.logits))


@final
class _Point:
    """A point on the way of each image: the share of the way behind it, `(n,)`, and its logits, `(n, classes)`."""

    def __init__(self, share: Tensor, logits: Logits) -> None:
        self.share, self.logits = share, logits

    @classmethod
    def chosen(cls, shares: list[Tensor], logits: list[Logits], places: Tensor) -> "_Point":
        """For each image the point at its place in the lists."""
        rows = torch.arange(len(places))
        return cls(torch.stack(shares)[places, rows], torch.stack(logits)[places, rows])

    def where(self, chosen: Flags, other: "_Point") -> "_Point":
        """The point itself where `chosen`, else the other."""
        return _Point(
            torch.where(chosen, self.share, other.share),
            torch.where(chosen.unsqueeze(1), self.logits, other.logits),
        )
