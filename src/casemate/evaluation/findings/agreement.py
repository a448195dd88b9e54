"""Do the attacks agree with one another as they must on a model whose gradients can be trusted?"""

import math
from itertools import pairwise

import numpy as np
import torch

from casemate.attacks import (
    FGSM,
    PGD,
    AbstractAttack,
    CornerNoise,
    HopSkipJump,
    Misclassification,
    Square,
    Transfer,
    UniformNoise,
)
from casemate.evaluation.cascade_result import Attempt
from casemate.evaluation.findings.check import Measured, NotRun, check
from casemate.evaluation.findings.context import STEPS, CheckContext
from casemate.evaluation.findings.finding import Severity
from casemate.evaluation.intervals import mcnemar, percent
from casemate.evaluation.single_image import in_grey_levels, predict_singly
from casemate.logits import is_right
from casemate.losses import stable_cross_entropy
from casemate.norms import Ball, norm_of

_P_VALUE = 0.05
"""p-value of McNemar's test below which a difference of two accuracies is more than chance."""
_PAIRED = f"only if McNemar's test gives p < {_P_VALUE:g}"
_MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Multiples of eps at which the check larger-eps attacks: from one to the next the accuracy must not rise."""
_UNLIMITED = {"linf": 1.0, "l2": 1e3, "l1": 1e6}
"""Radii of balls that hold every image of a data set, for pixels in [0, 1]; in L0 it is the number of values."""
_MAX_SURVIVORS = 64
"""Largest number of robust images that a check attacks further: a share of 5 % is found with probability 0.96."""
_MAX_CLAIMED = 32
"""Largest number of adversarial images that are classified again: a share of 10 % is found with probability 0.97.
All of them are when a record is written."""
_SCREENED = 32
"""Number of images on which the accuracy must rise somewhere for the check larger-eps to attack the whole sample. A
rise of 10 points, on images of which 14 % change, is missed with probability 0.08; one of 20 points, of which 24 %
change, with 0.01."""
_MAX_UNLIMITED, _MAX_COMPARED = 64, 64
"""Largest numbers of images that are attacked without a limit, of which a share of 5 % is found with probability 0.96,
and on which two losses are compared, where 9 % that one of them alone fools are more than chance."""
_MIN_SURVIVORS = 5
"""Least number of images that must withstand PGD for the check still-rising to judge how their loss rose."""
_BY_CHANCE = 2
"""Largest number of images that Square may fool after the attacks by gradient before it is more than chance."""
_SAMPLES, _MANY_SAMPLES = 50, 10_000
"""Numbers of random points per image in the checks noise and noise-10k, of each kind. If a point in 33 fools, one of
100, which are 50 of two kinds, does with probability 0.95."""
_SAMPLES_OF_MEANS, _MAX_MEANS = 30, 32
"""For a randomised model, each of whose logits are a mean over several passes: number of random points of each kind per
image in the check noise, and largest number of images there, in unbounded-attack, and in losses, which only notes a
difference. If a point in 20 fools, one of both kinds together does with probability 0.95; if one image in 10 has such
points, or resists without a limit, one of them is among the images with 0.97."""
_REPRODUCED = 0.9
"""Least share of adversarial examples that should still fool after rounding to whole grey levels."""
_NOTHING_LEFT = "no image withstood the attacks"
_NO_SUBSTITUTE = "no undefended substitute was given"
_SEARCH_ELSEWHERE = "Attack without gradients, from more random starts, or with an attack made for this model."
_MISLED = "Attack without gradients, or with an attack made for this model."


@check(
    "one-step",
    "Many steps fool at least as many images as one",
    weakens=0.005,
    voids=0.1,
    unit="points",
    condition=_PAIRED,
    why="One step that fools images which many steps do not shows that the gradient does not lead where it points "
    "(gradient masking: Athalye et al. 2018, arXiv 1802.00420, section 3.1).",
    advice="Use attacks without gradients, smaller steps, or gradients averaged over several points.",
    only_flattery=True,
)
def one_step(context: CheckContext) -> Measured:
    """Accuracy under PGD minus accuracy under FGSM."""
    many = context.pgd_iterates.right[:, -1]
    one = context.right_after(FGSM(eps=context.eps, norm=context.norm, keep="last"))
    return Measured(
        float(many.mean() - one.mean()),
        f"FGSM leaves an accuracy of {percent(one.mean())}, PGD with {2 * context.steps} steps {percent(many.mean())}: "
        "following the gradient leads away from where it points",
        counts=mcnemar(many, one) < _P_VALUE,
    )


@check(
    "label-leaking",
    "FGSM does not raise the accuracy",
    weakens=0.005,
    unit="points",
    condition=_PAIRED,
    why="A model trained on single steps may learn to recognise them, and is then more accurate under FGSM than "
    "without an attack (label leaking: Kurakin et al. 2017, arXiv 1611.01236).",
    advice="Do not use FGSM to judge this model.",
    only_flattery=True,
)
def label_leaking(context: CheckContext) -> Measured:
    """Accuracy under FGSM minus accuracy without an attack."""
    few = context.images.read(slice(0, 2 * len(context.sample)))
    images, labels = few.tensors(context.model.device)
    attack = FGSM(eps=context.eps, norm=context.norm, keep="last")
    under = (~attack(context.target, images, labels).success).cpu().numpy()
    clean = context.right[: len(few)]
    return Measured(
        float(under.mean() - clean.mean()),
        f"{percent(under.mean())} of the images are classified correctly under FGSM, {percent(clean.mean())} "
        "without an attack: the model was trained on this very step and recognises it",
        counts=mcnemar(under, clean) < _P_VALUE,
    )


@check(
    "more-steps",
    "Twice the steps fool no more images",
    weakens=0.005,
    unit="points",
    condition=f"{_PAIRED} and no other attack left a lower accuracy",
    why="An attack that fools more images with more steps has not converged, and its accuracy is too high (Carlini "
    "et al. 2019, arXiv 1902.06705, section 5.3).",
    advice="Attack with more steps.",
    only_flattery=True,
)
def more_steps(context: CheckContext) -> Measured:
    """Accuracy under PGD minus accuracy under PGD with twice the steps."""
    some, more = context.right_after_pgd, context.pgd_iterates.right[:, 2]
    lower = float(context.robust.mean()) < float(more.mean()) - 0.005
    return Measured(
        float(some.mean() - more.mean()),
        f"PGD leaves an accuracy of {percent(some.mean())} after {context.steps} steps and {percent(more.mean())} "
        f"after {2 * context.steps}, and no other attack left less",
        counts=mcnemar(some, more) < _P_VALUE and not lower,
        excuse="another attack left a lower accuracy" if lower else Measured.excuse,
    )


@check(
    "still-rising",
    "The loss has stopped rising on the robust images",
    weakens=0.1,
    why="A loss that still rises in the last half of the steps has not converged (Pintor et al. 2022, arXiv "
    "2106.09947).",
    advice="Attack with more steps or another step size.",
    only_flattery=True,
)
def still_rising(context: CheckContext) -> Measured | NotRun:
    """Share of the rise of the loss under PGD that comes in the last half of its steps, the median over images.

    Only images that withstood PGD count. The rise is measured in log-odds of a wrong prediction, in which it does not
    depend on the confidence of the model.
    """
    last = context.pgd_iterates
    held = last.right[:, -1]
    if held.sum() < _MIN_SURVIVORS:
        return NotRun(f"fewer than {_MIN_SURVIVORS} images withstood PGD")
    # of a confident model the loss itself would rise in the last steps only
    clean = stable_cross_entropy(context.logits_of(context.model, context.sample), context.sample.labels)
    losses = (clean, torch.from_numpy(last.loss[:, 1]), torch.from_numpy(last.loss[:, 2]))
    start, middle, end = (_log_odds(each)[torch.from_numpy(held)] for each in losses)
    value = ((end - middle).clamp(min=0) / (end - start).clamp(min=1e-12)).median().item()
    return Measured(
        value,
        f"on the images that withstood PGD, {percent(value, 0)} of the rise of the loss comes after step "
        f"{context.steps} of {2 * context.steps}: the attack has not converged",
    )


def _log_odds(loss: torch.Tensor) -> torch.Tensor:
    """The log-odds d of a wrong prediction, from `stable_cross_entropy` in float32: the inverse of loss = softplus(d).

    That is log(exp(loss) - 1). Below d = -44, where `stable_cross_entropy` is a tangent of softplus instead of softplus
    itself, the tangent is inverted.
    """
    exact, start = loss.double(), math.log(torch.finfo(torch.float32).tiny) / 2
    floor = math.exp(start)
    regular = exact.clamp(min=floor)
    return torch.where(exact > floor, regular + (-torch.expm1(-regular)).log(), start - 1 + exact / floor)


@check(
    "best-not-last",
    "Images that PGD fools on the way are still fooled at its end",
    note=0.05,
    why="Attacks that return their last iterate miss images that an earlier one fooled (Pintor et al. 2022, arXiv "
    "2106.09947). The attacks here return the iterate that fooled.",
    advice="Nothing needs to be done here: these images count as fooled. Other tools may miss them.",
    only_flattery=True,
)
def best_not_last(context: CheckContext) -> Measured:
    """Share of the images that are fooled at some iterate of PGD but not at the last one."""
    value = float((context.pgd_iterates.right[:, -1] & ~context.pgd.worst[:, -1]).mean())
    return Measured(value, f"{percent(value)} of the images are fooled on PGD's way but not at its end")


@check(
    "larger-eps",
    "A larger eps leaves a lower accuracy",
    weakens=0.02,
    voids=0.1,
    unit="points",
    condition=f"at {', '.join(f'{each:g}' for each in _MULTIPLES)} times eps; {_PAIRED}",
    why="A larger ball holds all images of a smaller one. If the accuracy rises with eps, the attack is failing; "
    "the model is not more robust (Athalye et al. 2018, arXiv 1802.00420, section 3.1).",
    advice="Use another attack: smaller steps, another loss, or one without gradients.",
    only_flattery=True,
)
def larger_eps(context: CheckContext) -> Measured | NotRun:
    """Largest rise of the accuracy under PGD from one multiple of eps to the next larger one.

    Where the accuracy rises nowhere on the first few images of the sample, the others are not attacked.
    """
    width = context.model.bounds[1] - context.model.bounds[0]
    values = [context.eps * factor for factor in _MULTIPLES if context.norm != "linf" or context.eps * factor < width]
    if context.norm == "l0":
        values = sorted({float(max(1, round(each))) for each in values})
    if len(values) < 2:
        return NotRun("no larger eps lies within the range of the pixels")
    few, rest = slice(_SCREENED), slice(_SCREENED, None)
    right = _right_over_eps(context, values, few)
    if max(_rises(right)) > 0 and len(context.sample) > _SCREENED:
        right = np.concatenate([right, _right_over_eps(context, values, rest)])
    rises = _rises(right)
    worst = int(np.argmax(rises))
    smaller, larger = right[:, worst], right[:, worst + 1]
    return Measured(
        max(rises),
        f"PGD leaves an accuracy of {percent(smaller.mean())} at eps {values[worst]:g} and {percent(larger.mean())} at "
        f"{values[worst + 1]:g}: the attack is failing; the model is not more robust",
        counts=mcnemar(larger, smaller) < _P_VALUE,
    )


def _right_over_eps(context: CheckContext, values: list[float], part: slice) -> np.ndarray:
    """Whether each image of a part of the sample withstands PGD at each eps, at its last iterate; `(n, values)`."""
    attack = PGD(eps=context.eps, steps=context.steps, norm=context.norm, keep="last")
    right = context.over_eps(attack, [eps for eps in values if eps != context.eps], part)
    if context.eps in values:  # the same attack at eps itself
        right = np.insert(right, values.index(context.eps), context.right_after_pgd[part], axis=1)
    return right


def _rises(right: np.ndarray) -> list[float]:
    """The rise of the accuracy from each column of `right`, `(n, values)`, to the next one."""
    accuracy = right.mean(axis=0)
    return [float(later - earlier) for earlier, later in pairwise(accuracy)]


@check(
    "unbounded-attack",
    "Without a limit on the change every image is fooled",
    weakens=0.01,
    voids=0.1,
    condition=f"at most {Severity.WEAKENS} if the share is no higher than guessing, one in the number of classes",
    why="Any image can be turned into any other. Images that withstand an attack without a limit withstand an "
    "attack that does not work (Carlini et al. 2019, arXiv 1902.06705).",
    advice="Use another loss, attack through what hides the gradient (BPDA), or attack without gradients.",
    only_flattery=True,
)
def unbounded_attack(context: CheckContext) -> Measured:
    """Accuracy under PGD without a limit on the change."""
    low, high = context.model.bounds
    images, labels = (each[: _MAX_MEANS if context.randomised else _MAX_UNLIMITED] for each in context.sample_tensors)
    radius = _UNLIMITED.get(context.norm, float(images[0].numel())) * (high - low if context.norm == "linf" else 1)
    # of a randomised model the last iterate counts: a lucky draw on the way would stop the attack at once
    keep = "last" if context.randomised else "first_success"
    left = torch.arange(len(labels), device=labels.device)
    for steps in (context.steps, 5 * STEPS) if context.randomised else (5 * STEPS,):
        attack = PGD(eps=radius, steps=steps, norm=context.norm, random_start=False, keep=keep)
        found = attack(context.target, images[left], labels[left], seed=context.seed)
        left = left[~(found.success & context.reproduces(found.adversarial, labels[left]))]
        if not len(left):
            break
    value = len(left) / len(labels)
    return Measured(
        value,
        f"PGD without a limit on the change leaves an accuracy of {percent(value)} and should leave none: the "
        "gradient does not lead anywhere",
        at_most=Severity.VOIDS if value > 1 / len(context.model.classes) else Severity.WEAKENS,
    )


@check(
    "losses",
    "Attacks on different losses fool about as many images",
    note=0.1,
    unit="points",
    condition=_PAIRED,
    why="Cross-entropy and ratio of logits usually do about equally well. Where they do not, the weaker one is "
    "misled by the scale of the logits (Croce and Hein 2020, arXiv 2003.01690).",
    advice="Nothing needs to be done: an image counts as robust only if it withstands both.",
    only_flattery=True,
)
def losses(context: CheckContext) -> Measured:
    """Absolute difference of the accuracies under PGD on the cross-entropy and on the difference-of-logits ratio."""
    attack = PGD(eps=context.eps, steps=context.steps, norm=context.norm, loss="dlr", keep="last")
    most = _MAX_MEANS if context.randomised else _MAX_COMPARED
    ce, ratio = context.right_after_pgd[:most], context.right_after(attack, most)
    return Measured(
        float(abs(ce.mean() - ratio.mean())),
        f"PGD leaves an accuracy of {percent(ce.mean())} on the cross-entropy and {percent(ratio.mean())} on the "
        "ratio of logits",
        counts=mcnemar(ce, ratio) < _P_VALUE,
    )


@check(
    "black-box-stronger",
    "Square fools nothing that attacks by gradient missed",
    weakens=0.005,
    voids=0.1,
    condition=f"only for more than {_BY_CHANCE} images; not run in l0",
    why="An attack that sees less of the model must not find more: otherwise the gradients are masked (Croce and "
    "Hein 2020, arXiv 2003.01690).",
    advice="Attack with more queries, and with an attack made for this model.",
)
def black_box_stronger(context: CheckContext) -> Measured | NotRun:
    """Share of all images that Square, which uses no gradient, fooled after all attacks by gradient."""
    if context.norm == "l0":
        return NotRun("in l0, a choice of few values out of many, a random search may find more on an honest model too")
    names = [name for name, settings in context.cascade.attacks.items() if settings["name"] == Square.__name__]
    if not names:
        return NotRun("Square was not among the attacks")
    if not any(attempt.passes.backward for attempt in context.cascade.attempts):
        return NotRun("no attack by gradient was run")
    found = [each for name in names if (each := context.cascade.attempt(context.eps, name)) is not None]
    if not found:
        return NotRun("the attacks before Square left it no image")
    fooled = sum(attempt.fooled for attempt in found)
    value = fooled / len(context.images)
    return Measured(
        value,
        f"Square, which uses no gradient, fooled another {percent(value)} of the images after all attacks by gradient: "
        "so these are misled, and the images that are left may not be robust either",
        counts=fooled > _BY_CHANCE,
        excuse=f"no more than {_BY_CHANCE} images",
    )


@check(
    "nothing-found",
    "Minimum-norm attacks find an adversarial image",
    weakens=0.01,
    voids=0.1,
    condition=f"at most {Severity.WEAKENS} if an attack within eps was run too",
    why="Any image can be turned into any other, so that an attack which looks for the nearest adversarial image "
    "at any distance (Carlini and Wagner, EAD, L-BFGS, DeepFool, FAB, HopSkipJump, SurFree) has to find one. Where it "
    "finds none, its budget is too small or its gradient misleads (Carlini et al. 2019, arXiv 1902.06705).",
    advice="Do not rely on this attack alone. Where it was chosen by hand, raise its steps, and "
    "`binary_search_steps` or `initial_const` where it has them; else use the budget thorough.",
)
def nothing_found(context: CheckContext) -> Measured | NotRun:
    """Share of images for which a minimum-norm attack found no adversarial image.

    Of several attacks the smallest at each eps, since what one does not find another may; then the largest.
    """
    ran = [attempt for attempt in context.cascade.attempts if attempt.unlimited and attempt.tried]
    if not ran:
        return NotRun("no minimum-norm attack was among the attacks, or none had an image to attack")

    def missed(attempt: Attempt) -> float:
        return attempt.not_found / attempt.tried

    best = [min((each for each in ran if each.eps == eps), key=missed) for eps in {each.eps for each in ran}]
    most = max(best, key=missed)
    alone = all(each.unlimited for each in context.cascade.attempts)
    return Measured(
        most.not_found / most.tried,
        f"{most.attack} found no adversarial image, at any distance, for {most.not_found} of {most.tried} images: its "
        f"budget is too small, or its gradient misleads{'' if alone else ' (the other attacks had these images too)'}",
        at_most=Severity.VOIDS if alone else Severity.WEAKENS,
    )


def _fooled_survivors(
    context: CheckContext, *attacks: AbstractAttack, radius: float = math.inf, by: str, most: int = _MAX_SURVIVORS
) -> Measured | NotRun:
    """Share of robust images, of `most` at most, that one of `attacks` fools within `radius`, as a check's result.

    A randomised model must be fooled in most of several passes. `by` completes the finding's sentence: what the images
    were fooled by, and what follows from it. `NotRun` if no image is robust.
    """
    chosen = torch.from_numpy(np.flatnonzero(context.robust)[:most])
    if not len(chosen):
        return NotRun(_NOTHING_LEFT)
    images, labels = context.images.read(chosen).tensors(context.model.device)
    fooled = torch.zeros(len(chosen), dtype=torch.bool, device=labels.device)
    for attack in attacks:
        found = attack(context.target, images, labels, seed=context.seed, observer=context.observer)
        hit = found.success & (found.norm <= radius)
        fooled |= hit & context.reproduces(found.adversarial, labels)
    value = fooled.double().mean().item()
    return Measured(value, f"{percent(value)} of {len(chosen)} images that withstood every attack are fooled by {by}")


@check(
    "noise",
    "Random points of the ball fool no robust image",
    weakens=0,
    voids=0.1,
    why=f"{_SAMPLES} random points per image and kind ({_SAMPLES_OF_MEANS} for a randomised model) must not fool what "
    "the attacks missed (Athalye et al. 2018, arXiv 1802.00420, section 3.1; Carlini et al. 2019, arXiv 1902.06705).",
    advice=_SEARCH_ELSEWHERE,
    only_flattery=True,
)
def noise(context: CheckContext) -> Measured | NotRun:
    """Share of robust images that a random point of the ball fools (uniform points; for Linf also random corners).

    Of a randomised model, each of whose predictions takes several passes: fewer points on fewer images.
    """
    return _noise(context, _SAMPLES_OF_MEANS, _MAX_MEANS) if context.randomised else _noise(context, _SAMPLES)


@check(
    "noise-10k",
    "Ten thousand random points of the ball fool no robust image",
    weakens=0,
    voids=0.1,
    thorough=True,
    why=f"As for noise, with {_MANY_SAMPLES:,} points per image: rarer adversarial images are found too (Carlini et "
    "al. 2019, arXiv 1902.06705).",
    advice=_SEARCH_ELSEWHERE,
    only_flattery=True,
)
def noise_10k(context: CheckContext) -> Measured | NotRun:
    """Share of robust images that one of 10,000 random points of the ball fools (kinds of points as in noise)."""
    return _noise(context, _MANY_SAMPLES)


def _noise(context: CheckContext, num_samples: int, most: int = _MAX_SURVIVORS) -> Measured | NotRun:
    kinds = (UniformNoise, CornerNoise) if context.norm == "linf" else (UniformNoise,)
    attacks = [kind(eps=context.eps, norm=context.norm, num_samples=num_samples) for kind in kinds]
    words = f"one of {num_samples:,} random points of the ball: the attacks do not search where they should"
    return _fooled_survivors(context, *attacks, by=words, most=most)


@check(
    "decision-based",
    "An attack that sees only decisions fools no robust image",
    weakens=0,
    voids=0.1,
    thorough=True,
    condition="not run in l1 and l0, for which HopSkipJump is not defined",
    why="HopSkipJump uses neither gradients nor logits, only predicted classes. If it fools what the attacks by "
    "gradient missed, these were misled (Chen, Jordan and Wainwright 2020, arXiv 1904.02144).",
    advice=_MISLED,
    only_flattery=True,
)
def decision_based(context: CheckContext) -> Measured | NotRun:
    """Share of robust images that HopSkipJump fools within eps."""
    if context.norm in ("l1", "l0"):
        return NotRun("HopSkipJump is defined for linf and l2")
    words = "HopSkipJump, which uses no gradients and no logits: the other attacks were misled"
    return _fooled_survivors(context, HopSkipJump(norm=context.norm), radius=context.eps, by=words)


@check(
    "transfer",
    "Adversarial examples of an undefended model fool no robust image",
    weakens=0,
    voids=0.1,
    condition="needs an undefended substitute (`--substitute`)",
    why="Images made on another model must not fool what attacks with the model's own gradients did not (Papernot "
    "et al. 2016, arXiv 1605.07277; Athalye et al. 2018, arXiv 1802.00420, section 3.1).",
    advice=_MISLED,
    only_flattery=True,
)
def transfer(context: CheckContext) -> Measured | NotRun:
    """Share of robust images that are fooled by adversarial images which PGD made on the substitute."""
    if context.substitute is None:
        return NotRun(_NO_SUBSTITUTE)
    attack = PGD(eps=context.eps, steps=2 * STEPS, norm=context.norm, keep="last")
    words = "adversarial examples of the substitute: the model's own gradients mislead"
    return _fooled_survivors(context, Transfer(attack=attack, substitute=context.substitute), by=words)


@check(
    "attack-works",
    "The same attack fools an undefended model",
    note=0.5,
    condition="needs an undefended substitute (`--substitute`)",
    why="An attack that fools no undefended model at this eps says nothing about a defence (an ablation that "
    "Carlini et al. 2019, arXiv 1902.06705, recommend).",
    advice="Use a larger eps.",
)
def attack_works(context: CheckContext) -> Measured | NotRun:
    """Accuracy of the substitute under PGD, as a share of its accuracy without an attack."""
    if context.substitute is None:
        return NotRun(_NO_SUBSTITUTE)
    images, labels = context.sample_tensors
    attack = PGD(eps=context.eps, steps=2 * STEPS, norm=context.norm)
    clean = context.logits_of(context.substitute, context.sample)
    before = is_right(clean, context.sample.labels).double().mean().item()
    left = attack(context.substitute, images, labels, seed=context.seed, batch_size=context.batch_size).robust_accuracy
    return Measured(
        left / before if before else 1.0,
        f"PGD at eps {context.eps:g} leaves the undefended substitute an accuracy of {percent(left)} of "
        f"{percent(before)}: an eps at which no model falls shows nothing about a defence",
    )


@check(
    "re-checked",
    "Adversarial examples reproduce at batch size 1 and after 8-bit rounding",
    weakens=0.01,
    voids=0.1,
    condition=f"at most {Severity.WEAKENS} for a randomised model; a {Severity.NOTE} if fewer than "
    f"{percent(_REPRODUCED, 0)} still fool after rounding to whole grey levels",
    why="An adversarial example that fools only together with other images in a batch, or lies outside the ball in "
    "float64, does not count as one (Carlini et al. 2019, arXiv 1902.06705).",
    advice="Rely on the record (`casemate verify`), which claims only images that fool at batch size 1, and store "
    "adversarial images as floating point numbers.",
)
def re_checked(context: CheckContext) -> Measured | NotRun:
    """Share of the adversarial examples that do not fool at batch size 1, or lie outside the ball in float64."""
    chosen = np.flatnonzero(context.cascade.first_success >= 0)[:_MAX_CLAIMED]
    if not len(chosen):
        return NotRun("no adversarial example was found")
    places = torch.from_numpy(chosen)
    made = context.cascade.examples.read(places).to(context.model.device)
    clean, labels = context.images.read(places).tensors(context.model.device)
    distance = norm_of(made.double() - clean.double(), context.norm)
    levels = in_grey_levels(made, context.model.bounds)
    rounded = context.logits_from(context.model, len(made), lambda part: levels[part]).argmax(1) != labels.cpu()
    inside = (distance <= Ball(eps=context.eps, norm=context.norm).reach(context.model.bounds)).cpu()
    again = Misclassification(labels.cpu()).is_adversarial(predict_singly(context.model, made)) & inside
    value, still = 1 - again.double().mean().item(), rounded.double().mean().item()
    return Measured(
        value,
        f"{f'{percent(value)} of' if value else 'all'} {len(chosen)} adversarial examples "
        f"{'do not ' if value else ''}reproduce at batch size 1; rounded to whole grey levels, as in image files, "
        f"{percent(1 - still)} no longer fool",
        at_least=Severity.NOTE if still < _REPRODUCED else None,
        at_most=Severity.WEAKENS if context.randomised else Severity.VOIDS,
        flatters=False,
    )
