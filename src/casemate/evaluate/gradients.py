"""Do the gradients that an attack would follow exist at all? The share of images without any, per loss."""

from typing import get_args

import numpy as np

from casemate.attacks import Criterion, frozen, input_gradient
from casemate.data import LabelledImages
from casemate.losses import LossName
from casemate.models import Classifier
from casemate.progress import SILENT, Observer


def zero_gradients(
    model: Classifier,
    images: LabelledImages,
    losses: tuple[LossName, ...] = get_args(LossName),
    *,
    batch_size: int = 256,
    observer: Observer = SILENT,
) -> dict[str, np.ndarray]:
    """For each loss, whether each image's input gradient is exactly zero in every pixel, booleans `(n,)`.

    With such a gradient a sign step does not move, whatever its eps: the image counts as withstanding an attack
    that never took place.
    """
    found: dict[str, list[np.ndarray]] = {loss: [] for loss in losses}
    with frozen(model), observer.work("Looking for zero gradients", len(images) * len(losses)) as advance:
        for pixels, labels in images.batches(batch_size, model.device):
            for loss in losses:
                _, gradient = input_gradient(model, pixels, Criterion(labels), loss)
                found[loss].append((gradient.flatten(1) == 0).all(1).cpu().numpy())
                advance(len(labels), "")
    return {loss: np.concatenate(parts) for loss, parts in found.items()}
