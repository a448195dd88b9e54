"""The self-test: each model attacked by what it fools, then evaluated, and the verdict held against what is known."""

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

from casemate.attacks import PGD, Passes, Transfer
from casemate.data import LabelledImages
from casemate.errors import CasemateWarning, SettingError
from casemate.evaluation.budgets import DRAWS, Budget, attacks_for
from casemate.evaluation.cost import attack_passes, check_passes, measure_pass_cost
from casemate.evaluation.evaluation import Evaluation, evaluate
from casemate.evaluation.intervals import Estimate, share
from casemate.models import Classifier
from casemate.progress import NULL_OBSERVER, Observer
from casemate.selftest.cases import CASES, Case, shifted
from casemate.selftest.networks import ModelFactory, gradients

LIE = 0.3
"""By how much the fooled attack must claim more than the truth."""


@final
@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the evaluation said of a case."""

    case: Case
    claim: Estimate | None
    """Accuracy left by the attack that is fooled, if there is one."""
    evaluation: Evaluation
    truth: Estimate
    """Accuracy left by the evaluation and by images that fool the network without what was done to it."""
    seconds: float
    """For training, claim and evaluation."""

    @property
    def overclaimed(self) -> bool | None:
        """The fooled attack claims far more than the truth; None if there is none."""
        return None if self.claim is None else self.claim.value - self.truth.value >= LIE

    @property
    def as_expected(self) -> bool:
        """A liar was shown to lie and came out as weak or worse, or not to be trusted; an honest model as trusted."""
        verdict = self.evaluation.verdict
        if self.case.honest:
            return verdict.trust.trusted
        return not verdict.favourable and self.overclaimed is not False

    def as_json(self) -> dict[str, Any]:
        """All of it but the images."""
        return {
            "name": self.case.name,
            "about": self.case.about,
            "honest": self.case.honest,
            "claim": None if self.claim is None else self.claim.as_json(),
            "fooled": None if self.case.claim is None else self.case.claim.record(),
            "truth_at_most": self.truth.as_json(),
            "overclaimed": self.overclaimed,
            "as_expected": self.as_expected,
            "seconds": self.seconds,
            "evaluation": self.evaluation.as_json(),
        }


def choose(names: Sequence[str]) -> list[Case]:
    """The cases of these names, in the order of the table; all of them if none is given. Raises `SettingError`."""
    known = [case.name for case in CASES]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SettingError(f"no model {', '.join(unknown)} in the self-test; it has {', '.join(known)}")
    return [case for case in CASES if not names or case.name in names]


def seconds_at_most(factory: ModelFactory, cases: Sequence[Case], budget: Budget) -> float:
    """Seconds that training and judging these take if no image is ever fooled."""
    speed = measure_pass_cost(factory.fresh("undefended"), factory.test, "linf")
    learning = gradients([case.network for case in cases], factory.sizes)
    total = speed.seconds(Passes(learning, learning))
    count, classes = len(factory.test), len(factory.data.classes)
    for case in cases:
        attacks = attacks_for(budget, "linf", case.eps, randomised=case.randomised)
        most = attack_passes(attacks, classes, count, 1)
        most.add(check_passes(count, thorough=budget == "thorough"))
        total += (DRAWS[budget] if case.randomised else 1) * speed.seconds(most)
    return total


def self_test(
    factory: ModelFactory,
    cases: Sequence[Case] = CASES,
    *,
    budget: Budget = "quick",
    seed: int = 0,
    observer: Observer = NULL_OBSERVER,
) -> Iterator[Outcome]:
    """Train, attack and judge one case after another."""
    with observer.work("Self-test", len(cases)) as advance:
        for case in cases:
            outcome = _judged(factory, case, budget, seed, observer)
            advance(1, f"{case.name}: {outcome.evaluation.verdict.word}")
            yield outcome


def _judged(factory: ModelFactory, case: Case, budget: Budget, seed: int, observer: Observer) -> Outcome:
    start = time.perf_counter()
    network = factory.network(case.network)
    model = case.change(network)
    images = shifted(factory.test, len(model.classes)) if case.shifted else factory.test
    found = evaluate(model, images, eps=case.eps, budget=budget, seed=seed, observer=observer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CasemateWarning)  # the attack that is fooled is meant to be
        return _claimed(case, network, model, images, found, seed, start)


def _claimed(
    case: Case,
    network: Classifier,
    model: Classifier,
    images: LabelledImages,
    found: Evaluation,
    seed: int,
    start: float,
) -> Outcome:
    """The outcome with what the attack that is fooled claims, and what is known of the truth."""
    left, claim = found.cascade.robust[:, -1], None
    if case.claim is not None:
        pixels, labels = images.tensors(model.device)
        claim = share((~case.claim(model, pixels, labels, seed=seed).success).cpu().numpy())
        # what was made for the network as it was learnt owes nothing to the gradients that the change hides
        bare = Transfer(attack=PGD(eps=case.eps, steps=20), substitute=network)
        left = left & ~bare(model, pixels, labels, seed=seed).success.cpu().numpy()
    seconds = time.perf_counter() - start
    return Outcome(case=case, claim=claim, evaluation=found, truth=share(left), seconds=seconds)
