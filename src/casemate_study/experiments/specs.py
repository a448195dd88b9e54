"""Builds the descriptions of the study's tasks: one function per kind, which sets the configuration and a rough
estimate of the cost. Nothing is computed here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from casemate.engine import Task
from casemate.timing import FORWARD_COST, GRADIENT_COST, TrainPrecision, relative_step_cost
from casemate_study.experiments.scales import Scale

LOSSES = ("ce", "torch-ce", "prob-ce")
"""The losses that attacks ascend, one line each in the figures: casemate's stable cross-entropy, PyTorch's
`F.cross_entropy`, and the cross-entropy computed from softmax probabilities."""
BIM_STEPS = 10


@final
@dataclass(frozen=True, kw_only=True)
class Setup:
    """What all tasks of one run of the study share: scale, data set and seed."""

    scale: Scale
    dataset: str
    """Name of the data set; never "auto"."""
    test_size: int
    """Number of images in the test part of the data set."""
    train_size: int
    """Number of images in its training part, validation images included."""
    seed: int
    precision: TrainPrecision = "float32"
    """Precision of the training steps (`TrainConfig.precision`)."""

    def images(self, wanted: int) -> int:
        """The number of test images that a task uses: `wanted`, or all if the test part has fewer."""
        return min(wanted, self.test_size)


@final
@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a task gets the model from that it measures, starts from or distils: a training task, and which of its
    weights.
    """

    task: str
    """The name of the task that trains the model."""
    weights: str
    """Which of the weights saved by it: "final", "best" (lowest validation loss), or "epoch-010"."""
    inference: str | None = None
    """Randomness added at inference: "stochastic-affine" (random affine transformations), "noise" (noise layers), or
    None."""
    divide: float | None = None
    """Number by which the model's logits are divided, such as its distillation temperature; None: they are not
    divided."""


def measured_config(setup: Setup, source: Source, images: int) -> dict[str, Any]:
    """The part of a configuration that all tasks that measure a model share: the model, and how many test images."""
    return {
        "dataset": setup.dataset,
        "weights": source.weights,
        "inference": source.inference,
        "divide": source.divide,
        "images": setup.images(images),
        "seed": setup.seed,
    }


def _loop_settings(setup: Setup) -> dict[str, Any]:
    """The settings that all trainings of one run share (batch size, precision), where they are not `TrainConfig`'s
    defaults.
    """
    batches = {} if setup.scale.batch_size == 128 else {"batch_size": setup.scale.batch_size}
    return batches if setup.precision == "float32" else batches | {"precision": setup.precision}


def train_task(
    setup: Setup,
    name: str,
    epochs: int,
    training: Mapping[str, Any],
    *,
    architecture: str = "paper-cnn",
    augment: Sequence[Mapping[str, Any]] = (),
    label_smoothing: float = 0.0,
    dropout: float = 1.0,
) -> Task:
    """Describe the task of a training without a defence; nothing is trained here.

    Args:
        epochs: number of training epochs.
        training: further settings of `TrainConfig`, such as patience.
        augment: names and settings of the augmentations of every batch.
        dropout: factor on the network's dropout rates.
    """
    scale = setup.scale
    total = min(scale.train_images + scale.validation_images, setup.train_size)
    return Task(
        name=name,
        kind="train",
        config={
            "dataset": setup.dataset,
            "architecture": architecture,
            "train_images": scale.train_images,
            "validation_images": scale.validation_images,
            "seed": setup.seed,
            "training": {**_loop_settings(setup), "epochs": epochs, **training},
            "augment": list(augment),
            "label_smoothing": label_smoothing,
            "dropout": dropout,
        },
        work=total * epochs,
    )


def defend_task(
    setup: Setup,
    name: str,
    training: Mapping[str, Any],
    objective: Mapping[str, Any] | None = None,
    *,
    architecture: str = "paper-cnn",
    start: Source | None = None,
    teacher: Source | None = None,
    extra: Sequence[Mapping[str, Any]] = (),
    augment: Sequence[Mapping[str, Any]] = (),
    dropout: float = 1.0,
) -> Task:
    """Describe the task of a training with a defence; nothing is trained here.

    Args:
        training: settings of `TrainConfig`, with the number of epochs.
        objective: name and settings of the training loss; None for cross-entropy.
        start: the model whose weights the training starts from; None for new ones.
        teacher: the model that is distilled.
        extra: augmentations; each adds one augmented copy of all training images.
        augment: augmentations of every batch.
        dropout: factor on the network's dropout rates; without effect with `start`.
    """
    scale = setup.scale
    objective = objective or {"name": "cross-entropy", "settings": {}}
    sources = {role: source for role, source in (("start", start), ("teacher", teacher)) if source is not None}
    images = min(scale.train_images, setup.train_size) * (1 + len(extra))
    return Task(
        name=name,
        kind="defend",
        config={
            "dataset": setup.dataset,
            "architecture": architecture,
            "train_images": scale.train_images,
            "validation_images": scale.validation_images,
            "seed": setup.seed,
            "training": {**_loop_settings(setup), **training},
            "objective": dict(objective),
            "extra": list(extra),
            "augment": list(augment),
            "dropout": dropout,
            "weights": {role: source.weights for role, source in sources.items()},
        },
        needs={role: source.task for role, source in sources.items()},
        work=relative_step_cost(objective) * images * training["epochs"],
    )


def clean_task(setup: Setup, name: str, source: Source) -> Task:
    """Describe the task that measures a model without an attack: accuracy, loss, confusion matrix, calibration, logit
    gaps, share of zero gradients, angle between nearby gradients.
    """
    images, few = setup.images(setup.scale.test_images), setup.images(setup.scale.attacked_images)
    return Task(
        name=name,
        kind="clean",
        config=measured_config(setup, source, setup.scale.test_images) | {"gradient_images": few, "radii": [0.01, 0.1]},
        needs={"model": source.task},
        work=FORWARD_COST * images + (4 + 2 * 2) * GRADIENT_COST * few,
    )


def curve_task(
    setup: Setup,
    name: str,
    source: Source,
    attack: Mapping[str, Any],
    axis: str,
    values: Sequence[float] | Sequence[int],
    images: int,
) -> Task:
    """Describe the task that runs one attack at each of `values`, which are values of eps or numbers of steps, as
    `axis` ("eps" or "steps") says, on the first `images` test images.
    """
    # the first gradient of a sweep over eps is shared, every further one is computed at every eps but 0
    by_eps = (attack.get("steps", 1) - 1) * (len(values) - 1) + 2
    gradients = (by_eps if axis == "eps" else max(values) + 1) * attack.get("eot_samples", 1)
    config = measured_config(setup, source, images)
    return Task(
        name=name,
        kind="curve",
        config=config | {"attack": dict(attack), "axis": axis, "values": list(values)},
        needs={"model": source.task},
        work=config["images"] * (GRADIENT_COST * gradients + FORWARD_COST * len(values)),
    )


def checkpoint_task(
    setup: Setup, name: str, source: Source, attacks: Sequence[Sequence[Any]], losses: Sequence[str] = LOSSES
) -> Task:
    """Describe the task that measures one set of weights of a training: clean accuracy, accuracy under each attack
    ascending each of `losses`, and the share of zero gradients.

    `attacks` lists for each attack a title, its name and settings, and the values of eps.
    """
    few = setup.images(setup.scale.checkpoint_images)
    config = measured_config(setup, source, setup.scale.test_images)
    return Task(
        name=name,
        kind="masking",
        config=config | {"attacked_images": few, "attacks": list(attacks), "losses": list(losses)},
        needs={"model": source.task},
        work=few * (len(losses) * 12 + 4 + 2) * GRADIENT_COST + config["images"] * FORWARD_COST,
    )


def _standing(eps: float) -> float:
    """A rough guess of the share of images that withstand an attack at this eps. Only these cost all restarts, since an
    attack stops on an image that it has fooled.
    """
    return max(0.15, 1 - 25 * eps)


def worst_case_task(setup: Setup, name: str, source: Source, values: Sequence[float]) -> Task:
    """Describe the task that finds the worst case, at each eps of `values`, over two attacks: PGD with 40 steps and
    restarts, ascending the stable cross-entropy and ascending the logit margin.
    """
    config = measured_config(setup, source, setup.scale.attacked_images)
    attacks = {
        loss: {"name": "pgd", "eps": 0.1, "steps": 40, "restarts": setup.scale.pgd_restarts, "loss": loss}
        for loss in ("ce", "margin")
    }
    return Task(
        name=name,
        kind="worst",
        config=config | {"attacks": attacks, "values": list(values)},
        needs={"model": source.task},
        work=config["images"]
        * GRADIENT_COST
        * sum(_standing(eps) for eps in values)
        * 2
        * 40
        * setup.scale.pgd_restarts,
    )


def evaluation_task(setup: Setup, name: str, source: Source, values: Sequence[float]) -> Task:
    """Describe the task that runs `casemate.evaluate`, with its checks and verdict, on a model at each eps
    of `values`.
    """
    scale = setup.scale
    config = measured_config(setup, source, scale.evaluated_images)
    # in gradients per image: the checks need them for every image, the attacks for those not yet fooled
    checks, attacks = 300, {"quick": 400, "standard": 4000}[scale.budget]
    left = 1.0 if source.inference else 0.15
    return Task(
        name=name,
        kind="evaluation",
        config=config | {"values": list(values), "budget": scale.budget},
        needs={"model": source.task},
        work=config["images"] * GRADIENT_COST * (checks + left * attacks * len(values)),
    )


def targeted_task(setup: Setup, name: str, source: Source, attack: Mapping[str, Any]) -> Task:
    """Describe the task that attacks images of every class towards every other class."""
    config = measured_config(setup, source, setup.scale.targeted_images)
    return Task(
        name=name,
        kind="targeted",
        config=config | {"attack": dict(attack)},
        needs={"model": source.task},
        work=config["images"] * 9 * 0.8 * attack["steps"] * GRADIENT_COST,
    )


def pictures_task(
    setup: Setup, name: str, source: Source, attacks: Mapping[str, Mapping[str, Any]], count: int
) -> Task:
    """Describe the task that stores pictures of test images before and after each of `attacks` (name and settings, by
    title).

    The images are at most `count` of the first 200 test images, those that are the first correctly classified of their
    class.
    """
    config = measured_config(setup, source, 200)
    return Task(
        name=name,
        kind="pictures",
        config=config | {"attacks": {title: dict(attack) for title, attack in attacks.items()}, "count": count},
        needs={"model": source.task},
        work=400,
    )


def neighbours_task(
    setup: Setup, name: str, source: Source, settings: Mapping[str, Mapping[str, Any]], count: int
) -> Task:
    """Describe the task that stores pictures of the first `count` test images and of their adversarial neighbours under
    each of `settings` of adversarial regularisation (by title).
    """
    config = measured_config(setup, source, 200)
    return Task(
        name=name,
        kind="neighbours",
        config=config | {"settings": {title: dict(each) for title, each in settings.items()}, "count": count},
        needs={"model": source.task},
        work=200,
    )


def augmentation_task(setup: Setup, name: str, changes: Mapping[str, Sequence[Mapping[str, Any]]], count: int) -> Task:
    """Describe the task that stores pictures of the first `count` training images before and after each of `changes`
    (lists of augmentations applied one after the other, by title).
    """
    return Task(
        name=name,
        kind="augmented",
        config={
            "dataset": setup.dataset,
            "seed": setup.seed,
            "changes": {title: [dict(each) for each in row] for title, row in changes.items()},
            "count": count,
        },
        work=50,
    )


def samples_task(setup: Setup) -> Task:
    """Describe the task that stores pictures of the first 12 training images of every class."""
    return Task(name="data/samples", kind="samples", config={"dataset": setup.dataset, "per_class": 12}, work=50)
