"""The rules of the paper's claims about its defences."""

from casemate_study.claims.rules import (
    NOTHING,
    ClaimEvidence,
    Found,
    at_all,
    both_parts,
    order,
    over_eps,
    why,
)
from casemate_study.claims.verdicts import interval, percent
from casemate_study.experiments import paper
from casemate_study.results import compare_accuracy, compare_loss


def under_fits(evidence: ClaimEvidence) -> Found:
    """Rule: at the epoch kept, validation accuracy above training accuracy."""
    e5 = evidence.models.get("E5")
    trained = None if e5 is None else e5.trained
    if trained is None:
        return NOTHING
    row = trained["history"][trained["best_epoch"] - 1]
    text = (
        f"After epoch {row['epoch']}: training {percent(row['accuracy'])} (augmented, with dropout), validation "
        f"{percent(row['val_accuracy'])}; the paper: about 83 % and 89 %."
    )
    return Found("holds" if row["val_accuracy"] > row["accuracy"] else "does not hold", text)


def lower_loss_and_accuracy(evidence: ClaimEvidence) -> Found:
    loss = order(evidence, "E5", "E1", "fgsm", -1, compare_loss)
    accuracy = order(evidence, "E5", "E1", "fgsm", -1)
    found = both_parts(loss, accuracy, ("Lower loss", "Lower accuracy"))
    one, other = evidence.models.get("E5"), evidence.models.get("E1")
    if one and other and one.clean and other.clean:
        errors = [each.clean["calibration_error"] for each in (one, other) if each.clean]
        found = Found(
            found.verdict,
            f"{found.because} Calibration error on clean images: {percent(errors[0])} against {percent(errors[1])}.",
        )
    return found


def keeps_70(evidence: ClaimEvidence) -> Found:
    """Rule: the interval reaches 70 % at eps 0.2 under FGSM."""
    e6 = evidence.models.get("E6")
    left = None if e6 is None else e6.left("fgsm", 0.2)
    if e6 is None or left is None:
        return NOTHING
    text = f"FGSM at 0.2 leaves {interval(left)}."
    strongest = e6.strongest(0.1)
    if strongest is not None:
        text += f" PGD-40 with restarts at half that eps, 0.1, leaves {interval(strongest)}."
    return Found("holds" if left["high"] >= 0.7 else "does not hold", text + why(e6))


def loses_to_bim(evidence: ClaimEvidence) -> Found:
    parts = [order(evidence, "E1", "E6", clip, 1) for clip in ("ball", "range")]
    return both_parts(parts[0], parts[1], ("Clip ball", "Clip range"))


def e7(evidence: ClaimEvidence) -> Found:
    accuracy = order(evidence, "E7", "E6", "fgsm", -1)
    one, other = evidence.models.get("E7"), evidence.models.get("E6")
    losses = over_eps(one, other, "fgsm", "ce", compare_loss)
    if accuracy.verdict == "not measured" or not losses:
        return NOTHING
    par = all(abs(each.first - each.second) <= 0.25 * max(each.second, 1e-9) for each in losses)
    part = Found(
        "holds" if par else "does not hold",
        "within a quarter of each other at every eps." if par else "further apart than a quarter at some eps.",
    )
    return both_parts(accuracy, part, ("Lower accuracy", "Loss on par"))


def e8(evidence: ClaimEvidence) -> Found:
    """Rule: nowhere more accurate than E6 by the paired test, under FGSM and under PGD."""
    one, other = evidence.models.get("E8"), evidence.models.get("E6")
    orders = over_eps(one, other, "fgsm", "ce", compare_accuracy)
    if one is None or other is None or not orders:
        return NOTHING
    strong = compare_accuracy(one.artifact("pgd"), other.artifact("pgd"), "eps", 0.1)
    better = sum(each.order > 0 for each in orders)
    text = f"Under FGSM E8 is the more accurate at {better} of {len(orders)} eps"
    if strong is not None:
        text += f"; under PGD at 0.1 it leaves {percent(strong.first)}, E6 {percent(strong.second)}"
    no_better = better == 0 and (strong is None or strong.order <= 0)
    return Found("holds" if no_better else "does not hold", text + "." + why(one, other))


def students(evidence: ClaimEvidence, experiment: str) -> list[tuple[str, str]]:
    """The students of an experiment and their teachers, by the names of models: T = 1 is taught by E1."""
    return [(name, "E1") for name in evidence.models if name.startswith(f"{experiment}-")]


def calmer_students(evidence: ClaimEvidence) -> Found:
    parts = [
        (f"{name}, {measure}", order(evidence, name, teacher, measure, -1, compare_loss))
        for experiment in ("E9", "E10")
        for name, teacher in students(evidence, experiment)
        for measure in ("fgsm", "ball", "range")
    ]
    return at_all(parts)


def students_fgsm(evidence: ClaimEvidence) -> Found:
    parts = [(name, order(evidence, name, by, "fgsm", 1)) for name, by in students(evidence, "E9")]
    return at_all(parts)


def students_bim(evidence: ClaimEvidence) -> Found:
    parts = [
        (f"{name}, clip {clip}", order(evidence, by, name, clip, 1))
        for name, by in students(evidence, "E9")
        for clip in ("ball", "range")
    ]
    return at_all(parts)


def adjusted_bim(evidence: ClaimEvidence) -> Found:
    """Compared at every eps up to 0.1, which is how far the paper's claim goes."""
    parts = [(name, order(evidence, name, by, "ball", 1, up_to=0.1)) for name, by in students(evidence, "E10")]
    return at_all(parts)


def epoch_time(evidence: ClaimEvidence) -> Found:
    """Rule: the ratio of seconds per epoch, student to teacher, within a fifth of the paper's 1.25."""
    stated = paper.STUDENT_SECONDS.value / paper.TEACHER_SECONDS.value
    e1 = evidence.models.get("E1")
    ratios = {
        name: each.seconds[1] / e1.seconds[1]
        for name, each in evidence.models.items()
        if name.startswith("E9-") and each.seconds and e1 and e1.seconds
    }
    if not ratios:
        return NOTHING
    text = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    inside = all(abs(ratio - stated) <= 0.2 * stated for ratio in ratios.values())
    return Found("holds" if inside else "does not hold", f"The paper: {stated:.2f} times the teacher's. Ours: {text}.")


def early(evidence: ClaimEvidence) -> Found:
    found = order(evidence, "E11", "E1", "fgsm", 1)
    one, other = evidence.models.get("E11"), evidence.models.get("E1")
    if one is None or other is None or found.verdict == "not measured":
        return found
    words = []
    for eps in (0.01, 0.025):
        strong = compare_accuracy(one.artifact("pgd"), other.artifact("pgd"), "eps", eps)
        if strong is not None:
            words.append(f"PGD-40 with restarts at {eps:g}: {percent(strong.first)} against {percent(strong.second)}")
    return Found(found.verdict, f"{found.because} {'; '.join(words)}." if words else found.because)


def decayed(evidence: ClaimEvidence) -> Found:
    names = [name for name in evidence.models if name.startswith("E12-")]
    losses: dict[str, float] = {}
    for name in names:
        trained = evidence.models[name].trained
        if trained is not None:
            losses[name] = trained["history"][trained["best_epoch"] - 1]["val_loss"]
    if not losses:
        return NOTHING
    chosen = min(losses, key=lambda name: losses[name])
    found = order(evidence, chosen, "E1", "fgsm", 1)
    return Found(found.verdict, f"Selected on validation: {evidence.models[chosen].title}. {found.because}")
