"""The training loop of all recipes, which differ in the augmentation, the objective or the model.

Images stay in memory as bytes, batches are taken from that tensor (no worker processes), and everything is
channels-last. Each epoch has its own seed and ends with a checkpoint. A training that was killed resumes from the last
one, and ends with the same weights, bit for bit.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from casemate.data import ImageSource, LabelledImages, as_labelled, to_float
from casemate.data.augment import Augmentation
from casemate.errors import ModelError, ShapeError, TrainingError
from casemate.memory import is_out_of_memory
from casemate.models import (
    Classifier,
    as_classifier,
    backward_error,
    channels_last_if_supported,
    has_inference_tensors,
    optimized_training,
    restore_on_error,
    user_call,
)
from casemate.models.state import frozen
from casemate.norms import Ball
from casemate.progress import NULL_OBSERVER, Advance, Observer
from casemate.rng import derive, seeded
from casemate.training.config import TrainConfig
from casemate.training.objective import CrossEntropy, Objective
from casemate.training.state import TrainingState, Weights, checksum, read_state, snapshot
from casemate.training.tracked import track_epoch, track_training

_EVAL_BATCH = 500
_COMPARED = 32
"""Number of training images on which an optimised network's logits are compared with the original's."""
_CHECK_EVERY = 20
"""Number of steps after which the loss is read again, to report progress, and to stop if it is not finite."""


@final
@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What `fit` returns; its model has the final weights, or with early stopping the best ones."""

    model: Classifier
    """The trained model, in evaluation mode."""
    history: list[dict[str, Any]]
    """One row per epoch: epoch, learning_rate, loss, accuracy, val_loss, val_accuracy, seconds, and
    processor_seconds, those of all threads of this process, which other work on the machine changes little."""
    epoch: int
    """Epoch, from 1, whose weights `model` has: the last one, or with early stopping the best one."""
    best_epoch: int
    """Epoch of the lowest validation loss before early stopping ended (or would have ended) the training."""
    stopped_at: int | None
    """Epoch after which early stopping ended, or would have ended, the training; None if it did not."""
    best: Weights
    """The weights after `best_epoch`, on the CPU."""
    kept: dict[int, Weights]
    """The weights after each of `TrainConfig.save_epochs`, by epoch, on the CPU."""

    def __repr__(self) -> str:
        row = self.history[self.epoch - 1]
        return f"TrainResult(epoch {self.epoch} of {len(self.history)}; validation accuracy {row['val_accuracy']:.1%})"


def fit(
    model: nn.Module,
    train: ImageSource,
    validation: ImageSource,
    settings: TrainConfig,
    *,
    objective: Objective | None = None,
    augment: Sequence[Augmentation] = (),
    checkpoint: Path | str | None = None,
    device: torch.device | str = "cpu",
    observer: Observer = NULL_OBSERVER,
) -> TrainResult:
    """Train `model` in place and return it with its history.

    Args:
        model: a `Classifier`, or a module that maps images within [0, 1] to logits; trained in place, and moved to
            `device`.
        train: training images: `LabelledImages`, a pair of images and labels, or a DataLoader or Dataset of
            (image, label) pairs, which are read once.
        validation: other images, used only to choose the best epoch.
        settings: see `TrainConfig`.
        objective: the loss to minimise; cross-entropy if None.
        augment: applied in order to every training batch.
        checkpoint: a file written after every epoch; if it exists, the training is resumed from it.
        device: where to train.
        observer: receives progress every few batches.

    Raises:
        TrainingError: the loss is not finite (the checkpoint keeps the last good epoch), or the checkpoint is damaged
            or belongs to another training.
        ShapeError: too few images, or images or labels that do not fit the model.
        ModelError: a model that fails, does not return one logit per class, or has no gradient.

    An error restores the model; an interruption (`KeyboardInterrupt`) leaves it partly trained.
    """
    objective = objective or CrossEntropy()
    model, train, validation = as_classifier(model), as_labelled(train), as_labelled(validation)
    checkpoint = None if checkpoint is None else Path(checkpoint)
    _check(model, train, "training", least=2)
    _check(model, validation, "validation", least=1)
    teachers = [part for part in getattr(objective, "__dict__", {}).values() if isinstance(part, nn.Module)]
    model.to(device)
    few = to_float(train.pixels[:_COMPARED].to(device), device)
    with frozen(model):
        model.examine(few)
    ball = getattr(objective, "ball", None)
    with (
        user_call(model, ball if isinstance(ball, Ball) else None, teachers=teachers),
        restore_on_error(model),
        channels_last_if_supported(model, few),
    ):
        return _fit(model, train, validation, settings, objective, augment, checkpoint, device, observer, few)


def _fit(
    model: Classifier,
    train: LabelledImages,
    validation: LabelledImages,
    settings: TrainConfig,
    objective: Objective,
    augment: Sequence[Augmentation],
    checkpoint: Path | None,
    device: torch.device | str,
    observer: Observer,
    few: Tensor,
) -> TrainResult:
    """`fit` without its checks; optimised layers are compared with the originals on the images `few`."""
    optimizer = settings.make_optimizer(model)
    fingerprint = _fingerprint(model, train, validation, settings, objective, augment)
    state = TrainingState(fingerprint)
    if checkpoint is not None and checkpoint.exists():
        state = read_state(checkpoint, fingerprint, model, optimizer)
    if settings.ema is not None and state.average is None:
        state.average = snapshot(model)
    average = None if state.average is None else {name: t.to(device) for name, t in state.average.items()}

    pixels, labels = train.pixels.to(device), train.labels.to(device)
    with (
        observer.work(f"Training, {settings.epochs} epochs", settings.epochs) as advance,
        optimized_training(model, few),
    ):
        track_training(observer, settings, objective, augment, state.history)
        advance(state.epoch, f"resumed after epoch {state.epoch}" if state.epoch else "")
        while state.epoch < settings.epochs and (state.stopped_at is None or settings.continue_after_stop):
            start, processor = time.perf_counter(), time.process_time()
            row = _one_epoch(
                model, pixels, labels, settings, objective, augment, optimizer, average, state.epoch + 1, advance
            )
            state.average = None if average is None else {name: t.cpu() for name, t in average.items()}
            current = _current_weights(model, state.average)
            with seeded(labels.device, settings.seed, "validation", state.epoch + 1):
                row |= _validate(model, None if average is None else current, validation, objective, device)
            if not math.isfinite(row["val_loss"]):  # before the write, so that the last good checkpoint is kept
                raise _not_finite(f"validation loss (epoch {state.epoch + 1})", state.epoch, settings)
            row["seconds"] = time.perf_counter() - start
            row["processor_seconds"] = time.process_time() - processor
            _record_epoch(state, row, current, settings)
            if checkpoint is not None:
                state.write(checkpoint, model, optimizer)
            track_epoch(observer, row)

    best = state.best
    if best is None:
        raise TrainingError("no epoch had a finite validation loss; lower the learning rate")
    keeps_best = settings.patience is not None and not settings.continue_after_stop
    model.load_state_dict(best if keeps_best else _current_weights(model, state.average))
    return TrainResult(
        model=model.eval(),
        history=state.history,
        epoch=state.best_epoch if keeps_best else state.epoch,
        best_epoch=state.best_epoch,
        stopped_at=state.stopped_at,
        best=best,
        kept=state.kept,
    )


def _check(model: Classifier, images: LabelledImages, part: str, *, least: int) -> None:
    """Raise `ModelError` or `ShapeError` unless the model can be trained on the images, called `part` in errors."""
    if has_inference_tensors(model):
        raise ModelError(
            "the model's weights were created inside torch.inference_mode() and cannot be trained; create it outside"
        )
    if len(images) < least:
        raise ShapeError(f"{len(images)} {part} images; expected at least {least}")
    model.infer(to_float(images.pixels[:2]))
    seen = tuple(images.pixels.shape[1:])
    if seen != model.input_shape:
        raise ShapeError(f"{part} images of shape {seen}, but the model expects {model.input_shape}")
    outside = images.labels[(images.labels < 0) | (images.labels >= len(model.classes))]
    if len(outside):
        raise ShapeError(
            f"a label {int(outside[0])} in the {part} images; expected labels from 0 to {len(model.classes) - 1}"
        )


def _one_epoch(
    model: Classifier,
    pixels: Tensor,
    labels: Tensor,
    settings: TrainConfig,
    objective: Objective,
    augment: Sequence[Augmentation],
    optimizer: torch.optim.Optimizer,
    average: Weights | None,
    epoch: int,
    advance: Advance,
) -> dict[str, Any]:
    """Train for one epoch, and return its row of `TrainResult.history`, without the entries of the validation.

    `average`, the moving average of the weights if there is one, is updated in place.
    """
    generator = torch.Generator().manual_seed(derive(settings.seed, "shuffle and augment", epoch))
    batches = _batches(len(labels), settings.batch_size, generator)
    loss_sum = torch.zeros((), dtype=torch.float64, device=labels.device)
    right = torch.zeros((), dtype=torch.int64, device=labels.device)
    rate = settings.rate((epoch - 1) / settings.epochs)
    with seeded(labels.device, settings.seed, "dropout", epoch):
        model.train()
        for step, batch in enumerate(batches, start=1):
            done = (epoch - 1 + (step - 1) / len(batches)) / settings.epochs
            for group in optimizer.param_groups:
                group["lr"] = settings.rate(done)
            index = batch.to(labels.device)
            images = to_float(pixels[index], labels.device)
            for change in augment:
                images = change(images, batch, epoch, generator)
            optimizer.zero_grad(set_to_none=True)
            with (
                torch.enable_grad(),
                torch.autocast(images.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"),
            ):
                loss, logits = objective(model, images, labels[index])
            _differentiate(loss)
            optimizer.step()
            loss_sum += loss.detach() * len(batch)
            right += (logits.detach().argmax(1) == labels[index]).sum()
            if average is not None and settings.ema is not None:
                steps = (epoch - 1) * len(batches) + step  # the decay begins small, to forget the initial weights
                _update_average(average, model, min(settings.ema, steps / (steps + 9)))
            if step % _CHECK_EVERY == 0 or step == len(batches):
                seen = sum(len(each) for each in batches[:step])
                mean = loss_sum.item() / seen
                if not math.isfinite(mean):
                    raise _not_finite(
                        f"loss (epoch {epoch}, step {step} or up to {_CHECK_EVERY - 1} before)", epoch - 1, settings
                    )
                advance((step - 1) % _CHECK_EVERY / len(batches) + 1 / len(batches), f"epoch {epoch}, loss {mean:.4f}")
    return {
        "epoch": epoch,
        "learning_rate": rate,
        "loss": loss_sum.item() / len(labels),
        "accuracy": right.item() / len(labels),
    }


def _differentiate(loss: Tensor) -> None:
    """Run the backward pass from the loss to the weights. Raises `ModelError` if it cannot be differentiated."""
    if not loss.requires_grad:
        raise ModelError(
            "the loss has no gradient with respect to the model's weights: its forward runs without autograd (no_grad, "
            "inference_mode, detach), or no weight requires a gradient"
        )
    try:
        loss.backward()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise backward_error(error) from error


def _not_finite(where: str, last_good: int, settings: TrainConfig) -> TrainingError:
    return TrainingError(
        f"the {where} is not finite; the checkpoint, if there is one, keeps the state after epoch {last_good}. "
        f"Lower the learning rate ({settings.learning_rate:g}) and train again."
    )


def _batches(count: int, size: int, generator: torch.Generator) -> list[Tensor]:
    """The indices of all `count` images, shuffled, in batches of `size`.

    A last batch of one image is merged with the one before, since batch normalisation needs two.
    """
    batches = list(torch.randperm(count, generator=generator).split(size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


@torch.no_grad()
def _update_average(average: Weights, model: Classifier, decay: float) -> None:
    """Update the moving average in place: `decay` times itself plus (1 - `decay`) times the model's weights.

    Entries that are not floating-point numbers are copied from the model.
    """
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            average[name].lerp_(tensor, 1 - decay)
        else:
            average[name].copy_(tensor)


def _current_weights(model: Classifier, average: Weights | None) -> Weights:
    """A copy of the weights that count at this point: the moving average if there is one, else the model's own."""
    return snapshot(model) if average is None else {name: tensor.clone() for name, tensor in average.items()}


def _validate(
    model: Classifier,
    average: Weights | None,
    validation: LabelledImages,
    objective: Objective,
    device: torch.device | str,
) -> dict[str, float]:
    """Validation loss and accuracy, as `val_loss` and `val_accuracy`, of the weights `average` if given.

    The model keeps its own weights.
    """
    own = None
    if average is not None:
        own = snapshot(model)
        model.load_state_dict(average)
    model.eval()
    loss, right = 0.0, 0
    for images, labels in validation.batches(_EVAL_BATCH, device):
        value, logits = objective.validate(model, images, labels)
        loss += value.item() * len(labels)
        right += int((logits.argmax(1) == labels).sum())
    if own is not None:
        model.load_state_dict(own)
    return {"val_loss": loss / len(validation), "val_accuracy": right / len(validation)}


def _record_epoch(state: TrainingState, row: dict[str, Any], current: Weights, settings: TrainConfig) -> None:
    """Add a finished epoch to the state in place: its row of the history, its weights if kept or best, early stopping.

    `current` are the weights after it.
    """
    state.epoch = row["epoch"]
    state.history.append(row)
    if state.epoch in settings.save_epochs:
        state.kept[state.epoch] = current
    if state.stopped_at is not None:
        return
    if row["val_loss"] < state.best_loss:
        state.best_epoch, state.best_loss, state.best = state.epoch, row["val_loss"], current
    elif settings.patience is not None and state.epoch - state.best_epoch >= settings.patience:
        state.stopped_at = state.epoch


def _fingerprint(
    model: Classifier,
    train: LabelledImages,
    validation: LabelledImages,
    settings: TrainConfig,
    objective: Objective,
    augment: Sequence[Augmentation],
) -> str:
    """A hash of data, settings, objective, augmentations and initial weights, by which a checkpoint is recognised."""
    tensors = {
        "train pixels": train.pixels,
        "train labels": train.labels,
        "validation pixels": validation.pixels,
        "validation labels": validation.labels,
    }
    named = {f.name: getattr(settings, f.name) for f in fields(settings)}
    schedule = named["schedule"]
    if callable(schedule):  # a function has no stable `repr`, so its values are hashed
        named["schedule"] = [schedule(step / 100) for step in range(100)]
    for name, part in vars(objective).items():
        if isinstance(part, nn.Module):  # a teacher, whose `repr` names its layers, not its weights
            tensors |= {f"{name}/{entry}": tensor for entry, tensor in snapshot(part).items()}
    return checksum(repr((sorted(named.items()), objective, tuple(augment))), tensors | snapshot(model))
