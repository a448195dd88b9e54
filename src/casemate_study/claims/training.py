"""The rules that judge the paper's claims about trainings: over-fitting, under-fitting, size and time."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np

from casemate.evaluation import Estimate, mean
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
)
from casemate_study.claims.temperatures import at_all_temperatures, student_names
from casemate_study.experiments import paper
from casemate_study.results.independent import difference_of, plus_constant, ratio_of, share_of
from casemate_study.results.models import ModelResults
from casemate_study.results.paired import compare_accuracy, compare_confidence
from casemate_study.results.stored import EpochRow, StoredTraining

RISE = 0.05
"""The smallest rise of a loss after its lowest value, as a fraction of that, that counts; and the smallest difference
of two such rises."""
SPEED = 0.2
"""The largest deviation from the paper's ratio of two times, as a fraction of it, that counts as the same ratio."""
SLOWER = 1.1
"""The largest ratio of a student's time per epoch to its teacher's at which the speed counts as kept."""


def under_fits(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if E5, the network trained with augmentation, has a higher validation than training accuracy at the
    epoch whose weights are kept.
    """
    e5 = evidence.models.get("E5")
    if e5 is None or e5.training is None:
        return NOTHING
    row = e5.training.best
    trained, validated = _accuracies(e5.training, row)
    text = (
        f"After epoch {row.epoch}: training {trained:n} (augmented, with dropout), validation {validated:n}; the "
        "paper: about 83 % and 89 %."
    )
    return RuleResult("holds" if row.val_accuracy > row.accuracy else "does not hold", text)


def _accuracies(training: StoredTraining, row: EpochRow) -> tuple[Estimate, Estimate]:
    """The accuracies on the training images (measured during training: augmented, with dropout) and on the validation
    images.
    """
    trained = share_of(row.accuracy, training.train_images)
    return trained, share_of(row.val_accuracy, training.validation_images)


@final
@dataclass(frozen=True)
class _Rise:
    """How much higher a loss is at the end of a training than at its lowest."""

    value: float
    """As a fraction of the lowest."""
    words: str
    """Such as "the validation loss +200 %, from 0.300 after epoch 2 to 0.900 at the end, epoch 3"."""


def _rise(model: ModelResults | None) -> _Rise | None:
    """The rise of a model's loss until the end of its training; None if it is not measured.

    Of a student it is the loss of the true labels of the test images, with the final weights and with those of its
    lowest validation loss, since its validation loss is about the answers of its teacher. Of other models it is the
    validation loss, of which single images are not stored: so no interval is given.
    """
    training = None if model is None else model.training
    if model is None or training is None:
        return None
    if model.model.experiment in ("E9", "E10"):
        final, best = model.clean, model.clean_best
        if final is None or best is None:
            return None
        rise = final.loss.value / max(best.loss.value, 1e-9) - 1
        words = f"{best.loss.value:.3f} with the weights of the lowest validation loss to {final.loss.value:.3f}"
        return _Rise(
            rise, f"the test loss {100 * rise:+.0f} %, from {words} with the final ones (n = {final.loss.n:,})"
        )
    lowest, last = min(training.history, key=lambda row: row.val_loss), training.last
    rise = last.val_loss / max(lowest.val_loss, 1e-9) - 1
    words = f"{lowest.val_loss:.3f} after epoch {lowest.epoch} to {last.val_loss:.3f} at the end, epoch {last.epoch}"
    return _Rise(rise, f"the validation loss {100 * rise:+.0f} %, from {words} (n = {training.validation_images:,})")


def _less_rise(first: ModelResults | None, second: ModelResults | None) -> RuleResult:
    """Rule: holds if the loss of the first model rises less after its lowest value than that of the second (`_rise`),
    by 5 points or more in percent of the lowest; does not hold if by as much more; else no difference shown.
    """
    one, other = _rise(first), _rise(second)
    if one is None or other is None:
        return NOTHING
    excess = one.value - other.value
    verdict: ClaimVerdict = "no difference shown"
    if abs(excess) >= RISE:
        verdict = "holds" if excess < 0 else "does not hold"
    return RuleResult(verdict, f"Rise of {one.words}; against {other.words}.")


def _over_fits(model: ModelResults | None) -> RuleResult:
    """Rule: holds if the loss ends above its lowest value, by 5 % of the latter or more (`_rise`), and the training
    accuracy of the last epoch lies above the validation accuracy by the interval of the difference.
    """
    training, rise = None if model is None else model.training, _rise(model)
    if training is None or rise is None:
        return NOTHING
    trained, validated = _accuracies(training, training.last)
    gap = difference_of(trained, validated)
    rises = RuleResult("holds" if rise.value >= RISE else "does not hold", f"Rise of {rise.words}.")
    words = f"Training {trained:n}, validation {validated:n} after epoch {training.last.epoch}: {points(gap)}."
    above = RuleResult(by_interval(gap, 1), words)
    return all_parts({"Loss rises": rises, "Training above validation accuracy": above})


def over_fits(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if the validation loss of E1, trained without early stopping, rises by 5 % or more after its lowest
    value, and its training accuracy ends above its validation accuracy by the interval of the difference.
    """
    return _over_fits(evidence.models.get("E1"))


def student_over_fits(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if the loss of every student of E9 (distilled into the same architecture) rises by 5 % or more after
    its lowest value (`_rise`), and its training accuracy ends above its validation accuracy by the interval of the
    difference (`at_all_temperatures`).
    """
    names = student_names(evidence, "E9")
    return at_all_temperatures({name: {"": _over_fits(evidence.models.get(name))} for name in names})


def augmented_over_fits_less(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if E5 (augmentation) over-fits less than E1 (trained without early stopping), both as trained: the
    training accuracy exceeds the validation accuracy by less, at the epoch whose weights are kept (E5's best, E1's
    last), by the interval of the difference; and the validation loss rises less after its lowest value, by 5 points or
    more in percent of it.

    E5's training accuracy is that on augmented images, which favours the claim; so does its early stopping.
    """
    e5, e1 = evidence.models.get("E5"), evidence.models.get("E1")
    if e5 is None or e1 is None or e5.training is None or e1.training is None:
        return NOTHING
    gaps = [
        difference_of(*_accuracies(training, row))
        for training, row in ((e5.training, e5.training.best), (e1.training, e1.training.last))
    ]
    difference = difference_of(*gaps)
    text = f"Training minus validation accuracy: {points(gaps[0])}; E1 {points(gaps[1])}. {points(difference)}."
    smaller = RuleResult(by_interval(difference, -1), text)
    return all_parts({"Smaller gap": smaller, "Loss rises less": _less_rise(e5, e1)})


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
    text = f"Training accuracy {augmented:n} against {plain:n}: {points(difference)}; {100 * CLEARLY:g} points count."
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
    """Rule: holds if the loss of every student of E10 (appendix B) rises less after its lowest value (`_rise`) than
    that of E9's student of the same temperature, by 5 points or more in percent of the lowest; does not hold if by as
    much more; else no difference shown (`at_all_temperatures`). The text adds by how much training accuracies exceed
    validation accuracies; they decide nothing, since E10's stronger dropout lowers its training accuracy.
    """
    parts: dict[str, dict[str, RuleResult]] = {}
    for name in student_names(evidence, "E10"):
        same = evidence.models.get(name.replace("E10", "E9"))
        student = evidence.models[name]
        mine, other = student.training, None if same is None else same.training
        if mine is None or other is None:
            continue
        found = _less_rise(student, same)
        gaps = " against ".join(points(difference_of(*_accuracies(each, each.last))) for each in (mine, other))
        text = f"{found.text} Training minus validation accuracy, with dropout: {gaps}."
        parts[name] = {"": RuleResult(found.verdict, text)}
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
        ("test", e5.clean.accuracy, paper.AUGMENTED_VALIDATION),
        ("validation", validated, paper.AUGMENTED_VALIDATION),
        ("training", trained, paper.AUGMENTED_TRAINING),
    )
    reached = [agrees(each, stated, 0.01) for _, each, stated in pairs]
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
    """Rule: holds if every ratio of `_epoch_time` lies within a fifth of the paper's `seconds` divided by its seconds
    for the teacher.
    """
    stated = _times_the_teacher(seconds)

    def judge(ratio: Estimate) -> ClaimVerdict:
        return "holds" if abs(ratio.value - stated) <= SPEED * stated else "does not hold"

    return _epoch_time(evidence, experiment, judge, f"The paper: {stated:.2f} times the teacher's.")


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
    1, lie within a fifth of the paper's 1.25 (`_time_of_the_paper`).
    """
    return _time_of_the_paper(evidence, "E9", paper.STUDENT_SECONDS)


def adjusted_epoch_time(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if for every student of E10 (the network of appendix B) the seconds per epoch, divided by those of
    E1, the teacher at temperature 1, lie within a fifth of the paper's 1.5 (`_time_of_the_paper`).
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
