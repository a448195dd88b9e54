"""One of the models of a hardening with its evaluation: the one given, the control, or a hardened one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from casemate.evaluation import Estimate, Evaluation, Verdict, read_verdicts, share
from casemate.models import Classifier


@final
@dataclass(frozen=True, kw_only=True)
class FineTuning:
    """How a copy of the model was fine-tuned, and which of its epochs was kept."""

    history: list[dict[str, Any]]
    """One row per epoch: epoch, learning_rate, loss, accuracy (of the objective, on training images), val_robust and
    val_accuracy (on validation images, under the attack that chooses the epoch and without it), seconds,
    processor_seconds. With a guard also val_robust_accuracy, guard_accuracy and rolled_back (see `TrainResult`)."""
    epoch: int
    """The epoch that was kept, from 1: the first with the highest robust accuracy on the validation images."""

    @property
    def seconds(self) -> float:
        """Seconds of the training, with its validation; those of all epochs, also if it was interrupted."""
        return sum(row["seconds"] for row in self.history)

    @property
    def processor_seconds(self) -> float:
        """Seconds of all threads together, which other work on the machine changes little."""
        return sum(row["processor_seconds"] for row in self.history)

    @property
    def robust(self) -> float:
        """Robust accuracy on the validation images after the epoch that was kept."""
        return self.history[self.epoch - 1]["val_robust"]


@final
@dataclass(frozen=True, kw_only=True)
class ComparedModel:
    """A model of a hardening, and its evaluation on the test images that all of them share."""

    name: str
    """What the results call it: before, control, hardened; with several recipes their names."""
    model: Classifier
    """In evaluation mode; a copy of the one given, or trained from one."""
    correct: np.ndarray
    """Whether each test image is classified correctly without an attack, `(n,)`."""
    withstood: np.ndarray
    """Whether each test image is classified correctly under every attack, `(n,)`."""
    verdict: Verdict
    evaluation: Mapping[str, Any]
    """All results of the evaluation as JSON, see `Evaluation.as_json`."""
    training: FineTuning | None = None
    """How it was trained; None for the model as it was given."""

    @property
    def clean(self) -> Estimate:
        """Accuracy without an attack."""
        return share(self.correct)

    @property
    def robust(self) -> Estimate:
        """Accuracy under all attacks."""
        return share(self.withstood)

    def __repr__(self) -> str:
        return f"ComparedModel({self.name}: clean {self.clean}, robust {self.robust:n}; {self.verdict.word})"


def evaluation_tensors(found: Evaluation) -> dict[str, Tensor]:
    """What `compared_model` needs of an evaluation, per image: correct without an attack, and under all attacks."""
    return {
        "correct": torch.from_numpy(np.asarray(found.clean.correct)),
        "withstood": torch.from_numpy(np.ascontiguousarray(found.cascade.robust[:, -1])),
    }


def compared_model(
    name: str, model: Classifier, tensors: Mapping[str, Tensor], content: Mapping[str, Any], training: FineTuning | None
) -> ComparedModel:
    """The model `name` from its evaluation as it was kept: `evaluation_tensors`, and `Evaluation.as_json`."""
    return ComparedModel(
        name=name,
        model=model,
        correct=tensors["correct"].numpy(),
        withstood=tensors["withstood"].numpy(),
        verdict=read_verdicts(content, f"the evaluation of {name}")[-1],
        evaluation=content,
        training=training,
    )
