"""The training loop of all recipes, which differ in the augmentation, the objective or the model.

Images stay in memory as bytes, batches are taken from that tensor (no worker processes), and everything is
channels-last. Each epoch has its own seed and ends with a checkpoint. A training that was killed resumes from the last
one, and ends with the same weights, bit for bit.

Several processes share a training if torchrun starts them (see `processes.py`): each takes its part of every batch of
the one shuffled order, so that all settings mean the same for any number of processes.
"""

import copy
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from casemate.data import UNLABELLED, ImageSource, LabelledImages, as_labelled, to_float
from casemate.data.augment import Augmentation
from casemate.errors import ModelError, SettingError, ShapeError, TrainingError, kind_of
from casemate.files import as_path
from casemate.functions import stable_repr
from casemate.models import (
    Classifier,
    as_classifier,
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
from casemate.torchrun import mark_shared
from casemate.training.config import TrainConfig
from casemate.training.extra_state import as_tensors, load_state, others
from casemate.training.guard import commonest_share, has_collapsed
from casemate.training.images import check_augmentations, check_training_images, expect_augmentations
from casemate.training.objective import (
    Objective,
    PreparedObjective,
    SteppedObjective,
    TrainingStep,
    as_objective,
    ball_of,
    balls_of,
    differentiate_loss,
    loss_and_logits,
    takes_unlabelled,
)
from casemate.training.processes import TrainingGroup, process_group
from casemate.training.state import (
    TrainingState,
    Weights,
    checksum,
    copied_weights,
    read_state,
    snapshot,
    undone_epochs,
)
from casemate.training.teachers import check_teachers, teachers_of
from casemate.training.tracked import track_epoch, track_training
from casemate.training.validation import robust_accuracy, validate

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
    processor_seconds, those of all threads of all processes, which other work on the machine changes little.
    With the monitor robust-accuracy or a guard also val_robust_accuracy; with a guard guard_accuracy, that of the
    weights themselves where their average counts, and rolled_back: whether the epoch was undone."""
    epoch: int
    """Epoch, from 1, whose weights `model` has: the last one that was not undone, or with early stopping or `keep_best`
    the best one."""
    best_epoch: int
    """Epoch of the best value of `TrainConfig.monitor` before early stopping ended (or would have ended) the
    training."""
    stopped_at: int | None
    """Epoch after which early stopping ended, or would have ended, the training; None if it did not."""
    best: Weights
    """The weights after `best_epoch`, on the CPU."""
    kept: dict[int, Weights]
    """The weights after each of `TrainConfig.save_epochs`, by epoch, on the CPU."""
    processes: int = 1
    """Number of processes that shared the training, or its last part if it was resumed."""

    def __repr__(self) -> str:
        row = self.history[self.epoch - 1]
        return f"TrainResult(epoch {self.epoch} of {len(self.history)}; validation accuracy {row['val_accuracy']:.1%})"


def fit(
    model: nn.Module,
    train: ImageSource,
    validation: ImageSource,
    settings: TrainConfig,
    *,
    objective: Objective | Callable[..., Any] | None = None,
    augment: Sequence[Augmentation] = (),
    checkpoint: Path | str | None = None,
    device: torch.device | str = "cpu",
    observer: Observer = NULL_OBSERVER,
) -> TrainResult:
    """Train `model` in place and return it with its history.

    Processes that torchrun started train one model together, each with a part of every batch: all of them must call
    `fit` with the same arguments. Each returns the same result; the first one reads and writes the checkpoint, and
    reports to its observer. They begin with the weights of the first one's model.

    Args:
        model: a `Classifier`, or a module that maps images within [0, 1] to logits; trained in place, and moved to
            `device`.
        train: training images: `LabelledImages`, a pair of images and labels, or a DataLoader or Dataset of
            (image, label) pairs, which are read once.
        validation: other images, used only to choose the best epoch.
        settings: see `TrainConfig`.
        objective: the loss to minimise; cross-entropy if None. A function of model, images and labels that returns the
            mean loss and the logits is one too, whose loss is then that of the validation. For one that can learn
            without labels (see `takes_unlabelled`), training images may have the label `UNLABELLED`, -1.
        augment: applied in order to every training batch; those of casemate that move or change pixels are for bounds
            of [0, 1].
        checkpoint: a file written after every epoch; if it exists, the training is resumed from it.
        device: where to train; with several processes, "cuda" is the GPU of each one's number on its machine.
        observer: receives progress every few batches.

    Raises:
        TrainingError: the loss is not finite (the checkpoint keeps the last good epoch), the guard undid every epoch,
            or the checkpoint is damaged or belongs to another training. Several processes: they have other images or
            settings, or one has ended.
        ShapeError: too few images, or images or labels that do not fit the model.
        SettingError: something that is no objective, or returns something else than a single number and the logits; a
            monitor or guard of robust accuracy with an objective that has no ball.
        ModelError: a model that fails, does not return one logit per class, or has no gradient, or whose extra state a
            checkpoint cannot hold; a teacher that shares layers or weights with it; an augmentation that takes pixels
            within [0, 1] only, with other bounds.

    An error restores the model, and is raised in all processes; an interruption (`KeyboardInterrupt`) leaves the model
    partly trained.
    """
    objective = as_objective(objective)
    _check_arguments(settings, augment)
    checkpoint = None if checkpoint is None else as_path(checkpoint, "checkpoint")
    teachers = teachers_of(objective)
    with process_group(observer) as group:
        observer = observer if group.is_first else NULL_OBSERVER
        with group.together():
            device = group.own_device(device)
            model, train, validation = as_classifier(model), as_labelled(train), as_labelled(validation)
            check_teachers(model, teachers)
            check_augmentations(model, augment)
            why = "the monitor robust-accuracy, or a guard,"
            balls = balls_of(objective, why) if settings.measures_robustness else ()
            _check(model, train, "training", least=2, unlabelled=takes_unlabelled(objective))
            _check(model, validation, "validation", least=1)
            model.to(device)
            few = to_float(train.pixels[:_COMPARED].to(device), device)
            with frozen(model):
                model.examine(few)
        with (
            user_call(model, ball_of(objective), teachers=list(teachers.values())),
            restore_on_error(model),
            channels_last_if_supported(model, few),
        ):
            return _fit(
                model, train, validation, settings, objective, augment, checkpoint, device, observer, few, group, balls
            )


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
    group: TrainingGroup,
    balls: Sequence[Ball],
) -> TrainResult:
    """`fit` without its checks; optimised layers are compared with the originals on the images `few`.

    Robust accuracy is measured in `balls`; not at all without any.
    """
    optimizer = settings.make_optimizer(model)
    group.share_weights(model)
    with group.together():
        if checkpoint is not None:  # before the training, and not when its first epoch is written
            as_tensors(others(model.state_dict()))
    fingerprint = _fingerprint(model, train, validation, settings, objective, augment)
    group.expect_same(fingerprint, "images, settings, objective or augmentations")
    state = _resumed(checkpoint, fingerprint, model, optimizer, group)
    if settings.averages and state.average is None:
        state.average = snapshot(model)
    average = None if state.average is None else copied_weights(state.average, device)
    prepared = objective.prepared_for(train) if isinstance(objective, PreparedObjective) else objective

    pixels, labels = train.pixels.to(device), train.labels.to(device)
    with (
        observer.work(f"Training, {settings.epochs} epochs", settings.epochs) as advance,
        optimized_training(model, few),
    ):
        track_training(observer, settings, objective, augment, state.history)
        advance(state.epoch, f"resumed after epoch {state.epoch}" if state.epoch else "")
        if settings.guard and state.epoch == 0:  # so that the guard judges the first epoch of a warm start too
            state.robust_before = robust_accuracy(model.eval(), validation, balls, device, group, seed=settings.seed)
        while state.epoch < settings.epochs and (state.stopped_at is None or settings.continue_after_stop):
            start, processor = time.perf_counter(), time.process_time()
            before = (snapshot(model), None if average is None else copied_weights(average)) if settings.guard else None
            undone = undone_epochs(state.history)
            row = _one_epoch(
                *(model, pixels, labels, settings, prepared, augment, optimizer, average, state.epoch + 1, undone),
                advance,
                group,
            )
            averages = [each for each in (average or {}).values() if isinstance(each, Tensor)]
            group.broadcast([*model.parameters(), *model.buffers(), *averages])
            state.average = None if average is None else copied_weights(average, "cpu")
            current = _current_weights(model, state.average)
            with seeded(labels.device, settings.seed, "validation", state.epoch + 1, *group.seed):
                shown = None if average is None else current
                row |= validate(model, shown, validation, prepared, device, group, balls=balls, seed=settings.seed)
            if not math.isfinite(row["val_loss"]):  # before the write, so that the last good checkpoint is kept
                raise mark_shared(_not_finite(f"validation loss (epoch {state.epoch + 1})", state.epoch, settings))
            with group.together(2) as times:
                times[0] = time.perf_counter() - start if group.is_first else 0.0
                times[1] = time.process_time() - processor
            row["seconds"], row["processor_seconds"] = times
            if before is not None:
                row["guard_accuracy"] = row["val_robust_accuracy"]
                if average is not None:  # it lags behind the weights, and would hide their collapse for an epoch
                    row["guard_accuracy"] = robust_accuracy(model, validation, balls, device, group, seed=settings.seed)
                kept = [each["guard_accuracy"] for each in state.history if not each["rolled_back"]]
                best = max([state.robust_before, *kept])
                guessing = commonest_share(validation.labels, len(model.classes))
                row["rolled_back"] = has_collapsed(
                    row["guard_accuracy"], best, images=len(validation), guessing=guessing
                )
                if row["rolled_back"]:
                    current = _roll_back(model, optimizer, average, state, *before)
            _record_epoch(state, row, current, settings)
            with group.together():
                if checkpoint is not None and group.is_first:
                    state.write(checkpoint, model, optimizer)
            track_epoch(observer, row)

    best = state.best
    if best is None:
        why = "no epoch had a finite validation loss"
        if len(undone_epochs(state.history)) == len(state.history):
            why = f"the guard undid every epoch: robust accuracy fell each time from {state.robust_before:.1%}"
        raise mark_shared(TrainingError(f"{why}; lower the learning rate ({settings.learning_rate:g})"))
    keeps_best = settings.keep_best or (settings.patience is not None and not settings.continue_after_stop)
    load_state(model, best if keeps_best else _current_weights(model, state.average))
    return TrainResult(
        model=model.eval(),
        history=state.history,
        epoch=state.best_epoch if keeps_best else _last_kept(state.history),
        best_epoch=state.best_epoch,
        stopped_at=state.stopped_at,
        best=best,
        kept=state.kept,
        processes=group.count,
    )


def _resumed(
    checkpoint: Path | None,
    fingerprint: str,
    model: Classifier,
    optimizer: torch.optim.Optimizer,
    group: TrainingGroup,
) -> TrainingState:
    """The state that the checkpoint holds, with its tensors loaded into model and optimiser; a new one without a file.

    The first process reads the file, and sends it to the others, which may have no access to it.
    """
    state, content = TrainingState(fingerprint), b""
    with group.together():
        if group.is_first and checkpoint is not None and checkpoint.exists():
            state = read_state(checkpoint, fingerprint, model, optimizer)
            content = checkpoint.read_bytes() if group.count > 1 else b""
    content = group.broadcast_bytes(content)
    with group.together():
        if content and not group.is_first:
            with tempfile.TemporaryDirectory() as folder:
                copy = Path(folder, "checkpoint")
                copy.write_bytes(content)
                state = read_state(copy, fingerprint, model, optimizer)
    return state


def _check(model: Classifier, images: LabelledImages, part: str, *, least: int, unlabelled: bool = False) -> None:
    """Raise `ModelError` or `ShapeError` unless the model can be trained on the images, called `part` in errors.

    With `unlabelled` images may have the label `UNLABELLED`.
    """
    if has_inference_tensors(model):
        raise ModelError(
            "the model's weights were created inside torch.inference_mode() and cannot be trained; create it outside"
        )
    if len(images) < least:
        raise ShapeError(f"{len(images)} {part} images; expected at least {least}")
    check_training_images(model, images, part, unlabelled=unlabelled)


def _check_arguments(settings: TrainConfig, augment: Sequence[Augmentation]) -> None:
    """Raise `SettingError` for arguments of `fit` of another kind."""
    if not isinstance(settings, TrainConfig):
        raise SettingError(f"settings is {kind_of(settings)}; expected casemate.TrainConfig(epochs=..., ...)")
    expect_augmentations(augment, "augment")


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
    undone: Sequence[int],
    advance: Advance,
    group: TrainingGroup,
) -> dict[str, Any]:
    """Train for one epoch, and return its row of `TrainResult.history`, without the entries of the validation.

    `average`, the average of the weights if there is one, is updated in place; `undone` are the epochs that the guard
    undid, each of which halves the learning rate. This process computes its part of each batch; gradients, and what the
    row states, are those of all processes. The accuracy is that on images with a label.
    """
    generator = torch.Generator().manual_seed(derive(settings.seed, "shuffle and augment", epoch))
    batches = _batches(len(labels), settings.batch_size, generator)
    loss_sum = torch.zeros((), dtype=torch.float64, device=labels.device)
    right = torch.zeros((), dtype=torch.int64, device=labels.device)
    slower = 0.5 ** len(undone)
    rate = slower * settings.rate((epoch - 1) / settings.epochs)
    labelled = max(1, int((labels != UNLABELLED).sum()))
    parameters = [parameter for options in optimizer.param_groups for parameter in options["params"]]
    with seeded(labels.device, settings.seed, "dropout", epoch, *group.seed):
        model.train()
        for step, batch in enumerate(batches, start=1):
            done = (epoch - 1 + (step - 1) / len(batches)) / settings.epochs
            for options in optimizer.param_groups:
                options["lr"] = slower * settings.rate(done)
            own = batch[group.part(len(batch))].to(labels.device)
            before = group.buffers(model)
            optimizer.zero_grad(set_to_none=True)
            with group.together(len(parameters)) as holders:
                images = _augmented(pixels, batch, augment, epoch, generator, group)
                if len(own):
                    with (
                        torch.enable_grad(),
                        torch.autocast(images.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"),
                    ):
                        now = objective
                        if isinstance(objective, SteppedObjective):
                            now = objective.at_step(TrainingStep(done=done, index=own))
                        loss, logits = loss_and_logits(now, model, images, labels[own])
                    differentiate_loss(loss)
                    loss_sum += loss.detach() * len(own)
                    right += (logits.detach().argmax(1) == labels[own]).sum()
                holders[:] = [float(parameter.grad is not None) for parameter in parameters]
                changes = group.changes(model, before)
            group.average_step(parameters, holders, model, before, changes, len(own) / len(batch))
            optimizer.step()
            if average is not None:
                done_steps = (epoch - 1) * len(batches) + step
                _update_average(average, model, settings.decay(done_steps, len(batches), undone))
            if step % _CHECK_EVERY == 0 or step == len(batches):
                seen = sum(len(each) for each in batches[:step])
                with group.together(1) as total:
                    total[0] = loss_sum.item()
                mean = total[0] / seen
                if not math.isfinite(mean):
                    where = f"loss (epoch {epoch}, step {step} or up to {_CHECK_EVERY - 1} before)"
                    raise mark_shared(_not_finite(where, epoch - 1, settings))
                advance((step - 1) % _CHECK_EVERY / len(batches) + 1 / len(batches), f"epoch {epoch}, loss {mean:.4f}")
    with group.together(2) as sums:
        sums[:] = [loss_sum.item(), right.item()]
    return {
        "epoch": epoch,
        "learning_rate": rate,
        "loss": sums[0] / len(labels),
        "accuracy": sums[1] / labelled,
    }


def _augmented(
    pixels: Tensor,
    batch: Tensor,
    augment: Sequence[Augmentation],
    epoch: int,
    generator: torch.Generator,
    group: TrainingGroup,
) -> Tensor:
    """The images of this process's part of a batch, augmented as they are in one process.

    Augmentations draw random numbers for the whole batch, so they get all of it in every process.
    """
    part = group.part(len(batch))
    if not augment:
        return to_float(pixels[batch[part].to(pixels.device)], pixels.device)
    images = to_float(pixels[batch.to(pixels.device)], pixels.device)
    for change in augment:
        images = change(images, batch, epoch, generator)
    return images[part]


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
    buffers = {name for name, _ in model.named_buffers()}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            average[name] = copy.deepcopy(tensor)
        elif tensor.is_floating_point() and name in buffers:  # with entries such as -inf, whose difference is NaN
            mixed = average[name].lerp(tensor, 1 - decay)
            average[name].copy_(torch.where(average[name] == tensor, tensor, mixed))
        elif tensor.is_floating_point():
            average[name].lerp_(tensor, 1 - decay)
        else:
            average[name].copy_(tensor)


def _current_weights(model: Classifier, average: Weights | None) -> Weights:
    """A copy of the weights that count at this point: the moving average if there is one, else the model's own."""
    return snapshot(model) if average is None else copied_weights(average)


def _last_kept(history: Sequence[dict[str, Any]]) -> int:
    """The last epoch that was not undone."""
    return next((row["epoch"] for row in reversed(history) if not row.get("rolled_back", False)), len(history))


def _roll_back(
    model: Classifier,
    optimizer: torch.optim.Optimizer,
    average: Weights | None,
    state: TrainingState,
    weights: Weights,
    averaged: Weights | None,
) -> Weights:
    """Set model and average back to what they were before the epoch, with a fresh optimiser.

    Returns a copy of the weights that count then.
    """
    load_state(model, weights)
    optimizer.state.clear()  # its moments are those of the steps that led astray
    if average is not None and averaged is not None:
        average.update(averaged)
        state.average = copied_weights(average, "cpu")
    return _current_weights(model, state.average)


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
    value = row["val_loss"] if settings.monitor == "loss" else 1 - row["val_robust_accuracy"]
    if value < state.best_value and not row.get("rolled_back", False):
        state.best_epoch, state.best_value, state.best = state.epoch, value, current
    elif settings.patience is not None:
        undone = [epoch for epoch in undone_epochs(state.history) if epoch > state.best_epoch]
        if state.epoch - state.best_epoch - len(undone) >= settings.patience:
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
    tensors: Weights = {
        "train pixels": train.pixels,
        "train labels": train.labels,
        "validation pixels": validation.pixels,
        "validation labels": validation.labels,
    }
    named = {f.name: getattr(settings, f.name) for f in fields(settings)}
    schedule = named["schedule"]
    if callable(schedule):  # a function has no stable `repr`, so its values are hashed
        named["schedule"] = [schedule(step / 100) for step in range(100)]
    teachers = teachers_of(objective)
    for name, teacher in teachers.items():  # their `repr` names their layers, not their weights
        tensors |= {f"{name}/{entry}": tensor for entry, tensor in snapshot(teacher).items()}
    tensors |= snapshot(model)
    objects = others(tensors)
    texts = [stable_repr(objective, teachers), *map(stable_repr, [*teachers.values(), *augment])]
    texts += [f"{name} {stable_repr(value)}" for name, value in objects.items()]
    known = {name: tensor for name, tensor in tensors.items() if name not in objects}
    return checksum(repr((sorted(named.items()), texts)), known)
