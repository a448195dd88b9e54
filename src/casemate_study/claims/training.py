"""The rules that judge the paper's claims about trainings: over-fitting, under-fitting, size and time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np

from casemate.engine import Artifact
from casemate.evaluation import Estimate, mean, percent
from casemate_study.claims.rules import (
    CLEARLY,
    NOTHING,
    ClaimEvidence,
    ClaimVerdict,
    RuleResult,
    agrees,
    all_parts,
    by_interval,
    in_words,
    judge_clean,
    points,
    tally,
    within,
)
from casemate_study.claims.temperatures import at_all_temperatures, student_names
from casemate_study.experiments import paper
from casemate_study.results.independent import difference_of, plus_constant, ratio_of, share_of
from casemate_study.results.models import ModelResults
from casemate_study.results.paired import compare_accuracy, compare_confidence, compare_values, rows_of
from casemate_study.results.stored import EpochRow, StoredTraining

SPEED = 0.1
"""The largest deviation from the paper's ratio of two times, as a fraction of it, that counts as the same ratio."""
SLOWER = 1.1
"""The largest ratio of a student's time per epoch to its teacher's at which the speed counts as kept."""


def under_fits(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if E5, the network trained with augmentation, has a higher validation than training accuracy at the
    epoch whose weights are kept, by the interval of the difference.
    """
    e5 = evidence.models.get("E5")
    if e5 is None or e5.training is None:
        return NOTHING
    row = e5.training.best
    trained, validated = _accuracies(e5.training, row)
    difference = difference_of(validated, trained)
    text = (
        f"After epoch {row.epoch}: training {trained:n} (augmented, with dropout), validation {validated:n}, "
        f"{points(difference)}; the paper: about 83 % and 89 %."
    )
    return RuleResult(by_interval(difference, 1), text)


def _accuracies(training: StoredTraining, row: EpochRow) -> tuple[Estimate, Estimate]:
    """The accuracies on the training images (measured during training: augmented, with dropout) and on the validation
    images.
    """
    trained = share_of(row.accuracy, training.train_images)
    return trained, share_of(row.val_accuracy, training.validation_images)


@final
@dataclass(frozen=True)
class _Rise:
    """How much higher a model's test loss is with its final weights than with those that early stopping keeps."""

    by_image: np.ndarray
    """By image `(n,)`: the mean is the rise as a fraction of the lower loss, and the spread that of this ratio (by
    linearisation, the delta method)."""
    words: str
    """Such as "the test loss +12.0 % (+9.1 to +14.8), from 0.250 with the weights that early stopping keeps to 0.280
    with the final ones (n = 10,000)"."""


def _rise(final_weights: Artifact | None, best_weights: Artifact | None) -> _Rise | None:
    """The rise of a model's loss from its best epoch to the end of its training, from measures without an attack with
    both weights; None if one is not finished.

    Early stopping chooses the epoch by its low validation loss, so that this rises by choice afterwards; the test loss,
    of other images, does not.
    """
    if final_weights is None or best_weights is None:
        return None
    last, best = (rows_of(each)["loss"].astype(np.float64) for each in (final_weights, best_weights))
    known = np.isfinite(last) & np.isfinite(best)
    if not known.any():
        return None
    last, best = last[known], best[known]
    level = max(float(best.mean()), 1e-9)
    ratio = float(last.mean()) / level
    by_image = ratio - 1 + (last - ratio * best) / level
    rise = mean(by_image)
    value, low, high = (f"{100 * each:+.1f}" for each in (rise.value, rise.low, rise.high))
    words = (
        f"the test loss {value} % ({low} to {high}), from {best.mean():.3f} with the weights that early stopping keeps "
        f"to {last.mean():.3f} with the final ones (n = {rise.n:,})"
    )
    return _Rise(by_image, words)


def _student_rise(student: ModelResults | None) -> _Rise | None:
    """`_rise` of a student, which is measured with both weights."""
    return None if student is None else _rise(student.artifact("clean"), student.artifact("clean-best"))


def _over_fits(training: StoredTraining | None, rise: _Rise | None) -> RuleResult:
    """Rule: holds if the test loss rises after the epoch that early stopping keeps, by the interval of the rise
    (`_rise`), and the training accuracy of the last epoch lies above the validation accuracy by that of the difference.
    """
    if training is None or rise is None:
        return NOTHING
    trained, validated = _accuracies(training, training.last)
    gap = difference_of(trained, validated)
    rises = RuleResult(by_interval(mean(rise.by_image), 1), f"Rise of {rise.words}.")
    words = f"Training {trained:n}, validation {validated:n} after epoch {training.last.epoch}: {points(gap)}."
    above = RuleResult(by_interval(gap, 1), words)
    return all_parts({"Loss rises": rises, "Training above validation accuracy": above})


def over_fits(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if the test loss of E1, trained without early stopping, lies above that of E11, the weights
    of the same training that early stopping keeps, by the interval of the rise (`_rise`), and E1's training accuracy
    ends above its validation accuracy by that of the difference.
    """
    e1, e11 = evidence.models.get("E1"), evidence.models.get("E11")
    if e1 is None or e11 is None:
        return NOTHING
    return _over_fits(e1.training, _rise(e1.artifact("clean"), e11.artifact("clean")))


def student_over_fits(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if the test loss of every student of E9 (distilled into the same architecture) rises after the epoch
    that early stopping keeps, by the interval of the rise (`_rise`), and its training accuracy ends above its
    validation accuracy by that of the difference (`at_all_temperatures`).
    """
    students = {name: evidence.models[name] for name in student_names(evidence, "E9")}
    return at_all_temperatures(
        {name: {"": _over_fits(student.training, _student_rise(student))} for name, student in students.items()}
    )


def augmented_over_fits_less(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if E5 (augmentation) over-fits less than E1 (trained without early stopping), both as trained: the
    training accuracy exceeds the validation accuracy by less, at the epoch whose weights are kept (E5's best, E1's
    last), by the interval of the difference.

    E5's training accuracy is that on augmented images, which favours the claim; so does its early stopping. The text
    adds by how much both validation losses rise after the epoch that early stopping keeps, without an interval.
    """
    e5, e1 = evidence.models.get("E5"), evidence.models.get("E1")
    if e5 is None or e1 is None or e5.training is None or e1.training is None:
        return NOTHING
    kept = ((e5.training, e5.training.best), (e1.training, e1.training.last))
    gaps = [difference_of(*_accuracies(training, row)) for training, row in kept]
    difference = difference_of(*gaps)
    rises = [100 * (each.last.val_loss / max(each.best.val_loss, 1e-9) - 1) for each, _ in kept]
    text = (
        f"Training minus validation accuracy: E5 {points(gaps[0])}, E1 {points(gaps[1])}; the difference of both is "
        f"{points(difference)}. From the epoch that early stopping keeps to the last one the validation loss of E5 "
        f"rises by {rises[0]:.0f} %, that of E1 by {rises[1]:.0f} %."
    )
    return RuleResult(by_interval(difference, -1), text)


def training_accuracy_drops(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if the training accuracy of E5 (augmentation) lies below E1's by 5 points or more, each at the epoch
    whose weights are kept (E5's best, E1's last), by the whole interval of the difference; does not hold if by less;
    else no difference shown. Both are measured during training: with dropout, E5's on augmented images.
    """
    e5, e1 = evidence.models.get("E5"), evidence.models.get("E1")
    if e5 is None or e1 is None or e5.training is None or e1.training is None:
        return NOTHING
    augmented, plain = _accuracies(e5.training, e5.training.best)[0], _accuracies(e1.training, e1.training.last)[0]
    difference = difference_of(augmented, plain)
    text = f"Training accuracy {augmented:n} against {plain:n}: {points(difference)}; "
    text += f"a drop counts from {100 * CLEARLY:g} points on."
    return RuleResult(by_interval(plus_constant(difference, CLEARLY), -1), text)


def simpler_student(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if the student of E10 (the paper's appendix B) has fewer parameters than E1, the teacher."""
    e1 = evidence.models.get("E1")
    teacher = None if e1 is None else e1.training
    students = [evidence.models[name].training for name in student_names(evidence, "E10")]
    student = next((each for each in students if each is not None), None)
    if teacher is None or student is None:
        return NOTHING
    text = (
        f"The student has {student.parameters:,} parameters, the teacher {teacher.parameters:,}: "
        f"{student.parameters / teacher.parameters:.2f} times as many."
    )
    return RuleResult("holds" if student.parameters < teacher.parameters else "does not hold", text)


def simpler_over_fits_less(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if the test loss of every student of E10 (appendix B) rises less after the epoch that early
    stopping keeps (`_rise`) than that of E9's student of the same temperature, by the interval of the difference on
    the same images; does not hold if it rises more; else no difference shown (`at_all_temperatures`). The text adds by
    how much training accuracies exceed validation accuracies; they decide nothing, since E10's stronger dropout lowers
    its training accuracy.
    """
    parts: dict[str, dict[str, RuleResult]] = {}
    for name in student_names(evidence, "E10"):
        same = evidence.models.get(name.replace("E10", "E9"))
        student = evidence.models[name]
        mine, other = student.training, None if same is None else same.training
        first, second = _student_rise(student), _student_rise(same)
        if mine is None or other is None or first is None or second is None:
            continue
        found = compare_values(first.by_image, second.by_image)
        if found is None:
            continue
        gaps = " against ".join(points(difference_of(*_accuracies(each, each.last))) for each in (mine, other))
        text = f"Rise of {first.words}; against {second.words}. Difference of both rises: {points(found.difference)}."
        text += f" Training minus validation accuracy, with dropout: {gaps}."
        parts[name] = {"": RuleResult(tally([found], -1), text)}
    return at_all_temperatures(parts)


def augmented_accuracies(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if our 95 % intervals of E5's (augmentation) test, validation and training accuracy, at the epoch
    whose weights are kept, all include values that round to the paper's 0.89, 0.89 and 0.83; otherwise unexplained.
    """
    e5 = evidence.models.get("E5")
    if e5 is None or e5.clean is None or e5.training is None:
        return NOTHING
    trained, validated = _accuracies(e5.training, e5.training.best)
    pairs = (
        ("test", e5.clean.accuracy, paper.AUGMENTED_TEST),
        ("validation", validated, paper.AUGMENTED_VALIDATION),
        ("training", trained, paper.AUGMENTED_TRAINING),
    )
    reached = [agrees(each, stated) for _, each, stated in pairs]
    words = (
        f"{name} {each:n}, {'about' if inside else 'not about'} {stated.value:g}"
        for (name, each, stated), inside in zip(pairs, reached, strict=True)
    )
    return RuleResult("holds" if all(reached) else "unexplained", f"Ours: {'; '.join(words)}.")


def wider_and_deeper(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if E13's residual network (deeper than E5's, but narrower), trained with E5's augmentation and
    weight decay, has a higher training accuracy than E5 at the epoch whose weights are kept, by the interval of the
    difference, and a higher mean confidence on images without an attack, by that of the paired difference. The text
    also compares their test accuracies.
    """
    wide, e5 = evidence.models.get("E13-resnet"), evidence.models.get("E5")
    if wide is None or e5 is None or wide.training is None or e5.training is None:
        return NOTHING
    first, second = (_accuracies(each, each.best)[0] for each in (wide.training, e5.training))
    gain = difference_of(first, second)
    fits = RuleResult(by_interval(gain, 1), f"Training accuracy {first:n} against {second:n}: {points(gain)}.")
    confident = judge_clean(evidence, "E13-resnet", "E5", 1, compare_confidence, "Mean confidence")
    found = all_parts({"Under-fits less": fits, "More confident": confident})
    tested = compare_accuracy(wide.artifact("clean"), e5.artifact("clean"))
    if found is NOTHING or tested is None:
        return NOTHING
    text = f"The network is deeper, but not wider. {found.text} Test accuracy: {in_words(tested, compare_accuracy)}."
    return RuleResult(found.verdict, text)


def _epoch_time(
    evidence: ClaimEvidence, experiment: str, judge: Callable[[Estimate], ClaimVerdict], opening: str
) -> RuleResult:
    """Apply `judge` to the seconds per epoch of every student of the experiment, divided by those of E1, the teacher at
    temperature 1 (`at_all_temperatures`). They are seconds of the processor where both trainings have them, else
    wall-clock seconds. `opening` begins the text.
    """
    e1 = evidence.models.get("E1")
    teacher = None if e1 is None else e1.training
    parts: dict[str, dict[str, RuleResult]] = {}
    for name in student_names(evidence, experiment):
        student = evidence.models[name].training
        if student is None or teacher is None:
            continue
        pair, clock = _seconds(student, teacher)
        ratio = ratio_of(*pair)
        text = f"{ratio:.2fn} times the teacher's {clock} (n in epochs)."
        parts[name] = {"": RuleResult(judge(ratio), text)}
    found = at_all_temperatures(parts)
    return found if found is NOTHING else RuleResult(found.verdict, f"{opening} {found.text}")


def _time_of_the_paper(evidence: ClaimEvidence, experiment: str, seconds: paper.Statement) -> RuleResult:
    """Rule: holds if every ratio of `_epoch_time` lies within a tenth of the paper's `seconds` divided by its seconds
    for the teacher, by the whole interval; does not hold if all of one lies further away; else no difference shown.
    """
    stated = _times_the_teacher(seconds)
    opening = f"The paper: {stated:.2f} times the teacher's; as many is within {percent(SPEED, 0)} of that."
    return _epoch_time(
        evidence, experiment, lambda ratio: within(plus_constant(ratio, -stated), SPEED * stated), opening
    )


def _times_the_teacher(seconds: paper.Statement) -> float:
    """The paper's seconds per epoch of a student, divided by its teacher's."""
    return seconds.value / paper.TEACHER_SECONDS.value


def _seconds(*trainings: StoredTraining) -> tuple[list[Estimate], str]:
    """Mean seconds of an epoch of each training, with the interval over its epochs, and what was measured, as text."""
    processor = [[row.processor_seconds for row in each.history] for each in trainings]
    known = [[value for value in values if value is not None] for values in processor]
    if known == processor:
        return [mean(np.array(values)) for values in known], "processor time, on one thread"
    return [mean(np.array([row.seconds for row in each.history])) for each in trainings], "wall-clock time"


def epoch_time(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if for every student of E9 the seconds per epoch, divided by those of E1, the teacher at temperature
    1, lie within a tenth of the paper's 1.25 (`_time_of_the_paper`).
    """
    return _time_of_the_paper(evidence, "E9", paper.STUDENT_SECONDS)


def adjusted_epoch_time(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if for every student of E10 (the network of appendix B) the seconds per epoch, divided by those of
    E1, the teacher at temperature 1, lie within a tenth of the paper's 1.5 (`_time_of_the_paper`).
    """
    return _time_of_the_paper(evidence, "E10", paper.ADJUSTED_SECONDS)


def keeps_speed(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if for every student of E10 (the network of appendix B) the seconds per epoch are at most 1.1 times
    those of E1, the teacher at temperature 1, by the whole interval of the ratio; does not hold if all of it is larger;
    else no difference shown (`_epoch_time`). The text gives the paper's own ratio.
    """
    stated = _times_the_teacher(paper.ADJUSTED_SECONDS)
    opening = f"Kept is at most {SLOWER:g} times; the paper's own times give {stated:.2f}."
    return _epoch_time(evidence, "E10", lambda ratio: by_interval(plus_constant(ratio, -SLOWER), -1), opening)
