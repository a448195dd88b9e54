"""What follows from the numbers of one defence, by stated rules: why it fails, whether it helps, what to do
about it.

No sentence depends on a model's name: each is chosen by comparing stored numbers with the thresholds below.
`casemate.evaluation` alone grades how robust a model is; whether a defence helps is a paired test. FGSM, BIM and PGD
can show that a defence is broken, never that it is robust, and the sentences say so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

from casemate.evaluation import Estimate, Grade, Verdict, percent
from casemate.losses import TITLES
from casemate_study.results.models import ModelResults, WholeEvaluation
from casemate_study.results.paired import PairedComparison, compare_accuracy, compare_masks

EPS = 0.1
"""The eps (Linf, pixels from 0 to 1) of all verdicts."""
MASKED = 0.1
"""The smallest share of images with an input gradient of exactly zero that makes a loss unusable for attacks."""
COLLAPSED = 0.2
"""Accuracy under a weaker attack (FGSM, or BIM without averaged gradients) less that under a stronger one, above which
the weaker one counts as misleading."""
COSTLY = 0.02
"""The smallest loss of clean accuracy, as a fraction, that a sentence mentions as a cost."""


def zero_gradient_cause(model: ModelResults) -> str | None:
    """Rule: a loss under which at least 10 % of the images have an input gradient of exactly zero overstates the
    robustness.

    Returns that finding as text, for `F.cross_entropy` and the loss on softmax probabilities; None if
    neither has it.
    """
    found: list[str] = []
    for loss in ("torch-ce", "prob-ce"):
        zero = model.zero_gradient_share(loss)
        stable, masked = model.accuracy_under("fgsm", EPS), model.accuracy_under("fgsm", EPS, loss)
        if zero is not None and zero.value >= MASKED:
            words = f"{percent(zero.value)} of the images have no gradient at all under {TITLES[loss]}"
            if stable is not None and masked is not None and masked.value > stable.value:
                shares = f"{percent(masked.value)} instead of {percent(stable.value)}"
                words += f", so that FGSM at {EPS:g} leaves {shares}"
            found.append(words)
    return "; ".join(found) or None


def single_step_cause(model: ModelResults) -> str | None:
    """Rule: one step misleads if FGSM leaves more than the interval of the clean accuracy, or over 20 points more than
    PGD.

    Returns that finding as text; None if it does not apply, is not measured, or the model is randomised.
    """
    one, many, clean = model.accuracy_under("fgsm", EPS), model.under_strongest(EPS), model.clean
    if one is None or many is None or clean is None or model.randomised:
        return None
    if one.value > clean.accuracy.high:
        return (
            f"FGSM at {EPS:g} leaves {percent(one.value)}, more than the clean {percent(clean.accuracy.value)}: the "
            "network has learned that one step"
        )
    if one.value - many.value > COLLAPSED:
        return f"one step at {EPS:g} leaves {percent(one.value)}, many steps leave {percent(many.value)}"
    return None


def eot_gap(model: ModelResults) -> str | None:
    """Rule: a randomised model masks gradients if BIM leaves over 20 points less once gradients are averaged over
    draws.

    Returns that finding as text; None if it does not apply, is not measured, or the model is not randomised.
    """
    averaged, single = model.under_strongest(EPS), model.accuracy_under("ball", EPS)
    if not model.randomised or averaged is None or single is None or single.value - averaged.value <= COLLAPSED:
        return None
    return (
        f"BIM at {EPS:g} leaves {percent(single.value)} with one draw a step and {percent(averaged.value)} with the "
        "mean of several"
    )


def gradient_misalignment(model: ModelResults) -> str | None:
    """Rule: steps along the gradient mislead if it turns by over 60 degrees (lower end of the mean's interval) between
    an image and a point 0.01 away.

    Returns that finding as text; None if it does not apply, is not measured, or the model is randomised.
    """
    angle = None if model.clean is None else model.clean.alignment["0.01"]
    if model.randomised or angle is None or angle.low <= 60:
        return None
    return f"gradients 0.01 apart point {angle.value:.0f} degrees apart on average"


def causes(model: ModelResults) -> list[str]:
    """Reasons not to believe the model's apparent robustness, as texts; empty if none applies.

    They are the findings of four rules: zero gradients, one step that misleads, random draws, misaligned gradients.
    """
    found = (zero_gradient_cause(model), single_step_cause(model), eot_gap(model), gradient_misalignment(model))
    return [each for each in found if each]


Helps = Literal["helps", "no better", "not measured"]


@final
@dataclass(frozen=True)
class Advice:
    """The verdict on a defence, whether it helps against the study's attacks, and both in a text that says
    what to do.
    """

    verdict: Verdict | None
    """The verdict on the model's robustness at eps 0.1; None if too little is measured."""
    helps: Helps
    """Whether more images withstand the study's attacks than with the baseline (E1, the undefended network), by the
    paired test."""
    sentence: str

    @property
    def word(self) -> str:
        """The verdict in a few words, such as "broken"; "not measured" if there is none."""
        return "not measured" if self.verdict is None else self.verdict.word


def _attacks_leave(model: ModelResults, estimate: Estimate) -> str:
    """The end of a sentence: the study's attacks that were run on the model, and the accuracy `estimate` that they
    leave.
    """
    if model.randomised:
        return f"BIM with averaged gradients leaves {estimate:n}"
    tried = (
        ("FGSM", model.accuracy_under("fgsm", EPS)),
        ("BIM", model.accuracy_under("ball", EPS)),
        ("PGD-40 with restarts", model.under_strongest(EPS)),
    )
    names = [name for name, found in tried if found is not None]
    together = f"{', '.join(names[:-1])} and {names[-1]} together leave" if len(names) > 1 else f"{names[0]} leaves"
    return f"{together} {estimate:n}"


def _price(model: ModelResults, baseline: ModelResults) -> str:
    """A sentence on what the defence costs against the baseline: clean accuracy (where the paired test finds a loss of
    at least 2 points), and time per epoch (if over 1.5 times). Empty if neither applies.
    """
    words: list[str] = []
    clean = compare_accuracy(model.artifact("clean"), baseline.artifact("clean"))
    if clean is not None and clean.order < 0 and clean.second - clean.first >= COSTLY:
        words.append(f"{100 * (clean.second - clean.first):.1f} points of clean accuracy")
    mine, plain = model.seconds, baseline.seconds
    if mine is not None and plain is not None and mine[1] > 1.5 * plain[1]:
        words.append(f"{mine[1] / plain[1]:.1f} times the time per epoch")
    return f" It costs {' and '.join(words)}." if words else ""


def _beyond(whole: WholeEvaluation | None) -> str:
    """The last sentence on a defence that helps and is not broken: the whole evaluation's result; if there is none
    (None), a warning that these attacks cannot show robustness.
    """
    if whole is None:
        return "These attacks can show a defence broken, never robust: try stronger ones before relying on it."
    sentence = whole.verdict.sentence
    if whole.verdict.trust.trusted:
        return f"The whole evaluation: {sentence[0].lower()}{sentence[1:]}"
    return sentence.replace("This evaluation is", "But the whole evaluation is")


def advice(model: ModelResults, baseline: ModelResults) -> Advice:
    """Judge a defence against the baseline: the verdict on its robustness at eps 0.1, whether it helps, and a text.

    The verdict is that of the whole evaluation; of the study's own attacks where there is no evaluation or where they
    alone break the model. A defence helps if more images withstand the study's attacks than with the baseline, by the
    paired test. A model that is neither broken nor untrained, and for which that test is not possible since it or the
    baseline was not attacked with PGD (randomised: averaged gradients), counts as not measured.
    """
    left, fgsm, verdict = model.worst_case(EPS), model.accuracy_under("fgsm", EPS), model.verdict(EPS)
    unknown = Advice(None, "not measured", f"{model.title}: not measured yet.")
    if left is None or fgsm is None or verdict is None:
        return unknown
    against = _paired(model, baseline)
    helps: Helps = "not measured" if against is None else "helps" if against.order > 0 else "no better"
    suggested = _suggestion(model, baseline, fgsm, left)
    reasons = causes(model)
    why = f" What misleads attacks: {'; '.join(reasons)}." if reasons else ""
    whole = model.whole_evaluation(EPS)
    if verdict.fallen:
        if Grade.UNTRAINED in verdict.grades:
            return Advice(verdict, helps, f"Do not rely on {model.title}. {verdict.sentence}")
        found = _attacks_leave(model, left)
        if whole is not None and whole.verdict.fallen and whole.robust.value < left.value:
            found = f"the whole evaluation leaves {whole.robust:n}"
        return Advice(verdict, helps, f"Do not rely on {model.title}: {found} at eps {EPS:g}{suggested}.{why}")
    if against is None:
        return unknown
    if against.order <= 0:
        return Advice(
            verdict,
            helps,
            f"{model.title} is no better than {baseline.title} at eps {EPS:g}: {_attacks_leave(model, left)}, against "
            f"{percent(against.second)}{suggested}.{why}{_price(model, baseline)}",
        )
    trusted = whole is None or whole.verdict.trust.trusted
    return Advice(
        verdict,
        helps,
        f"{model.title} {'helps' if trusted else 'seems to help'} against the attacks tried: "
        f"{_attacks_leave(model, left)} at eps {EPS:g}, against {percent(against.second)} of {baseline.title}"
        f"{suggested}.{why}{_price(model, baseline)} {_beyond(whole)}",
    )


def _suggestion(model: ModelResults, baseline: ModelResults, fgsm: Estimate, left: Estimate) -> str:
    """The end of a sentence on a model that looks robust under FGSM alone: FGSM leaves over 20 points more than all
    attacks (`left`), and more images than it leaves of the baseline, by the paired test. Empty if it does not.
    """
    found = compare_accuracy(model.artifact("fgsm", "ce"), baseline.artifact("fgsm", "ce"), "eps", EPS)
    if found is None or found.order <= 0 or fgsm.value - left.value <= COLLAPSED:
        return ""
    return f", although FGSM alone suggested {percent(fgsm.value)}"


def _paired(model: ModelResults, baseline: ModelResults) -> PairedComparison | None:
    """McNemar's test of which images withstand all the study's attacks at eps 0.1, model against baseline.

    None if the strongest attack (PGD; on a randomised model BIM over averaged gradients) was not run on both.
    """
    mine, theirs = model.robust_mask(EPS), baseline.robust_mask(EPS)
    if mine is None or theirs is None or model.under_strongest(EPS) is None or baseline.under_strongest(EPS) is None:
        return None
    return compare_masks(mine, theirs)


def advise(models: Mapping[str, ModelResults], baseline: str = "E1") -> list[tuple[str, Advice]]:
    """The advice on every model but the baseline, with the model's name; empty if the baseline is not among
    the models.

    The default baseline is E1, the undefended network.
    """
    if baseline not in models:
        return []
    return [(name, advice(each, models[baseline])) for name, each in models.items() if name != baseline]
