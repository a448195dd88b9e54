"""Was the right thing evaluated: the model in its right mode, on the right scale, with right labels, with logits?"""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from casemate.attacks import Status
from casemate.defenses import with_same_draws
from casemate.evaluate.findings.check import Measured, check
from casemate.evaluate.findings.evidence import Evidence
from casemate.evaluate.findings.finding import Severity
from casemate.evaluate.intervals import mcnemar, share
from casemate.losses import top_gap

_MANY = 512
"""Images on which inputs are checked by passes of their own."""
_SURE = 1e-3
"""p-value below which a paired difference of accuracies counts."""
_KNOWN_SCALES = {
    "0.5 and 0.5": (0.5, 0.5),
    "MNIST's mean and deviation": (0.1307, 0.3081),
    "Fashion-MNIST's mean and deviation": (0.2860, 0.3530),
    "CIFAR-10's mean and deviation": (0.4734, 0.2516),
    "ImageNet's mean and deviation": (0.4490, 0.2260),
}
"""Means and deviations that people normalise by, over all channels."""


@check("training-mode", "The model was in evaluation mode")
def training_mode(e: Evidence) -> Measured:
    """In training mode dropout and batch statistics make another model of it than the one evaluated here."""
    changed = 0.0
    if e.as_given is not None:
        images, _ = e.unit
        with torch.no_grad():  # with the same draws, so that a model that answers at random differs by its mode alone
            there = with_same_draws(e.as_given)(images)
        here = e.logits_of(with_same_draws(e.asked), e.few).to(images.device)
        scale = here.abs().amax(1).clamp(min=1e-6)
        changed = ((there - here).abs().amax(1) > 1e-3 * scale).double().mean().item()
    return Measured(
        changed,
        0.0,
        Severity.VOIDS if changed > 0 else None,
        f"the model was given in training mode, in which {100 * changed:.0f} % of the images get other logits; what "
        "was judged is its evaluation mode. Call model.eval() before, if that is the one in use",
        flatters=False,
    )


@check("probabilities", "The model returns logits")
def probabilities(e: Evidence) -> Measured:
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
def non_finite(e: Evidence) -> Measured:
    """What is not a number is neither right nor wrong."""
    wrong = (~e.logits.isfinite().all(1)).double().mean().item()
    name = Status.NON_FINITE.name.lower()
    tried = sum(attempt.tried for attempt in e.cascade.attempts)
    under_attack = sum(attempt.status[name] for attempt in e.cascade.attempts) / max(tried, 1)
    value = max(wrong, under_attack)
    return Measured(
        value,
        0.0,
        Severity.VOIDS if wrong > 0 or under_attack > 0.01 else Severity.WEAKENS if under_attack > 0 else None,
        f"{100 * wrong:.1f} % of the images have logits that are not finite, and count as wrong; so have "
        f"{100 * under_attack:.1f} % of the attacked ones, which count as withstanding. Look for overflows and "
        "divisions by zero",
        flatters=wrong == 0,
    )


@check("labels", "Labels mean the classes that the model means")
def labels(e: Evidence) -> Measured:
    """If another naming of the classes fits far better, the labels are shifted or permuted."""
    truth, said = e.images.labels.numpy(), e.logits.argmax(1).numpy()
    count = e.logits.shape[1]
    confusion = np.bincount(truth * count + said, minlength=count * count).reshape(count, count)
    rows, columns = linear_sum_assignment(-confusion)
    renamed = columns[np.argsort(rows)][truth] == said
    gain = float(renamed.mean() - e.right.mean())
    surely = gain > 0.1 and mcnemar(renamed, e.right) < _SURE
    moved = [f"{e.model.classes[row]} to {e.model.classes[column]}" for row, column in zip(rows, columns, strict=True)]
    moved = [words for words, row, column in zip(moved, rows, columns, strict=True) if row != column]
    return Measured(
        gain,
        0.1,
        Severity.VOIDS if surely else None,
        f"the accuracy rises from {100 * e.right.mean():.1f} to {100 * renamed.mean():.1f} % if labels are renamed "
        f"({', '.join(moved[:3])}{', ...' if len(moved) > 3 else ''}): the labels do not mean the model's classes. "
        "Check the order of the classes and whether labels start at 0",
        flatters=False,
    )


def _rescalings(e: Evidence, images: Tensor) -> dict[str, tuple[Tensor | float, Tensor | float]]:
    """Factors and summands by name: what the pixels become if a normalisation is undone, or made up for."""
    found: dict[str, tuple[Tensor | float, Tensor | float]] = {}
    own = e.asked.mean, e.asked.std
    if own[0] is not None and own[1] is not None:
        found["the Classifier's own mean and std undone"] = (own[1], own[0])
    pairs: dict[str, tuple[Tensor | float, Tensor | float]] = dict(_KNOWN_SCALES)
    pairs["these images' own mean and deviation"] = (
        images.mean((0, 2, 3), keepdim=True),
        images.std((0, 2, 3), keepdim=True).clamp(min=1e-6),
    )
    for name, (mean, std) in pairs.items():
        found[f"{name} taken off"] = (1 / std, -mean / std)
        found[f"{name} undone"] = (std, mean)
    found["times 255"], found["divided by 255"] = (255.0, 0.0), (1 / 255, 0.0)
    found["black and white exchanged"] = (-1.0, sum(e.asked.bounds))
    return found


@check("normalisation", "Pixels arrive on the scale that the network was trained on")
def normalisation(e: Evidence) -> Measured:
    """If pixels on another scale are classified better, normalisation is missing or applied twice."""
    few = e.images[:_MANY]
    images, _ = few.unit(e.model.device)
    right = e.right[: len(few)]
    best, gain, p = "", 0.0, 1.0
    for name, (factor, summand) in _rescalings(e, images).items():
        changed = images * factor + summand
        again = (e.ask(e.asked, len(few), lambda part, changed=changed: changed[part]).argmax(1) == few.labels).numpy()
        if again.mean() - right.mean() > gain:
            best, gain, p = name, float(again.mean() - right.mean()), mcnemar(again, right)
    return Measured(
        gain,
        0.03,
        Severity.VOIDS if gain > 0.03 and p < _SURE else None,
        f"with {best}, {100 * (right.mean() + gain):.1f} % of the images are classified correctly, as they are only "
        f"{100 * right.mean():.1f} %: a normalisation is missing or applied twice. It belongs in the Classifier, once",
        flatters=False,
    )


@check("saturation", "Logits lie close enough for a softmax in float32")
def saturation(e: Evidence) -> Measured:
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
def sample_size(e: Evidence) -> Measured:
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
