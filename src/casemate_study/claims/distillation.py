"""The rules that judge the paper's claims about defensive distillation, for students of all temperatures measured.

Students are compared with E1, the undefended network, which is the teacher at temperature 1.
"""

import numpy as np

from casemate.evaluation import Estimate, percent
from casemate_study.claims.rules import (
    NOTHING,
    ClaimEvidence,
    ClaimVerdict,
    RuleResult,
    all_parts,
    at_all_temperatures,
    count_orders,
    in_words,
    judge_clean,
    judge_order,
    left_open,
    over_eps,
    points,
    student_names,
    tally,
)
from casemate_study.claims.verdicts import EPS
from casemate_study.experiments import paper
from casemate_study.results.models import ModelResults
from casemate_study.results.paired import (
    PairedComparison,
    compare_accuracy,
    compare_confidence,
    compare_loss,
    compare_masks,
    compare_values,
    is_correct,
)

EQUAL = 0.01
"""The largest difference of two accuracies, as a fraction, that counts as equal."""
DROP = 0.1
"""The smallest loss of accuracy under an attack, as a fraction, that counts as dropping quite a bit."""
MUCH_LOWER = 0.5
"""The largest share of the teacher's loss that counts as a much lower loss."""


def students_loss(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if the loss of every student (E9, E10) lies below that of E1, the teacher at temperature 1, under
    FGSM and under BIM with either clipping, by paired tests (`judge_order`).
    """
    parts = [
        (f"{name}, {measure}", judge_order(evidence, name, "E1", measure, -1, compare_loss))
        for name in student_names(evidence, "E9", "E10")
        for measure in ("fgsm", "ball", "range")
    ]
    return at_all_temperatures(parts)


def students_fgsm(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if every student of E9 (distilled into the same architecture) is more accurate than E1, the teacher
    at temperature 1, under FGSM, by paired tests (`judge_order`).
    """
    parts = [(name, judge_order(evidence, name, "E1", "fgsm", 1)) for name in student_names(evidence, "E9")]
    return at_all_temperatures(parts)


def students_bim(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if E1, the teacher at temperature 1, is more accurate than every student of E9 (distilled into the
    same architecture) under BIM with either clipping, by paired tests (`judge_order`).
    """
    parts = [
        (f"{name}, clip {clip}", judge_order(evidence, "E1", name, clip, 1))
        for name in student_names(evidence, "E9")
        for clip in ("ball", "range")
    ]
    return at_all_temperatures(parts)


def adjusted_bim(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if every student of E10 (distilled into the network of appendix B) is more accurate than E1, the
    teacher at temperature 1, under BIM with clip ball at eps up to 0.1, by paired tests (`judge_order`).
    """
    names = student_names(evidence, "E10")
    return at_all_temperatures([(name, judge_order(evidence, name, "E1", "ball", 1, up_to=0.1)) for name in names])


def numbers_without_attack(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if without an attack the paper's accuracy and loss of the teacher lie within our 95 % intervals for
    E1, and those of the student within ours for at least one student of E9; otherwise unexplained.
    """
    e1 = evidence.models.get("E1")
    students = {name: evidence.models[name] for name in student_names(evidence, "E9")}
    if e1 is None or e1.clean is None or not students:
        return NOTHING

    def inside(model: ModelResults, accuracy: paper.Statement, loss: paper.Statement) -> tuple[bool, str]:
        clean = model.clean
        if clean is None:
            return False, ""
        pairs = ((clean.accuracy, accuracy.value), (clean.loss, loss.value))
        within = [each.low <= stated <= each.high for each, stated in pairs]
        words = ["inside" if each else "outside" for each in within]
        return all(within), f"accuracy {clean.accuracy:n} ({words[0]}), loss {clean.loss:.4fn} ({words[1]})"

    teacher, shown = inside(e1, paper.TEACHER_ACCURACY, paper.TEACHER_LOSS)
    found = {name: inside(each, paper.STUDENT_ACCURACY, paper.STUDENT_LOSS) for name, each in students.items()}
    text = "; ".join(f"{name}: {words}" for name, (_, words) in found.items())
    holds = teacher and any(each for each, _ in found.values())
    return RuleResult(
        "holds" if holds else "unexplained", f"The paper's numbers and our intervals. E1: {shown}; {text}."
    )


def _equally_accurate(evidence: ClaimEvidence, name: str) -> RuleResult:
    """Rule: holds if without an attack the accuracies of the student called `name` and of E1 differ by at most 1 point,
    by the whole interval of the paired difference; does not hold if the paired test finds a difference that may be
    larger; else no difference shown.
    """
    one, other = evidence.models.get(name), evidence.models.get("E1")
    found = None if one is None or other is None else compare_accuracy(one.artifact("clean"), other.artifact("clean"))
    if found is None:
        return NOTHING
    verdict: ClaimVerdict = "no difference shown" if found.order == 0 else "does not hold"
    if max(abs(found.difference.low), abs(found.difference.high)) <= EQUAL:
        verdict = "holds"
    return RuleResult(verdict, f"{in_words(found, compare_accuracy)}; equal is within {100 * EQUAL:g} point.")


def equal_accuracy_lower_loss(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if without an attack every student of E9 (the same architecture) is as accurate as E1, within 1 point
    by the interval of the paired difference, and its loss is lower by the paired test.
    """
    parts = [
        (
            name,
            all_parts(
                {
                    "Equal accuracy": _equally_accurate(evidence, name),
                    "Lower loss": judge_clean(evidence, name, "E1", -1, compare_loss, "Loss"),
                }
            ),
        )
        for name in student_names(evidence, "E9")
    ]
    return at_all_temperatures(parts)


def adjusted_loss(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if the loss of every student of E10 (the network of appendix B) lies below that of E1 under FGSM and
    under BIM with either clipping, by paired tests (`judge_order`).
    """
    parts = [
        (f"{name}, {measure}", judge_order(evidence, name, "E1", measure, -1, compare_loss))
        for name in student_names(evidence, "E10")
        for measure in ("fgsm", "ball", "range")
    ]
    return at_all_temperatures(parts)


def adjusted_fgsm(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if under FGSM every student of E10 (the network of appendix B) has a lower loss and a higher accuracy
    than E1, by paired tests (`judge_order`).
    """
    parts = [
        (
            name,
            all_parts(
                {
                    "Lower loss": judge_order(evidence, name, "E1", "fgsm", -1, compare_loss),
                    "Higher accuracy": judge_order(evidence, name, "E1", "fgsm", 1),
                }
            ),
        )
        for name in student_names(evidence, "E10")
    ]
    return at_all_temperatures(parts)


def _nearer(adjusted: ModelResults, same: ModelResults, teacher: ModelResults, eps: float) -> PairedComparison | None:
    """Compare the distances of two students' accuracies from the teacher's under BIM with clip ball at one eps: first
    that of `adjusted`, then that of `same`. None if a curve lacks that eps.
    """
    artifacts = [each.artifact("ball", "ce") for each in (adjusted, same, teacher)]
    hits = [is_correct(each, "eps", eps).astype(np.float64) for each in artifacts if each is not None]
    if len(hits) < 3 or not min(map(len, hits)):
        return None
    n = min(map(len, hits))
    away = [each[:n] - hits[2][:n] for each in hits[:2]]
    return compare_values(*(each * (np.sign(each.mean()) or 1.0) for each in away))


def adjusted_is_nearer(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if under BIM with clip ball the accuracy of E10's student differs less from E1's than that of E9's
    student of the same temperature: at some eps by the interval of the paired difference, and at none the reverse
    (`tally`).
    """
    teacher = evidence.models.get("E1")
    parts: list[tuple[str, RuleResult]] = []
    for name in student_names(evidence, "E10"):
        adjusted, same = evidence.models[name], evidence.models.get(name.replace("E10", "E9"))
        curve = adjusted.curve("ball")
        if teacher is None or same is None or curve is None:
            continue
        by_eps = {point.at: _nearer(adjusted, same, teacher, point.at) for point in curve.points if point.at}
        found = [each for each in by_eps.values() if each is not None]
        if not found:
            continue
        verdict, at = tally(found, -1), by_eps.get(EPS)
        text = f"Distance to the teacher, {name} against {same.model.name}: {count_orders(found, -1)}"
        text += "." if at is None else f" (at {EPS:g}: {in_words(at, compare_accuracy)})."
        if verdict == "no difference shown":
            text += f" Not excluded: {left_open(found, compare_accuracy)}."
        parts.append((name, RuleResult(verdict, text)))
    return at_all_temperatures(parts)


def students_confidence(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if the mean confidence (probability of the predicted class) of every student (E9, E10) on images
    without an attack lies below E1's, by the interval of the paired difference.
    """
    parts = [
        (name, judge_clean(evidence, name, "E1", -1, compare_confidence, "Mean confidence"))
        for name in student_names(evidence, "E9", "E10")
    ]
    return at_all_temperatures(parts)


def not_always_more_accurate(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if some student (E9, E10) is less accurate than E1 at some eps of FGSM or BIM with either clipping,
    by the paired test; does not hold if none is and some are more accurate; else no difference shown.
    """
    words: list[str] = []
    every: list[PairedComparison] = []
    for name in student_names(evidence, "E9", "E10"):
        for measure in ("fgsm", "ball", "range"):
            found = over_eps(evidence.models[name], evidence.models.get("E1"), measure, "ce", compare_accuracy)
            if found:
                every += found
                words.append(f"{name}, {measure}: {sum(each.order < 0 for each in found)} of {len(found)} eps")
    if not every:
        return NOTHING
    verdict = "holds" if any(each.order < 0 for each in every) else tally(every, -1)
    text = f"The student is less accurate at: {'; '.join(words)} (n = {min(each.n for each in every):,})."
    if verdict == "no difference shown":
        text += f" Not excluded: {left_open(every, compare_accuracy)}."
    return RuleResult(verdict, text)


def _much_lower_loss(evidence: ClaimEvidence, name: str, measure: str) -> RuleResult:
    """Rule: holds if at eps 0.1 the student's loss is lower than E1's by the paired test, and at most half of it."""
    one, other = evidence.models.get(name), evidence.models.get("E1")
    if one is None or other is None:
        return NOTHING
    found = compare_loss(one.artifact(measure, "ce"), other.artifact(measure, "ce"), "eps", EPS)
    if found is None:
        return NOTHING
    verdict = tally([found], -1)
    if verdict == "holds" and found.first > MUCH_LOWER * found.second:
        verdict = "does not hold"
    return RuleResult(verdict, f"Loss {in_words(found, compare_loss)}; much lower is at most half.")


def _drop(evidence: ClaimEvidence, name: str, measure: str) -> RuleResult:
    """Rule: holds if at eps 0.1 the student is less accurate than without an attack by 10 points or more, by the whole
    interval of the paired difference; does not hold if by less than that; else no difference shown.
    """
    model = evidence.models.get(name)
    curve, artifact = (None, None) if model is None else (model.curve(measure), model.artifact(measure, "ce"))
    if curve is None or artifact is None or curve.at(0) is None or curve.at(EPS) is None:
        return NOTHING
    found = compare_masks(is_correct(artifact, "eps", EPS), is_correct(artifact, "eps", 0))
    if found is None:
        return NOTHING
    beyond = Estimate(found.difference.value + DROP, found.difference.low + DROP, found.difference.high + DROP, found.n)
    verdict: ClaimVerdict = "no difference shown"
    if beyond.high <= 0 or beyond.low > 0:
        verdict = "holds" if beyond.high <= 0 else "does not hold"
    shown = f"{percent(found.first)} instead of {percent(found.second)}, {points(found.difference)}"
    return RuleResult(verdict, f"Accuracy {shown}; quite a bit is {100 * DROP:g} points.")


def much_lower_loss_but_drops(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if for every student (E9, E10), at eps 0.1 of FGSM and of BIM with clip ball, the loss is lower than
    E1's and at most half of it, while the attack costs the student 10 points of accuracy or more.
    """
    parts = [
        (
            f"{name}, {measure}",
            all_parts(
                {
                    "Much lower loss": _much_lower_loss(evidence, name, measure),
                    "Accuracy drops": _drop(evidence, name, measure),
                }
            ),
        )
        for name in student_names(evidence, "E9", "E10")
        for measure in ("fgsm", "ball")
    ]
    return at_all_temperatures(parts)


def early_stopped_teacher(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if E13's student of an early-stopped teacher is more accurate than E9-20, the student of the teacher
    trained to the end at the same temperature, under FGSM and under BIM with clip ball, by paired tests
    (`judge_order`).
    """
    return all_parts(
        {
            name: judge_order(evidence, "E13-early-teacher", "E9-20", measure, 1)
            for name, measure in (("FGSM", "fgsm"), ("BIM", "ball"))
        }
    )
