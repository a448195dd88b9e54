"""What is measured of a trained model: accuracy under attacks, and what a certificate proves beside it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from casemate.certification import Method
from casemate.data import LabelledImages
from casemate.evaluation import Budget, evaluate, evaluate_certified, run_cascade, share
from casemate.evaluation.budgets import attacks_for
from casemate.evaluation.certificates import certificate_seconds
from casemate.evaluation.cost import seconds_at_most
from casemate.models import Classifier
from casemate.norms import format_eps
from casemate.progress import Observer

_BLACK_BOX = "square"
"""The attack without gradients of every budget; where it fools much that the others cannot, gradients are masked."""


@dataclass(frozen=True, kw_only=True)
class AbstractMeasure(ABC):
    """A measurement of one model on the first test images, in Linf."""

    eps: tuple[float, ...]
    """Radii, ascending."""
    images: int | None
    """Number of test images, the first ones; None for all."""
    seed: int
    budget: Budget

    @final
    @property
    def name(self) -> str:
        """Name of the file with the result, without its ending, such as attacked-0.1-1000-standard-0."""
        radii = "-".join(format_eps(each).replace("/", "_") for each in self.eps)
        return f"{type(self).__name__.lower()}-{radii}-{self.images or 'all'}-{self.budget}-{self.seed}"

    @abstractmethod
    def seconds_at_most(self, model: Classifier, test: LabelledImages) -> float:
        """Estimated seconds on this machine if all images are attacked, and none is fooled."""

    @abstractmethod
    def compute(self, model: Classifier, test: LabelledImages, store: Path, observer: Observer) -> dict[str, Any]:
        """The results as JSON; `store` keeps what is finished of it."""

    @final
    def chosen(self, test: LabelledImages) -> LabelledImages:
        """The images to measure on."""
        return test if self.images is None else test[: self.images]

    @final
    def as_json(self) -> dict[str, Any]:
        """The settings."""
        return {"measure": self.name, **asdict(self)}

    @final
    def only_without_gradients(
        self,
        model: Classifier,
        test: LabelledImages,
        attacks: Iterable[str],
        first_success: np.ndarray,
        robust: np.ndarray,
    ) -> list[int]:
        """For each eps, the number of images that no gradient attack of the budget `thorough` fools, but Square did.

        `standard` runs each gradient attack once; a few images need more starts or steps, and what Square finds of them
        first would be taken for what gradients cannot find.

        Args:
            model, test: as for `compute`.
            attacks: names of those that were run, in order.
            first_success: per image the place of the first one that fooled it, int `(n,)`.
            robust: whether each image withstood them, booleans `(n, values)`.
        """
        black_box = list(attacks).index(_BLACK_BOX)
        withstood = robust.sum(1)
        counts = [0] * len(self.eps)
        for column, eps in enumerate(self.eps):
            first = np.flatnonzero((first_success == black_box) & (withstood == column))
            if len(first):
                gradient = attacks_for("thorough", "linf", eps, randomised=False)
                del gradient[_BLACK_BOX]
                images = self.chosen(test)[torch.from_numpy(first)]
                correct = np.ones(len(first), dtype=bool)
                again = run_cascade(model, gradient, images, [eps], correct=correct, seed=self.seed)
                counts[column] = int(again.robust.sum())
        return counts


@final
@dataclass(frozen=True, kw_only=True)
class Attacked(AbstractMeasure):
    """Accuracy under all attacks of a budget, with the findings and the verdict of `casemate.evaluate`."""

    def seconds_at_most(self, model: Classifier, test: LabelledImages) -> float:
        """Of the attacks and the checks."""
        return seconds_at_most(model, self.chosen(test), self.eps, norm="linf")[self.budget]

    def compute(self, model: Classifier, test: LabelledImages, store: Path, observer: Observer) -> dict[str, Any]:
        """Clean and robust accuracy, verdict, findings, and how many images only the attack without gradients fools."""
        found = evaluate(
            model,
            self.chosen(test),
            eps=self.eps,
            budget=self.budget,
            seed=self.seed,
            force=True,  # a finding that voids the number belongs in the table
            store=store,
            observer=observer,
        )
        return {
            **accuracies(found.clean.correct, found.cascade.robust),
            "verdicts": [each.word for each in found.verdicts],
            "findings": [
                {"check": each.check, "severity": each.severity.value, "sentence": each.sentence}
                for each in found.findings
            ],
            "first_to_fool": found.successes_by_attack,
            "only_without_gradients": self.only_without_gradients(
                model, test, found.cascade.attacks, found.cascade.first_success, found.cascade.robust
            ),
            "seconds": found.seconds,
        }


@final
@dataclass(frozen=True, kw_only=True)
class Certified(AbstractMeasure):
    """What a certificate proves, and what the attacks of a budget leave of the same images."""

    method: Method

    def seconds_at_most(self, model: Classifier, test: LabelledImages) -> float:
        """Of the bounds and the attacks, of which no checks follow."""
        chosen = self.chosen(test)
        attacks = seconds_at_most(model, chosen, self.eps, norm="linf", checks=False)[self.budget]
        return attacks + certificate_seconds(model, chosen, self.eps, norm="linf", method=self.method)

    def compute(self, model: Classifier, test: LabelledImages, store: Path, observer: Observer) -> dict[str, Any]:
        """Clean, certified and robust accuracy, whether attacks fooled certified images, and what fooled the others."""
        found = evaluate_certified(
            model,
            self.chosen(test),
            eps=self.eps,
            method=self.method,
            budget=self.budget,
            seed=self.seed,
            store=store,
            observer=observer,
        )
        return {
            **accuracies(found.clean, found.robust),
            "certified": [each.as_json() for each in found.certified_accuracy],
            "method": found.method,
            "sampled": found.sampled,
            "void": found.is_void,
            "first_to_fool": found.successes_by_attack,
            "only_without_gradients": self.only_without_gradients(
                model, test, found.attacks, found.first_success, found.robust
            ),
            "seconds": found.seconds,
        }


def accuracies(clean: np.ndarray, robust: np.ndarray) -> dict[str, Any]:
    """Clean accuracy and robust accuracy at each eps as estimates in JSON, and each image's results as text.

    Args:
        clean: whether each image is classified correctly, booleans `(n,)`.
        robust: the same under attack, `(n, values)`.

    Returns:
        `clean`, `robust`, and `correct`: one digit per image, the number of the values of eps at which it is robust
        plus one, or 0 for one that is misclassified without an attack; for paired comparisons.
    """
    digits = clean.astype(int) + robust.sum(1)
    return {
        "clean": share(clean).as_json(),
        "robust": [share(column).as_json() for column in robust.T],
        "correct": "".join(map(str, digits)),
    }
