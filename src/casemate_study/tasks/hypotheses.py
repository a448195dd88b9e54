"""Producer of trials of hypotheses: accuracy under FGSM with one or two conditions of E2's measure changed.

casemate's FGSM makes the attacked images: with the predicted classes as labels, with another eps, or, for a step that
is not clipped, on a model with wider bounds. Only the attack that follows the gradient of a mean over a batch is
computed here.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch

from casemate.attacks import frozen
from casemate.data import LabelledImages
from casemate.engine import Artifact, Context
from casemate.evaluation import Estimate, evaluate_clean, mean, share
from casemate.losses import loss_by_name
from casemate.models import DEFAULT_PASS_SIZE, Classifier
from casemate.types import Images
from casemate_study.tasks.inputs import attack_of, batch_size, classifier_for, read, tested, with_seeded_randomness
from casemate_study.tasks.training import parts_of


@final
@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The conditions of one measure of accuracy under FGSM on which the paper may differ from E2."""

    images: Literal["test", "training"]
    """Images attacked: the first of the test part, or the first of those that the model was trained on."""
    label: Literal["true", "predicted"]
    """The class whose loss the attack ascends: the true one, or the one predicted without an attack. The true one can
    leak the label into the image (Kurakin et al. 2017). Accuracy refers to the true one either way."""
    mean_of: int | None
    """None: the attack follows the gradient of each image's own loss. A number: that of the mean loss over a batch of
    that many images, in float32 with denormal numbers flushed to zero; where it underflows, its sign is 0."""
    eps: float
    """Radius, in pixels from 0 to 1."""
    clip: bool
    """Whether the attacked pixels are clipped to the model's bounds."""
    counted: Literal["all", "correct"]
    """Images that count in the accuracy: all, or those classified correctly without an attack."""


@contextmanager
def flushed_denormals() -> Iterator[bool]:
    """Context in which float32 numbers below 1.2e-38 are zero on the CPU; yields whether the processor can do that.

    Inside, PyTorch uses one thread, since the setting applies to the calling thread only. Both are restored.
    """
    threads, flushed_before = torch.get_num_threads(), _flushes_denormals()
    torch.set_num_threads(1)
    supported = torch.set_flush_denormal(True)
    try:
        yield supported
    finally:
        torch.set_flush_denormal(flushed_before)
        torch.set_num_threads(threads)


def _flushes_denormals() -> bool:
    return bool(torch.tensor(torch.finfo(torch.float32).tiny).div(2) == 0)


def mean_gradient(model: Classifier, images: LabelledImages, loss: str, count: int) -> Images:
    """The gradient of the mean loss over a batch of `count` images with respect to each of `images`, on the CPU.

    It is the gradient of each image's own loss, which is divided by `count` before the backward pass.
    """
    model, function = copy.deepcopy(model).cpu(), loss_by_name(loss)
    found = []
    with frozen(model):
        for pixels, labels in images.batches(DEFAULT_PASS_SIZE):
            pixels.requires_grad_()
            total = function(model(pixels), labels).sum() / count
            found.append(torch.autograd.grad(total, pixels)[0])
    return torch.cat(found)


def zero_shares(gradient: Images) -> dict[str, dict[str, float | int]]:
    """How much of a gradient is exactly zero: the share of images where every entry is, and the mean over the images of
    the share of such pixels, each with its interval over the images.
    """
    zero = gradient.flatten(1) == 0
    return {"images": share(zero.all(1).numpy()).as_json(), "pixels": mean(zero.double().mean(1).numpy()).as_json()}


def best_two(found: Mapping[str, Estimate | None], unchanged: str) -> tuple[str, str] | None:
    """The names of the two highest accuracies above the one called `unchanged`; None if there are not two."""
    values = {name: each.value for name, each in found.items() if each is not None}
    above = [name for name in values if values[name] > values.get(unchanged, 1.0)]
    above.sort(key=lambda name: values[name], reverse=True)
    return (above[0], above[1]) if len(above) > 1 else None


@final
class Trials:
    """Accuracies of one model under FGSM in several conditions; an attack that several of them share runs once.

    Args:
        parts: the images by `Conditions.images`.
        seed: of the attack.
    """

    def __init__(self, model: Classifier, parts: Mapping[str, LabelledImages], seed: int, context: Context) -> None:
        self.model, self.parts, self.seed, self.context = model, parts, seed, context
        self.clean = {name: evaluate_clean(model, images, observer=context.observer) for name, images in parts.items()}
        """Results without an attack, by the name of the images."""
        self._predictions: dict[tuple[Conditions, str], np.ndarray] = {}

    def accuracy(self, conditions: Conditions, loss: str) -> Estimate | None:
        """The share of the counted images that are classified as their true class under FGSM ascending `loss`; None if
        no image counts.
        """
        shared = replace(conditions, counted="all"), loss
        if shared not in self._predictions:
            self._predictions[shared] = self._attacked(conditions, loss)
        clean = self.clean[conditions.images]
        hits = self._predictions[shared] == clean.labels
        if conditions.counted == "correct":
            hits = hits[clean.correct]
        return share(hits) if hits.size else None

    def _attacked(self, conditions: Conditions, loss: str) -> np.ndarray:
        """The class predicted for each image after the attack, `(n,)`."""
        model, images, eps = self.model, self.parts[conditions.images], conditions.eps
        if conditions.label == "predicted":
            predicted = torch.from_numpy(self.clean[conditions.images].prediction)
            images = LabelledImages(pixels=images.pixels, labels=predicted)
        if not conditions.clip:
            low, high = model.bounds
            model = Classifier(
                model,
                input_shape=model.input_shape,  # pyright: ignore[reportArgumentType]
                classes=model.classes,
                bounds=(low - eps, high + eps),
            )
        if conditions.mean_of is None:
            attack = attack_of({"name": "fgsm", "eps": eps, "loss": loss, "keep": "last"})
            pixels, labels = images.tensors(self.model.device)
            size, observer = batch_size(self.context), self.context.observer
            result = attack(model, pixels, labels, seed=self.seed, batch_size=size, observer=observer)
            return result.prediction.cpu().numpy()
        with flushed_denormals():
            gradient = mean_gradient(self.model, images, loss, conditions.mean_of)
        moved = (images.tensors()[0] + eps * gradient.sign()).clamp(*model.bounds)
        attacked = LabelledImages(pixels=moved, labels=images.labels)
        return evaluate_clean(model, attacked, observer=self.context.observer).prediction


@with_seeded_randomness
def try_hypotheses(
    config: dict[str, Any], needs: Mapping[str, Artifact], folder: Path, working: Path, context: Context
) -> dict[str, Any]:
    """Measure the accuracy of the configured model under FGSM in the configured conditions, ascending each loss: with
    the change of each hypothesis alone, and with the two changes together that raise it most with that loss.

    Also returns accuracies without an attack, and how often the gradient is zero: that of each image's own loss, and
    that of a mean over `mean_of` images with denormals flushed.
    """
    del folder, working
    trained, _ = parts_of(config, read(config["dataset"], context))
    parts = {"test": tested(config, context), "training": trained[: config["images"]]}
    trials = Trials(classifier_for(config, needs, context), parts, config["seed"], context)
    conditions, changes, losses = Conditions(**config["conditions"]), config["hypotheses"], config["losses"]
    single = {
        name: {loss: trials.accuracy(replace(conditions, **change), loss) for loss in losses}
        for name, change in changes.items()
    }
    combined: dict[str, dict[str, Any] | None] = {}
    for loss in losses:
        pair = best_two({name: by_loss[loss] for name, by_loss in single.items()}, config["unchanged"])
        combined[loss] = None
        if pair is not None:
            both = replace(conditions, **changes[pair[0]], **changes[pair[1]])
            combined[loss] = {"hypotheses": list(pair), "accuracy": _as_json(trials.accuracy(both, loss))}
    own = {loss: zero_shares(mean_gradient(trials.model, parts["test"], loss, 1)) for loss in losses}
    with flushed_denormals() as flushed:
        of_mean = {
            loss: zero_shares(mean_gradient(trials.model, parts["test"], loss, config["mean_of"])) for loss in losses
        }
    return {
        "clean": {name: found.accuracy.as_json() for name, found in trials.clean.items()},
        "single": {name: {loss: _as_json(each) for loss, each in found.items()} for name, found in single.items()},
        "combined": combined,
        "zero_gradients": {"own": own, "mean": of_mean},
        "flushed": flushed,
    }


def _as_json(estimate: Estimate | None) -> dict[str, float | int] | None:
    return None if estimate is None else estimate.as_json()
