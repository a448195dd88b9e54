"""The rules that judge the paper's claims about single classes: which are easy, and which are confused.

All but `in_every_model` judge E1, the undefended network. On a data set without the classes that a rule names, its
verdict is "not measured".
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from casemate.evaluation import Estimate, share
from casemate_study.claims.rules import (
    NOTHING,
    ClaimEvidence,
    ClaimVerdict,
    RuleResult,
    all_parts,
    by_interval,
    joined,
    points,
    tally,
)
from casemate_study.experiments import paper
from casemate_study.results.independent import difference_of
from casemate_study.results.models import ModelResults
from casemate_study.results.paired import PairedComparison, compare_masks
from casemate_study.results.stored import StoredClean, StoredTargets, find_result

T_SHIRT, TROUSER, PULLOVER, COAT, SANDAL, SHIRT, BAG = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Coat",
    "Sandal",
    "Shirt",
    "Bag",
)


def _clean(model: ModelResults | None, *names: str) -> StoredClean | None:
    """The model's measures without an attack; None if not finished, or if its classes lack one of `names`."""
    clean = None if model is None else model.clean
    return clean if clean is not None and set(names) <= set(clean.classes) else None


def _by_class(clean: StoredClean) -> Mapping[str, Estimate]:
    """The accuracy on each class that has images, by its name."""
    return {name: each for name, each in zip(clean.classes, clean.per_class, strict=True) if each is not None}


def class_range(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if the paper's 74 % and 99 % lie within our 95 % intervals for E1's worst and best class; otherwise
    unexplained.
    """
    clean = _clean(evidence.models.get("E1"))
    if clean is None:
        return NOTHING
    found = sorted(_by_class(clean).items(), key=lambda each: each[1].value)
    ends = zip((found[0], found[-1]), (paper.WORST_CLASS, paper.BEST_CLASS), strict=True)
    inside = all(each.low <= stated.value <= each.high for (_, each), stated in ends)
    text = f"Ours: from {found[0][0]}, {found[0][1]:n}, to {found[-1][0]}, {found[-1][1]:n}."
    return RuleResult("holds" if inside else "unexplained", text)


def _extremes(evidence: ClaimEvidence, names: tuple[str, ...], side: Literal[1, -1]) -> RuleResult:
    """Rule: holds if the classes called `names` are E1's most (`side` 1) or least (-1) accurate, judged by the interval
    of the difference to every other class; does not hold if one of the others is beyond one of them; else no difference
    shown.
    """
    clean = _clean(evidence.models.get("E1"), *names)
    classes = {} if clean is None else _by_class(clean)
    if not set(names) < set(classes):
        return NOTHING
    differences = {
        (name, other): difference_of(classes[name], classes[other])
        for name in names
        for other in classes
        if other not in names
    }
    verdict = joined([by_interval(each, side) for each in differences.values()])
    ranked = sorted(classes, key=lambda name: side * classes[name].value, reverse=True)
    order = ", ".join(f"{name} {classes[name]:n}" for name in ranked[: len(names) + 2])
    text = f"Ours, the {'most' if side == 1 else 'least'} accurate first: {order}."
    nearest = min(differences, key=lambda pair: side * differences[pair].value)
    return RuleResult(verdict, f"{text} {nearest[0]} minus {nearest[1]}: {points(differences[nearest])}.")


def easiest(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if trousers, bags and sandals are E1's most accurate classes, by the intervals of the differences to
    every other class; does not hold if another is above one of them; else no difference shown.
    """
    return _extremes(evidence, (TROUSER, BAG, SANDAL), 1)


def hardest(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if pullovers, T-shirts and shirts are E1's least accurate classes, by the intervals of the
    differences to every other class; does not hold if another is below one of them; else no difference shown.
    """
    return _extremes(evidence, (PULLOVER, T_SHIRT, SHIRT), -1)


def _compare_counts(first: int, second: int, images: int) -> PairedComparison:
    """Compare the sizes of two disjoint sets of images, as shares of all `images`, by the sign test."""
    place = np.arange(images)
    found = compare_masks(place < first, (place >= first) & (place < first + second))
    assert found is not None  # `images` is at least 1: the classes compared have images
    return found


def _taken_for(clean: StoredClean, source: str, target: str) -> RuleResult:
    """Rule: holds if more images of the class `source` are misclassified as `target` than as any other class, by the
    sign test against the most frequent other; does not hold if fewer are; else no difference shown.
    """
    row = dict(zip(clean.classes, clean.confusion[clean.classes.index(source)], strict=True))
    images, wanted = sum(row.values()), row[target]
    others = {name: count for name, count in row.items() if name not in (source, target)}
    if not images or not others:
        return NOTHING
    other = max(others, key=lambda name: others[name])
    found = _compare_counts(wanted, others[other], images)
    text = (
        f"Of {images:,} images of {source}, {wanted} are classified as {target}, {others[other]} as {other}, the most "
    )
    return RuleResult(tally([found], 1), f"{text}frequent other: {points(found.difference)}.")


def pullover_as_coat(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if E1 misclassifies pullovers as coats more often than as any other class, by the sign test against
    the most frequent other; does not hold if less often; else no difference shown.
    """
    clean = _clean(evidence.models.get("E1"), PULLOVER, COAT)
    return NOTHING if clean is None else _taken_for(clean, PULLOVER, COAT)


def one_another(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if E1 misclassifies T-shirts as shirts, and shirts as T-shirts, more often than as any other class,
    each by the sign test against the most frequent other; does not hold if either is less often; else no difference
    shown. The paper says "often", without a number.
    """
    clean = _clean(evidence.models.get("E1"), T_SHIRT, SHIRT)
    if clean is None:
        return NOTHING
    return all_parts({"T-shirts": _taken_for(clean, T_SHIRT, SHIRT), "Shirts": _taken_for(clean, SHIRT, T_SHIRT)})


def _confusions(clean: StoredClean) -> Mapping[frozenset[str], int]:
    """The number of images of two classes that are classified as the other of the two, by the pair of names."""
    names, counts = clean.classes, clean.confusion
    return {
        frozenset((names[one], names[other])): counts[one][other] + counts[other][one]
        for one in range(len(names))
        for other in range(one)
    }


def in_every_model(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if shirt against T-shirt is the most frequent confusion of two classes, with or without significance,
    in every measured model of the paper that is not randomised at inference; does not hold if in one of them another is
    more frequent by the sign test; else no difference shown.
    """
    pair = frozenset((T_SHIRT, SHIRT))
    orders: dict[str, PairedComparison] = {}
    first: list[str] = []
    rivals: dict[str, str] = {}
    for name, model in evidence.models.items():
        clean = None if model.model.ours or model.randomised else _clean(model, *pair)
        if clean is None:
            continue
        found = dict(_confusions(clean))
        mine = found.pop(pair)
        rival = max(found, key=lambda each: found[each])
        images = sum(map(sum, clean.confusion))
        orders[name] = _compare_counts(mine, found[rival], images)
        if mine > found[rival]:
            first.append(name)
        else:
            rivals[name] = f"{name}: {' against '.join(sorted(rival))}, {points(orders[name].difference)}"
    if not orders:
        return NOTHING
    verdict: ClaimVerdict = "holds"
    if len(first) < len(orders):
        verdict = "does not hold" if any(each.order < 0 for each in orders.values()) else "no difference shown"
    narrowest = min(orders, key=lambda name: orders[name].difference.value)
    text = f"It is the most frequent confusion of two classes in {len(first)} of {len(orders)} models. "
    if rivals:
        text += (
            f"Elsewhere another is at least as frequent; shirt against T-shirt minus it: {'; '.join(rivals.values())}."
        )
    else:
        lead = points(orders[narrowest].difference)
        text += f"The narrowest lead over the next, as a share of all images: {narrowest}, {lead}."
    return RuleResult(verdict, text)


def _pooled(rates: list[Estimate]) -> Estimate:
    """The success rate of all attacks on several pairs of classes together."""
    count, n = sum(round(each.value * each.n) for each in rates), sum(each.n for each in rates)
    return share(np.arange(n) < count)


def targeted(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if targeted attacks on E1 from T-shirt to shirt and from shirt to T-shirt succeed more often than
    those between all other pairs of classes together, by the interval of the difference; does not hold if less often;
    else no difference shown. The text also reports E11 and E6.
    """
    words: list[str] = []
    verdict: ClaimVerdict = "not measured"
    for name in ("E1", "E11", "E6"):
        found = find_result(evidence.artifacts, f"E13/targeted/{name}", StoredTargets)
        if found is None or not {T_SHIRT, SHIRT} <= set(found.classes):
            continue
        one, other = found.classes.index(T_SHIRT), found.classes.index(SHIRT)
        rates = {
            (source, target): rate
            for source, row in enumerate(found.rates)
            for target, rate in enumerate(row)
            if rate is not None
        }
        mine = [rates.pop(pair) for pair in ((one, other), (other, one)) if pair in rates]
        if not mine or not rates:
            continue
        between, elsewhere = _pooled(mine), _pooled(list(rates.values()))
        difference = difference_of(between, elsewhere)
        higher = sum(rate.value > between.value for rate in rates.values())
        words.append(
            f"{name}: {between:n} between the two, {elsewhere:n} between others, {points(difference)}; {higher} of the "
            f"other {len(rates)} pairs have a higher rate"
        )
        if name == "E1":
            verdict = by_interval(difference, 1)
    return NOTHING if verdict == "not measured" else RuleResult(verdict, f"{'. '.join(words)}.")
