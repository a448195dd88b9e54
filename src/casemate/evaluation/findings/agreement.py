"""Do the attacks agree with one another as they must on a model whose gradients can be trusted?"""

import math
from itertools import pairwise

import numpy as np
import torch

from casemate.attacks import FGSM, PGD, CornerNoise, Criterion, HopSkipJump, Square, Transfer, UniformNoise
from casemate.evaluation.clean import is_right
from casemate.evaluation.findings.check import Measured, NotRun, check
from casemate.evaluation.findings.context import STEPS, CheckContext
from casemate.evaluation.findings.finding import Severity
from casemate.evaluation.intervals import mcnemar
from casemate.evaluation.single_image import predict_singly
from casemate.losses import stable_cross_entropy
from casemate.norms import Ball, norm_of

_SURE = 0.05
"""p-value below which a paired difference counts."""
_FAR = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Multiples of eps over which accuracy must fall."""
_UNLIMITED = {"linf": 1.0, "l2": 1e3, "l1": 1e6}
"""Radii within which every image of a data set lies, for pixels in [0, 1]."""
_SURVIVORS = 64
"""Survivors on which attacks without gradients are tried."""


def _surely(first: np.ndarray, second: np.ndarray, gap: float) -> bool:
    """`first` is right on more images than `second`, by more than `gap`, and by the paired test."""
    return bool(first.mean() - second.mean() > gap and mcnemar(first, second) < _SURE)


@check("one-step", "Many steps do more than one")
def one_step(e: CheckContext) -> Measured:
    """One step that fools what many do not: the gradient loses its way (Athalye et al. 2018, section 3.1)."""
    last = e.pgd.last
    if last is None:
        raise RuntimeError("a complete sweep has last iterates")
    one, many = e.fgsm.cpu().numpy(), last.right[:, -1]
    gap = float(many.mean() - one.mean())
    severity = None
    if _surely(many, one, 0.005):
        severity = Severity.VOIDS if gap > 0.1 else Severity.WEAKENS
    return Measured(
        gap,
        0.005,
        severity,
        f"FGSM leaves {100 * one.mean():.1f} %, PGD with {2 * STEPS} steps {100 * many.mean():.1f} %: following the "
        "gradient leads away from where it points. Use attacks without gradients, smaller steps, or averaging",
    )


@check("label-leaking", "FGSM does not make the model better")
def label_leaking(e: CheckContext) -> Measured:
    """Accuracy under FGSM above the clean one: training on single steps learnt to recognise them (label leaking)."""
    few = e.images[: 2 * len(e.few)]
    images, labels = few.tensors(e.model.device)
    attack = FGSM(eps=e.eps, norm=e.norm, keep="last")
    under = (~attack(e.model, images, labels, batch_size=e.batch_size).success).cpu().numpy()
    clean = e.right[: len(few)]
    gap = float(under.mean() - clean.mean())
    return Measured(
        gap,
        0.005,
        Severity.WEAKENS if _surely(under, clean, 0.005) else None,
        f"{100 * under.mean():.1f} % are right under FGSM, {100 * clean.mean():.1f} % without: the model was trained "
        "on this very step and recognises it. FGSM says nothing about it",
    )


@check("more-steps", "Twice the steps do not help the attack any more")
def more_steps(e: CheckContext) -> Measured:
    """PGD that still gains has not converged (Carlini et al. 2019, section 5.3)."""
    last = e.pgd.last
    if last is None:
        raise RuntimeError("a complete sweep has last iterates")
    some, more = last.right[:, 1], last.right[:, 2]
    fell = float(e.robust.mean()) < float(more.mean()) - 0.005
    return Measured(
        float(some.mean() - more.mean()),
        0.005,
        Severity.WEAKENS if _surely(some, more, 0.005) and not fell else None,
        f"PGD leaves {100 * some.mean():.1f} % after {STEPS} steps and {100 * more.mean():.1f} % after {2 * STEPS}, "
        "and nothing else went lower; take more steps",
        excuse="another attack went lower" if fell else Measured.excuse,
    )


@check("still-rising", "The loss has stopped rising on what is left")
def still_rising(e: CheckContext) -> Measured | NotRun:
    """On images that hold, the last half of the steps should add little to what the first half climbed."""
    last = e.pgd.last
    if last is None:
        raise RuntimeError("a complete sweep has last iterates")
    held = last.right[:, -1]
    if held.sum() < 5:
        return NotRun("fewer than five images held against PGD")
    # log-odds, on which a sure model's climb is as long as another's: the loss itself would be all in the last steps
    clean = stable_cross_entropy(e.logits_of(e.model, e.few), e.few.labels)
    losses = (clean, torch.from_numpy(last.loss[:, 1]), torch.from_numpy(last.loss[:, 2]))
    start, middle, end = (_log_odds(each)[torch.from_numpy(held)] for each in losses)
    value = ((end - middle).clamp(min=0) / (end - start).clamp(min=1e-12)).median().item()
    return Measured(
        value,
        0.1,
        Severity.WEAKENS if value > 0.1 else None,
        f"on images that hold against PGD, {100 * value:.0f} % of the climb comes after step {STEPS} of {2 * STEPS}: "
        "it has not converged. Take more steps or another step size",
    )


def _log_odds(loss: torch.Tensor) -> torch.Tensor:
    """What `stable_cross_entropy` was computed from in float32: far below zero it is bent into its own tangent."""
    exact, start = loss.double(), math.log(torch.finfo(torch.float32).tiny) / 2
    floor = math.exp(start)
    bent = exact.clamp(min=floor)
    return torch.where(exact > floor, bent + (-torch.expm1(-bent)).log(), start - 1 + exact / floor)


@check("best-not-last", "Attacks end where they were best")
def best_not_last(e: CheckContext) -> Measured:
    """Images fooled on the way but not at the end: other tools, which look at the end only, would miss them."""
    last = e.pgd.last
    if last is None:
        raise RuntimeError("a complete sweep has last iterates")
    value = float((last.right[:, -1] & ~e.pgd.worst[:, -1]).mean())
    return Measured(
        value,
        0.05,
        Severity.NOTE if value > 0.05 else None,
        f"{100 * value:.1f} % of the images are fooled on PGD's way but not at its end; here they count as fooled",
    )


@check("larger-eps", "A larger eps leaves fewer right")
def larger_eps(e: CheckContext) -> Measured | NotRun:
    """Accuracy under PGD must fall as eps grows; if it rises, the attack fails (Athalye et al. 2018)."""
    width = e.model.bounds[1] - e.model.bounds[0]
    values = [e.eps * factor for factor in _FAR if e.norm != "linf" or e.eps * factor < width]
    if len(values) < 2:
        return NotRun("no larger eps lies within the range of the pixels")
    sweep = e.over_eps(PGD(eps=e.eps, steps=STEPS, norm=e.norm, keep="last"), values)
    if sweep.last is None:
        raise RuntimeError("a complete sweep has last iterates")
    right = sweep.last.right
    rises = [float(right[:, later].mean() - right[:, column].mean()) for column, later in pairwise(range(len(values)))]
    worst = int(np.argmax(rises))
    surely = _surely(right[:, worst + 1], right[:, worst], 0.02)
    value = max(rises)
    return Measured(
        value,
        0.02,
        (Severity.VOIDS if value > 0.1 else Severity.WEAKENS) if surely else None,
        f"PGD leaves {100 * right[:, worst].mean():.1f} % at eps {values[worst]:g} and "
        f"{100 * right[:, worst + 1].mean():.1f} % at {values[worst + 1]:g}: the attack fails, not the model holds",
    )


@check("unbounded-attack", "Without a limit every image is fooled")
def unbounded_attack(e: CheckContext) -> Measured:
    """Any image may become any other: what holds now holds against an attack that does not work."""
    radius = _UNLIMITED[e.norm]
    if e.norm == "linf":
        radius *= e.model.bounds[1] - e.model.bounds[0]
    images, labels = e.few_tensors
    # of a model that answers at random the end counts: a lucky answer on the way would stop the attack at once
    attack = PGD(
        eps=radius, steps=5 * STEPS, norm=e.norm, random_start=False, keep="last" if e.randomised else "first_success"
    )
    left = ~attack(e.model, images, labels, seed=e.seed, batch_size=e.batch_size).success
    value = left.double().mean().item()
    chance = 1 / len(e.model.classes)
    return Measured(
        value,
        0.01,
        Severity.VOIDS if value > max(chance, 0.1) else Severity.WEAKENS if value > 0.01 else None,
        f"PGD without a limit on the change leaves {100 * value:.1f} % right, where it should leave none: the gradient "
        "does not lead anywhere. Use another loss, attack through what hides it (BPDA), or without gradients",
    )


@check("losses", "Attacks on different losses find the same")
def losses(e: CheckContext) -> Measured:
    """Cross-entropy and logit margin should be about equally good to ascend."""
    ce, ratio = (
        e.last(PGD(eps=e.eps, steps=STEPS, norm=e.norm, loss=loss, keep="last")).cpu().numpy() for loss in ("ce", "dlr")
    )
    gap = float(abs(ce.mean() - ratio.mean()))
    wide = gap > 0.1 and mcnemar(ce, ratio) < _SURE
    return Measured(
        gap,
        0.1,
        Severity.NOTE if wide else None,
        f"PGD leaves {100 * ce.mean():.1f} % by the cross-entropy and {100 * ratio.mean():.1f} % by the ratio of "
        "logits; what counts is the worst of both",
    )


def _survivors(e: CheckContext) -> torch.Tensor:
    return torch.from_numpy(np.flatnonzero(e.robust)[:_SURVIVORS])


@check("black-box-stronger", "Square finds nothing that attacks by gradient missed")
def black_box_stronger(e: CheckContext) -> Measured | NotRun:
    """An attack that sees less must not find more: otherwise gradients are masked (Croce and Hein 2020)."""
    names = [name for name, settings in e.cascade.attacks.items() if settings["name"] == Square.__name__]
    if not names:
        return NotRun("Square was not among the attacks")
    found = [e.cascade.attempt(e.eps, name) for name in names]
    fooled = sum(attempt.fooled for attempt in found if attempt is not None)
    value = fooled / len(e.images)
    severity = None
    if fooled > 2 and value > 0.005:
        severity = Severity.VOIDS if value > 0.1 else Severity.WEAKENS
    return Measured(
        value,
        0.005,
        severity,
        f"Square, which sees no gradient, fooled another {100 * value:.1f} % after all attacks by gradient: they are "
        "misled, and what is left may be too. Try more queries, and an attack made for this model",
        excuse="no more than two images",
    )


@check("nothing-found", "Attacks that look for the nearest adversarial image find one")
def nothing_found(e: CheckContext) -> Measured | NotRun:
    """Every image can be turned into any other: one for which such an attack finds nothing was not attacked enough."""
    ran = [attempt for attempt in e.cascade.attempts if attempt.unlimited and attempt.tried]
    if not ran:
        return NotRun("no attack that looks for the nearest adversarial image had anything to do")
    most = max(ran, key=lambda attempt: attempt.not_found / attempt.tried)
    value = most.not_found / most.tried
    alone = all(attempt.unlimited for attempt in e.cascade.attempts)
    severity = Severity.VOIDS if value > 0.1 and alone else Severity.WEAKENS
    return Measured(
        value,
        0.01,
        severity if value > 0.01 else None,
        f"{most.attack} found nothing that fools on {most.not_found} of {most.tried} images, at whatever distance: its "
        "budget is too small, or its gradient misleads. Raise its steps (where it searches for a constant, also "
        "binary_search_steps or initial_const), and do not rest on it alone",
    )


@check("noise", "Random points of the ball fool nothing that is left")
def noise(e: CheckContext) -> Measured | NotRun:
    """Blind draws must not find what attacks missed (Athalye et al. 2018; Carlini et al. 2019)."""
    return _noise(e, num_samples=100)


@check("noise-10k", "Ten thousand random points of the ball fool nothing that is left", thorough=True)
def noise_10k(e: CheckContext) -> Measured | NotRun:
    """The same with a hundred times the draws."""
    return _noise(e, num_samples=10_000)


def _noise(e: CheckContext, num_samples: int) -> Measured | NotRun:
    chosen = _survivors(e)
    if not len(chosen):
        return NotRun("nothing was left")
    images, labels = e.images[chosen].tensors(e.model.device)
    fooled = torch.zeros(len(chosen), dtype=torch.bool, device=labels.device)
    kinds = (UniformNoise, CornerNoise) if e.norm == "linf" else (UniformNoise,)
    for kind in kinds:
        attack = kind(eps=e.eps, norm=e.norm, num_samples=num_samples)
        result = attack(e.model, images, labels, seed=e.seed, batch_size=e.batch_size, observer=e.observer)
        fooled |= result.success & e.reproduces(result.adversarial, labels)
    value = fooled.double().mean().item()
    return Measured(
        value,
        0.0,
        Severity.VOIDS if value > 0.1 else Severity.WEAKENS if value > 0 else None,
        f"{100 * value:.1f} % of the images that every attack had left ({len(chosen)} tried) are fooled by one of "
        f"{num_samples:,} random points of the ball: the attacks do not search where they should",
    )


@check("decision-based", "An attack that sees decisions only finds nothing new", thorough=True)
def decision_based(e: CheckContext) -> Measured | NotRun:
    """HopSkipJump on survivors (Chen et al. 2020)."""
    if e.norm == "l1":
        return NotRun("HopSkipJump is defined for linf and l2")
    chosen = _survivors(e)
    if not len(chosen):
        return NotRun("nothing was left")
    images, labels = e.images[chosen].tensors(e.model.device)
    attack = HopSkipJump(norm=e.norm)
    found = attack(e.model, images, labels, seed=e.seed, batch_size=e.batch_size, observer=e.observer)
    hit = (found.distance <= e.eps) & e.reproduces(found.adversarial, labels)
    value = hit.double().mean().item()
    return Measured(
        value,
        0.0,
        Severity.VOIDS if value > 0.1 else Severity.WEAKENS if value > 0 else None,
        f"{100 * value:.1f} % of the images that every attack had left ({len(chosen)} tried) fell to HopSkipJump, "
        "which sees no gradients and no logits: the others were misled",
    )


@check("transfer", "Adversarial examples of an undefended model find nothing new")
def transfer(e: CheckContext) -> Measured | NotRun:
    """Images made on a substitute must not fool what the model's own gradients did not."""
    if e.substitute is None:
        return NotRun("no undefended substitute was given")
    chosen = _survivors(e)
    if not len(chosen):
        return NotRun("nothing was left")
    images, labels = e.images[chosen].tensors(e.model.device)
    attack = Transfer(attack=PGD(eps=e.eps, steps=2 * STEPS, norm=e.norm, keep="last"), substitute=e.substitute)
    found = attack(e.model, images, labels, seed=e.seed, batch_size=e.batch_size)
    value = (found.success & e.reproduces(found.adversarial, labels)).double().mean().item()
    return Measured(
        value,
        0.0,
        Severity.VOIDS if value > 0.1 else Severity.WEAKENS if value > 0 else None,
        f"{100 * value:.1f} % of the images that every attack had left ({len(chosen)} tried) are fooled by adversarial "
        "examples of the substitute: the model's own gradients mislead",
    )


@check("attack-works", "The same attack fells an undefended model")
def attack_works(e: CheckContext) -> Measured | NotRun:
    """An ablation: what cannot break a model without a defence says nothing about one with (Carlini et al. 2019)."""
    if e.substitute is None:
        return NotRun("no undefended substitute was given")
    images, labels = e.few_tensors
    attack = PGD(eps=e.eps, steps=2 * STEPS, norm=e.norm)
    before = is_right(e.logits_of(e.substitute, e.few), e.few.labels).double().mean().item()
    left = attack(e.substitute, images, labels, seed=e.seed, batch_size=e.batch_size).robust_accuracy
    value = left / before if before else 1.0
    return Measured(
        value,
        0.5,
        Severity.NOTE if value > 0.5 else None,
        f"PGD at eps {e.eps:g} leaves the undefended substitute {100 * left:.1f} of {100 * before:.1f} %: an eps at "
        "which no model falls shows nothing about a defence",
    )


@check("re-checked", "Adversarial examples fool again, one at a time and as bytes")
def re_checked(e: CheckContext) -> Measured | NotRun:
    """Each one alone in its batch, inside the ball in float64; and after rounding to whole grey levels."""
    chosen = np.flatnonzero(e.cascade.first_success >= 0)[:_SURVIVORS]
    if not len(chosen):
        return NotRun("no adversarial example was found")
    places = torch.from_numpy(chosen)
    made = e.cascade.adversarial[places].to(e.model.device)
    clean, labels = e.images[places].tensors(e.model.device)
    moved = norm_of(made.double() - clean.double(), e.norm)
    low, high = e.model.bounds
    levels = ((made - low) / (high - low) * 255).round() / 255 * (high - low) + low
    rounded = e.ask(e.model, len(made), lambda part: levels[part]).argmax(1) != labels.cpu()
    inside = (moved <= Ball(eps=e.eps, norm=e.norm).reach(e.model.bounds)).cpu()
    again = Criterion(labels.cpu()).is_adversarial(predict_singly(e.model, made)) & inside
    value = 1 - again.double().mean().item()
    severity = Severity.VOIDS if value > 0.1 and not e.randomised else Severity.WEAKENS if value > 0.01 else None
    if severity is None and rounded.double().mean() < 0.9:
        severity = Severity.NOTE
    return Measured(
        value,
        0.01,
        severity,
        f"{100 * value:.1f} % of {len(chosen)} adversarial examples do not fool when asked again alone; rounded to "
        f"whole grey levels {100 * (1 - rounded.double().mean().item()):.1f} % do not",
        flatters=False,
    )
