"""The rules that judge the paper's claims about defensive distillation, for students of all temperatures measured.

Each student is compared with its teacher, the network of the same temperature (`teacher_of`): at temperature 1 that is
E1, the undefended network. All predict at temperature 1, so that their losses compare.
"""

from functools import partial
from typing import Any

import numpy as np

from casemate.evaluation import Estimate, percent
from casemate_study.claims.rules import (
    EQUAL,
    NOTHING,
    ClaimEvidence,
    ClaimVerdict,
    RuleResult,
    adjusted_together,
    agrees,
    all_parts,
    by_interval,
    count_orders,
    everywhere,
    in_words,
    judge_clean,
    judge_much_lower_loss,
    judge_order,
    left_open,
    never_reaches,
    over_eps,
    points,
    tally,
    with_other_losses,
    within,
)
from casemate_study.claims.temperatures import at_all_temperatures, student_names, teacher_of
from casemate_study.claims.verdicts import EPS
from casemate_study.experiments import paper
from casemate_study.results.independent import plus_constant
from casemate_study.results.models import ModelResults
from casemate_study.results.paired import (
    Order,
    PairedComparison,
    adjusted,
    compare_accuracy,
    compare_confidence,
    compare_loss,
    compare_masks,
    compare_values,
    is_correct,
)
from casemate_study.results.significance import LEVEL

DROP = 0.1
"""The smallest loss of accuracy under an attack, as a fraction, that counts as dropping quite a bit."""


def _teacher(evidence: ClaimEvidence, student: str) -> ModelResults | None:
    """The results of a student's teacher; None if it is not measured."""
    return evidence.models.get(teacher_of(student))


def _under(
    evidence: ClaimEvidence, experiment: str, measures: tuple[str, ...], **order: Any
) -> dict[str, dict[str, RuleResult]]:
    """The results of `judge_order` on every student of an experiment against its teacher under several attacks, by
    student and attack; `order` are further arguments of `judge_order`.
    """
    return {
        name: {measure: judge_order(evidence, name, teacher_of(name), measure, **order) for measure in measures}
        for name in student_names(evidence, experiment)
    }


def students_loss(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if the loss of every student of E9 (distilled into the same architecture) lies below that of its
    teacher at every eps of FGSM and of BIM with either clipping, by paired tests (`judge_order`, `everywhere`,
    `at_all_temperatures`).
    """
    return at_all_temperatures(_always_lower_loss(evidence, "E9"))


def _always_lower_loss(evidence: ClaimEvidence, experiment: str) -> dict[str, dict[str, RuleResult]]:
    return _under(evidence, experiment, ("fgsm", "ball", "range"), wanted=-1, compare=compare_loss, judge=everywhere)


def all_students_loss(evidence: ClaimEvidence) -> RuleResult:
    """Rule: as `students_loss`, for the students of both architectures (E9, E10), also without an attack."""
    attacked = _always_lower_loss(evidence, "E9") | _always_lower_loss(evidence, "E10")
    return at_all_temperatures(
        {
            name: {
                "": all_parts(
                    {"no attack": judge_clean(evidence, name, teacher_of(name), -1, compare_loss, "Loss")} | found
                )
            }
            for name, found in attacked.items()
        }
    )


def students_fgsm(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if every student of E9 (distilled into the same architecture) is more accurate than its teacher under
    FGSM, by paired tests (`judge_order`, `at_all_temperatures`).
    """
    return at_all_temperatures(_under(evidence, "E9", ("fgsm",), wanted=1))


def students_bim(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if its teacher is more accurate than every student of E9 (distilled into the same architecture)
    under BIM with either clipping, by paired tests (`judge_order`, `at_all_temperatures`).
    """
    return at_all_temperatures(
        {
            name: {f"clip {clip}": judge_order(evidence, teacher_of(name), name, clip, 1) for clip in ("ball", "range")}
            for name in student_names(evidence, "E9")
        }
    )


def adjusted_bim(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if every student of E10 (distilled into the network of appendix B) is more accurate than its
    teacher under BIM with clip ball at eps up to 0.1, by paired tests (`judge_order`,
    `at_all_temperatures`).
    """
    return at_all_temperatures(_under(evidence, "E10", ("ball",), wanted=1, up_to=EPS))


def no_advantage_beyond(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if under BIM with clip ball, at every eps above 0.1, the accuracy of every student of E10 (the
    network of appendix B) exceeds its teacher's by at most 1 point, by the upper end of the interval of the paired
    difference; does not hold if at some eps it exceeds it by more, with Holm's correction for their number; else no
    difference shown (`never_reaches`, `at_all_temperatures`).
    """
    return at_all_temperatures({name: {"": _no_advantage(evidence, name)} for name in student_names(evidence, "E10")})


def _no_advantage(evidence: ClaimEvidence, name: str) -> RuleResult:
    """Rule: as `no_advantage_beyond`, for one student."""
    orders = over_eps(
        evidence.models.get(name), _teacher(evidence, name), "ball", "ce", compare_accuracy, above=EPS + 1e-9
    )
    if not orders:
        return NOTHING
    most = max(orders, key=lambda each: each.difference.value)
    text = f"Where the student gains most: {in_words(most, compare_accuracy)}; {100 * EQUAL:g} point is no advantage."
    return RuleResult(never_reaches(orders, 1, EQUAL), text)


def keeps_accuracy(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if without an attack the accuracy of every student of E10 (the network of appendix B) lies at most 1
    point below its teacher's, by the whole interval of the paired difference; does not hold if all of it lies further
    below; else no difference shown (`at_all_temperatures`).
    """
    return at_all_temperatures({name: {"": _kept(evidence, name)} for name in student_names(evidence, "E10")})


def _kept(evidence: ClaimEvidence, name: str) -> RuleResult:
    """Rule: as `keeps_accuracy`, for one student."""
    one, other = evidence.models.get(name), _teacher(evidence, name)
    found = None if one is None or other is None else compare_accuracy(one.artifact("clean"), other.artifact("clean"))
    if found is None:
        return NOTHING
    text = f"Accuracy {in_words(found, compare_accuracy)}; it is kept if at most {100 * EQUAL:g} point is lost."
    return RuleResult(by_interval(plus_constant(found.difference, EQUAL), 1), text)


def numbers_without_attack(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if without an attack our 95 % intervals for E1 include the paper's accuracy and loss of the teacher,
    and those for every student of E9 those of the student, allowing for the paper's rounding (`agrees`). If the
    student's are reproduced at some temperatures only, it does not hold (`at_all_temperatures`); otherwise unexplained.
    """
    e1 = evidence.models.get("E1")
    teacher = NOTHING if e1 is None else _reproduced(e1, paper.TEACHER_ACCURACY, paper.TEACHER_LOSS)
    names = student_names(evidence, "E9")
    students = at_all_temperatures(
        {name: {"": _reproduced(evidence.models[name], paper.STUDENT_ACCURACY, paper.STUDENT_LOSS)} for name in names}
    )
    if NOTHING in (teacher, students):
        return NOTHING
    verdict: ClaimVerdict = teacher.verdict if teacher.verdict == "unexplained" else students.verdict
    text = f"The paper's numbers and our intervals. E1: {teacher.text} Students: {students.text}"
    return RuleResult(verdict, text)


def _reproduced(model: ModelResults, accuracy: paper.Statement, loss: paper.Statement) -> RuleResult:
    """Rule: holds if our 95 % intervals of the model's accuracy and loss without an attack include the paper's numbers,
    which have two decimals in percent and four; otherwise unexplained.
    """
    clean = model.clean
    if clean is None:
        return NOTHING
    within = agrees(clean.accuracy, accuracy), agrees(clean.loss, loss)
    words = ["inside" if each else "outside" for each in within]
    text = f"accuracy {clean.accuracy:n} ({words[0]}), loss {clean.loss:.4fn} ({words[1]})."
    return RuleResult("holds" if all(within) else "unexplained", text)


def _equally_accurate(evidence: ClaimEvidence, name: str) -> RuleResult:
    """Rule: holds if without an attack the accuracies of the student called `name` and of its teacher differ by at most
    1 point, by the whole interval of the paired difference; does not hold if they differ by more; else no difference
    shown (`within`).
    """
    one, other = evidence.models.get(name), _teacher(evidence, name)
    found = None if one is None or other is None else compare_accuracy(one.artifact("clean"), other.artifact("clean"))
    if found is None:
        return NOTHING
    text = f"{in_words(found, compare_accuracy)}; equal is within {100 * EQUAL:g} point."
    return RuleResult(within(found.difference, EQUAL), text)


def equal_accuracy_lower_loss(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if without an attack every student of E9 (the same architecture) is as accurate as its teacher,
    within 1 point by the interval of the paired difference, and its loss is lower by the paired test
    (`at_all_temperatures`).
    """
    return at_all_temperatures(
        {
            name: {
                "equal accuracy": _equally_accurate(evidence, name),
                "lower loss": judge_clean(evidence, name, teacher_of(name), -1, compare_loss, "Loss"),
            }
            for name in student_names(evidence, "E9")
        }
    )


def adjusted_loss(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if the loss of every student of E10 (the network of appendix B) lies below that of its teacher under
    FGSM and under BIM with either clipping, by paired tests (`judge_order`, `at_all_temperatures`).
    """
    return at_all_temperatures(_under(evidence, "E10", ("fgsm", "ball", "range"), wanted=-1, compare=compare_loss))


def adjusted_fgsm(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if under FGSM every student of E10 (the network of appendix B) has a lower loss and a higher accuracy
    than its teacher, by paired tests (`judge_order`, `at_all_temperatures`).
    """
    return at_all_temperatures(
        {
            name: {
                "lower loss": judge_order(evidence, name, teacher_of(name), "fgsm", -1, compare_loss),
                "higher accuracy": judge_order(evidence, name, teacher_of(name), "fgsm", 1),
            }
            for name in student_names(evidence, "E10")
        }
    )


def _nearer(student: ModelResults, same: ModelResults, teacher: ModelResults, eps: float) -> PairedComparison | None:
    """Compare the distances of two students' accuracies from the teacher's under BIM with clip ball at one eps: first
    that of `student`, then that of `same`. None if a curve lacks that eps.

    With x and y the differences of the two accuracies from the teacher's, the first is nearer if (y - x) (y + x) > 0.
    An order is shown only if both factors differ from 0 by paired tests, so that no sign is chosen by the data. The
    interval of the difference is that of the factor with the smaller amount, whose amount it has.
    """
    artifacts = [each.artifact("ball", "ce") for each in (student, same, teacher)]
    hits = [is_correct(each, "eps", eps) for each in artifacts if each is not None]
    if len(hits) < 3 or not min(map(len, hits)):
        return None
    n = min(map(len, hits))
    mine, other, theirs = (each[:n] for each in hits)
    apart = compare_masks(other, mine)
    together = compare_values(mine.astype(np.float64) + other, 2.0 * theirs)
    assert apart is not None  # there are images, and 0 and 1 are finite
    assert together is not None
    smaller, larger = sorted((apart.difference, together.difference), key=lambda each: abs(each.value))
    difference = Estimate(0.0 - smaller.value, -smaller.high, -smaller.low, n) if larger.value > 0 else smaller
    p = max(apart.p_value, together.p_value)
    order: Order = 0 if p >= LEVEL or difference.value == 0 else (1 if difference.value > 0 else -1)
    near, far = (abs(float(each.mean()) - float(theirs.mean())) for each in (mine, other))
    return PairedComparison(near, far, order, difference, p)


def adjusted_is_nearer(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if under BIM with clip ball the accuracy of E10's student differs less from the teacher's than that
    of E9's student of the same temperature: at some eps by paired tests (`_nearer`), corrected for the number of eps,
    and at none the reverse (`tally`, `at_all_temperatures`).
    """
    parts: dict[str, dict[str, RuleResult]] = {}
    for name in student_names(evidence, "E10"):
        student, same = evidence.models[name], evidence.models.get(name.replace("E10", "E9"))
        teacher, curve = _teacher(evidence, name), student.curve("ball")
        if teacher is None or same is None or curve is None:
            continue
        by_eps = {point.at: _nearer(student, same, teacher, point.at) for point in curve.points if point.at}
        found = adjusted([each for each in by_eps.values() if each is not None])
        if not found:
            continue
        verdict, at = tally(found, -1), by_eps.get(EPS)
        text = f"Distance to the teacher, {name} against {same.model.name}: {count_orders(found, -1)}"
        text += "." if at is None else f" (at {EPS:g}: {in_words(at, compare_accuracy)})."
        if verdict == "no difference shown":
            text += f" Not excluded: {left_open(found, compare_accuracy)}."
        parts[name] = {"": RuleResult(verdict, text)}
    return at_all_temperatures(parts)


def more_promising(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if under FGSM and under BIM with clip ball every student of E9 (the same architecture) has a lower
    loss and a higher accuracy than E5 (augmentation), by paired tests (`judge_order`, `at_all_temperatures`). The
    paper's reason, a loss much lower than the teacher's, is judged by `much_lower_loss_but_drops`.
    """
    return at_all_temperatures(
        {
            name: {
                f"{what}, {measure}": judge_order(evidence, name, "E5", measure, wanted, compare)
                for measure in ("fgsm", "ball")
                for what, wanted, compare in (
                    ("lower loss", -1, compare_loss),
                    ("higher accuracy", 1, compare_accuracy),
                )
            }
            for name in student_names(evidence, "E9")
        }
    )


def students_confidence(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if the mean confidence (probability of the predicted class) of every student (E9, E10) on images
    without an attack lies below its teacher's, by the interval of the paired difference (`at_all_temperatures`).
    """
    return at_all_temperatures(
        {
            name: {"": judge_clean(evidence, name, teacher_of(name), -1, compare_confidence, "Mean confidence")}
            for name in student_names(evidence, "E9", "E10")
        }
    )


def not_always_more_accurate(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if some student (E9, E10) is less accurate than its teacher at some eps of FGSM or BIM with either
    clipping, by the paired tests with one correction for all students, attacks and eps; does not hold if none is and
    some are more accurate; else no difference shown. The text adds the verdicts with the other losses ascended
    (`with_other_losses`).
    """
    return with_other_losses(partial(_not_always_more_accurate, evidence))


def _not_always_more_accurate(evidence: ClaimEvidence, loss: str) -> RuleResult:
    """Apply the rule of `not_always_more_accurate` to attacks that ascend one loss."""
    groups = {
        f"{name}, {measure}": over_eps(evidence.models[name], _teacher(evidence, name), measure, loss, compare_accuracy)
        for name in student_names(evidence, "E9", "E10")
        for measure in ("fgsm", "ball", "range")
    }
    known = adjusted_together({name: found for name, found in groups.items() if found})
    every = [each for found in known.values() for each in found]
    if not every:
        return NOTHING
    words = [f"{name}: {sum(each.order < 0 for each in found)} of {len(found)} eps" for name, found in known.items()]
    verdict = "holds" if any(each.order < 0 for each in every) else tally(every, -1)
    text = f"The student is less accurate at: {'; '.join(words)} (n = {min(each.n for each in every):,})."
    if verdict == "no difference shown":
        text += f" Not excluded: {left_open(every, compare_accuracy)}."
    return RuleResult(verdict, text)


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
    verdict = by_interval(plus_constant(found.difference, DROP), -1)
    shown = f"{percent(found.first)} instead of {percent(found.second)}, {points(found.difference)}"
    return RuleResult(verdict, f"Accuracy {shown}; quite a bit is {100 * DROP:g} points.")


def much_lower_loss_but_drops(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if for every student (E9, E10), at eps 0.1 of FGSM and of BIM with clip ball, the loss is lower than
    its teacher's and at most half of it, while the attack costs the student 10 points of accuracy or more
    (`at_all_temperatures`).
    """
    return at_all_temperatures(
        {
            name: {
                measure: all_parts(
                    {
                        "Much lower loss": judge_much_lower_loss(evidence, name, teacher_of(name), measure),
                        "Accuracy drops": _drop(evidence, name, measure),
                    }
                )
                for measure in ("fgsm", "ball")
            }
            for name in student_names(evidence, "E9", "E10")
        }
    )


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
