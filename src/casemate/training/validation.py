"""The validation after each epoch: loss, accuracy and, where settings need it, accuracy under a short PGD."""

from collections.abc import Sequence

import torch

from casemate.data import LabelledImages
from casemate.models import Classifier
from casemate.norms import Ball
from casemate.training.objective import Objective
from casemate.training.processes import TrainingGroup
from casemate.training.robust import withstand
from casemate.training.state import Weights, snapshot

_BATCH = 500


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

    With `balls` also `val_robust_accuracy`, the share of images that PGD does not fool in any of them; `seed` is that
    of its random starts. The model keeps its own weights. This process computes its part of each batch; the results are
    those of all.
    """
    own = None
    if average is not None:
        own = snapshot(model)
        model.load_state_dict(average)
    model.eval()
    seen = 0
    with group.together(3) as sums:
        for batch_images, batch_labels in validation.batches(_BATCH, device):
            part = group.part(len(batch_labels), least=1)
            images, labels = batch_images[part], batch_labels[part]
            if len(labels):
                value, logits = objective.validate(model, images, labels)
                sums[0] += value.item() * len(labels)
                sums[1] += int((logits.argmax(1) == labels).sum())
                if balls:
                    sums[2] += int(withstand(model, images, labels, balls, seed=seed, first=seen + part.start).sum())
            seen += len(batch_labels)
    if own is not None:
        model.load_state_dict(own)
    names = ("val_loss", "val_accuracy", "val_robust_accuracy")
    return {name: each / len(validation) for name, each in zip(names[: 3 if balls else 2], sums, strict=False)}
