"""Was the right thing evaluated: the model in its right mode, on the right scale, with right labels, with logits?"""

import math

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from casemate.attacks import Status
from casemate.errors import ModelError
from casemate.evaluation.clean import is_right
from casemate.evaluation.findings.check import Measured, NotRun, check
from casemate.evaluation.findings.context import CheckContext
from casemate.evaluation.findings.finding import Severity
from casemate.evaluation.intervals import mcnemar, share
from casemate.evaluation.single_image import predict_singly
from casemate.logits import difference, is_valid, magnitude, top_gap
from casemate.models import with_fixed_seed
from casemate.models.accel.equivalence import TOLERANCE
from casemate.norms import Ball
from casemate.units import EpsIssueKind, find_eps_issue

_MANY = 512
"""Images on which inputs are checked by passes of their own."""
_LONE = 16
"""Images that are also asked about one at a time."""
_SURE = 1e-3
"""p-value below which a paired difference of accuracies counts."""
_OWN, _OTHER = 0.03, 0.1
"""Gains of accuracy from which on a scale counts as the right one: the one that the Classifier itself tells of, and
those tried because others use them (a PGD-trained network may gain some points from more contrast)."""
_UNIT = {
    EpsIssueKind.ABOVE: Severity.VOIDS,
    EpsIssueKind.BELOW: Severity.VOIDS,
    EpsIssueKind.OTHER: Severity.WEAKENS,
    EpsIssueKind.NORMALISED: Severity.WEAKENS,
    EpsIssueKind.SCALED: Severity.NOTE,
}
"""How much each doubt about eps takes from the number."""
_UNDONE = "the Classifier's own mean and std undone"
_KNOWN_SCALES = {
    "0.5 and 0.5": (0.5, 0.5),
    "MNIST's mean and deviation": (0.1307, 0.3081),
    "Fashion-MNIST's mean and deviation": (0.2860, 0.3530),
    "CIFAR-10's mean and deviation": (0.4734, 0.2516),
    "ImageNet's mean and deviation": (0.4490, 0.2260),
}
"""Means and deviations that people normalise by, over all channels."""


@check("training-mode", "The model was in evaluation mode")
def training_mode(e: CheckContext) -> Measured:
    """A model given in training mode is judged in evaluation mode; in training mode it may be another model."""
    changed = 0.0
    if e.in_training and e.as_given is None:
        raise ModelError("the model was given in training mode, and cannot be copied to see what it answers in it")
    if e.as_given is not None:
        images, _ = e.few_tensors
        with torch.no_grad():  # with the same draws, so that a model that answers at random differs by its mode alone
            there = with_fixed_seed(e.as_given)(images)
        here = e.logits_of(with_fixed_seed(e.original_model), e.few).to(images.device)
        changed = (difference(there, here) > 1e-3 * magnitude(here).clamp(min=1e-6)).double().mean().item()
    return Measured(
        changed,
        0.0,
        Severity.NOTE if changed > 0 else None,
        f"the model was given in training mode, in which {100 * changed:.0f} % of the images get other logits; it "
        "was judged in evaluation mode. If it is used as given, hand over a module that answers so in evaluation mode",
        flatters=False,
    )


@check("batch-dependence", "An image gets the same answer whatever comes with it")
def batch_dependence(e: CheckContext) -> Measured | NotRun:
    """Where the batch takes part in the answer, an attack on a batch says nothing about an image that comes alone."""
    if e.randomised:
        return NotRun("the model answers at random")
    few = e.few[:_LONE]
    together, apart = e.logits_of(e.original_model, few), predict_singly(e.original_model, few.tensors()[0])
    same = difference(together, apart) <= 1e-3 * magnitude(together).clamp(min=1e-6)
    changed = 1 - same.double().mean().item()  # no number is no answer
    return Measured(
        changed,
        0.0,
        Severity.VOIDS if changed > 0 else None,
        f"{100 * changed:.0f} % of {len(few)} images get other logits, or none, when they are alone in their batch: "
        "the model looks at the others too, as batch normalisation does in training mode. Let it use running averages",
        flatters=False,
    )


@check("probabilities", "The model returns logits")
def probabilities(e: CheckContext) -> Measured:
    """Probabilities saturate: the attacks' losses vanish where the model is sure."""
    sums = (e.logits.double().sum(1) - 1).abs() < 1e-4
    inside = (e.logits >= -1e-6).all(1) & (e.logits <= 1 + 1e-6).all(1)
    found = (sums & inside).double().mean().item()
    return Measured(
        found,
        0.99,
        Severity.VOIDS if found > 0.99 else None,
        "what the model returns adds up to 1, as probabilities do; attacks need the logits before the softmax. Leave "
        "the softmax out of the network",
    )


@check("non-finite", "All logits are numbers")
def non_finite(e: CheckContext) -> Measured:
    """What is not a number is neither right nor wrong; minus infinity is the logit of a masked class."""
    wrong = (~is_valid(e.logits)).double().mean().item()
    name = Status.NON_FINITE.name.lower()
    tried = sum(attempt.tried for attempt in e.cascade.attempts)
    under_attack = sum(attempt.status[name] for attempt in e.cascade.attempts) / max(tried, 1)
    value = max(wrong, under_attack)
    return Measured(
        value,
        0.0,
        Severity.VOIDS if wrong > 0 or under_attack > 0.01 else Severity.WEAKENS if under_attack > 0 else None,
        f"{100 * wrong:.1f} % of the images have logits that are NaN or infinite, and count as wrong; so have "
        f"{100 * under_attack:.1f} % of the attacked ones, which count as withstanding. Look for overflows and "
        "divisions by zero",
        flatters=wrong == 0,
    )


def _well(e: CheckContext) -> float:
    """Accuracy half way between guessing and perfect: with less, a model does not show what it was meant for."""
    return (1 + 1 / len(e.model.classes)) / 2


@check("masked-classes", "The same classes are masked on all images")
def masked_classes(e: CheckContext) -> Measured:
    """A class with the logit minus infinity cannot be reached; if that hangs on the image, the way there is hidden."""
    masked = e.logits == -torch.inf
    share = masked.double().mean(0)
    value = torch.minimum(share, 1 - share).sum().item()
    return Measured(
        value,
        0.0,
        (Severity.VOIDS if value > 0.1 else Severity.WEAKENS) if value > 0 else None,
        f"on an image, {value:.2g} classes on average have the logit minus infinity, or do not, unlike on most images: "
        "attacks find no way to a class that is masked on some images only. Mask the same classes always, or none",
    )


@check("eps-unit", "eps is in the unit of the pixels")
def eps_unit(e: CheckContext) -> Measured:
    """A radius written for pixels on another scale makes the ball far too large or too small."""
    doubt = find_eps_issue(Ball(eps=e.eps, norm=e.norm), e.model.bounds, math.prod(e.model.input_shape))
    severity = None
    if doubt is not None:
        severity = _UNIT[doubt.kind]
    return Measured(
        0.0 if doubt is None else doubt.share,
        0.0,
        severity,
        "" if doubt is None else doubt.message,
        flatters=doubt is not None and doubt.kind is not EpsIssueKind.ABOVE,
    )


@check("labels", "Labels mean the classes that the model means")
def labels(e: CheckContext) -> Measured:
    """If another naming of the classes fits far better, the labels are shifted or permuted."""
    truth, said, count = e.images.labels.numpy(), e.logits.argmax(1).numpy(), e.logits.shape[1]
    naming = _naming(truth, said, count)
    renamed = np.zeros(len(truth), dtype=bool)
    first = np.random.default_rng(e.seed).random(len(truth)) < 0.5
    for half in (first, ~first):  # judged on images that it was not found by: an untrained network fits some naming
        renamed[half] = _naming(truth[~half], said[~half], count)[truth[half]] == said[half]
    moved = naming[truth] != truth
    gain = float(renamed.mean() - e.right.mean())
    fits = float(renamed[moved].mean()) if moved.any() else 0.0
    words = [f"{e.model.classes[row]} to {e.model.classes[naming[row]]}" for row in range(count) if naming[row] != row]
    return Measured(
        gain,
        0.01,
        Severity.VOIDS if gain > 0.01 and fits > _well(e) and mcnemar(renamed, e.right) < _SURE else None,
        f"the accuracy rises from {100 * e.right.mean():.1f} to {100 * renamed.mean():.1f} % if labels are renamed "
        f"({', '.join(words[:3])}{', ...' if len(words) > 3 else ''}): the labels do not mean the model's classes. "
        "Check the order of the classes and whether labels start at 0",
        flatters=False,
        excuse="no naming fits well",
    )


def _naming(truth: np.ndarray, said: np.ndarray, count: int) -> np.ndarray:
    """The new name of each class under which most answers are right."""
    confusion = np.bincount(truth * count + said, minlength=count * count).reshape(count, count)
    # of equally good namings the one that changes nothing
    rows, columns = linear_sum_assignment(-confusion - 0.5 / count * np.eye(count))
    return columns[np.argsort(rows)]


def _rescalings(e: CheckContext, images: Tensor) -> dict[str, tuple[Tensor | float, Tensor | float]]:
    """Factors and summands by name: what the pixels become if a normalisation is undone, or made up for."""
    found: dict[str, tuple[Tensor | float, Tensor | float]] = {}
    own = e.original_model.mean, e.original_model.std
    if own[0] is not None and own[1] is not None:
        found[_UNDONE] = (own[1], own[0])
    pairs: dict[str, tuple[Tensor | float, Tensor | float]] = dict(_KNOWN_SCALES)
    pairs["these images' own mean and deviation"] = (
        images.mean((0, 2, 3), keepdim=True),
        images.std((0, 2, 3), keepdim=True).clamp(min=1e-6),
    )
    for name, (mean, std) in pairs.items():
        found[f"{name} taken off"] = (1 / std, -mean / std)
        found[f"{name} undone"] = (std, mean)
        if own[0] is not None and own[1] is not None:
            found[f"{name} in place of the Classifier's own"] = (own[1] / std, own[0] - own[1] * mean / std)
    found["times 255"], found["divided by 255"] = (255.0, 0.0), (1 / 255, 0.0)
    found["black and white exchanged"] = (-1.0, sum(e.original_model.bounds))
    return found


@check("normalisation", "Pixels arrive on the scale that the network was trained on")
def normalisation(e: CheckContext) -> Measured:
    """If pixels on another scale are classified better, normalisation is missing or applied twice."""
    few = e.images[:_MANY]
    images, _ = few.tensors(e.model.device)
    right = e.right[: len(few)]
    best, gain, threshold, p = "", 0.0, _OTHER, 1.0
    for name, (factor, summand) in _rescalings(e, images).items():
        again = is_right(_rescaled(e, images, factor, summand), few.labels).numpy()
        least = _OWN if name == _UNDONE else _OTHER
        if again.mean() > _well(e) and (again.mean() - right.mean()) / least > gain / threshold:
            best, gain, threshold, p = name, float(again.mean() - right.mean()), least, mcnemar(again, right)
    return Measured(
        gain,
        threshold,
        Severity.VOIDS if gain > threshold and p < _SURE else None,
        f"with {best}, {100 * (right.mean() + gain):.1f} % of the images are classified correctly, as they are only "
        f"{100 * right.mean():.1f} %: a normalisation is missing or applied twice. It belongs in the Classifier, once",
        flatters=False,
    )


def _rescaled(e: CheckContext, images: Tensor, factor: Tensor | float, summand: Tensor | float) -> Tensor:
    """Logits of pixels that are stretched and moved, out of the model's bounds perhaps."""
    return e.ask(e.original_model, len(images), lambda part: images[part] * factor + summand)


@check("frozen-copy", "The copy made for attacking answers as the model does")
def frozen_copy(e: CheckContext) -> Measured:
    """Attacks run on a copy with dropout taken out and batch norms folded, if its logits are those of the model."""
    return Measured(
        e.frozen.difference,
        TOLERANCE,
        None if e.frozen.matches_original else Severity.NOTE,
        f"the logits of the copy made for attacking ({', '.join(e.frozen.changes)}) differ from the model's by "
        f"{e.frozen.difference:.2g} of the largest one; expected at most {TOLERANCE:g}. So the model itself was "
        "attacked, which takes longer and changes nothing else.",
    )


@check("saturation", "Logits lie close enough for a softmax in float32")
def saturation(e: CheckContext) -> Measured:
    """Gaps past 17 leave `F.cross_entropy` without a gradient; attacks here use a loss that keeps one."""
    found = (top_gap(e.logits)[torch.from_numpy(e.right)] > 17).double()
    value = found.mean().item() if len(found) else 0.0
    return Measured(
        value,
        0.1,
        Severity.NOTE if value > 0.1 else None,
        f"on {100 * value:.1f} % of the images the largest logit leads by more than 17, so that attacks ascending "
        "F.cross_entropy or softmax probabilities stand still there; those used here do not",
    )


@check("sample-size", "There are enough images")
def sample_size(e: CheckContext) -> Measured:
    """An interval of more than ten points decides little."""
    estimate = share(e.robust)
    width = estimate.high - estimate.low
    return Measured(
        width,
        0.1,
        Severity.NOTE if width > 0.1 else None,
        f"with {len(e.images)} images the 95 % interval is {100 * width:.0f} points wide; take more",
        flatters=False,
    )
