"""What follows from the numbers of one defence, by stated rules: how it fails, and what to do about it.

Nothing here is decided by name: every sentence is chosen by comparing stored numbers with the thresholds below.
`casemate.evaluation.verdict` alone grades how robust a model is; whether a defence helps is a paired test. FGSM, BIM
and PGD can show a defence broken, never robust, and the sentences say so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

from casemate.evaluation import Grade, Verdict
from casemate.losses import TITLES
from casemate_study.results import Compared, Estimate, Evaluated, ModelResults, compare_accuracy, compare_flags

EPS = 0.1
"""Where verdicts are taken: the study's own eps."""
MASKED = 0.1
"""Share of images without a gradient from which a loss is called unusable."""
COLLAPSED = 0.2
"""Accuracy that one step leaves above what many leave, from which one step is called misleading."""
COSTLY = 0.02
"""Loss of clean accuracy from which it is mentioned as a price."""


def percent(share: float) -> str:
    """A share as a percentage with one decimal."""
    return f"{100 * share:.1f} %"


def interval(estimate: Estimate) -> str:
    """A share with its interval and n."""
    low, high = 100 * estimate["low"], 100 * estimate["high"]
    return f"{percent(estimate['value'])} ({low:.1f} to {high:.1f}, n = {int(estimate['n']):,})"


def masking(judged: ModelResults) -> str | None:
    """Rule: a loss under which at least 10 % of the images have no gradient flatters the model."""
    found: list[str] = []
    for loss in ("torch-ce", "prob-ce"):
        zero = judged.zero(loss)
        stable, flattered = judged.left("fgsm", EPS), judged.left("fgsm", EPS, loss)
        if zero is not None and zero["value"] >= MASKED:
            words = f"{percent(zero['value'])} of the images have no gradient at all under {TITLES[loss]}"
            if stable is not None and flattered is not None and flattered["value"] > stable["value"]:
                shares = f"{percent(flattered['value'])} instead of {percent(stable['value'])}"
                words += f", so that FGSM at {EPS:g} leaves {shares}"
            found.append(words)
    return "; ".join(found) or None


def collapse(judged: ModelResults) -> str | None:
    """Rule: one step that leaves 20 points more than many, or more than the clean accuracy, was learnt by heart."""
    one = judged.left("fgsm", EPS)
    many = judged.strongest(EPS)
    clean = judged.clean
    if one is None or many is None or clean is None or judged.randomised:
        return None
    if one["value"] > clean["accuracy"]["high"]:
        return (
            f"FGSM at {EPS:g} leaves {percent(one['value'])}, more than the clean "
            f"{percent(clean['accuracy']['value'])}: the network has learnt that one step"
        )
    if one["value"] - many["value"] > COLLAPSED:
        return f"one step at {EPS:g} leaves {percent(one['value'])}, many leave {percent(many['value'])}"
    return None


def eot_gap(judged: ModelResults) -> str | None:
    """Rule: a randomised model that loses 20 points more once its draws are averaged had hidden its gradient."""
    averaged, single = judged.strongest(EPS), judged.left("ball", EPS)
    if not judged.randomised or averaged is None or single is None:
        return None
    if single["value"] - averaged["value"] > COLLAPSED:
        return (
            f"BIM at {EPS:g} leaves {percent(single['value'])} by one draw a step and {percent(averaged['value'])} "
            "by the mean of several"
        )
    return None


def gradient_misalignment(judged: ModelResults) -> str | None:
    """Rule: an angle above 60 degrees between gradients at an image and 0.01 away from it says that steps mislead."""
    clean = judged.clean
    angle = None if clean is None else clean["alignment"]["0.01"]
    if judged.randomised or angle is None or angle["low"] <= 60:
        return None
    return f"gradients 0.01 apart point {angle['value']:.0f} degrees apart on average"


def causes(judged: ModelResults) -> list[str]:
    """Why apparent robustness of this model is not to be believed; empty if no rule applies."""
    found = (masking(judged), collapse(judged), eot_gap(judged), gradient_misalignment(judged))
    return [each for each in found if each]


Helps = Literal["helps", "no better", "not measured"]


@final
@dataclass(frozen=True)
class Advice:
    """The verdict on a defence, whether it helps, and both in one sentence that can be acted on."""

    verdict: Verdict | None
    """None if not enough was measured."""
    helps: Helps
    """More images withstand than of the baseline, by the paired test."""
    sentence: str

    @property
    def word(self) -> str:
        """The verdict in a few words."""
        return "not measured" if self.verdict is None else self.verdict.word


def _left(judged: ModelResults, estimate: Estimate) -> str:
    """What was tried, and what it left."""
    if judged.randomised:
        return f"BIM with averaged gradients leaves {interval(estimate)}"
    tried = (
        ("FGSM", judged.left("fgsm", EPS)),
        ("BIM", judged.left("ball", EPS)),
        ("PGD-40 with restarts", judged.strongest(EPS)),
    )
    names = [name for name, found in tried if found is not None]
    together = f"{', '.join(names[:-1])} and {names[-1]} together leave" if len(names) > 1 else f"{names[0]} leaves"
    return f"{together} {interval(estimate)}"


def _price(judged: ModelResults, baseline: ModelResults) -> str:
    """What it costs: clean accuracy, by the paired test, and training time."""
    words: list[str] = []
    clean = compare_accuracy(judged.artifact("clean"), baseline.artifact("clean"))
    if clean is not None and clean.order < 0 and clean.second - clean.first >= COSTLY:
        words.append(f"{100 * (clean.second - clean.first):.1f} points of clean accuracy")
    mine, plain = judged.seconds, baseline.seconds
    if mine is not None and plain is not None and mine[1] > 1.5 * plain[1]:
        words.append(f"{mine[1] / plain[1]:.1f} times the time per epoch")
    return f" It costs {' and '.join(words)}." if words else ""


def _beyond(whole: Evaluated | None) -> str:
    """What the whole evaluation says of a defence that has not fallen, or that there was none."""
    if whole is None:
        return "These attacks can show a defence broken, never robust: try stronger ones before relying on it."
    sentence = whole.verdict.sentence
    if whole.verdict.trust.trusted:
        return f"The whole evaluation: {sentence[0].lower()}{sentence[1:]}"
    return sentence.replace("This evaluation is", "But the whole evaluation is")


def advice(judged: ModelResults, baseline: ModelResults) -> Advice:
    """The verdict on a defence (`casemate.evaluation.verdict`), and whether it helps.

    The verdict is that of the whole evaluation, or where there is none, or where they alone break the model, that of
    the study's own attacks. It helps if more images withstand the study's attacks than of the baseline, by the paired
    test. Without PGD a model that has not fallen is not measured.
    """
    left, fgsm, verdict = judged.worst(EPS), judged.left("fgsm", EPS), judged.verdict(EPS)
    unknown = Advice(None, "not measured", f"{judged.title}: not measured yet.")
    if left is None or fgsm is None or verdict is None:
        return unknown
    against = _paired(judged, baseline)
    helps: Helps = "not measured" if against is None else "helps" if against.order > 0 else "no better"
    suggested = (
        f", although FGSM alone suggested {percent(fgsm['value'])}" if fgsm["value"] - left["value"] > COLLAPSED else ""
    )
    reasons = causes(judged)
    why = f" ({'; '.join(reasons)})" if reasons else ""
    whole = judged.evaluated(EPS)
    if verdict.fallen:
        if Grade.UNTRAINED in verdict.grades:
            return Advice(verdict, helps, f"Do not rely on {judged.title}. {verdict.sentence}")
        found = _left(judged, left)
        if whole is not None and whole.verdict.fallen and whole.robust["value"] < left["value"]:
            found = f"the whole evaluation leaves {interval(whole.robust)}"
        return Advice(verdict, helps, f"Do not rely on {judged.title}: {found} at eps {EPS:g}{suggested}{why}.")
    if against is None:
        return unknown
    if against.order <= 0:
        return Advice(
            verdict,
            helps,
            f"{judged.title} is no better than {baseline.title} at eps {EPS:g}: {_left(judged, left)}, against "
            f"{percent(against.second)}{suggested}{why}.{_price(judged, baseline)}",
        )
    doubted = whole is not None and not whole.verdict.trust.trusted
    return Advice(
        verdict,
        helps,
        f"{judged.title} {'seems to help' if doubted else 'helps'} against what was tried: {_left(judged, left)} at "
        f"eps {EPS:g}, against {percent(against.second)} of {baseline.title}{suggested}{why}."
        f"{_price(judged, baseline)} {_beyond(whole)}",
    )


def _paired(judged: ModelResults, baseline: ModelResults) -> Compared | None:
    """Which of the two has more images that withstand; None where PGD was not run."""
    mine, theirs = judged.standing(EPS), baseline.standing(EPS)
    if mine is None or theirs is None or judged.strongest(EPS) is None or baseline.strongest(EPS) is None:
        return None
    return compare_flags(mine, theirs)


def advise(models: Mapping[str, ModelResults], baseline: str = "E1") -> list[tuple[str, Advice]]:
    """The verdict on every model but the baseline itself."""
    if baseline not in models:
        return []
    return [(name, advice(each, models[baseline])) for name, each in models.items() if name != baseline]
