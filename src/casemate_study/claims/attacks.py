"""The rules that judge the paper's claims about the undefended network E1 and about FGSM and BIM."""

import numpy as np

from casemate.evaluation import percent
from casemate.losses import TITLES
from casemate_study.claims.rules import (
    NOTHING,
    ClaimEvidence,
    RuleResult,
    all_parts,
    count_orders,
    in_words,
    judge_number,
    left_open,
    points,
    tally,
)
from casemate_study.experiments import paper
from casemate_study.experiments.specs import LOSSES
from casemate_study.experiments.undefended import E4_STEP_SIZES, e4_prefix
from casemate_study.results.paired import (
    Compare,
    PairedComparison,
    compare_accuracy,
    compare_loss,
    compare_masks,
    compare_values,
    is_correct,
    rows_of,
)
from casemate_study.results.stored import StoredCurve, find_result


def test_accuracy(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if the paper's test accuracy (93.7 %) lies within our 95 % interval for E1, the undefended network;
    otherwise unexplained.
    """
    e1 = evidence.models.get("E1")
    if e1 is None or e1.clean is None:
        return NOTHING
    ours = e1.clean.accuracy
    inside = ours.low <= paper.TEST_ACCURACY.value <= ours.high
    return RuleResult("holds" if inside else "unexplained", f"Ours: {ours:n}.")


def fgsm_accuracy(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if the paper's accuracy of E1 (undefended) under FGSM at eps 0.1 lies within our interval with FGSM
    ascending the stable cross-entropy; does not hold if only within that with another loss; otherwise unexplained
    (`judge_number`).
    """
    e1 = evidence.models.get("E1")
    found = {TITLES[loss]: e1.accuracy_under("fgsm", 0.1, loss) for loss in LOSSES} if e1 else {}
    return judge_number(evidence, paper.FGSM_AT_01, found)


def _step_curves(evidence: ClaimEvidence) -> dict[tuple[str, str], tuple[str, StoredCurve]]:
    """E4's finished curves (BIM on E1, the undefended network, over the number of iterations), each with its task's
    name.

    The keys are step size and loss ascended.
    """
    names = {(size, loss): f"{e4_prefix(size)}/{loss}" for size in E4_STEP_SIZES for loss in LOSSES}
    found = {key: (name, find_result(evidence.artifacts, name, StoredCurve)) for key, name in names.items()}
    return {key: (name, curve) for key, (name, curve) in found.items() if curve is not None}


def accuracy_after_25(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if the paper's accuracy of E1 (undefended) under 25 iterations of BIM lies within our interval, at
    either step size, with BIM ascending the stable cross-entropy; does not hold if only within one with another loss;
    otherwise unexplained (`judge_number`).
    """
    points = {key: curve.at(25) for key, (_, curve) in _step_curves(evidence).items()}
    found = {f"step {size}, {TITLES[loss]}": point and point.last for (size, loss), point in points.items()}
    return judge_number(evidence, paper.BIM_AT_25, found)


def level_after_25(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if from 25 iterations of BIM to the most that were run, at each step size measured, the accuracy of
    E1 (undefended) does not change by the paired test, and its loss grows. The attack ascends the stable cross-entropy.
    """
    verdicts: dict[str, tuple[bool, bool]] = {}
    words: list[str] = []
    for (size, loss), (name, curve) in _step_curves(evidence).items():
        first, last = curve.at(25), curve.points[-1]
        if first is None or first.loss is None or last.loss is None:
            continue
        artifact = evidence.artifacts[name]
        change = compare_masks(is_correct(artifact, "steps", last.at), is_correct(artifact, "steps", 25))
        before = verdicts.get(loss, (True, True))
        level, grows = change is not None and change.order == 0, last.loss.value > first.loss.high
        verdicts[loss] = (level and before[0], grows and before[1])
        words.append(
            f"step {size}, {TITLES[loss]}: {percent(first.last.value)} at 25, {percent(last.last.value)} at "
            f"{last.at:g}, loss {first.loss.value:.2f} to {last.loss.value:.2f}"
            f"{'' if change is None else f', accuracy {points(change.difference)}'}"
        )
    if "ce" not in verdicts:
        return NOTHING
    text = "; ".join(words) + "."
    if all(verdicts["ce"]):
        return RuleResult("holds", text)
    elsewhere = [TITLES[loss] for loss in LOSSES[1:] if all(verdicts.get(loss, (False, False)))]
    if elsewhere:
        text += f" Level with a growing loss only where the attack ascends {' or '.join(elsewhere)}."
    return RuleResult("does not hold", text)


def _judge_clippings(evidence: ClaimEvidence, compare: Compare, wanted: int, what: str) -> RuleResult:
    """Rule: holds if BIM on E1 (undefended) with clip ball lies above (`wanted` 1) or below (-1) clip range in what
    `compare` compares, ascending the stable cross-entropy with equal steps, by `tally` over the eps.

    The text, which begins with `what`, also reports the other losses, and clip range with only as many steps as add up
    to eps, the radius of clip ball.
    """
    e1 = evidence.models.get("E1")
    if e1 is None:
        return NOTHING
    words, orders, text = [], {}, ""
    for other, setting in (("range", "equal steps"), ("range-4", "equal total")):
        for loss in LOSSES:
            ball, curve, wide = e1.artifact("ball", loss), e1.curve("ball", loss), e1.artifact(other, loss)
            if curve is None or wide is None:
                continue
            found = [compare(ball, wide, "eps", point.at) for point in curve.points if point.at]
            known = [each for each in found if each is not None]
            orders[setting, loss] = tally(known, wanted)
            at = compare(ball, wide, "eps", 0.1)
            shown = "" if at is None else f" (at 0.1: {in_words(at, compare)})"
            words.append(f"{setting}, {TITLES[loss]}: {count_orders(known, wanted)}{shown}")
            if (setting, loss) == ("equal steps", "ce") and orders[setting, loss] == "no difference shown":
                text = f" Not excluded: {left_open(known, compare)}."
    if ("equal steps", "ce") not in orders:
        return NOTHING
    reproduced = [f"{setting} and {TITLES[loss]}" for (setting, loss), verdict in orders.items() if verdict == "holds"]
    text = f"{what}: {'; '.join(words)}.{text}"
    text += (
        f" The paper's order appears with {', '.join(reproduced)}."
        if reproduced
        else " No setting of ours reproduces the paper's order."
    )
    return RuleResult(orders["equal steps", "ce"], text)


def clipping(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if BIM on E1 (undefended) leaves fewer images correct with clip ball than with clip range, ascending
    the stable cross-entropy with equal steps: at some eps by the paired test, and at none the reverse (`tally`).

    The text also reports the other losses, and clip range with only as many steps as add up to eps, the radius of clip
    ball.
    """
    return _judge_clippings(evidence, compare_accuracy, -1, "Ball leaves fewer correct")


def clipping_loss(evidence: ClaimEvidence) -> RuleResult:
    """Rule: as `clipping`, but on the mean loss, which clip ball must raise more than clip range."""
    return _judge_clippings(evidence, compare_loss, 1, "Ball leaves the larger loss")


def both_attacks(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if FGSM and BIM with clip ball each lower the accuracy of E1 (undefended) and raise its loss, against
    no attack on the same images: at some eps by the paired test, and at none the reverse (`tally`).
    """
    e1 = evidence.models.get("E1")
    parts: dict[str, RuleResult] = {}
    for measure, name in (("fgsm", "FGSM"), ("ball", "BIM")):
        curve, artifact = (None, None) if e1 is None else (e1.curve(measure), e1.artifact(measure, "ce"))
        if curve is None or artifact is None or curve.at(0) is None:
            return NOTHING
        plain, before = is_correct(artifact, "eps", 0), rows_of(artifact, "eps", 0)["loss"]
        kept: dict[float, PairedComparison | None] = {}
        lost: dict[float, PairedComparison | None] = {}
        for eps in (point.at for point in curve.points if point.at):
            kept[eps] = compare_masks(is_correct(artifact, "eps", eps), plain)
            lost[eps] = compare_values(rows_of(artifact, "eps", eps)["loss"], before)
        parts[f"Accuracy under {name}"] = _against_none(kept, compare_accuracy, -1)
        parts[f"Loss under {name}"] = _against_none(lost, compare_loss, 1)
    return all_parts(parts)


def _against_none(found: dict[float, PairedComparison | None], compare: Compare, wanted: int) -> RuleResult:
    """Judge comparisons of an attack with no attack, by eps, with `tally`; the text shows the one at eps 0.1."""
    known = [each for each in found.values() if each is not None]
    verdict, at = tally(known, wanted), found.get(0.1)
    if verdict == "not measured":
        return NOTHING
    text = f"{count_orders(known, wanted)}{'' if at is None else f' (at 0.1: {in_words(at, compare)})'}."
    if verdict == "no difference shown":
        text += f" Not excluded: {left_open(known, compare)}."
    return RuleResult(verdict, text)


def background(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if BIM with clip ball changes less than 1 % of the black pixels in the few images of E3's
    pictures.
    """
    artifact = evidence.artifacts.get("E3/pictures")
    if artifact is None:
        return NOTHING
    images = artifact.arrays("images.safetensors")
    black = images["clean"] == 0
    shares = {
        name: float((np.abs(images[name] - images["clean"])[black] > 1e-6).mean()) for name in images if name != "clean"
    }
    ball = next((share for name, share in shares.items() if name.endswith("ball")), None)
    if ball is None or not black.any():
        return NOTHING
    text = "; ".join(f"{name} changes {percent(share)} of the black pixels" for name, share in shares.items())
    count = len(images["clean"])
    return RuleResult(
        "holds" if ball < 0.01 else "does not hold", f"{text} (n = {black.sum():,} pixels, {count} images)."
    )
