"""The rules that judge the paper's claims about its defences other than distillation. E1 is the undefended network,
trained without early stopping.
"""

from collections.abc import Sequence

from casemate.evaluation import percent
from casemate_study.claims.rules import (
    CLEARLY,
    MUCH,
    NOTHING,
    ClaimEvidence,
    ClaimVerdict,
    RuleResult,
    adjusted_together,
    all_parts,
    count_orders,
    in_words,
    joined,
    judge_best,
    judge_clean,
    judge_clear_order,
    judge_much_lower_loss,
    judge_order,
    over_eps,
    reaches,
    tally,
    why,
)
from casemate_study.claims.temperatures import student_names
from casemate_study.claims.verdicts import EPS, single_step_cause
from casemate_study.results.models import ModelResults
from casemate_study.results.paired import (
    PairedComparison,
    adjusted,
    compare_accuracy,
    compare_confidence,
    compare_loss,
)

NEAR_ZERO = 0.05
"""Accuracy under PGD, as a fraction, up to which nothing is left to compare."""


def lower_loss_and_accuracy(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if under FGSM both the loss and the accuracy of E5 (augmentation) lie below those of E1 (undefended),
    by paired tests (`judge_order`). The text adds both models' calibration errors on clean images.
    """
    loss = judge_order(evidence, "E5", "E1", "fgsm", -1, compare_loss)
    accuracy = judge_order(evidence, "E5", "E1", "fgsm", -1)
    found = all_parts({"Lower loss": loss, "Lower accuracy": accuracy})
    cleans = [each.clean for each in map(evidence.models.get, ("E5", "E1")) if each is not None and each.clean]
    if len(cleans) < 2:
        return found
    errors = " against ".join(f"{percent(clean.calibration_error)} (n = {clean.accuracy.n:,})" for clean in cleans)
    return RuleResult(found.verdict, f"{found.text} Calibration error on clean images: {errors}.", found.causes)


def much_lower_loss(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if under FGSM at eps 0.1 the loss of E5 (augmentation) is lower than that of E1 (undefended), and at
    most half of it (`judge_much_lower_loss`).
    """
    return judge_much_lower_loss(evidence, "E5", "E1", "fgsm")


def less_responsive(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if adversarial regularisation makes a model that is more accurate under FGSM when it starts from E11,
    which does not over-fit, than when it starts from E1 (E6), by paired tests (`judge_order`).
    """
    return judge_order(evidence, "E6-stopped", "E6", "fgsm", 1)


def clean_loss_and_accuracy(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if on images without an attack both the loss and the accuracy of E5 (augmentation) lie below those of
    E1 (undefended), by the paired tests.
    """
    return all_parts(
        {
            "Lower loss": judge_clean(evidence, "E5", "E1", -1, compare_loss, "Loss"),
            "Lower accuracy": judge_clean(evidence, "E5", "E1", -1, compare_accuracy, "Accuracy"),
        }
    )


def less_confident(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if the mean confidence (probability of the predicted class) of E5 (augmentation) on images without an
    attack lies below that of E1 (undefended), by the interval of the paired difference.
    """
    return judge_clean(evidence, "E5", "E1", -1, compare_confidence, "Mean confidence")


def augmentation_does_little(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if under FGSM and under BIM with either clipping E5 (augmentation) gains less than 10 points of
    accuracy over E1 (undefended) at every eps, by the upper ends of the intervals of the paired difference; does not
    hold if at some eps it gains 10 points or more, with Holm's correction for all eps and attacks; else no difference
    shown (`reaches`).

    `helps_against_fgsm` has the same threshold.
    """
    one, other = evidence.models.get("E5"), evidence.models.get("E1")
    words: list[str] = []
    every: list[PairedComparison] = []
    for measure, name in (("fgsm", "FGSM"), ("ball", "BIM, clip ball"), ("range", "BIM, clip range")):
        orders = over_eps(one, other, measure, "ce", compare_accuracy)
        if not orders:
            return NOTHING
        every += orders
        most = max(orders, key=lambda each: each.difference.value)
        words.append(f"{name}: {in_words(most, compare_accuracy)}")
    if one is None:
        return NOTHING
    text = f"At the eps where E5 gains most over E1, {'; '.join(words)}. Much is {percent(MUCH, 0)} of all images."
    much = reaches(every, 1, MUCH)
    little: ClaimVerdict = "holds" if much == "does not hold" else "no difference shown"
    return RuleResult("does not hold" if much == "holds" else little, text, why(one))


def keeps_70(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if the 95 % interval of the accuracy of E6 (adversarial regularisation) under FGSM at eps 0.2 reaches
    a number that rounds to 70 %, or more.

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
    return RuleResult("holds" if left.high >= 0.695 else "does not hold", text, why(e6))


def helps_against_fgsm(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if E6 (adversarial regularisation) is more accurate than E1 (undefended) under FGSM, by paired tests,
    and at some eps by 10 points or more, by the interval (`judge_clear_order`). `augmentation_does_little` has the same
    threshold.
    """
    return judge_clear_order(evidence, "E6", "E1", "fgsm", 1, MUCH)


def best_of_four(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if under FGSM E6 (adversarial regularisation) is more accurate than each of the other three models of
    the paper's figure 15: E1 (undefended), E5 (augmentation) and E7 (both), by paired tests (`judge_best`). Not
    measured unless all four models are.
    """
    others = ("E1", "E5", "E7")
    e6 = evidence.models.get("E6")
    if e6 is None or any(each not in evidence.models or not evidence.models[each].curve("fgsm") for each in others):
        return NOTHING
    found = judge_best(evidence, "E6", others, "fgsm")
    return RuleResult(found.verdict, found.text, why(e6))


def _rivals(evidence: ClaimEvidence, measure: str) -> list[str]:
    """The names of E1 (undefended) and of the models of the paper's other defences (E5, E7, E9, E10) that are measured
    under FGSM or PGD (`measure`); empty without E1, E5 and a student, since "best of all" needs them.
    """
    names = ["E1", "E5", "E7", *student_names(evidence, "E9", "E10")]
    loss = "ce" if measure == "fgsm" else None
    known = [each for each in names if each in evidence.models and evidence.models[each].artifact(measure, loss)]
    return known if {"E1", "E5"} <= set(known) and len(set(known) - {"E1", "E5", "E7"}) else []


def best_of_all(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if under FGSM E6 (adversarial regularisation) has a higher accuracy and a lower loss than E1
    (undefended) and every model of the other defences (E5, E7, E9, E10), by paired tests (`judge_best`). Not measured
    without E1, E5 and a student.
    """
    others = _rivals(evidence, "fgsm")
    parts = {
        "Accuracy": judge_best(evidence, "E6", others, "fgsm"),
        "Loss": judge_best(evidence, "E6", others, "fgsm", -1, compare_loss),
    }
    return all_parts(parts)


def _pgd_eps(models: Sequence[ModelResults]) -> list[float]:
    """The values of eps at which PGD was run on all of these models and that can tell them apart: 0.1, and the smallest
    at which it leaves at least one of them more than 5 %, by the interval.
    """
    found: list[float] = []
    first = models[0].pgd
    for eps in sorted(point.eps for point in ([] if first is None else first.points)):
        left = [model.under_strongest(eps) for model in models]
        known = [each for each in left if each is not None]
        if len(known) == len(models) and (eps == EPS or (not found and any(each.low > NEAR_ZERO for each in known))):
            found.append(eps)
    return found


def strongest(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if E6 (adversarial regularisation) is more accurate under PGD than E1 (undefended) and every model of
    the other defences (E5, E7, E9, E10): against each at some eps by the paired test, and at none the reverse
    (`tally`), with Holm's correction for all models and eps. Not measured without E1, E5 and a student.

    The values of eps are 0.1, and the smallest that was measured on all models at which PGD leaves one of them more
    than 5 %: at 0.1 it may leave none of them anything.
    """
    e6 = evidence.models.get("E6")
    others = {
        name: evidence.models[name]
        for name in _rivals(evidence, "pgd")
        if evidence.models[name].under_strongest(EPS) is not None
    }
    if e6 is None or not others or e6.under_strongest(EPS) is None:
        return NOTHING
    values = _pgd_eps([e6, *others.values()])
    found: dict[str, list[PairedComparison]] = {}
    for name, other in others.items():
        orders = [compare_accuracy(e6.artifact("pgd"), other.artifact("pgd"), "eps", eps) for eps in values]
        found[name] = [each for each in orders if each is not None]
    tested = adjusted_together(found)
    words = [
        f"{name}: {count_orders(orders, 1)} ({'; '.join(in_words(each, compare_accuracy) for each in orders)})"
        for name, orders in tested.items()
    ]
    where = " and ".join(f"{eps:g}" for eps in values)
    text = f'"{e6.title}" under PGD-40 with restarts at {where} against {"; ".join(words)}.'
    return RuleResult(joined([tally(orders, 1) for orders in tested.values()]), text)


def fitted_to_one_step(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if E6 (adversarial regularisation) is fitted to one step of attack, which is how this claim is read
    here: FGSM at eps 0.1 leaves more than the interval of its clean accuracy, or over 20 points more than PGD at the
    same eps (`single_step_cause`).
    """
    e6 = evidence.models.get("E6")
    if e6 is None or e6.clean is None:
        return NOTHING
    one, many = e6.accuracy_under("fgsm", EPS), e6.under_strongest(EPS)
    if one is None or many is None:
        return NOTHING
    text = (
        f"E6 at eps {EPS:g}: FGSM leaves {one:n}, PGD-40 with restarts {many:n}; without an attack "
        f"{e6.clean.accuracy:n}."
    )
    return RuleResult("holds" if single_step_cause(e6) else "does not hold", text)


def loses_to_bim(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if E1 (undefended) is more accurate than E6 (adversarial regularisation) under BIM, both with clip
    ball and with clip range, by paired tests (`judge_order`).
    """
    return all_parts({f"Clip {clip}": judge_order(evidence, "E1", "E6", clip, 1) for clip in ("ball", "range")})


def regularised_twice(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if under FGSM E7 (adversarial regularisation of the augmented E5) is much less accurate than E6 (that
    of E1): by paired tests, and at some eps by 10 points or more, by the interval (`judge_clear_order`). At every eps
    its loss must differ from E6's by at most a quarter of that.
    """
    accuracy = judge_clear_order(evidence, "E7", "E6", "fgsm", -1, MUCH)
    one, other = evidence.models.get("E7"), evidence.models.get("E6")
    losses = over_eps(one, other, "fgsm", "ce", compare_loss)
    if accuracy.verdict == "not measured" or not losses:
        return NOTHING
    par = all(abs(each.first - each.second) <= 0.25 * max(each.second, 1e-9) for each in losses)
    at = next(each for each in losses if abs(each.difference.value) == max(abs(e.difference.value) for e in losses))
    shown = f"{'within a quarter of each other at every' if par else 'further apart than a quarter at some'} eps"
    part = RuleResult(
        "holds" if par else "does not hold", f"{shown}. The largest difference: {in_words(at, compare_loss)}."
    )
    return all_parts({"Much lower accuracy": accuracy, "Loss on par": part})


def four_rounds(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if E8 (four rounds of adversarial regularisation) is not more accurate than E6 (one round) by paired
    tests: under FGSM at any eps, or under PGD at eps 0.1, with Holm's correction for all of these.
    """
    one, other = evidence.models.get("E8"), evidence.models.get("E6")
    orders = over_eps(one, other, "fgsm", "ce", compare_accuracy)
    if one is None or other is None or not orders:
        return NOTHING
    strong = compare_accuracy(one.artifact("pgd"), other.artifact("pgd"), "eps", EPS)
    tested = adjusted([*orders, *([] if strong is None else [strong])])
    better = sum(each.order > 0 for each in tested[: len(orders)])
    most = max(orders, key=lambda each: each.difference.value)
    text = f"Under FGSM E8 is more accurate at {better} of {len(orders)} eps"
    if strong is not None:
        text += f"; under PGD at {EPS:g}: {in_words(strong, compare_accuracy)}"
    text += f". Where FGSM favours it most: {in_words(most, compare_accuracy)}"
    no_better = all(each.order <= 0 for each in tested)
    return RuleResult("holds" if no_better else "does not hold", text + ".", why(one, other))


def early_stopped_fgsm(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if E11 (E1 stopped early) is clearly more accurate than E1 (trained to the end) under FGSM: by paired
    tests, and at some eps by 5 points or more, by the interval (`judge_clear_order`). The text adds both models'
    accuracies under PGD at small eps.
    """
    found = judge_clear_order(evidence, "E11", "E1", "fgsm", 1, CLEARLY)
    one, other = evidence.models.get("E11"), evidence.models.get("E1")
    if one is None or other is None or found.verdict == "not measured":
        return found
    words = []
    for eps in (0.01, 0.025):
        strong = compare_accuracy(one.artifact("pgd"), other.artifact("pgd"), "eps", eps)
        if strong is not None:
            words.append(f"PGD-40 with restarts at {eps:g}: {in_words(strong, compare_accuracy)}")
    return RuleResult(found.verdict, f"{found.text} {'; '.join(words)}." if words else found.text, found.causes)


def early_stopped_loss(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if the loss of E11 (E1 stopped early) lies below that of E1 (trained to the end) under FGSM, by
    paired tests (`judge_order`).
    """
    return judge_order(evidence, "E11", "E1", "fgsm", -1, compare_loss)


def _under_fgsm_and_bim(evidence: ClaimEvidence, first: str, second: str) -> RuleResult:
    """Rule: holds if the model called `first` is more accurate than that called `second` under FGSM and under BIM with
    clip ball, by paired tests (`judge_order`).
    """
    return all_parts(
        {
            name: judge_order(evidence, first, second, measure, 1)
            for name, measure in (("FGSM", "fgsm"), ("BIM", "ball"))
        }
    )


def weight_decay(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if, of the models of E12 (weight decay), the one with the lowest validation loss is more accurate
    than E1 (undefended) under FGSM and under BIM with clip ball, by paired tests (`judge_order`).
    """
    losses = {
        name: each.training.best.val_loss
        for name, each in evidence.models.items()
        if name.startswith("E12-") and each.training is not None
    }
    if not losses:
        return NOTHING
    chosen = min(losses, key=lambda name: losses[name])
    found = _under_fgsm_and_bim(evidence, chosen, "E1")
    selected = f"Selected on validation: {evidence.models[chosen].title}."
    return RuleResult(found.verdict, f"{selected} {found.text}", found.causes)


def regularise_first(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if E13's adversarial regularisation of a weight-decayed, early-stopped model is more accurate than
    E6, that of E1, under FGSM and under BIM with clip ball, by paired tests (`judge_order`). No other defence is
    tested.
    """
    return _under_fgsm_and_bim(evidence, "E13-regularised", "E6")


def deeper_with_augmentation(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if E13's residual network (deeper than E5's), trained with E5's augmentation and weight decay, is
    more accurate than E5 under FGSM and under BIM with clip ball, by paired tests (`judge_order`).
    """
    return _under_fgsm_and_bim(evidence, "E13-resnet", "E5")
