"""The rules that judge the paper's claims about its defences other than distillation. E1 is the undefended network,
trained without early stopping.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np

from casemate.evaluation import percent
from casemate.losses import TITLES
from casemate_study.claims.rules import (
    CLEARLY,
    EQUAL,
    MUCH,
    NOTHING,
    ClaimEvidence,
    ClaimVerdict,
    RuleResult,
    adjusted_together,
    all_parts,
    by_interval,
    count_orders,
    everywhere,
    in_words,
    joined,
    judge_best,
    judge_clean,
    judge_clear_order,
    judge_much_lower_loss,
    judge_order,
    left_open,
    never_reaches,
    over_eps,
    tally,
    under_pgd,
    why,
    with_other_losses,
)
from casemate_study.claims.temperatures import student_names
from casemate_study.claims.verdicts import COLLAPSED, EPS
from casemate_study.experiments.specs import LOSSES
from casemate_study.results.independent import plus_constant
from casemate_study.results.models import ModelResults
from casemate_study.results.paired import (
    PairedComparison,
    adjusted,
    compare_accuracy,
    compare_confidence,
    compare_loss,
    compare_values,
    is_correct,
)

ON_PAR = 0.25
"""The largest difference of two losses, as a share of the second, at which they count as on par."""


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
    most half of it (`judge_much_lower_loss`). The text adds the verdicts with the other losses ascended
    (`with_other_losses`).
    """
    return with_other_losses(lambda loss: judge_much_lower_loss(evidence, "E5", "E1", "fgsm", loss))


def less_responsive(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if adversarial regularisation gains more accuracy under FGSM over E11, which does not over-fit, where
    it starts from that, than over E1 where it starts from that (E6): at some eps by the interval of the difference of
    both gains on the same images, and at none the reverse (`tally`).
    """
    names = ("E6-stopped", "E11", "E6", "E1")
    curves = [None if name not in evidence.models else evidence.models[name].curve("fgsm") for name in names]
    known = [each for each in curves if each is not None]
    if len(known) < len(names):
        return NOTHING
    shared = [point.at for point in known[0].points if point.at and all(each.at(point.at) for each in known)]
    by_eps = {eps: _gains(evidence, names, eps) for eps in shared}
    tested = adjusted([each for each in by_eps.values() if each is not None])
    verdict, at = tally(tested, 1), by_eps.get(EPS)
    if verdict == "not measured":
        return NOTHING
    text = f"Gains of E6-stopped over E11 against those of E6 over E1 under FGSM: {count_orders(tested, 1)}"
    text += "." if at is None else f" (at {EPS:g}: {in_words(at, compare_accuracy)})."
    if verdict == "no difference shown":
        text += f" Not excluded: {left_open(tested, compare_accuracy)}."
    return RuleResult(verdict, text, why(*(evidence.models[name] for name in names)))


def _gains(evidence: ClaimEvidence, names: Sequence[str], eps: float) -> PairedComparison | None:
    """Compare the gain of accuracy under FGSM of the first of four models over the second with that of the third over
    the fourth, on the same images.
    """
    artifacts = [evidence.models[name].artifact("fgsm", "ce") for name in names]
    hits = [is_correct(each, "eps", eps).astype(np.float64) for each in artifacts if each is not None]
    n = min(map(len, hits))
    first, start, second, other = (each[:n] for each in hits)
    return compare_values(first - start, second - other)


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
    shown (`never_reaches`).

    `helps_against_fgsm` has the same threshold. The text adds the verdicts with the other losses ascended
    (`with_other_losses`).
    """
    return with_other_losses(partial(_augmentation_does_little, evidence))


def _augmentation_does_little(evidence: ClaimEvidence, loss: str) -> RuleResult:
    """Apply the rule of `augmentation_does_little` to attacks that ascend one loss."""
    one, other = evidence.models.get("E5"), evidence.models.get("E1")
    words: list[str] = []
    every: list[PairedComparison] = []
    for measure, name in (("fgsm", "FGSM"), ("ball", "BIM, clip ball"), ("range", "BIM, clip range")):
        orders = over_eps(one, other, measure, loss, compare_accuracy)
        if not orders:
            return NOTHING
        every += orders
        most = max(orders, key=lambda each: each.difference.value)
        words.append(f"{name}: {in_words(most, compare_accuracy)}")
    if one is None:
        return NOTHING
    gains = "; ".join(words)
    text = f"At the eps where E5 gains most over E1, {gains}. Much counts from {percent(MUCH, 0)} of all images on."
    return RuleResult(never_reaches(every, 1, MUCH), text, why(one))


def keeps_70(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if the 95 % interval of the accuracy of E6 (adversarial regularisation) under FGSM at eps 0.2 reaches
    a number that rounds to 70 %, or more.

    The text adds its accuracies with the other losses ascended, and under PGD at half that eps.
    """
    e6 = evidence.models.get("E6")
    left = None if e6 is None else e6.accuracy_under("fgsm", 0.2)
    if e6 is None or left is None:
        return NOTHING
    others = {TITLES[loss]: e6.accuracy_under("fgsm", 0.2, loss) for loss in LOSSES[1:]}
    more = "".join(f"; ascending {title} {each:n}" for title, each in others.items() if each is not None)
    text = f"FGSM at 0.2 leaves {left:n}{more}."
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
    measured unless all four models are. The text adds the verdicts with the other losses ascended
    (`with_other_losses`).
    """
    others = ("E1", "E5", "E7")
    e6 = evidence.models.get("E6")
    if e6 is None or any(each not in evidence.models or not evidence.models[each].curve("fgsm") for each in others):
        return NOTHING
    found = with_other_losses(lambda loss: judge_best(evidence, "E6", others, "fgsm", loss=loss))
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
    without E1, E5 and a student. The text adds the verdicts with the other losses ascended (`with_other_losses`).
    """
    others = _rivals(evidence, "fgsm")
    parts = {
        "Accuracy": with_other_losses(lambda loss: judge_best(evidence, "E6", others, "fgsm", loss=loss)),
        "Loss": with_other_losses(lambda loss: judge_best(evidence, "E6", others, "fgsm", -1, compare_loss, loss)),
    }
    return all_parts(parts)


def strongest(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if E6 (adversarial regularisation) is more accurate under PGD than E1 (undefended) and every model of
    the other defences (E5, E7, E9, E10): against each at some eps by the paired test, and at none the reverse
    (`tally`), with Holm's correction for all models and eps. Not measured without E1, E5 and a student.
    """
    e6 = evidence.models.get("E6")
    found = {name: under_pgd(e6, evidence.models[name]) for name in _rivals(evidence, "pgd")}
    if e6 is None or not any(found.values()):
        return NOTHING
    tested = adjusted_together({name: list(by_eps.values()) for name, by_eps in found.items() if by_eps})
    words = []
    for name, orders in tested.items():
        shown = (f"at {eps:g}: {in_words(each, compare_accuracy)}" for eps, each in found[name].items())
        words.append(f"{name}: {count_orders(orders, 1)} ({'; '.join(shown)})")
    text = f'"{e6.title}" under PGD-40 with restarts against {"; ".join(words)}.'
    return RuleResult(joined([tally(orders, 1) for orders in tested.values()]), text)


def fitted_to_one_step(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if E6 (adversarial regularisation) is fitted to one step of attack, which is how this claim is read
    here: what FGSM leaves of it at eps 0.1 beyond what PGD leaves is 20 points or more above the same difference of E1
    (undefended), by the interval on the same images; does not hold if it is less; else no difference shown.
    """
    e6, e1 = evidence.models.get("E6"), evidence.models.get("E1")
    gaps = [_one_step_gap(model) for model in (e6, e1) if model is not None]
    known = [each for each in gaps if each is not None]
    found = compare_values(*known) if len(known) > 1 else None
    if e6 is None or e6.clean is None or found is None:
        return NOTHING
    one, many = e6.accuracy_under("fgsm", EPS), e6.under_strongest(EPS)
    text = (
        f"E6 at eps {EPS:g}: FGSM leaves {one:n}, PGD-40 with restarts {many:n}; without an attack "
        f"{e6.clean.accuracy:n}. FGSM beyond PGD: {in_words(found, compare_accuracy)} of E1; fitted is "
        f"{100 * COLLAPSED:g} points."
    )
    return RuleResult(by_interval(plus_constant(found.difference, -COLLAPSED), 1), text)


def _one_step_gap(model: ModelResults) -> np.ndarray | None:
    """By image `(n,)` whether the model is correct under FGSM at eps 0.1, minus whether it is under PGD: 1, 0 or -1.

    None if one of the attacks is not finished.
    """
    fgsm, pgd = model.artifact("fgsm", "ce"), model.artifact("pgd")
    if fgsm is None or pgd is None:
        return None
    one, many = (is_correct(each, "eps", EPS).astype(np.float64) for each in (fgsm, pgd))
    n = min(len(one), len(many))
    return one[:n] - many[:n]


def loses_to_bim(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if E1 (undefended) is more accurate than E6 (adversarial regularisation) under BIM, both with clip
    ball and with clip range, by paired tests (`judge_order`).
    """
    return all_parts({f"Clip {clip}": judge_order(evidence, "E1", "E6", clip, 1) for clip in ("ball", "range")})


def regularised_twice(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if under FGSM E7 (adversarial regularisation of the augmented E5) is much less accurate than E6 (that
    of E1): by paired tests, and at some eps by 10 points or more, by the interval (`judge_clear_order`); and if their
    losses are on par (`_on_par`).
    """
    accuracy = judge_clear_order(evidence, "E7", "E6", "fgsm", -1, MUCH)
    par = _on_par(evidence.models.get("E7"), evidence.models.get("E6"))
    return all_parts({"Much lower accuracy": accuracy, "Loss on par": par})


def _on_par(one: ModelResults | None, other: ModelResults | None) -> RuleResult:
    """Rule: holds if under FGSM at every eps the first loss differs from the second by at most a quarter of that, by
    the intervals of the paired differences from both ends; does not hold if at some eps it differs by more; else no
    difference shown.
    """
    losses, low, high = (
        over_eps(one, other, "fgsm", "ce", partial(compare_loss, times=times))
        for times in (1.0, 1 - ON_PAR, 1 + ON_PAR)
    )
    if not losses:
        return NOTHING
    above, below = tally(low, 1), tally(high, -1)
    apart = "does not hold" in (above, below)
    par = everywhere(low, 1) == everywhere(high, -1) == "holds"
    verdict: ClaimVerdict = "does not hold" if apart else "holds" if par else "no difference shown"
    shown = {"holds": "Within a quarter of each other at every eps", "does not hold": "Further apart at some eps"}
    most = max(losses, key=lambda each: abs(each.difference.value))
    text = shown.get(verdict, "Not shown to be within a quarter of each other")
    return RuleResult(verdict, f"{text}. The largest difference: {in_words(most, compare_loss)}.")


def four_rounds(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if E8 (four rounds of adversarial regularisation) is at no eps of FGSM or PGD more accurate than E6
    (one round) by more than 1 point, by the upper ends of the intervals; does not hold if at some eps it is, with
    Holm's correction for all of these; else no difference shown (`never_reaches`).
    """
    one, other = evidence.models.get("E8"), evidence.models.get("E6")
    orders = over_eps(one, other, "fgsm", "ce", compare_accuracy)
    if one is None or other is None or not orders:
        return NOTHING
    strong = under_pgd(one, other)
    every = adjusted([*orders, *strong.values()])
    words = []
    for name, found in (("FGSM", every[: len(orders)]), ("PGD-40 with restarts", every[len(orders) :])):
        if found:
            most = max(found, key=lambda each: each.difference.value)
            better = sum(each.order > 0 for each in found)
            words.append(f"under {name} at {better} of {len(found)} eps, at most {in_words(most, compare_accuracy)}")
    text = f"E8 is more accurate {'; '.join(words)}. No better is at most {100 * EQUAL:g} point."
    return RuleResult(never_reaches(every, 1, EQUAL), text, why(one, other))


def several_eps(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if E8, trained with steps of four sizes, is more accurate under FGSM at eps other than 0.2 than E6,
    which was trained with that step alone, by paired tests (`judge_order`). No larger eps is measured.
    """
    return judge_order(evidence, "E8", "E6", "fgsm", 1, up_to=0.2 - 1e-9)


def all_worse_over_fitted(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if under FGSM and under BIM with clip ball every model that over-fits, or that comes from one that
    does, is less accurate than its counterpart from early stopping, by paired tests (`judge_order`): E1 than E11, E6
    than the same training from E11, E9-20 than the student of an early-stopped teacher.
    """
    pairs = (("E1", "E11"), ("E6", "E6-stopped"), ("E9-20", "E13-early-teacher"))
    return all_parts(
        {
            f"{first} against {second}, {name}": judge_order(evidence, first, second, measure, -1)
            for first, second in pairs
            for name, measure in (("FGSM", "fgsm"), ("BIM", "ball"))
        }
    )


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
