"""The rules that judge the paper's claims about its defences. E1 is the undefended network, trained without early
stopping.
"""

from casemate.evaluation import percent
from casemate_study.claims.rules import (
    NOTHING,
    ClaimEvidence,
    RuleResult,
    at_all_temperatures,
    both_parts,
    judge_order,
    over_eps,
    why,
)
from casemate_study.experiments import paper
from casemate_study.results.paired import compare_accuracy, compare_loss


def under_fits(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if E5, the network trained with augmentation, has a higher validation than training accuracy at the
    epoch whose weights are kept.
    """
    e5 = evidence.models.get("E5")
    if e5 is None or e5.training is None:
        return NOTHING
    row = e5.training.best
    text = (
        f"After epoch {row.epoch}: training {percent(row.accuracy)} (augmented, with dropout), validation "
        f"{percent(row.val_accuracy)}; the paper: about 83 % and 89 %."
    )
    return RuleResult("holds" if row.val_accuracy > row.accuracy else "does not hold", text)


def lower_loss_and_accuracy(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if under FGSM both the loss and the accuracy of E5 (augmentation) lie below those of E1 (undefended),
    by paired tests (`judge_order`). The text adds both models' calibration errors on clean images.
    """
    loss = judge_order(evidence, "E5", "E1", "fgsm", -1, compare_loss)
    accuracy = judge_order(evidence, "E5", "E1", "fgsm", -1)
    found = both_parts(loss, accuracy, ("Lower loss", "Lower accuracy"))
    cleans = [each.clean for each in map(evidence.models.get, ("E5", "E1")) if each is not None and each.clean]
    if len(cleans) < 2:
        return found
    errors = " against ".join(percent(clean.calibration_error) for clean in cleans)
    return RuleResult(found.verdict, f"{found.because} Calibration error on clean images: {errors}.")


def keeps_70(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if the 95 % interval of the accuracy of E6 (adversarial regularisation) under FGSM at eps 0.2 reaches
    70 % or more.

    The text adds its accuracy under PGD at half that eps.
    """
    e6 = evidence.models.get("E6")
    left = None if e6 is None else e6.accuracy_under("fgsm", 0.2)
    if e6 is None or left is None:
        return NOTHING
    text = f"FGSM at 0.2 leaves {left:n}."
    strongest = e6.under_strongest(0.1)
    if strongest is not None:
        text += f" PGD-40 with restarts at half that eps, 0.1, leaves {strongest:n}."
    return RuleResult("holds" if left.high >= 0.7 else "does not hold", text + why(e6))


def loses_to_bim(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if E1 (undefended) is more accurate than E6 (adversarial regularisation) under BIM, both with clip
    ball and with clip range, by paired tests (`judge_order`).
    """
    parts = [judge_order(evidence, "E1", "E6", clip, 1) for clip in ("ball", "range")]
    return both_parts(parts[0], parts[1], ("Clip ball", "Clip range"))


def regularised_twice(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if under FGSM E7 (adversarial regularisation of the augmented E5) is less accurate than E6 (that of
    E1) by paired tests (`judge_order`), and at every eps its loss differs from E6's by at most a quarter of that.
    """
    accuracy = judge_order(evidence, "E7", "E6", "fgsm", -1)
    one, other = evidence.models.get("E7"), evidence.models.get("E6")
    losses = over_eps(one, other, "fgsm", "ce", compare_loss)
    if accuracy.verdict == "not measured" or not losses:
        return NOTHING
    par = all(abs(each.first - each.second) <= 0.25 * max(each.second, 1e-9) for each in losses)
    part = RuleResult(
        "holds" if par else "does not hold",
        "within a quarter of each other at every eps." if par else "further apart than a quarter at some eps.",
    )
    return both_parts(accuracy, part, ("Lower accuracy", "Loss on par"))


def four_rounds(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if E8 (four rounds of adversarial regularisation) is not more accurate than E6 (one round) by the
    paired test: under FGSM at any eps, or under PGD at eps 0.1.
    """
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
    return RuleResult("holds" if no_better else "does not hold", text + "." + why(one, other))


def student_names(evidence: ClaimEvidence, *experiments: str) -> list[str]:
    """The names of the measured distillation students of these experiments ("E9", "E10"), of all temperatures.

    The rules compare each with E1, the undefended network, which is the teacher at temperature 1.
    """
    return [name for each in experiments for name in evidence.models if name.startswith(f"{each}-")]


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


def epoch_time(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if for every student of E9 the seconds per epoch, divided by those of E1, the teacher at temperature
    1, lie within a fifth of the paper's 1.25.
    """
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
    return RuleResult(
        "holds" if inside else "does not hold", f"The paper: {stated:.2f} times the teacher's. Ours: {text}."
    )


def early_stopped_fgsm(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if E11 (E1 stopped early) is more accurate than E1 (trained to the end) under FGSM, by paired tests
    (`judge_order`). The text adds both models' accuracies under PGD at small eps.
    """
    found = judge_order(evidence, "E11", "E1", "fgsm", 1)
    one, other = evidence.models.get("E11"), evidence.models.get("E1")
    if one is None or other is None or found.verdict == "not measured":
        return found
    words = []
    for eps in (0.01, 0.025):
        strong = compare_accuracy(one.artifact("pgd"), other.artifact("pgd"), "eps", eps)
        if strong is not None:
            words.append(f"PGD-40 with restarts at {eps:g}: {percent(strong.first)} against {percent(strong.second)}")
    return RuleResult(found.verdict, f"{found.because} {'; '.join(words)}." if words else found.because)


def weight_decay_fgsm(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if, of the models of E12 (weight decay), the one with the lowest validation loss is more accurate
    than E1 (undefended) under FGSM, by paired tests (`judge_order`).
    """
    losses = {
        name: each.training.best.val_loss
        for name, each in evidence.models.items()
        if name.startswith("E12-") and each.training is not None
    }
    if not losses:
        return NOTHING
    chosen = min(losses, key=lambda name: losses[name])
    found = judge_order(evidence, chosen, "E1", "fgsm", 1)
    return RuleResult(found.verdict, f"Selected on validation: {evidence.models[chosen].title}. {found.because}")
