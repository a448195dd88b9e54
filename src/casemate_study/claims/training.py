"""The rules that judge the paper's claims about trainings: over-fitting, under-fitting, size and time."""

import numpy as np

from casemate.evaluation import Estimate, mean
from casemate_study.claims.rules import (
    NOTHING,
    ClaimEvidence,
    RuleResult,
    all_parts,
    at_all_temperatures,
    by_interval,
    in_words,
    judge_clean,
    points,
    student_names,
)
from casemate_study.experiments import paper
from casemate_study.results.independent import difference_of, ratio_of, share_of
from casemate_study.results.models import ModelResults
from casemate_study.results.paired import compare_accuracy, compare_confidence
from casemate_study.results.stored import EpochRow, StoredTraining


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


def _over_fits(model: ModelResults | None) -> RuleResult:
    """Rule: holds if the validation loss is higher after the last epoch than after its best, by any amount, and the
    training accuracy of the last epoch lies above the validation accuracy by the interval of the difference.
    """
    training = None if model is None else model.training
    if training is None:
        return NOTHING
    best, last = training.best, training.last
    trained, validated = _accuracies(training, last)
    gap = difference_of(trained, validated)
    rises = RuleResult(
        "holds" if last.val_loss > best.val_loss else "does not hold",
        f"{best.val_loss:.3f} after epoch {best.epoch}, the best, {last.val_loss:.3f} after epoch {last.epoch}, the "
        f"last (n = {training.validation_images:,}).",
    )
    words = f"Training {trained:n}, validation {validated:n} after epoch {last.epoch}: {points(gap)}."
    above = RuleResult(by_interval(gap, 1), words)
    return all_parts({"Validation loss rises": rises, "Training above validation accuracy": above})


def over_fits(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if the validation loss of E1, trained without early stopping, rises after its best epoch, and its
    training accuracy ends above its validation accuracy by the interval of the difference.
    """
    return _over_fits(evidence.models.get("E1"))


def student_over_fits(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if the validation loss of every student of E9 (distilled into the same architecture) rises after its
    best epoch, and its training accuracy ends above its validation accuracy by the interval of the difference.
    """
    names = student_names(evidence, "E9")
    return at_all_temperatures([(name, _over_fits(evidence.models.get(name))) for name in names])


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
    """Rule: holds if in the last epoch the training accuracy of every student of E10 (appendix B) exceeds its
    validation accuracy by less than that of E9's student of the same temperature does, by the interval of the
    difference. Training accuracies are measured with dropout; E10's is stronger, which favours the claim.
    """
    parts: list[tuple[str, RuleResult]] = []
    for name in student_names(evidence, "E10"):
        same = evidence.models.get(name.replace("E10", "E9"))
        trainings = evidence.models[name].training, None if same is None else same.training
        if same is None or trainings[0] is None or trainings[1] is None:
            continue
        gaps = [difference_of(*_accuracies(each, each.last)) for each in trainings if each is not None]
        difference = difference_of(*gaps)
        text = f"Training minus validation accuracy: {points(gaps[0])}; {same.model.name} {points(gaps[1])}"
        parts.append((name, RuleResult(by_interval(difference, -1), f"{text}. Difference: {points(difference)}.")))
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
    reached = [each.high >= stated.value - 0.005 and each.low < stated.value + 0.005 for _, each, stated in pairs]
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


def _epoch_time(evidence: ClaimEvidence, experiment: str, seconds: paper.Statement) -> RuleResult:
    """Rule: holds if for every student of the experiment the seconds per epoch, divided by those of E1, the teacher at
    temperature 1, lie within a fifth of the paper's `seconds` divided by its seconds for the teacher.
    """
    stated = seconds.value / paper.TEACHER_SECONDS.value
    e1 = evidence.models.get("E1")
    teacher = None if e1 is None else e1.training
    trainings = {name: evidence.models[name].training for name in student_names(evidence, experiment)}
    ratios = {
        name: ratio_of(_seconds(each), _seconds(teacher))
        for name, each in trainings.items()
        if each is not None and teacher is not None
    }
    if not ratios:
        return NOTHING
    text = ", ".join(f"{name} {ratio:.2fn}" for name, ratio in ratios.items())
    inside = all(abs(ratio.value - stated) <= 0.2 * stated for ratio in ratios.values())
    return RuleResult(
        "holds" if inside else "does not hold",
        f"The paper: {stated:.2f} times the teacher's. Ours (n in epochs): {text}.",
    )


def _seconds(training: StoredTraining) -> Estimate:
    """Mean seconds of an epoch, with the interval over the epochs."""
    return mean(np.array([row.seconds for row in training.history]))


def epoch_time(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if for every student of E9 the seconds per epoch, divided by those of E1, the teacher at temperature
    1, lie within a fifth of the paper's 1.25.
    """
    return _epoch_time(evidence, "E9", paper.STUDENT_SECONDS)


def adjusted_epoch_time(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if for every student of E10 (the network of appendix B) the seconds per epoch, divided by those of
    E1, the teacher at temperature 1, lie within a fifth of the paper's 1.5.
    """
    return _epoch_time(evidence, "E10", paper.ADJUSTED_SECONDS)
