"""The kinds of rules that judge the paper's claims, and the evidence that they read.

An order ("A is more accurate than B") is judged by paired tests on the same images, at every eps above 0 where both
were measured, under attacks that ascend the stable cross-entropy; where `judge_order` finds it only with another loss,
the text says so. Where the tests find no order, the text gives the interval of the paired difference: how large it
could still be. Words such as "clearly" or "much" need a difference of a stated size (`reaches`), and "equal", "level"
or "no better" one that is no larger than a stated size (`within`, `never_reaches`); where the intervals exclude neither
side of that size, no difference is shown.

Where a verdict follows from several tests of one kind (every eps of an attack, every rival of a model, every pair of
classes), their p-values are corrected for the number of tests by Holm's method at the 5 % level, so that one chance
result among many decides nothing. Intervals in the texts are those of single comparisons, without that correction.
Parts of a claim that must all hold ("both attacks") are judged each for itself.

A number is judged by our intervals, and allows for the paper's rounding. One that no setting of ours reproduces is
unexplained. The intervals are those of a sample of images; the paper's test images are the same, so that a number
outside them differs the more.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, final

from casemate.evaluation import Estimate, percent
from casemate.losses import TITLES
from casemate_study.claims.verdicts import EPS, causes
from casemate_study.experiments import paper
from casemate_study.experiments.specs import LOSSES
from casemate_study.results.independent import plus_constant
from casemate_study.results.models import ModelResults
from casemate_study.results.paired import Compare, PairedComparison, adjusted, compare_accuracy, compare_loss
from casemate_study.results.significance import holm, p_value
from casemate_study.results.stored import Artifacts

CLEARLY = 0.05
"""The smallest difference of two accuracies, as a fraction, that counts as clear."""
MUCH = 0.1
"""The smallest difference of two accuracies, as a fraction, that counts as much."""
MUCH_LOWER = 0.5
"""The largest share of another loss that counts as a much lower loss."""
EQUAL = 0.01
"""The largest difference of two accuracies, as a fraction, that counts as equal, as level, or as no gain or loss."""

ClaimVerdict = Literal["holds", "does not hold", "unexplained", "no difference shown", "not measured"]
_WORST_FIRST: tuple[ClaimVerdict, ...] = (
    "not measured",
    "does not hold",
    "unexplained",
    "no difference shown",
    "holds",
)


@final
@dataclass(frozen=True)
class ClaimEvidence:
    """Our results, which judge the paper's claims."""

    models: Mapping[str, ModelResults]
    """Every model with finished clean measures, by name ("E1", "E9-20", ...)."""
    artifacts: Artifacts


@final
@dataclass(frozen=True)
class RuleResult:
    """What a rule finds: a verdict, and in `because` the numbers behind it, as text."""

    verdict: ClaimVerdict
    text: str
    causes: tuple[str, ...] = ()
    """Reasons not to believe the apparent robustness of the models compared (`why`), one text for each model."""

    @property
    def because(self) -> str:
        """The text, with the causes at its end."""
        return f"{self.text} Measured: {'. '.join(self.causes)}." if self.causes else self.text


NOTHING = RuleResult("not measured", "Not computed yet.")


def tally(orders: Sequence[PairedComparison], wanted: int) -> ClaimVerdict:
    """Judge an order by paired comparisons, each with the order 1 (the first is larger), -1 or 0 (a tie); if there are
    several, those that `adjusted` returns.

    Holds if at least one has the order `wanted` (1 or -1) and none the opposite; does not hold if any has the opposite;
    no difference shown if all are ties; not measured if there are none.
    """
    signs = [each.order * wanted for each in orders]
    if not orders:
        return "not measured"
    if any(sign < 0 for sign in signs):
        return "does not hold"
    return "holds" if any(sign > 0 for sign in signs) else "no difference shown"


def everywhere(orders: Sequence[PairedComparison], wanted: int) -> ClaimVerdict:
    """Judge an order as `tally` does, but it holds only if every comparison has it, as "always" says."""
    found = tally(orders, wanted)
    return "no difference shown" if found == "holds" and any(each.order == 0 for each in orders) else found


def by_interval(difference: Estimate, wanted: int) -> ClaimVerdict:
    """Judge an order by the 95 % interval of a difference: holds if all of it has the sign `wanted` (1 or -1), does not
    hold if all of it has the other, no difference shown if it contains 0.
    """
    return by_intervals([difference], wanted)[0]


def by_intervals(differences: Sequence[Estimate], wanted: int) -> list[ClaimVerdict]:
    """Judge several orders as `by_interval` judges one, with Holm's correction for their number."""
    significant = holm([p_value(each) for each in differences])
    return [
        "no difference shown" if not kept else "holds" if each.value * wanted > 0 else "does not hold"
        for each, kept in zip(differences, significant, strict=True)
    ]


def reaches(orders: Sequence[PairedComparison], wanted: int, effect: float) -> ClaimVerdict:
    """Judge whether the first mean exceeds the second (`wanted` 1), or the second the first (-1), by `effect` or more.

    Holds if one of the differences does by its interval, with Holm's correction for their number; does not hold if
    every interval ends below `effect`; else no difference shown; not measured if there are none.
    """
    if not orders:
        return "not measured"
    excess = [plus_constant(_toward(each.difference, wanted), -effect) for each in orders]
    if "holds" in by_intervals(excess, 1):
        return "holds"
    return "does not hold" if all(each.high < 0 for each in excess) else "no difference shown"


def never_reaches(orders: Sequence[PairedComparison], wanted: int, effect: float) -> ClaimVerdict:
    """Judge the opposite of `reaches`: holds where that does not, and the reverse."""
    opposite: dict[ClaimVerdict, ClaimVerdict] = {"holds": "does not hold", "does not hold": "holds"}
    found = reaches(orders, wanted, effect)
    return opposite.get(found, found)


def within(difference: Estimate, margin: float) -> ClaimVerdict:
    """Judge whether a difference is at most `margin`, in either direction: holds if its whole 95 % interval is, does
    not hold if none of it is, else no difference shown.
    """
    if max(abs(difference.low), abs(difference.high)) <= margin:
        return "holds"
    return "does not hold" if difference.low > margin or difference.high < -margin else "no difference shown"


def _toward(difference: Estimate, sign: int) -> Estimate:
    """The difference times `sign`, 1 or -1, with its interval."""
    if sign > 0:
        return difference
    return Estimate(-difference.value, -difference.high, -difference.low, difference.n)


def points(difference: Estimate) -> str:
    """A difference of two shares as text: "+22.5 points (+18.4 to +26.6, n = 400)"."""
    value, low, high = (f"{100 * each:+.1f}" for each in (difference.value, difference.low, difference.high))
    return f"{value} points ({low} to {high}, n = {difference.n:,})"


def in_words(found: PairedComparison, compare: Compare) -> str:
    """What `compare` found as text: both means, and their difference with its interval and the number of images.

    Such as "62.5 % against 40.0 %, +22.5 points (+18.4 to +26.6, n = 400)"; losses as numbers with two decimals.
    """
    if compare is not compare_loss:
        return f"{percent(found.first)} against {percent(found.second)}, {points(found.difference)}"
    return f"{found.first:.2f} against {found.second:.2f}, {loss_difference(found)}"


def loss_difference(found: PairedComparison) -> str:
    """A difference of two losses as text: "-0.31 (-0.40 to -0.22, n = 400)"."""
    value, low, high = (
        f"{each:+.2f}" for each in (found.difference.value, found.difference.low, found.difference.high)
    )
    return f"{value} ({low} to {high}, n = {found.n:,})"


def left_open(orders: Sequence[PairedComparison], compare: Compare) -> str:
    """How large a difference could still be where no paired comparison found one, as text: the lowest and the highest
    end of the 95 % intervals, and the smallest number of images.
    """
    low, high = min(each.difference.low for each in orders), max(each.difference.high for each in orders)
    ends = f"{low:+.2f} to {high:+.2f}" if compare is compare_loss else f"{100 * low:+.1f} to {100 * high:+.1f} points"
    n = min(each.n for each in orders)
    return f"a difference of {ends} (95 % intervals of the paired difference, n = {n:,})"


def count_orders(orders: Sequence[PairedComparison], wanted: int) -> str:
    """Text that counts the comparisons with the order `wanted` (1 or -1), with the opposite, and with none: "3 for, 0
    against, 1 undecided of 4 comparisons".
    """
    yes, no = (sum(each.order * wanted == sign for each in orders) for sign in (1, -1))
    return f"{yes} for, {no} against, {len(orders) - yes - no} undecided of {len(orders)} comparisons"


def over_eps(
    first: ModelResults | None,
    second: ModelResults | None,
    measure: str,
    loss: str,
    compare: Compare,
    up_to: float = math.inf,
    above: float = 0.0,
) -> list[PairedComparison]:
    """Compare two models under one attack on the same images, with `compare`: one result for every eps in
    (`above`, `up_to`], with orders corrected for their number (`adjusted`).

    Empty if a curve is not finished. `measure` is the attack ("fgsm", "ball", "range"), `loss` the loss it ascends. An
    eps that only one curve has, or that cannot be compared, is omitted.
    """
    one, other = (None if each is None else each.curve(measure, loss) for each in (first, second))
    if first is None or second is None or one is None or other is None:
        return []
    pair = first.artifact(measure, loss), second.artifact(measure, loss)
    values = [point.at for point in one.points if above < point.at <= up_to and other.at(point.at)]
    found = [compare(*pair, "eps", value) for value in values]
    return adjusted([each for each in found if each is not None])


def under_pgd(first: ModelResults | None, second: ModelResults | None) -> dict[float, PairedComparison]:
    """Compare the accuracies of two models under PGD on the same images, by eps, at every eps where both were measured;
    orders are those of single tests. Empty if either was not attacked with PGD.
    """
    points = () if first is None or first.pgd is None else first.pgd.points
    if first is None or second is None or second.pgd is None:
        return {}
    found = {
        point.eps: compare_accuracy(first.artifact("pgd"), second.artifact("pgd"), "eps", point.eps)
        for point in points
        if second.pgd.at(point.eps) is not None
    }
    return {eps: each for eps, each in found.items() if each is not None}


def pair_at(
    first: ModelResults, second: ModelResults, measure: str, loss: str, compare: Compare, eps: float = 0.1
) -> str:
    """What `compare` finds for the models at one eps, as text: "at 0.1: 62.5 % against 40.0 %, +22.5 points (...)".

    Empty if they cannot be compared. `measure` is the attack ("fgsm", "ball", "range"), `loss` the loss it ascends.
    """
    found = compare(first.artifact(measure, loss), second.artifact(measure, loss), "eps", eps)
    return "" if found is None else f"at {eps:g}: {in_words(found, compare)}"


def judge_order(
    evidence: ClaimEvidence,
    first: str,
    second: str,
    measure: str,
    wanted: int,
    compare: Compare = compare_accuracy,
    up_to: float = math.inf,
    judge: Callable[[Sequence[PairedComparison], int], ClaimVerdict] = tally,
) -> RuleResult:
    """Rule: holds if the model called `first` lies above (`wanted` 1) or below (-1) that called `second` in accuracy,
    or in what `compare` compares: at some eps up to `up_to` by the paired test, and at none the reverse
    (`tally`, or another function for `judge`).

    Both are under the attack `measure`, ascending the stable cross-entropy; the text also reports the other losses.
    """
    one, other = evidence.models.get(first), evidence.models.get(second)
    if one is None or other is None:
        return NOTHING
    by_loss = {loss: over_eps(one, other, measure, loss, compare, up_to) for loss in LOSSES}
    verdicts: dict[str, ClaimVerdict] = {loss: judge(orders, wanted) for loss, orders in by_loss.items()}
    verdict = verdicts["ce"]
    if verdict == "not measured":
        return NOTHING
    words = [
        f"under {TITLES[loss]} {count_orders(orders, wanted)} ({pair_at(one, other, measure, loss, compare)})"
        for loss, orders in by_loss.items()
        if orders
    ]
    text = f'"{one.title}" against "{other.title}": {"; ".join(words)}.'
    if verdict == "no difference shown":
        text += f" Not excluded: {left_open(by_loss['ce'], compare)}."
    elsewhere = [TITLES[loss] for loss in LOSSES[1:] if verdicts[loss] == "holds"]
    if verdict != "holds" and elsewhere:
        text += f" It appears only where the attack ascends {' or '.join(elsewhere)}."
    return RuleResult(verdict, text, why(one, other))


def judge_clear_order(
    evidence: ClaimEvidence, first: str, second: str, measure: str, wanted: int, effect: float
) -> RuleResult:
    """Rule: as `judge_order` on accuracies, but holds only if at some eps the difference is `effect` (a fraction) or
    more; does not hold if it is less at every eps, be an order shown or not; else no difference shown (`reaches`).
    """
    found = judge_order(evidence, first, second, measure, wanted)
    if found.verdict not in ("holds", "no difference shown"):
        return found
    orders = over_eps(evidence.models.get(first), evidence.models.get(second), measure, "ce", compare_accuracy)
    verdict = reaches(orders, wanted, effect)
    most = max(orders, key=lambda each: wanted * each.difference.value)
    words = {"holds": "reaches", "does not hold": "does not reach"}.get(verdict, "may or may not reach")
    shown = "The order is shown" if found.verdict == "holds" else "No order is shown"
    text = f"{shown}; the largest difference ({in_words(most, compare_accuracy)}) {words}"
    return RuleResult(verdict, f"{found.text} {text} {100 * effect:g} points.", found.causes)


def judge_clean(
    evidence: ClaimEvidence, first: str, second: str, wanted: int, compare: Compare, what: str
) -> RuleResult:
    """Rule: holds if without an attack the model called `first` lies above (`wanted` 1) or below (-1) that called
    `second` in what `compare` compares, by the paired test on the same images. `what` names that in the text.
    """
    one, other = evidence.models.get(first), evidence.models.get(second)
    found = None if one is None or other is None else compare(one.artifact("clean"), other.artifact("clean"))
    if one is None or other is None or found is None:
        return NOTHING
    text = f'{what} of "{one.title}" against "{other.title}": {in_words(found, compare)}.'
    return RuleResult(tally([found], wanted), text)


def judge_best(
    evidence: ClaimEvidence,
    name: str,
    others: Sequence[str],
    measure: str,
    wanted: int = 1,
    compare: Compare = compare_accuracy,
    loss: str = "ce",
) -> RuleResult:
    """Rule: holds if the model called `name` lies above (`wanted` 1) or below (-1) every other model in accuracy, or in
    what `compare` compares, each by `tally` over the eps; the worst of their verdicts. Models not measured are skipped.

    All are under the attack `measure`, ascending `loss`. Holm's correction is for all eps of all other models together.
    """
    first = evidence.models.get(name)
    orders = {each: over_eps(first, evidence.models.get(each), measure, loss, compare) for each in others}
    known = adjusted_together({each: found for each, found in orders.items() if found})
    if first is None or not known:
        return NOTHING
    verdicts: dict[str, ClaimVerdict] = {each: tally(found, wanted) for each, found in known.items()}
    words: list[str] = []
    for each, found in known.items():
        shown = pair_at(first, evidence.models[each], measure, loss, compare)
        words.append(f"{each}: {count_orders(found, wanted)}{f' ({shown})' if shown else ''}")
        if verdicts[each] == "no difference shown":
            words[-1] += f", not excluded: {left_open(found, compare)}"
    return RuleResult(joined(list(verdicts.values())), f'"{first.title}" against {"; ".join(words)}.')


def with_other_losses(judge: Callable[[str], RuleResult]) -> RuleResult:
    """The result of a rule under attacks that ascend the stable cross-entropy, with the verdicts under the other losses
    at the end of its text, where they are measured. `judge` applies the rule to one loss.
    """
    found = judge("ce")
    others = {TITLES[loss]: judge(loss).verdict for loss in LOSSES[1:]}
    words = "; ".join(f"{title}: {verdict}" for title, verdict in others.items() if verdict != "not measured")
    if found.verdict == "not measured" or not words:
        return found
    return replace(found, text=f"{found.text} Where the attack ascends {words}.")


def adjusted_together(groups: Mapping[str, Sequence[PairedComparison]]) -> dict[str, list[PairedComparison]]:
    """The same groups of comparisons with orders corrected for the number of all comparisons together (`adjusted`)."""
    found = iter(adjusted([each for group in groups.values() for each in group]))
    return {name: [next(found) for _ in group] for name, group in groups.items()}


def why(*models: ModelResults) -> tuple[str, ...]:
    """The causes of apparent robustness that `verdicts.causes` finds in these models, one text for each with any."""
    return tuple(f"{each.title}: {'; '.join(found)}" for each in models if (found := causes(each)))


def agrees(ours: Estimate, statement: paper.Statement) -> bool:
    """Whether our 95 % interval includes a number that the paper rounds to the value in `statement`."""
    half = statement.unit / 2
    return ours.high >= statement.value - half and ours.low < statement.value + half


def judge_number(
    evidence: ClaimEvidence, statement: paper.Statement, settings: Mapping[str, Estimate | None]
) -> RuleResult:
    """Rule: holds if one of our intervals for the stable cross-entropy includes a number that rounds to the paper's
    (`agrees`); does not hold if only one for another loss does; and is unexplained otherwise.

    `settings` are our numbers by the setting's name, which ends with the title of the loss; None if not measured.
    """
    known = {name: each for name, each in settings.items() if each is not None}
    if not known:
        return NOTHING
    inside = [name for name, each in known.items() if agrees(each, statement)]
    e1 = evidence.models.get("E1")
    numbers = "; ".join(f"{name}: {each:n}" for name, each in known.items())
    tail, reasons = f"{numbers}.", () if e1 is None else why(e1)
    stable = [name for name in inside if name.endswith(TITLES["ce"])]
    if stable:
        return RuleResult("holds", f"It lies within our interval for {', '.join(stable)}. {tail}", reasons)
    if inside:
        return RuleResult("does not hold", f"It lies within our interval only for {', '.join(inside)}. {tail}", reasons)
    nearest = min(known, key=lambda name: abs(known[name].value - statement.value))
    return RuleResult(
        "unexplained", f"It lies within none of our intervals; the nearest is that of {nearest}. {tail}", reasons
    )


def joined(verdicts: Sequence[ClaimVerdict]) -> ClaimVerdict:
    """The verdict on a claim of several parts: the worst of theirs, so that it holds only if all parts hold."""
    return next(verdict for verdict in _WORST_FIRST if verdict in verdicts)


def all_parts(parts: Mapping[str, RuleResult]) -> RuleResult:
    """Combine the results for the parts of a claim, by the parts' names: the worst verdict, and all texts, each after
    its name. Not measured if any is not.
    """
    found: list[ClaimVerdict] = [each.verdict for each in parts.values()]
    if "not measured" in found:
        return NOTHING
    text = " ".join(f"{name}: {each.verdict}. {each.text}" for name, each in parts.items())
    return RuleResult(joined(found), text, causes_of(parts.values()))


def causes_of(results: Iterable[RuleResult]) -> tuple[str, ...]:
    """The causes that these results name, each once."""
    return tuple(dict.fromkeys(cause for each in results for cause in each.causes))


def judge_much_lower_loss(
    evidence: ClaimEvidence, first: str, second: str, measure: str, loss: str = "ce"
) -> RuleResult:
    """Rule: holds if at eps 0.1 the loss of the first model is at most half of that of the second, by the interval of
    the paired difference from half; does not hold if it is more; else no difference shown. `measure` is the attack,
    ascending `loss`.
    """
    one, other = evidence.models.get(first), evidence.models.get(second)
    if one is None or other is None:
        return NOTHING
    pair = one.artifact(measure, loss), other.artifact(measure, loss)
    found, half = (compare_loss(*pair, "eps", EPS, times) for times in (1.0, MUCH_LOWER))
    if found is None or half is None:
        return NOTHING
    text = f"Loss {in_words(found, compare_loss)}; much lower is at most half, and the difference from half is"
    return RuleResult(tally([half], -1), f"{text} {loss_difference(half)}.")
