"""The self-test: each model is trained, attacked by an attack that it misleads, evaluated, and its verdict compared."""

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch

from casemate.attacks import PGD, Passes
from casemate.errors import CasemateWarning, SettingError
from casemate.evaluation.budgets import DRAWS, Budget, attacks_for
from casemate.evaluation.cost import attack_passes, check_passes, measure_pass_cost
from casemate.evaluation.evaluation import Evaluation, evaluate
from casemate.evaluation.intervals import Estimate, share
from casemate.models import Classifier
from casemate.progress import NULL_OBSERVER, Observer
from casemate.selftest.cases import CASES, Case
from casemate.selftest.networks import ModelFactory, training_passes
from casemate.types import Flags, Images, Labels

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
    """Accuracy under all attacks of the evaluation and, if there is a `claim`, on adversarial images that PGD made on
    the network without `Case.change`, and on these in whole grey levels: classified one by one, as in use."""
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
    training = training_passes([name for case in cases for name in case.networks()], factory.sizes)
    total = speed.seconds(Passes(training, training))
    count, classes = len(factory.test), len(factory.data.classes)
    for case in cases:
        attacks = attacks_for(budget, "linf", case.eps, randomised=case.randomised)
        most = attack_passes(attacks, classes, count, 1)
        most.add(check_passes(count, thorough=budget == "thorough"))
        total += case.passes * (DRAWS[budget] if case.randomised else 1) * speed.seconds(most)
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
    networks = [factory.network(name) for name in case.networks()]
    model = case.change(*networks)
    images = case.images(factory.test, len(factory.data.classes))
    found = evaluate(model, images, eps=case.eps, budget=budget, force=True, seed=seed, observer=observer)
    left, claim = found.cascade.robust[:, -1], None
    if case.claim is not None:
        pixels, labels = images.tensors(model.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CasemateWarning)  # misleading this attack is intended
            claim = share((~case.claim(model, pixels, labels, seed=seed).success).cpu().numpy())
            # images made on the trained network do not depend on what the change hides
            made = PGD(eps=case.eps, steps=20, keep="last")(networks[0], pixels, labels, seed=seed).adversarial
        left = left & ~_fooled_in_use(case.change(*networks), made, pixels, labels).cpu().numpy()
    return Outcome(case=case, claim=claim, evaluation=found, truth=share(left), seconds=time.perf_counter() - start)


@torch.no_grad()
def _fooled_in_use(model: Classifier, made: Images, clean: Images, labels: Labels) -> Flags:
    """Which adversarial images fool a model that is called as in use: one image at a time, with nothing frozen.

    Each is also tried with its changes rounded towards zero to whole grey levels.
    """
    rounded = clean + ((made - clean) * 255).trunc() / 255
    found = [torch.cat([model(image) for image in images.split(1)]) for images in (made, rounded)]
    return torch.stack([logits.argmax(1) != labels for logits in found]).any(0)
