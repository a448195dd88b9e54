"""The rules that judge the paper's claims about single classes: which are easy, and which are confused.

All but `in_every_model` judge E1, the undefended network. On a data set without the classes that a rule names, its
verdict is "not measured".
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

import numpy as np

from casemate.evaluation import Estimate, percent, share
from casemate_study.claims.rules import (
    NOTHING,
    ClaimEvidence,
    ClaimVerdict,
    RuleResult,
    agrees,
    all_parts,
    by_interval,
    by_intervals,
    joined,
    points,
    tally,
)
from casemate_study.experiments import paper
from casemate_study.results.independent import difference_of, plus_constant, share_of
from casemate_study.results.models import ModelResults
from casemate_study.results.paired import PairedComparison, adjusted, compare_masks
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
    """Rule: holds if our 95 % intervals for E1's worst and best class include numbers that round to the paper's 74 %
    and 99 % (`agrees`); otherwise unexplained.
    """
    clean = _clean(evidence.models.get("E1"))
    if clean is None:
        return NOTHING
    found = sorted(_by_class(clean).items(), key=lambda each: each[1].value)
    ends = zip((found[0], found[-1]), (paper.WORST_CLASS, paper.BEST_CLASS), strict=True)
    inside = all(agrees(each, stated) for (_, each), stated in ends)
    text = f"Ours: from {found[0][0]}, {found[0][1]:n}, to {found[-1][0]}, {found[-1][1]:n}."
    return RuleResult("holds" if inside else "unexplained", text)


def _extremes(evidence: ClaimEvidence, names: tuple[str, ...], side: Literal[1, -1]) -> RuleResult:
    """Rule: holds if the classes called `names` are E1's most (`side` 1) or least (-1) accurate, judged by the
    intervals of the differences to every other class with Holm's correction for their number (3 times 7); does not hold
    if one of the others is beyond one of them; else no difference shown.
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
    verdict = joined(by_intervals(list(differences.values()), side))
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


@lru_cache(maxsize=4096)
def _compare_counts(first: int, second: int, images: int) -> PairedComparison:
    """Compare the sizes of two disjoint sets of images, as shares of all `images`, by the sign test."""
    place = np.arange(images)
    found = compare_masks(place < first, (place >= first) & (place < first + second))
    assert found is not None  # `images` is at least 1: the classes compared have images
    return found


def _taken_for(clean: StoredClean, source: str, target: str) -> RuleResult:
    """Rule: holds if more images of the class `source` are misclassified as `target` than as each other class, by sign
    tests with Holm's correction for their number; does not hold if one of the others is more frequent; else no
    difference shown.
    """
    row = dict(zip(clean.classes, clean.confusion[clean.classes.index(source)], strict=True))
    images, wanted = sum(row.values()), row[target]
    others = {name: count for name, count in row.items() if name not in (source, target)}
    if not images or not others:
        return NOTHING
    found = [_compare_counts(wanted, count, images) for count in others.values()]
    other = max(others, key=lambda name: others[name])
    lead = _compare_counts(wanted, others[other], images).difference
    text = (
        f"Of {images:,} images of {source}, {wanted} are classified as {target}, {others[other]} as {other}, the most "
        f"frequent other: {points(lead)}."
    )
    return RuleResult(joined([tally([each], 1) for each in adjusted(found)]), text)


def pullover_as_coat(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if E1 misclassifies pullovers as coats more often than as each other class, by sign tests with Holm's
    correction; does not hold if another class is more frequent; else no difference shown.
    """
    clean = _clean(evidence.models.get("E1"), PULLOVER, COAT)
    return NOTHING if clean is None else _taken_for(clean, PULLOVER, COAT)


def _often_taken_for(clean: StoredClean, source: str, target: str) -> RuleResult:
    """Rule: holds if, of the misclassified images of the class `source`, more are classified as `target` than if all
    other classes were equally frequent, by the interval of that share; does not hold if fewer are; else, or without
    any misclassified image, no difference shown.
    """
    row = dict(zip(clean.classes, clean.confusion[clean.classes.index(source)], strict=True))
    images, errors = sum(row.values()), sum(row.values()) - row[source]
    if not images:
        return NOTHING
    if not errors:
        return RuleResult("no difference shown", f"None of {images:,} images of {source} is misclassified.")
    found, even = share(np.arange(errors) < row[target]), 1 / (len(row) - 1)
    text = (
        f"Of {images:,} images of {source}, {errors:,} are misclassified, {found:n} of these as {target}; it would be "
        f"{percent(even)} if all other classes were equally frequent."
    )
    return RuleResult(by_interval(plus_constant(found, -even), 1), text)


def one_another(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if E1 often misclassifies T-shirts as shirts and shirts as T-shirts: each more often than if the
    errors were spread evenly over the other classes, by the interval of the share of the errors; does not hold if
    either is rarer; else no difference shown. The paper says "often", without a number.
    """
    clean = _clean(evidence.models.get("E1"), T_SHIRT, SHIRT)
    if clean is None:
        return NOTHING
    parts = {"T-shirts": (T_SHIRT, SHIRT), "Shirts": (SHIRT, T_SHIRT)}
    return all_parts({name: _often_taken_for(clean, *pair) for name, pair in parts.items()})


def _confusions(clean: StoredClean) -> Mapping[frozenset[str], int]:
    """The number of images of two classes that are classified as the other of the two, by the pair of names."""
    names, counts = clean.classes, clean.confusion
    return {
        frozenset((names[one], names[other])): counts[one][other] + counts[other][one]
        for one in range(len(names))
        for other in range(one)
    }


def in_every_model(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if shirt against T-shirt is more frequent than every other confusion of two classes in every measured
    model of the paper that is not randomised at inference, by sign tests with one correction for all pairs and models;
    does not hold if in one of the models another pair is more frequent; else no difference shown.
    """
    pair = frozenset((T_SHIRT, SHIRT))
    found: dict[tuple[str, frozenset[str]], PairedComparison] = {}
    for name, model in evidence.models.items():
        clean = None if model.model.ours or model.randomised else _clean(model, *pair)
        if clean is None:
            continue
        counts, images = dict(_confusions(clean)), sum(map(sum, clean.confusion))
        mine = counts.pop(pair)
        found |= {(name, other): _compare_counts(mine, count, images) for other, count in counts.items()}
    if not found:
        return NOTHING
    tested = dict(zip(found, adjusted(list(found.values())), strict=True))
    rivals: dict[str, frozenset[str]] = {}
    for name, other in tested:
        if name not in rivals or tested[name, other].difference.value < tested[name, rivals[name]].difference.value:
            rivals[name] = other
    leads = {name: tested[name, other].difference for name, other in rivals.items()}
    first = [name for name, lead in leads.items() if lead.value > 0]
    behind = [f"{name}: {' against '.join(sorted(rivals[name]))}, {points(leads[name])}" for name in leads]
    behind = [words for words, name in zip(behind, leads, strict=True) if name not in first]
    undecided = {name for (name, _), each in tested.items() if each.order <= 0}
    text = f"It is the most frequent confusion of two classes in {len(first)} of {len(leads)} models. "
    text += f"By the tests it is more frequent than every other in {len(leads) - len(undecided)}. "
    if behind:
        text += f"Elsewhere another is at least as frequent; shirt against T-shirt minus it: {'; '.join(behind)}."
    else:
        narrowest = min(leads, key=lambda name: leads[name].value)
        text += f"The narrowest lead over the next, as a share of all images: {narrowest}, {points(leads[narrowest])}."
    return RuleResult(joined([tally([each], 1) for each in tested.values()]), text)


def _images_attacked(targets: StoredTargets) -> int:
    """The number of images under a targeted attack: each is attacked towards every other class."""
    return sum(max((rate.n for rate in row if rate is not None), default=0) for row in targets.rates)


def targeted(evidence: ClaimEvidence) -> RuleResult:
    """Rule: holds if targeted attacks on E1 from T-shirt to shirt, or those from shirt to T-shirt, succeed more often
    than those between all other pairs of classes together, by the interval of the difference with Holm's correction for
    the two; does not hold if both succeed less often; else no difference shown. The text also reports E11 and E6.

    The attacks on one image towards several targets depend on each other, so n is the number of images, not of attacks.
    """
    words: list[str] = []
    verdict: ClaimVerdict = "not measured"
    for name in ("E1", "E11", "E6"):
        found = find_result(evidence.artifacts, f"E13/targeted/{name}", StoredTargets)
        if found is None or not {T_SHIRT, SHIRT} <= set(found.classes):
            continue
        rates = {
            (source, target): rate
            for source, row in zip(found.classes, found.rates, strict=True)
            for target, rate in zip(found.classes, row, strict=True)
            if rate is not None
        }
        mine = {pair: rates.pop(pair) for pair in ((T_SHIRT, SHIRT), (SHIRT, T_SHIRT)) if pair in rates}
        if not mine or not rates:
            continue
        attacks = sum(rate.n for rate in rates.values())
        elsewhere = share_of(sum(rate.value * rate.n for rate in rates.values()) / attacks, _images_attacked(found))
        differences = {pair: difference_of(rate, elsewhere) for pair, rate in mine.items()}
        each = "; ".join(
            f"{rate:n} from {source} to {target}, {points(differences[source, target])}, and "
            f"{sum(other.value > rate.value for other in rates.values())} of the other {len(rates)} pairs have a "
            "higher rate"
            for (source, target), rate in mine.items()
        )
        words.append(f"{name}: {elsewhere:n} between other classes; {each}")
        if name == "E1":
            verdicts = by_intervals(list(differences.values()), 1)
            verdict = "does not hold" if set(verdicts) == {"does not hold"} else "no difference shown"
            verdict = "holds" if "holds" in verdicts else verdict
    return NOTHING if verdict == "not measured" else RuleResult(verdict, f"{'. '.join(words)}.")
