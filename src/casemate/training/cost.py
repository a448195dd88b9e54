"""Measures how long training steps, validations and attack steps take per image on this machine."""

import time
from collections.abc import Callable
from functools import partial

import torch

from casemate.attacks import Misclassification, frozen, input_gradient
from casemate.data import LabelledImages
from casemate.models import Classifier, create
from casemate.rng import torch_forked
from casemate.timing import StepCost, TrainPrecision
from casemate.training.config import TrainConfig
from casemate.training.objective import (
    CrossEntropy,
    Objective,
    PreparedObjective,
    SteppedObjective,
    TrainingStep,
    balls_of,
    differentiate_loss,
    loss_and_logits,
)
from casemate.training.robust import withstand

_SECONDS = 0.5
_BATCH = 128
_FEW = 64
"""Images, at most, that a step of a training is timed on."""
_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Shares of a training that is done, at which steps of an objective that changes are timed."""
_PREPARED = 4000
"""Images, at most, that the preparation of an objective is timed on; its time grows with the square of their number."""
_CLASSES = tuple("0123456789")


def measure_step_cost(
    input_shape: tuple[int, int, int], device: str, precision: TrainPrecision = "float32"
) -> StepCost:
    """Measure the seconds per image of training and attack steps of `paper-cnn` on `device`, in about a second.

    `precision` is that of the training steps. PyTorch's random state is restored.
    """
    where = torch.device(device)
    with torch_forked(where):
        model = create("paper-cnn", input_shape=input_shape, classes=_CLASSES)
        model.to(where)
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # its stubs require more arguments
        images = torch.rand(_BATCH, *input_shape).to(where).contiguous(memory_format=torch.channels_last)
        labels = torch.arange(_BATCH).to(where) % len(_CLASSES)
        objective, optimizer = CrossEntropy(), TrainConfig().make_optimizer(model)

        def step() -> None:
            model.train()
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(where.type, torch.bfloat16, enabled=precision == "bfloat16"):
                loss = objective(model, images, labels)[0]
            loss.backward()
            optimizer.step()

        def gradient() -> None:
            with frozen(model):
                input_gradient(model, images, Misclassification(labels), "ce")

        return StepCost(training=_seconds(step, where), gradient=_seconds(gradient, where))


def _step_seconds(model: Classifier, objective: Objective, images: LabelledImages) -> float:
    """Seconds per image of a training step of a model, without the optimiser's; its gradients are gone at the end.

    The model is then in training mode, and its running statistics have changed. An objective that changes during the
    training is measured at several times of it.
    """
    objectives = [objective]
    if isinstance(objective, SteppedObjective):
        index = torch.arange(len(images))
        objectives = [objective.at_step(TrainingStep(done=done, index=index)) for done in _TIMES]

    def steps() -> None:
        model.train()
        pixels, labels = images.tensors(model.device)
        for each in objectives:
            differentiate_loss(loss_and_logits(each, model, pixels, labels)[0])
            model.zero_grad(set_to_none=True)

    return _second_call(steps, model.device) / (len(images) * len(objectives))


def _validation_seconds(model: Classifier, objective: Objective, images: LabelledImages) -> float:
    """Seconds per image of a validation of a model by an objective; the model is in evaluation mode at the end."""

    def validate() -> None:
        objective.validate(model.eval(), *images.tensors(model.device))

    return _second_call(validate, model.device) / len(images)


def training_seconds(
    model: Classifier,
    objective: Objective,
    settings: TrainConfig,
    train: LabelledImages,
    validation: LabelledImages,
    *,
    copies: int = 0,
) -> float:
    """Estimated seconds of a training on the images `train`, and on `copies` augmented copies of each, in one process.

    Steps and validations are timed on a few of the images, in float32 and without augmentation. The model's running
    statistics change, and it is in evaluation mode at the end. PGD on validation images takes longer once the model
    withstands more of it. Raises `SettingError` for a monitor or guard of robust accuracy with an objective that has no
    ball, and `ModelError` for a loss without a gradient.
    """
    few, before = train[: min(_FEW, settings.batch_size)], 0.0
    if isinstance(objective, PreparedObjective):
        some, start = train[:_PREPARED], time.perf_counter()
        objective = objective.prepared_for(some)
        before = (time.perf_counter() - start) * (len(train) / len(some)) ** 2
    step, check = _step_seconds(model, objective, few), _validation_seconds(model, objective, few)
    if settings.measures_robustness:
        balls = balls_of(objective, "the monitor robust-accuracy, or a guard,")
        images, _ = few.tensors(model.device)
        with torch.no_grad():
            labels = model(images).argmax(1)  # PGD attacks only what is right, which in a new model is little
        run = partial(withstand, model, images, labels, balls, seed=settings.seed)
        under_pgd = _second_call(run, model.device) / len(few)
        check += (2 if settings.guard and settings.averages else 1) * under_pgd
        before += under_pgd * len(validation) if settings.guard else 0.0
    return before + settings.epochs * (step * len(train) * (1 + copies) + check * len(validation))


def _second_call(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of the second call of `run`; the first one warms up."""
    run()
    _finish(device)
    start = time.perf_counter()
    run()
    _finish(device)
    return time.perf_counter() - start


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    """Mean seconds per image of `run`, which processes `_BATCH` images, over as many calls as take half a second.

    A call before them, which allocates memory, is not timed.
    """
    run()
    _finish(device)
    start, runs = time.perf_counter(), 0
    while runs == 0 or time.perf_counter() - start < _SECONDS:
        run()
        _finish(device)
        runs += 1
    return (time.perf_counter() - start) / (runs * _BATCH)


def _finish(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
