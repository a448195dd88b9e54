"""The kinds of rules that judge the paper's claims, and the evidence that they read.

An order ("A is more accurate than B") is judged by paired tests on the same images, at every eps above 0 where both
were measured, under attacks that ascend the stable cross-entropy; where it appears only with another loss, the text
says so. A number is judged by our intervals. A number that no setting of ours reproduces is unexplained.
"""

import math
from collections.abc import Mapping, Sequence
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

ClaimVerdict = Literal["holds", "does not hold", "unexplained", "cannot be decided", "not measured"]
_WORST_FIRST: tuple[ClaimVerdict, ...] = ("not measured", "does not hold", "unexplained", "cannot be decided", "holds")


@final
@dataclass(frozen=True)
class ClaimEvidence:
    """Our results, by which the paper's claims are judged."""

    models: Mapping[str, ModelResults]
    """Every model with finished clean measures, by name ("E1", "E9-20", ...)."""
    artifacts: Artifacts


@final
@dataclass(frozen=True)
class RuleResult:
    """What a rule finds: a verdict, and in `because` the numbers that it follows from, as text."""

    verdict: ClaimVerdict
    because: str


NOTHING = RuleResult("not measured", "Its artifacts are not finished.")


def tally(orders: Sequence[PairedComparison], wanted: int) -> ClaimVerdict:
    """Judge an order by paired comparisons, of which each has the order 1 (the first is larger), -1 or 0 (a tie).

    Holds if at least one has the order `wanted` (1 or -1) and none the opposite; does not hold if any has the opposite;
    cannot be decided if all are ties; not measured if there are none.
    """
    signs = [each.order * wanted for each in orders]
    if not orders:
        return "not measured"
    if any(sign < 0 for sign in signs):
        return "does not hold"
    return "holds" if any(sign > 0 for sign in signs) else "cannot be decided"


def count_orders(orders: Sequence[PairedComparison], wanted: int) -> str:
    """Text that counts the comparisons with the order `wanted` (1 or -1), with the opposite, and without any: "3 for, 0
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
    """The two means that `compare` finds for the models at one eps, as text: "at 0.1: 62.5 % against 40.0 %".

    Empty if they cannot be compared. `measure` is the attack ("fgsm", "ball", "range"), `loss` the loss it ascends.
    """
    found = compare(first.artifact(measure, loss), second.artifact(measure, loss), "eps", eps)
    if found is None:
        return ""
    shown = "{:.2f}".format if compare is compare_loss else percent
    return f"at {eps:g}: {shown(found.first)} against {shown(found.second)}"


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
    elsewhere = [TITLES[loss] for loss in LOSSES[1:] if verdicts[loss] == "holds"]
    if verdict != "holds" and elsewhere:
        text += f" It appears only where the attack ascends {' or '.join(elsewhere)}."
    return RuleResult(verdict, text + why(one, other))


def why(*models: ModelResults) -> str:
    """Text for the end of a verdict: causes of apparent robustness that `verdicts.causes` finds in these models; or
    empty.
    """
    parts = [f"{each.title}: {'; '.join(found)}" for each in models if (found := causes(each))]
    return f" Measured: {'. '.join(parts)}." if parts else ""


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
    tail = f"{numbers}.{'' if e1 is None else why(e1)}"
    stable = [name for name in inside if name.endswith(TITLES["ce"])]
    if stable:
        return RuleResult("holds", f"It lies within our interval for {', '.join(stable)}. {tail}")
    if inside:
        return RuleResult("does not hold", f"It lies within our interval only for {', '.join(inside)}. {tail}")
    nearest = min(known, key=lambda name: abs(known[name].value - statement.value))
    return RuleResult("unexplained", f"It lies within none of our intervals; the nearest is that of {nearest}. {tail}")


def _joined(verdicts: Sequence[ClaimVerdict]) -> ClaimVerdict:
    """The verdict on a claim of several parts: the worst of theirs, so that it holds only if all parts hold."""
    return next(verdict for verdict in _WORST_FIRST if verdict in verdicts)


def both_parts(first: RuleResult, second: RuleResult, names: tuple[str, str]) -> RuleResult:
    """Combine the results for the two parts of a claim: the worse verdict, and both texts, each after its name in
    `names`.

    Not measured if either is not.
    """
    if NOTHING.verdict in (first.verdict, second.verdict):
        return NOTHING
    text = f"{names[0]}: {first.verdict}. {first.because} {names[1]}: {second.verdict}. {second.because}"
    return RuleResult(_joined((first.verdict, second.verdict)), text)


def at_all_temperatures(parts: Sequence[tuple[str, RuleResult]]) -> RuleResult:
    """Combine the results for a claim on distillation at several temperatures (`parts`: name and result): the worst
    verdict, since the paper names no temperature. Results that are not measured are skipped.
    """
    known = [(name, found) for name, found in parts if found.verdict != "not measured"]
    if not known:
        return NOTHING
    text = " ".join(f"[{name}: {found.verdict}] {found.because}" for name, found in known)
    return RuleResult(_joined([found.verdict for _, found in known]), text)
