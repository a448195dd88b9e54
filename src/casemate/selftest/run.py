"""The self-test: each model is trained, attacked by an attack that it misleads, evaluated, and its verdict compared."""

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

from casemate.attacks import PGD, Passes, Transfer
from casemate.errors import CasemateWarning, SettingError
from casemate.evaluation.budgets import DRAWS, Budget, attacks_for
from casemate.evaluation.cost import attack_passes, check_passes, measure_pass_cost
from casemate.evaluation.evaluation import Evaluation, evaluate
from casemate.evaluation.intervals import Estimate, share
from casemate.progress import NULL_OBSERVER, Observer
from casemate.selftest.cases import CASES, Case, shifted
from casemate.selftest.networks import ModelFactory, training_passes

MIN_OVERCLAIM = 0.3
"""A model overclaims if its accuracy under the misled attack exceeds the true robust accuracy by this share or more."""


@final
@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The evaluation of one model of the self-test, and the accuracies by which its verdict is judged."""

    case: Case
    claim: Estimate | None
    """Accuracy under `Case.claim`, the attack that the model misleads; None if there is no such attack."""
    evaluation: Evaluation
    truth: Estimate
    """Accuracy under all attacks of the evaluation and, if there is a `claim`, adversarial images that PGD made on the
    network without `Case.change`."""
    seconds: float
    """Seconds that training (unless an earlier case trained the network), evaluation and further attacks took."""

    @property
    def overclaimed(self) -> bool | None:
        """Whether `claim` exceeds `truth` by at least `MIN_OVERCLAIM`; None if there is no misled attack."""
        return None if self.claim is None else self.claim.value - self.truth.value >= MIN_OVERCLAIM

    @property
    def as_expected(self) -> bool:
        """Whether an honest model's number is trusted; for a misleading one, whether its verdict is weak, worse or not
        to be trusted, and it overclaims if there is a `claim`.
        """
        verdict = self.evaluation.verdict
        if self.case.honest:
            return verdict.trust.trusted
        return not verdict.favourable and self.overclaimed is not False

    def as_json(self) -> dict[str, Any]:
        """The case, its accuracies and its evaluation without images, for a result file."""
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


def choose_cases(names: Sequence[str]) -> list[Case]:
    """The cases with these names, in the order of `CASES`, or all if there are no names.

    Raises `SettingError` for an unknown name.
    """
    known = [case.name for case in CASES]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SettingError(f"no model {', '.join(unknown)} in the self-test; it has {', '.join(known)}")
    return [case for case in CASES if not names or case.name in names]


def self_test_seconds(factory: ModelFactory, cases: Sequence[Case], budget: Budget) -> float:
    """Estimated seconds of training and evaluating these cases at most, as if no image were ever fooled.

    The misled attacks (`Case.claim`) are not counted.
    """
    speed = measure_pass_cost(factory.fresh("undefended"), factory.test, "linf")
    training = training_passes([case.network for case in cases], factory.sizes)
    total = speed.seconds(Passes(training, training))
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
    """Train, attack and evaluate one case after another, and yield the outcome of each when it is finished."""
    with observer.work("Self-test", len(cases)) as advance:
        for case in cases:
            outcome = _outcome(factory, case, budget, seed, observer)
            advance(1, f"{case.name}: {outcome.evaluation.verdict.word}")
            yield outcome


def _outcome(factory: ModelFactory, case: Case, budget: Budget, seed: int, observer: Observer) -> Outcome:
    start = time.perf_counter()
    network = factory.network(case.network)
    model = case.change(network)
    images = shifted(factory.test, len(model.classes)) if case.shifted else factory.test
    found = evaluate(model, images, eps=case.eps, budget=budget, force=True, seed=seed, observer=observer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CasemateWarning)  # misleading this attack is intended
        left, claim = found.cascade.robust[:, -1], None
        if case.claim is not None:
            pixels, labels = images.tensors(model.device)
            claim = share((~case.claim(model, pixels, labels, seed=seed).success).cpu().numpy())
            # images made on the trained network do not depend on the gradients that the change hides
            transferred = Transfer(attack=PGD(eps=case.eps, steps=20), substitute=network)
            left = left & ~transferred(model, pixels, labels, seed=seed).success.cpu().numpy()
    return Outcome(case=case, claim=claim, evaluation=found, truth=share(left), seconds=time.perf_counter() - start)
