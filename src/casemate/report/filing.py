"""What an evaluation says to those who must file it: articles and controls, and what was tested of it.

The documents are a data file, each with its edition and the day it was read. Nothing here claims that a model complies
with anything: each item gets the facts of this evaluation on the topics that it is about, and the topics not tested.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, final

from casemate.evaluation.intervals import percent
from casemate.report.evaluation_result import EvaluationResult

_FILE = "frameworks.json"
_UNTESTED: Mapping[str, str] = {
    "natural_errors": "faults, noise and shifts that nobody makes on purpose",
    "poisoning": "manipulated training data or pre-trained parts",
    "backdoor": "backdoors",
    "confidentiality": "extraction of the model or its training data",
    "physical": "changes of the scene in front of a camera",
    "detection": "detection of attacks in operation, and the response to them",
    "feedback": "feedback loops after deployment",
    "certificates": "proofs of robustness, which `casemate certify` computes",
    "white_box": "attacks by gradients",
    "black_box": "attacks by queries",
    "transfer": "attacks by a substitute model (--substitute)",
    "adaptive": "checks of the model, the images and the attacks",
}
"""What was not tested, by topic: the first eight by no evaluation, the others where it had no such attack or check."""
_VOID = "Not to be used: checks void it."


@final
@dataclass(frozen=True, kw_only=True)
class Item:
    """An article or control: what it says, what the evaluation says of it, and what it does not."""

    reference: str
    content: str
    facts: tuple[str, ...]
    untested: str
    """The topics that were not tested, as text; "" if all were."""


@final
@dataclass(frozen=True, kw_only=True)
class Document:
    """A law, framework or catalogue with the items that an evaluation has something to say about."""

    name: str
    title: str
    edition: str
    read: str
    """The day on which this edition was read."""
    about: str
    items: tuple[Item, ...]


def filing(result: EvaluationResult) -> list[Document]:
    """The documents, each item with the facts of this evaluation."""
    facts = {topic: fact(result) for topic, fact in _FACTS.items()}
    documents = json.loads(resources.files("casemate.report").joinpath(_FILE).read_text())["documents"]
    return [Document(**{**each, "items": tuple(_item(item, facts) for item in each["items"])}) for each in documents]


def _item(found: Mapping[str, Any], facts: Mapping[str, str]) -> Item:
    topics = found["topics"]
    return Item(
        reference=found["reference"],
        content=found["content"],
        facts=tuple(facts[topic] for topic in topics if facts.get(topic)),
        untested="; ".join(_UNTESTED[topic] for topic in topics if not facts.get(topic)),
    )


def _accuracy(result: EvaluationResult) -> str:
    clean = result.verdict.number.clean
    unused = "" if result.clean_trusted else f" {_VOID}"
    return f"Accuracy without an attack: {clean:n} (95 % interval) on {result.data}.{unused}"


def _robustness(result: EvaluationResult) -> str:
    number = result.verdict.number
    values = "; ".join(f"{each.number.robust:n} at eps {each.number.shown_eps}" for each in result.verdicts)
    unused = "" if result.verdict.trust.trusted else f" {_VOID}"
    return f"Accuracy under all attacks in {number.norm}, budget {number.budget}: {values}.{unused}"


def _white_box(result: EvaluationResult) -> str:
    return _attacks(result, "Attacks with full knowledge of the model, by gradients", lambda backward: backward > 0)


def _black_box(result: EvaluationResult) -> str:
    return _attacks(result, "Attacks that only query the model", lambda backward: backward == 0)


def _attacks(result: EvaluationResult, words: str, chosen: Callable[[int], bool]) -> str:
    """The attacks that ran with these numbers of backward passes, as a sentence; "" for none."""
    backward: dict[str, int] = {}
    for each in result.attempts:
        backward[each.attack] = backward.get(each.attack, 0) + each.passes.backward
    names = [name for name, passes in backward.items() if chosen(passes)]
    return f"{words}: {', '.join(names)}." if names else ""


def _transfer(result: EvaluationResult) -> str:
    return f"Attacks made on the substitute model {result.substitute}." if result.substitute else ""


def _adaptive(result: EvaluationResult) -> str:
    states = [each.state for each in result.checks]
    if not result.verdict.trust.checked:
        return ""
    raised = [each.check for each in result.checks if each.state in ("voids", "weakens")]
    found = f"raised: {', '.join(raised)}" if raised else "none that voids or weakens the number was raised"
    return f"{len(states) - states.count('not run')} checks of the model, the images and the attacks; {found}."


def _reproducible(result: EvaluationResult) -> str:
    held = f"{result.proven:,} adversarial examples with the images" if result.holds_images else "hashes of the images"
    made = result.provenance
    return (
        f"A record for others to check: {held}, seed {result.seed}, casemate {made['casemate']}, hashes of the weights."
    )


def _uncertainty(result: EvaluationResult) -> str:
    number = result.verdict.number
    low, high = percent(number.robust.low), percent(number.robust.high)
    return (
        f"95 % intervals from {result.images:,} images; that of the accuracy under attack at the largest eps: {low} to "
        f"{high}."
    )


_FACTS: Mapping[str, Callable[[EvaluationResult], str]] = {
    "accuracy": _accuracy,
    "robustness": _robustness,
    "white_box": _white_box,
    "black_box": _black_box,
    "transfer": _transfer,
    "adaptive": _adaptive,
    "reproducible": _reproducible,
    "uncertainty": _uncertainty,
}
