"""The kinds of rules by which claims are judged, and what they are judged by.

An order ("A is more accurate than B") is judged by paired tests on the same images, at every eps where both were
measured, under the stable cross-entropy; where it appears only under another loss, that is said. A number is judged
by our intervals. What no setting of ours reproduces is unexplained.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

from casemate.losses import TITLES
from casemate_study.claims.verdicts import causes, interval, percent
from casemate_study.experiments import paper
from casemate_study.experiments.specs import LOSSES
from casemate_study.results import Artifacts, Compared, Estimate, ModelResults, compare_accuracy, compare_loss, point_at

Verdict = Literal["holds", "does not hold", "unexplained", "cannot be decided", "not measured"]


@final
@dataclass(frozen=True)
class ClaimEvidence:
    """All that a claim is judged by."""

    models: Mapping[str, ModelResults]
    """Every judged model, by name."""
    artifacts: Artifacts


@final
@dataclass(frozen=True)
class Found:
    """A verdict and the numbers that it follows from."""

    verdict: Verdict
    because: str


NOTHING = Found("not measured", "Its artifacts are not finished.")
Compare = Callable[..., Compared | None]


def tally(orders: Sequence[Compared], wanted: int) -> Verdict:
    """Holds if at least one comparison goes that way and none the other; the reverse: does not hold."""
    signs = [each.order * wanted for each in orders]
    if not orders:
        return "not measured"
    if any(sign < 0 for sign in signs):
        return "does not hold"
    return "holds" if any(sign > 0 for sign in signs) else "cannot be decided"


def counted(orders: Sequence[Compared], wanted: int) -> str:
    yes, no = (sum(each.order * wanted == sign for each in orders) for sign in (1, -1))
    return f"{yes} for, {no} against, {len(orders) - yes - no} undecided of {len(orders)} comparisons"


def over_eps(
    first: ModelResults | None,
    second: ModelResults | None,
    measure: str,
    loss: str,
    compare: Compare,
    up_to: float = math.inf,
) -> list[Compared]:
    """The two models compared at every eps but 0 that both curves have, up to a limit."""
    if first is None or second is None:
        return []
    one, other = first.artifact(measure, loss), second.artifact(measure, loss)
    if one is None or other is None:
        return []
    values = [point["eps"] for point in one.result["points"] if 0 < point["eps"] <= up_to]
    values = [value for value in values if point_at(other, "eps", value)]
    found = [compare(one, other, "eps", value) for value in values]
    return [each for each in found if each is not None]


def pair_at(
    first: ModelResults, second: ModelResults, measure: str, loss: str, compare: Compare, eps: float = 0.1
) -> str:
    """The two means that are compared at one eps."""
    found = compare(first.artifact(measure, loss), second.artifact(measure, loss), "eps", eps)
    if found is None:
        return ""
    shown = "{:.2f}".format if compare is compare_loss else percent
    return f"at {eps:g}: {shown(found.first)} against {shown(found.second)}"


def order(
    evidence: ClaimEvidence,
    first: str,
    second: str,
    measure: str,
    wanted: int,
    compare: Compare = compare_accuracy,
    up_to: float = math.inf,
) -> Found:
    """`first` above (`wanted` 1) or below (-1) `second` under an attack; what the other losses say goes with it."""
    one, other = evidence.models.get(first), evidence.models.get(second)
    if one is None or other is None:
        return NOTHING
    by_loss = {loss: over_eps(one, other, measure, loss, compare, up_to) for loss in LOSSES}
    verdicts: dict[str, Verdict] = {loss: tally(orders, wanted) for loss, orders in by_loss.items()}
    if verdicts["ce"] == "not measured":
        return NOTHING
    words = [
        f"{TITLES[loss]}: {counted(orders, wanted)} ({pair_at(one, other, measure, loss, compare)})"
        for loss, orders in by_loss.items()
        if orders
    ]
    text = f"{one.title} against {other.title}. " + "; ".join(words) + "."
    elsewhere = [TITLES[loss] for loss in LOSSES[1:] if verdicts[loss] == "holds"]
    if verdicts["ce"] != "holds" and elsewhere:
        text += f" It appears only where the attack ascends {' or '.join(elsewhere)}."
    return Found(verdicts["ce"], text + why(one, other))


def why(*models: ModelResults) -> str:
    """What the rules on masking, collapse, chance and gradient_misalignment gradients say of the models concerned."""
    parts = [f"{each.title}: {'; '.join(causes(each))}" for each in models if causes(each)]
    return f" Measured: {'. '.join(parts)}." if parts else ""


def number(evidence: ClaimEvidence, statement: paper.Statement, settings: Mapping[str, Estimate]) -> Found:
    """Rule: inside the stable loss's interval, holds; inside another's, does not hold; else unexplained."""
    if not settings:
        return NOTHING
    inside = [name for name, each in settings.items() if each["low"] <= statement.value <= each["high"]]
    text = "; ".join(f"{name}: {interval(each)}" for name, each in settings.items())
    e1 = evidence.models.get("E1")
    cause = "" if e1 is None else why(e1)
    stable = [name for name in inside if name.endswith(TITLES["ce"])]
    if stable:
        return Found("holds", f"Within our interval for {', '.join(stable)}. {text}.{cause}")
    if inside:
        return Found("does not hold", f"Within our interval for {', '.join(inside)}, and for no other. {text}.{cause}")
    nearest = min(settings, key=lambda name: abs(settings[name]["value"] - statement.value))
    return Found("unexplained", f"No setting of ours gives it; the nearest is {nearest}. {text}.{cause}")


def _joined(verdicts: Sequence[Verdict]) -> Verdict:
    """A claim of several parts holds if all do; else it is what the worst of them is."""
    worse: tuple[Verdict, ...] = ("not measured", "does not hold", "unexplained", "cannot be decided")
    for verdict in worse:
        if verdict in verdicts:
            return verdict
    return "holds"


def both_parts(first: Found, second: Found, names: tuple[str, str]) -> Found:
    """A claim of two parts."""
    if NOTHING.verdict in (first.verdict, second.verdict):
        return NOTHING
    text = f"{names[0]}: {first.verdict}. {first.because} {names[1]}: {second.verdict}. {second.because}"
    return Found(_joined((first.verdict, second.verdict)), text)


def at_all(parts: Sequence[tuple[str, Found]]) -> Found:
    """A claim over several temperatures: the paper names none, so it holds if it does at all that were measured."""
    known = [(name, found) for name, found in parts if found.verdict != "not measured"]
    if not known:
        return NOTHING
    text = " ".join(f"[{name}: {found.verdict}] {found.because}" for name, found in known)
    return Found(_joined([found.verdict for _, found in known]), text)
