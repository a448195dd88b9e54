"""The kinds of rules that judge the paper's claims, and the evidence that they read.

An order ("A is more accurate than B") is judged by paired tests on the same images, at every eps above 0 where both
were measured, under attacks that ascend the stable cross-entropy; where it appears only with another loss, the text
says so. Where the tests find no order, the text gives the interval of the paired difference: how large it could still
be. A number is judged by our intervals. A number that no setting of ours reproduces is unexplained.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

from casemate.evaluation import Estimate, percent
from casemate.losses import TITLES
from casemate_study.claims.verdicts import causes
from casemate_study.experiments import paper
from casemate_study.experiments.specs import LOSSES
from casemate_study.results.models import ModelResults
from casemate_study.results.paired import Compare, PairedComparison, compare_accuracy, compare_loss
from casemate_study.results.stored import Artifacts

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


NOTHING = RuleResult("not measured", "Its artifacts are not finished.")


def tally(orders: Sequence[PairedComparison], wanted: int) -> ClaimVerdict:
    """Judge an order by paired comparisons, each with the order 1 (the first is larger), -1 or 0 (a tie).

    Holds if at least one has the order `wanted` (1 or -1) and none the opposite; does not hold if any has the opposite;
    no difference shown if all are ties; not measured if there are none.
    """
    signs = [each.order * wanted for each in orders]
    if not orders:
        return "not measured"
    if any(sign < 0 for sign in signs):
        return "does not hold"
    return "holds" if any(sign > 0 for sign in signs) else "no difference shown"


def by_interval(difference: Estimate, wanted: int) -> ClaimVerdict:
    """Judge an order by the 95 % interval of a difference: holds if all of it has the sign `wanted` (1 or -1), does not
    hold if all of it has the other, no difference shown if it contains 0.
    """
    if difference.low <= 0 <= difference.high:
        return "no difference shown"
    return "holds" if difference.value * wanted > 0 else "does not hold"


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
    value, low, high = (
        f"{each:+.2f}" for each in (found.difference.value, found.difference.low, found.difference.high)
    )
    return f"{found.first:.2f} against {found.second:.2f}, {value} ({low} to {high}, n = {found.n:,})"


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
) -> list[PairedComparison]:
    """Compare two models under one attack on the same images, with `compare`: one result for every eps in
    (0, `up_to`].

    Empty if a curve is not finished. `measure` is the attack ("fgsm", "ball", "range"), `loss` the loss it ascends. An
    eps that only one curve has, or that cannot be compared, is omitted.
    """
    one, other = (None if each is None else each.curve(measure, loss) for each in (first, second))
    if first is None or second is None or one is None or other is None:
        return []
    pair = first.artifact(measure, loss), second.artifact(measure, loss)
    values = [point.at for point in one.points if 0 < point.at <= up_to and other.at(point.at)]
    found = [compare(*pair, "eps", value) for value in values]
    return [each for each in found if each is not None]


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
) -> RuleResult:
    """Rule: holds if the model called `first` lies above (`wanted` 1) or below (-1) that called `second` in accuracy,
    or in what `compare` compares: at some eps up to `up_to` by the paired test, and at none the reverse (`tally`).

    Both are under the attack `measure`, ascending the stable cross-entropy; the text also reports the other losses.
    """
    one, other = evidence.models.get(first), evidence.models.get(second)
    if one is None or other is None:
        return NOTHING
    by_loss = {loss: over_eps(one, other, measure, loss, compare, up_to) for loss in LOSSES}
    verdicts: dict[str, ClaimVerdict] = {loss: tally(orders, wanted) for loss, orders in by_loss.items()}
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
) -> RuleResult:
    """Rule: holds if the model called `name` lies above (`wanted` 1) or below (-1) every other model in accuracy, or in
    what `compare` compares, each by `tally` over the eps; the worst of their verdicts. Models not measured are skipped.

    All are under the attack `measure`, ascending the stable cross-entropy.
    """
    first = evidence.models.get(name)
    orders = {each: over_eps(first, evidence.models.get(each), measure, "ce", compare) for each in others}
    known = {each: found for each, found in orders.items() if found}
    if first is None or not known:
        return NOTHING
    verdicts: dict[str, ClaimVerdict] = {each: tally(found, wanted) for each, found in known.items()}
    words: list[str] = []
    for each, found in known.items():
        shown = pair_at(first, evidence.models[each], measure, "ce", compare)
        words.append(f"{each}: {count_orders(found, wanted)}{f' ({shown})' if shown else ''}")
        if verdicts[each] == "no difference shown":
            words[-1] += f", not excluded: {left_open(found, compare)}"
    return RuleResult(joined(list(verdicts.values())), f'"{first.title}" against {"; ".join(words)}.')


def why(*models: ModelResults) -> tuple[str, ...]:
    """The causes of apparent robustness that `verdicts.causes` finds in these models, one text for each with any."""
    return tuple(f"{each.title}: {'; '.join(found)}" for each in models if (found := causes(each)))


def judge_number(
    evidence: ClaimEvidence, statement: paper.Statement, settings: Mapping[str, Estimate | None]
) -> RuleResult:
    """Rule: holds if the paper's number lies within one of our intervals for the stable cross-entropy, does not hold if
    only within one for another loss, and is unexplained otherwise.

    `settings` are our numbers by the setting's name, which ends with the title of the loss; None if not measured.
    """
    known = {name: each for name, each in settings.items() if each is not None}
    if not known:
        return NOTHING
    inside = [name for name, each in known.items() if each.low <= statement.value <= each.high]
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
    return RuleResult(joined(found), text, _causes_of(parts.values()))


def _causes_of(results: Iterable[RuleResult]) -> tuple[str, ...]:
    """The causes that these results name, each once."""
    return tuple(dict.fromkeys(cause for each in results for cause in each.causes))


def at_all_temperatures(parts: Sequence[tuple[str, RuleResult]]) -> RuleResult:
    """Combine the results for a claim on distillation at several temperatures (`parts`: name and result): the worst
    verdict, since the paper names no temperature. Results that are not measured are skipped.
    """
    known = [(name, found) for name, found in parts if found.verdict != "not measured"]
    if not known:
        return NOTHING
    text = " ".join(f"[{name}: {found.verdict}] {found.text}" for name, found in known)
    return RuleResult(joined([found.verdict for _, found in known]), text, _causes_of(found for _, found in known))


def student_names(evidence: ClaimEvidence, *experiments: str) -> list[str]:
    """The names of the measured distillation students of these experiments ("E9", "E10"), of all temperatures.

    The rules compare each with E1, the undefended network, which is the teacher at temperature 1.
    """
    return [name for each in experiments for name in evidence.models if name.startswith(f"{each}-")]
