"""The validation after each epoch: loss, accuracy and, where settings need it, accuracy under a short PGD."""

from collections.abc import Sequence
from importlib import import_module

import torch

from casemate.data import LabelledImages
from casemate.models import Classifier
from casemate.norms import Ball
from casemate.training.extra_state import load_state
from casemate.training.objective import Objective
from casemate.training.processes import TrainingGroup
from casemate.training.state import Weights, snapshot

_BATCH = 500


def robust_accuracy(
    model: Classifier,
    validation: LabelledImages,
    balls: Sequence[Ball],
    device: torch.device | str,
    group: TrainingGroup,
    *,
    seed: int,
) -> float:
    """Share of the images that a short PGD does not fool in any of the balls, see `withstand`.

    This process computes its part of each batch; the result is that of all.
    """
    # by name, so that stored models trained without it do not depend on the code of attacks
    withstand = import_module("casemate.training.robust").withstand
    seen = 0
    with group.together(1) as sums:
        for images, labels in validation.batches(_BATCH, device):
            part = group.part(len(labels), least=1)
            if len(labels[part]):
                found = withstand(model, images[part], labels[part], balls, seed=seed, first=seen + part.start)
                sums[0] += int(found.sum())
            seen += len(labels)
    return sums[0] / len(validation)


def validate(
    model: Classifier,
    average: Weights | None,
    validation: LabelledImages,
    objective: Objective,
    device: torch.device | str,
    group: TrainingGroup,
    *,
    balls: Sequence[Ball] = (),
    seed: int = 0,
) -> dict[str, float]:
    """Validation loss and accuracy, as `val_loss` and `val_accuracy`, of the weights `average` if given.

    With `balls` also `val_robust_accuracy` (see `robust_accuracy`). The model keeps its own weights. This process
    computes its part of each batch; the results are those of all.
    """
    own = None
    if average is not None:
        own = snapshot(model)
        load_state(model, average)
    model.eval()
    with group.together(2) as sums:
        for batch_images, batch_labels in validation.batches(_BATCH, device):
            part = group.part(len(batch_labels), least=1)
            images, labels = batch_images[part], batch_labels[part]
            if len(labels):
                value, logits = objective.validate(model, images, labels)
                sums[0] += value.item() * len(labels)
                sums[1] += int((logits.argmax(1) == labels).sum())
    found = {"val_loss": sums[0] / len(validation), "val_accuracy": sums[1] / len(validation)}
    if balls:
        found["val_robust_accuracy"] = robust_accuracy(model, validation, balls, device, group, seed=seed)
    if own is not None:
        load_state(model, own)
    return found
