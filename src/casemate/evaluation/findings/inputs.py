"""Was the right thing evaluated: the model's mode and outputs, the scale of the pixels, the labels, the unit of eps."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from casemate.attacks import Status
from casemate.data import LabelledImages
from casemate.errors import ModelError
from casemate.evaluation.findings.check import Measured, check
from casemate.evaluation.findings.context import CheckContext
from casemate.evaluation.findings.finding import Severity
from casemate.evaluation.findings.outputs import FIRST
from casemate.evaluation.intervals import mcnemar, percent, share
from casemate.evaluation.single_image import predict_singly
from casemate.float32_precision import full_precision
from casemate.logits import difference, is_right, magnitude
from casemate.models import with_fixed_seed
from casemate.models.accel.equivalence import TOLERANCE
from casemate.norms import Ball
from casemate.types import Labels, Logits
from casemate.units import EpsIssueKind, find_eps_issue

_MAX_RESCALED, _SCREENED = FIRST, {16: 1, 64: 0}
"""Largest number of images that are classified again on another scale of the pixels. For numbers of the first of them:
on how many fewer than with the model's own scale another one may be right to be tried on more; it must also be right
on half as many as it has to be on all. Of scales that gain a tenth, on images of which 14 % change, one in 75 is missed
so."""
_MAX_SINGLE = 16
"""Largest number of images that are also classified one at a time."""
_P_VALUE = 1e-3
"""p-value of McNemar's test below which a difference of two accuracies is more than chance."""
_OWN_GAIN, _OTHER_GAIN = 0.03, 0.1
"""Gain of accuracy above which another scale of the pixels counts as the right one: with the Classifier's own
normalisation undone, and with normalisations that other people use (a PGD-trained network may gain some points from
more contrast)."""
_MAX_LISTED = 20
"""Largest number of classes of which all are listed in a finding."""
_PREFERENCE = 0.05
"""Lead in accuracy of balanced classes over another scale of the pixels, up to which that scale may be the right one;
above it, the model prefers some classes. On eight networks whose scale was wrong the lead was 0.04 at most."""
_BALANCED_DEVIATION = 5.0
"""Deviation of the logits, as of an ordinary network, at which constants for balanced classes are computed."""
_SATURATED_GAP = 17
"""Lead of the largest logit over the second above which the largest softmax probability is exactly 1 in float32."""
_PROBABILITIES = 0.99
"""Share of the images above which outputs that look like probabilities are taken for such."""
_UNIT = {
    EpsIssueKind.ABOVE: Severity.VOIDS,
    EpsIssueKind.BELOW: Severity.VOIDS,
    EpsIssueKind.OTHER: Severity.WEAKENS,
    EpsIssueKind.NORMALISED: Severity.WEAKENS,
    EpsIssueKind.SCALED: Severity.NOTE,
}
"""The severity of the finding for each kind of doubt about the unit of eps."""
_UNDONE = "the Classifier's own mean and std undone"
_KNOWN_SCALES = {
    "a mean and deviation of a half": (0.5, 0.5),
    "MNIST's mean and deviation": (0.1307, 0.3081),
    "Fashion-MNIST's mean and deviation": (0.2860, 0.3530),
    "CIFAR-10's mean and deviation": (0.4734, 0.2516),
    "ImageNet's mean and deviation": (0.4490, 0.2260),
}
"""Means and standard deviations, over all channels, by which images are often normalised; by name."""


@check(
    "training-mode",
    "The model was in evaluation mode",
    note=0,
    why="Dropout and batch statistics make another model of the network in training mode. The evaluation is of the "
    "model in evaluation mode (dropout: Srivastava et al. 2014; batch normalisation: Ioffe and Szegedy 2015, arXiv "
    "1502.03167).",
    advice="If the model is used as it was given, pass a module that behaves that way in evaluation mode too.",
    reads="inputs",
)
def training_mode(context: CheckContext) -> Measured:
    """Share of the images whose logits change when the model runs in the mode in which it was given."""
    changed = 0.0
    if context.in_training and context.as_given is None:
        raise ModelError("the model was given in training mode and cannot be copied to compare its logits there")
    if context.as_given is not None:
        images, _ = context.sample_tensors
        # with the same random draws, so that a randomised model differs by its mode alone
        with torch.no_grad(), full_precision():
            there = with_fixed_seed(context.as_given)(images)
        here = context.logits_of(with_fixed_seed(context.original_model), context.sample).to(images.device)
        changed = (difference(there, here) > 1e-3 * magnitude(here).clamp(min=1e-6)).double().mean().item()
    return Measured(
        changed,
        f"the model was given in training mode, in which the logits of {percent(changed, 0)} of the images are "
        "different; it was evaluated in evaluation mode",
        flatters=False,
    )


@check(
    "batch-dependence",
    "An image gets the same logits whatever else is in its batch",
    voids=0,
    models="deterministic",
    why="If the logits of an image depend on the other images of its batch, as with batch normalisation in "
    "training mode, an attack on a batch says nothing about an image on its own (Ioffe and Szegedy 2015, arXiv "
    "1502.03167).",
    advice="Look in the model's code for what uses the whole batch, such as a mean over its first dimension, or a "
    "layer that is kept in training mode, and let it use fixed numbers.",
    reads="inputs",
)
def batch_dependence(context: CheckContext) -> Measured:
    """Share of a few images whose logits change, or are undefined, when the image is alone in its batch.

    They are compared with those in a batch of these images, and with those in full batches of all images.
    """
    few = context.sample[:_MAX_SINGLE]
    single = predict_singly(context.original_model, few.tensors()[0])
    full = context.outputs.sample[: len(few)]
    together = context.logits_of(context.original_model, few)
    tolerance = 1e-3 * magnitude(together).clamp(min=1e-6)
    same = (difference(together, single) <= tolerance) & (difference(full, single) <= tolerance)
    changed = 1 - same.double().mean().item()  # a NaN difference counts as changed
    return Measured(
        changed,
        f"{percent(changed, 0)} of {len(few)} images get other logits, or none, when they are alone in their batch: "
        "the logits depend on the other images, as with batch normalisation in training mode",
        flatters=False,
    )


@check(
    "probabilities",
    "The model returns logits",
    voids=_PROBABILITIES,
    condition="a note if a softmax or sigmoid at the end of the network was taken off",
    why="A softmax saturates: where the model is confident, the losses of the attacks and their gradients vanish "
    "(Carlini and Wagner 2017, arXiv 1608.04644). Its input, the logits, predicts the same classes and does not "
    "saturate.",
    advice="Return the logits: leave the softmax out of the network.",
    reads="inputs",
)
def probabilities(context: CheckContext) -> Measured:
    """Share of the images for which the model returns probabilities: numbers within [0, 1] that add up to 1, or the
    result of the softmax or sigmoid at its end.
    """
    value = context.outputs.probabilities
    ending = context.original_model.ending
    if ending is not None and value <= _PROBABILITIES:
        return Measured(
            1.0,
            f"the network ends in a {ending}, which was taken off in the copy that was attacked: the attacks followed "
            "the logits before it, and the classes that the network itself predicts decided what fools it",
            advice="",
            at_most=Severity.NOTE,
        )
    return Measured(
        value,
        "the outputs of the model add up to 1, as probabilities do; attacks need the logits before the softmax, which "
        "could not be found in it",
    )


@check(
    "non-finite",
    "No logit is NaN or plus infinity",
    weakens=0,
    voids=0.01,
    condition=f"{Severity.VOIDS} if any clean image has such logits",
    why="Such outputs are neither right nor wrong: a clean image with them counts as misclassified, an attacked one as "
    "withstanding the attack, and attacks have no loss to follow there. Minus infinity is allowed: it masks a class.",
    advice="Look for overflows, logarithms of zero and divisions by zero in the model.",
    reads="both",
)
def non_finite(context: CheckContext) -> Measured:
    """Share of the clean or of the attacked images, whichever is larger, with a logit that is NaN or plus infinity."""
    wrong = context.outputs.invalid
    name = Status.NON_FINITE.name.lower()
    attempts = [] if context.attacked is None else context.attacked.attempts
    tried = sum(attempt.tried for attempt in attempts)
    under_attack = sum(attempt.status[name] for attempt in attempts) / max(tried, 1)
    return Measured(
        max(wrong, under_attack),
        f"{percent(wrong)} of the clean images have logits that are NaN or infinite, and count as misclassified; so "
        f"have {percent(under_attack)} of the attacked images, which count as withstanding the attack",
        at_least=Severity.VOIDS if wrong > 0 else None,
        flatters=wrong == 0,
    )


def _halfway_accuracy(context: CheckContext) -> float:
    """The accuracy half way between uniform guessing and 1; above it labels and pixels plausibly are as in training."""
    return (1 + 1 / len(context.model.classes)) / 2


@check(
    "masked-classes",
    "The same classes are masked on all images",
    weakens=0,
    voids=0.1,
    unit="",
    why="A class with the logit minus infinity is masked: it cannot be predicted, and the numbers are those of the "
    "other classes. Where a class is masked on some images only, an attack on those images cannot find it.",
    advice="Mask the same classes on all images, or none.",
    reads="inputs",
)
def masked_classes(context: CheckContext) -> Measured:
    """Mean number of classes per image that are masked there but not on most images, or the reverse."""
    masked = context.outputs.masked
    value = torch.minimum(masked, 1 - masked).sum().item()
    return Measured(
        value,
        f"which classes have the logit minus infinity differs between images, by {value:.2g} classes on average: "
        "attacks cannot reach a class on the images on which it is masked",
    )


@check(
    "eps-unit",
    "eps is in the unit of the pixels",
    unit="",
    condition=f"{_UNIT[EpsIssueKind.ABOVE]} if the ball holds every image (8 for 8/255); "
    f"{_UNIT[EpsIssueKind.BELOW]} if next to nothing can change (less than 0.1 grey levels, as with 8/255 for pixels "
    f"from 0 to 255); {_UNIT[EpsIssueKind.OTHER]} if eps is a whole number of 255ths and the pixels do not run over a "
    f"range of 1; {_UNIT[EpsIssueKind.NORMALISED]} if the bounds look like those of normalised images; a "
    f"{_UNIT[EpsIssueKind.SCALED]} wherever else the pixels do not run over a range of 1",
    why="A radius written for pixels on another scale makes the ball far too large or far too small, and the number is "
    "then about another threat than the one intended.",
    advice="Write eps in the unit of the bounds, or scale the images to [0, 1].",
    reads="inputs",
)
def eps_unit(context: CheckContext) -> Measured:
    """Radius eps divided by the range of the pixels, if the two do not seem to be in the same unit; else 0."""
    doubt = find_eps_issue(
        Ball(eps=context.eps, norm=context.norm), context.model.bounds, math.prod(context.model.input_shape)
    )
    if doubt is None:
        return Measured(0.0, "", counts=False)
    return Measured(
        doubt.share,
        doubt.message,
        advice="",
        at_least=_UNIT[doubt.kind],
        flatters=doubt.kind is not EpsIssueKind.ABOVE,
    )


@check(
    "labels",
    "The labels number the classes as the model does",
    voids=0.01,
    unit="points",
    condition="only if the renamed classes are classified with an accuracy more than half way from guessing to 1, and "
    f"McNemar's test gives p < {_P_VALUE:g}",
    why="If the accuracy is clearly higher with the classes renamed (by the best assignment of the confusion "
    "matrix), the labels are shifted by one or classes are exchanged, and all accuracies are about the wrong "
    "labels.",
    advice="Check the order of the classes (`classes`, --classes), and whether the labels start at 0.",
    reads="inputs",
)
def labels(context: CheckContext) -> Measured:
    """Gain of accuracy with the best renaming of the classes, found on one half of the images, tried on the other."""
    truth, predicted = context.images.labels.numpy(), context.outputs.prediction
    count = len(context.outputs.masked)
    naming = _best_naming(truth, predicted, count)
    renamed = np.zeros(len(truth), dtype=bool)
    first = np.random.default_rng(context.seed).random(len(truth)) < 0.5
    for half in (first, ~first):  # judged on other images than it was found on: an untrained network fits some naming
        renamed[half] = _best_naming(truth[~half], predicted[~half], count)[truth[half]] == predicted[half]
    moved = naming[truth] != truth
    gain = float(renamed.mean() - context.right.mean())
    fits = float(renamed[moved].mean()) if moved.any() else 0.0
    classes = context.model.classes
    words = [f"{classes[row]} is its output {naming[row]}, not {row}" for row in range(count) if naming[row] != row]
    order = [str(classes[row]) for row in np.argsort(naming)]
    listed = f". In the order of its outputs: {' '.join(order)}" if count <= _MAX_LISTED else ""
    return Measured(
        gain,
        f"the accuracy rises from {percent(context.right.mean())} to {percent(renamed.mean())} if the labels are "
        f"numbered as the model's outputs seem to be ({'; '.join(words[:3])}{'; ...' if len(words) > 3 else ''})"
        f"{listed}",
        counts=fits > _halfway_accuracy(context) and mcnemar(renamed, context.right) < _P_VALUE,
        excuse="no renaming fits well",
        flatters=False,
    )


def _best_naming(truth: np.ndarray, predicted: np.ndarray, count: int) -> np.ndarray:
    """For each class, the label to rename it to, `(count,)`, so that most predictions are right; each label once.

    `truth` and `predicted` are the labels and predicted classes of the images, `count` is the number of classes.
    """
    from scipy.optimize import linear_sum_assignment  # a quarter of a second that commands without checks save

    confusion = np.bincount(truth * count + predicted, minlength=count * count).reshape(count, count)
    # the small bonus on the diagonal prefers, of equally good namings, the one that changes nothing
    rows, columns = linear_sum_assignment(-confusion - 0.5 / count * np.eye(count))
    return columns[np.argsort(rows)]


def _listed(statistic: Tensor | float) -> str:
    """A mean or deviation, of all channels or by channel, as text."""
    return ", ".join(f"{each:.4g}" for each in torch.as_tensor(statistic).flatten().tolist())


def _rescalings(context: CheckContext, images: Tensor) -> dict[str, tuple[Tensor | float, Tensor | float]]:
    """Other scales of the pixels to try, by name, such as a normalisation undone: a factor and a summand each."""
    found: dict[str, tuple[Tensor | float, Tensor | float]] = {}
    own = context.original_model.mean, context.original_model.std
    if own[0] is not None and own[1] is not None:
        found[_UNDONE] = (own[1], own[0])
    pairs: dict[str, tuple[Tensor | float, Tensor | float]] = dict(_KNOWN_SCALES)
    pairs["these images' own mean and deviation"] = (
        images.mean((0, 2, 3), keepdim=True),
        images.std((0, 2, 3), keepdim=True).clamp(min=1e-6),
    )
    for whose, (mean, std) in pairs.items():
        name = f"{whose} (mean {_listed(mean)}, std {_listed(std)})"
        found[f"normalisation by {name}"] = (1 / std, -mean / std)
        found[f"{name} undone"] = (std, mean)
        if own[0] is not None and own[1] is not None:
            found[f"{name} in place of the Classifier's own"] = (own[1] / std, own[0] - own[1] * mean / std)
    found["pixels times 255"], found["pixels divided by 255"] = (255.0, 0.0), (1 / 255, 0.0)
    found["black and white exchanged"] = (-1.0, sum(context.original_model.bounds))
    return found


@check(
    "normalisation",
    "The pixels are on the scale that the network was trained on",
    voids=_OTHER_GAIN,
    unit="points",
    condition=f"above {100 * _OWN_GAIN:g} points for the Classifier's own normalisation undone; only if the "
    f"accuracy on the other scale is more than half way from guessing to 1 and McNemar's test gives p < {_P_VALUE:g}",
    why="If pixels on another scale (the model's own mean and deviation undone, well-known normalisations applied, "
    "undone or in place of its own, times or divided by 255, black and white exchanged) are classified better, a "
    "normalisation is missing or applied twice, and another model was attacked than the one that is meant.",
    advice="Normalise once: by `mean` and `std` of the `Classifier` (--mean, --std and --bounds), and nowhere else.",
    reads="inputs",
)
def normalisation(context: CheckContext) -> Measured:
    """Gain of accuracy with the pixels on another scale, for the scale that gains most compared with its threshold.

    A scale does not count if the model's own logits, with a constant for each class added so that it is predicted as
    often as it is a label, are more accurate still: a preference for some classes weighs less on a larger scale.
    """
    few = context.images.read(slice(0, _MAX_RESCALED))
    images, _ = few.tensors(context.model.device)
    right = context.right[: len(few)]
    best, gain, threshold, p = "", 0.0, _OTHER_GAIN, 1.0
    most = 1 - right.mean()  # the gain of a scale on which every image is classified correctly
    possible = mcnemar(np.ones_like(right), right) < _P_VALUE
    for name, (factor, summand) in _rescalings(context, images).items():
        least = _OWN_GAIN if name == _UNDONE else _OTHER_GAIN
        if not possible or most <= least:  # no result could raise the check
            continue
        tried = (
            _right_on_scale(context, few[:size], factor, summand).sum()
            >= max(right[:size].sum() - spare, _halfway_accuracy(context) / 2 * size)
            for size, spare in _SCREENED.items()
            if size < len(few)
        )
        if not all(tried):
            continue
        again = _right_on_scale(context, few, factor, summand)
        if again.mean() > _halfway_accuracy(context) and (again.mean() - right.mean()) / least > gain / threshold:
            if _is_preference(context, few, factor, summand):
                continue
            best, gain, threshold, p = name, float(again.mean() - right.mean()), least, mcnemar(again, right)
    return Measured(
        gain,
        f"with {best}, {percent(right.mean() + gain)} of the images are classified correctly instead of "
        f"{percent(right.mean())}: a normalisation is missing or applied twice",
        threshold=threshold,
        counts=p < _P_VALUE,
        flatters=False,
    )


def _balanced(logits: Logits, labels: Labels) -> Logits:
    """Logits with a constant for each class added so that it is predicted as often as it is a label.

    The constants are found by iteration, from the probabilities of logits that are first brought to a common scale.
    """
    shares = torch.bincount(labels, minlength=logits.shape[1]).double() / len(labels) + 1e-6
    finite = logits.double().where(logits.isfinite(), torch.nan)
    centred = finite - finite.nanmean(0)
    factor = _BALANCED_DEVIATION / centred.square().nanmean().sqrt().clamp(min=1e-30)
    scaled = (factor * centred).nan_to_num(-1e3)
    constants = torch.zeros_like(shares)
    for _ in range(50):
        constants = constants + (shares / ((scaled + constants).softmax(1).mean(0) + 1e-12)).log()
    return (scaled + constants) / factor


def _is_preference(context: CheckContext, few: LabelledImages, factor: Tensor | float, summand: Tensor | float) -> bool:
    """Whether a preference for some classes explains why the images are classified better on another scale.

    It does if the model's balanced logits are clearly more accurate than those on the scale, or just more accurate with
    less cross-entropy: on the scale of the training the cross-entropy is low.
    """
    balanced = _balanced(context.outputs.first[: len(few)], few.labels)
    logits = _logits_on_scale(context, few, factor, summand)
    lead = (is_right(balanced, few.labels).double().mean() - is_right(logits, few.labels).double().mean()).item()
    own, other = (F.cross_entropy(each.double(), few.labels).item() for each in (balanced, logits))
    return lead > _PREFERENCE or (lead > 0 and own < other)


def _right_on_scale(
    context: CheckContext, few: LabelledImages, factor: Tensor | float, summand: Tensor | float
) -> np.ndarray:
    """Whether each image is classified correctly with its pixels times `factor` plus `summand`, booleans `(n,)`."""
    return is_right(_logits_on_scale(context, few, factor, summand), few.labels).numpy()


def _logits_on_scale(
    context: CheckContext, few: LabelledImages, factor: Tensor | float, summand: Tensor | float
) -> Logits:
    """The logits of the images with their pixels times `factor` plus `summand`, `(n, classes)`, on the CPU.

    The pixels may lie outside the model's bounds.
    """
    images, _ = few.tensors(context.model.device)
    return context.logits_from(context.original_model, len(few), lambda part: images[part] * factor + summand)


@check(
    "frozen-copy",
    "The copy that is attacked has the model's logits",
    note=TOLERANCE,
    why="Attacks run on a copy of the model that computes the same function with less work: without dropout, with "
    "batch normalisation folded into the layers around it, ReLU after max-pooling, and dense layers that read "
    "feature maps in their order in memory. If its logits differ, the model itself is attacked.",
    advice="Nothing needs to be done: the model itself was attacked, which takes longer and changes nothing else.",
    reads="inputs",
)
def frozen_copy(context: CheckContext) -> Measured:
    """Largest difference between a logit of the copy and the model's, as a share of the largest one; 1 if it fails."""
    changes = ", ".join(context.frozen.changes)
    if not math.isfinite(context.frozen.difference):
        return Measured(1.0, f"the copy made for the attacks ({changes}) fails where the model does not")
    return Measured(
        context.frozen.difference,
        f"the logits of the copy made for the attacks ({changes}) differ from the model's by "
        f"{context.frozen.difference:.2g} of the largest one; expected at most {TOLERANCE:g}",
    )


@check(
    "saturation",
    "The logits are close enough together for a float32 softmax",
    note=0.1,
    why=f"From a lead of {_SATURATED_GAP} on float32 softmax is exactly 1, and `F.cross_entropy` and losses of "
    "probabilities have no gradient (Carlini and Wagner 2016, arXiv 1607.04311). The attacks here ascend a loss "
    "that keeps its gradient; other tools' attacks may not move.",
    advice="Nothing needs to be done here. In other tools, attack the logits, not the probabilities.",
    reads="inputs",
)
def saturation(context: CheckContext) -> Measured:
    """Share of the correctly classified images whose largest softmax probability is exactly 1 in float32."""
    found = context.outputs.gap[context.right] > _SATURATED_GAP
    value = float(found.mean()) if len(found) else 0.0
    return Measured(
        value,
        f"on {percent(value)} of the images the largest logit leads by more than {_SATURATED_GAP}, so that attacks on "
        "F.cross_entropy or softmax probabilities do not move there; the attacks used here do",
    )


@check(
    "sample-size",
    "The interval is at most 10 points wide",
    note=0.1,
    unit="points",
    why="A wide interval decides little: two models whose intervals overlap that much may be equally robust (the "
    "interval is Wilson's score interval, 1927).",
    advice="Evaluate on more images.",
)
def sample_size(context: CheckContext) -> Measured:
    """Width of the 95 % interval of the robust accuracy."""
    estimate = share(context.robust)
    return Measured(
        estimate.high - estimate.low,
        f"the 95 % interval of the robust accuracy is wide: {estimate:n}",
        flatters=False,
    )
