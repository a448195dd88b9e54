"""The rules that judge the paper's claims about the undefended network E1 and about FGSM and BIM."""

import numpy as np

from casemate.evaluation import percent
from casemate.losses import TITLES
from casemate_study.claims.rules import (
    EQUAL,
    NOTHING,
    ClaimEvidence,
    ClaimVerdict,
    RuleResult,
    agrees,
    all_parts,
    by_interval,
    count_orders,
    in_words,
    joined,
    judge_number,
    left_open,
    points,
    tally,
    within,
)
from casemate_study.experiments import paper
from casemate_study.experiments.specs import LOSSES
from casemate_study.experiments.undefended import E3_PICTURED_EPS, E4_STEP_SIZES, e4_prefix
from casemate_study.results.independent import plus_constant
from casemate_study.results.paired import (
    Compare,
    PairedComparison,
    adjusted,
    compare_accuracy,
    compare_loss,
    compare_masks,
    compare_values,
    is_correct,
    rows_of,
)
from casemate_study.results.stored import StoredCurve, find_result

RAPID = 0.2
"""The smallest loss of accuracy within the first 25 iterations of BIM, as a fraction, that counts as a rapid drop."""
UNTOUCHED = 0.01
"""The share of black pixels below which changes leave the background alone."""
OFTEN = 0.5
"""The smallest share of the pixels of garments that counts as often."""
TOUCHED = 0.1
"""The smallest share of black pixels that counts as changing the background too."""


def test_accuracy(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if our 95 % interval for E1, the undefended network, includes a test accuracy that rounds to the
    paper's 93.7 % (`agrees`); otherwise unexplained.
    """
    e1 = evidence.models.get("E1")
    if e1 is None or e1.clean is None:
        return NOTHING
    ours = e1.clean.accuracy
    return RuleResult("holds" if agrees(ours, paper.TEST_ACCURACY) else "unexplained", f"Ours: {ours:n}.")


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


def rapid_until_25(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if, at each step size measured, 25 iterations of BIM cost E1 (undefended) 20 points of accuracy or
    more against none, by the whole interval of the paired difference; does not hold if less; else no difference shown.
    The attack ascends the stable cross-entropy.
    """
    verdicts: list[ClaimVerdict] = []
    words: list[str] = []
    for (size, loss), (name, curve) in _step_curves(evidence).items():
        if loss != "ce" or curve.at(0) is None or curve.at(25) is None:
            continue
        artifact = evidence.artifacts[name]
        change = compare_masks(is_correct(artifact, "steps", 25), is_correct(artifact, "steps", 0))
        if change is None:
            continue
        verdicts.append(by_interval(plus_constant(change.difference, RAPID), -1))
        passed = ", ".join(f"{percent(point.last.value)} at {point.at:g}" for point in curve.points if point.at <= 25)
        words.append(f"step {size}: {passed}, {points(change.difference)}")
    if not verdicts:
        return NOTHING
    return RuleResult(joined(verdicts), f"{'; '.join(words)}. Rapid is {100 * RAPID:g} points within 25 iterations.")


def level_after_25(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if from 25 iterations of BIM to the most that were run, at each step size measured, the accuracy of
    E1 (undefended) changes by at most 1 point, by the whole interval of the paired difference (`within`), and its loss
    grows by the paired test; does not hold if at some step size it changes by more, or its loss falls; else no
    difference shown. The attack ascends the stable cross-entropy.
    """
    verdicts: dict[str, list[ClaimVerdict]] = {}
    words: list[str] = []
    for (size, loss), (name, curve) in _step_curves(evidence).items():
        first, last = curve.at(25), curve.points[-1]
        if first is None or last.at == first.at:
            continue
        artifact = evidence.artifacts[name]
        change = compare_masks(is_correct(artifact, "steps", last.at), is_correct(artifact, "steps", 25))
        growth = compare_values(*(rows_of(artifact, "steps", each.at)["loss"] for each in (last, first)))
        if change is None or growth is None:
            continue
        verdicts.setdefault(loss, []).extend((within(change.difference, EQUAL), tally([growth], 1)))
        words.append(
            f"step {size}, {TITLES[loss]}: {percent(first.last.value)} at 25, {percent(last.last.value)} at "
            f"{last.at:g}, loss {growth.second:.2f} to {growth.first:.2f}, accuracy {points(change.difference)}"
        )
    if "ce" not in verdicts:
        return NOTHING
    verdict = joined(verdicts["ce"])
    text = f"{'; '.join(words)}. Level is within {100 * EQUAL:g} point."
    elsewhere = [TITLES[loss] for loss in LOSSES[1:] if loss in verdicts and joined(verdicts[loss]) == "holds"]
    if verdict != "holds" and elsewhere:
        text += f" Level with a growing loss only where the attack ascends {' or '.join(elsewhere)}."
    return RuleResult(verdict, text)


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
            known = adjusted([each for each in found if each is not None])
            orders[setting, loss] = tally(known, wanted)
            at = compare(ball, wide, "eps", 0.1)
            shown = "" if at is None else f" (at 0.1: {in_words(at, compare)})"
            words.append(f"{setting}, {TITLES[loss]}: {count_orders(known, wanted)}{shown}")
            if (setting, loss) == ("equal steps", "ce") and orders[setting, loss] == "no difference shown":
                text = f" Not excluded: {left_open(known, compare)}."
    if ("equal steps", "ce") not in orders:
        return NOTHING
    reproduced = [f"{setting} and {TITLES[loss]}" for (setting, loss), verdict in orders.items() if verdict == "holds"]
    text = f"{what}: {'; '.join(words)}.{text} With equal steps clip range lets pixels move further than eps."
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
    known = adjusted([each for each in found.values() if each is not None])
    verdict, at = tally(known, wanted), found.get(0.1)
    if verdict == "not measured":
        return NOTHING
    text = f"{count_orders(known, wanted)}{'' if at is None else f' (at 0.1: {in_words(at, compare)})'}."
    if verdict == "no difference shown":
        text += f" Not excluded: {left_open(known, compare)}."
    return RuleResult(verdict, text)


def _black_pixels_changed(evidence: ClaimEvidence, task: str) -> tuple[dict[str, float], str]:
    """The share of the black pixels that each attack changes in the images of a task that stores pictures, by the title
    of the attack, and how many pixels and images there are, as text. Empty if it is not finished or none is black.
    """
    artifact = evidence.artifacts.get(task)
    if artifact is None:
        return {}, ""
    images = artifact.arrays("images.safetensors", ["clean"])
    black = images["clean"] == 0
    if not black.any():
        return {}, ""
    changed = {name: np.abs(images[name] - images["clean"])[black] > 1e-6 for name in images if name != "clean"}
    count = f"n = {black.sum():,} pixels, {len(images['clean'])} images"
    return {name: float(each.mean()) for name, each in changed.items()}, count


def background(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if BIM with clip ball changes less than 1 % of the black pixels in the few images of E3's
    pictures.
    """
    shares, count = _black_pixels_changed(evidence, "E3/pictures")
    ball = next((share for name, share in shares.items() if name.endswith("ball")), None)
    if ball is None:
        return NOTHING
    text = "; ".join(f"{name} changes {percent(share)} of the black pixels" for name, share in shares.items())
    return RuleResult("holds" if ball < UNTOUCHED else "does not hold", f"{text} ({count}).")


def lower_boundary(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if the lower boundary of clip ball lies above 0 for half or more of the pixels that are not black, in
    the few images of E3's pictures at their eps. For a black pixel it cannot.
    """
    artifact = evidence.artifacts.get("E3/pictures")
    if artifact is None:
        return NOTHING
    clean = artifact.arrays("images.safetensors", ["clean"])["clean"]
    garment = clean[clean > 0]
    above = int((garment > E3_PICTURED_EPS).sum())
    text = (
        f"At eps {E3_PICTURED_EPS:g} it lies above 0 for {above:,} of {garment.size:,} pixels that are not black, and "
        f"for none of the {clean.size - garment.size:,} black ones, which the ball lets grow to eps ({len(clean)} "
        "images)."
    )
    return RuleResult("holds" if above >= OFTEN * garment.size else "does not hold", text)


def background_too(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if FGSM (E2's pictures) and BIM with clip range (E3's) each change 10 % or more of the black pixels
    in the few images pictured.
    """
    words: list[str] = []
    least: list[float] = []
    for task, end in (("E2/pictures", "FGSM 0.1"), ("E3/pictures", "range")):
        shares, count = _black_pixels_changed(evidence, task)
        found = {name: share for name, share in shares.items() if name.endswith(end)}
        if not found:
            return NOTHING
        least += found.values()
        words += [f"{name} changes {percent(share)} of the black pixels ({count})" for name, share in found.items()]
    verdict: ClaimVerdict = "holds" if min(least) >= TOUCHED else "does not hold"
    return RuleResult(verdict, f"{'; '.join(words)}.")
