"""Descriptions of the study's experiments without a defence (E1 to E4, E11, E12), and the class that describes any.

The experiments with defences are in `defended`. Where the paper leaves a setting open, the choice made here is in the
experiment's `notes`, which the report prints.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from casemate.engine import Task
from casemate_study.experiments import specs
from casemate_study.experiments.hypotheses import hypotheses_tasks
from casemate_study.experiments.models import SMALL_EPS, StudyModel, evaluation_tasks
from casemate_study.experiments.scales import EPS_GRID
from casemate_study.experiments.specs import BIM_STEPS, LOSSES, Setup, Source

E4_EPS = 0.05
E4_STEP_SIZES = {"1/255": 1 / 255, "0.002": 0.002}


@final
@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A description of one experiment of the study: functions that list its tasks, and the models it adds to the
    comparison.
    """

    name: str
    title: str
    notes: tuple[str, ...]
    """The choices made where the paper leaves a setting open, as sentences for the report."""
    tasks: Callable[[Setup], list[Task]]
    """Lists all its tasks at the setup's scale, including those that measure its models; runs none."""
    models: Callable[[Setup], list[StudyModel]] = lambda setup: []
    """Lists the models that it adds to the tables of all models."""


E1 = StudyModel(
    name="E1",
    title="E1, no early stopping",
    source=Source(task="E1/train", weights="final"),
    aliases={"fgsm": "E2/fgsm", "ball": "E3/ball", "range": "E3/range", "range-4": "E3/range-4"},
    in_figures=True,
    pgd=SMALL_EPS,
    evaluated=SMALL_EPS,
)
E1_TUNED = StudyModel(name="E1+", title="E1+, our recipe", source=Source(task="E1+/train", weights="final"))
E1_FALLING = StudyModel(
    name="E1-falling",
    title="E1, falling learning rate",
    source=Source(task="E1-falling/train", weights="final"),
)
E11 = StudyModel(
    name="E11",
    title="E11, E1 stopped early",
    source=Source(task="E1/train", weights="best"),
    pgd=SMALL_EPS,
    evaluated=SMALL_EPS,
)


def _e1(setup: Setup) -> list[Task]:
    scale = setup.scale
    kept = {"patience": 5, "continue_after_stop": True, "save_epochs": list(scale.kept_epochs)}
    bim = {"name": "bim", "eps": E4_EPS, "keep": "last"}
    attacks = [
        ["FGSM", {"name": "fgsm", "eps": 0.1, "keep": "last"}, [0.1, 0.2]],
        ["BIM", bim | {"steps": BIM_STEPS, "step_size": 0.01}, [E4_EPS]],
        ["BIM, clip range", bim | {"steps": BIM_STEPS, "clip": "range"}, [E4_EPS]],
        *([f"BIM, {steps} iterations", bim | {"steps": steps, "step_size": 1 / 255}, [E4_EPS]] for steps in (25, 50)),
    ]
    names = [f"epoch-{epoch:03d}" for epoch in scale.kept_epochs]
    return [
        specs.samples_task(setup),
        specs.train_task(setup, "E1/train", scale.epochs, kept),
        *evaluation_tasks(setup, E1),
        *(specs.checkpoint_task(setup, f"E1/{name}", Source(task="E1/train", weights=name), attacks) for name in names),
        *_falling(setup),
    ]


def _falling(setup: Setup) -> list[Task]:
    if not setup.scale.falling_rate:
        return []
    training = specs.train_task(setup, E1_FALLING.source.task, setup.scale.epochs, {"schedule": "cosine"})
    return [training, *evaluation_tasks(setup, E1_FALLING)]


TUNED = {
    "batch_size": 64,
    "learning_rate": 2e-3,
    "schedule": "one-cycle",
    "ema": 0.999,
}
"""Training settings of E1+, our own recipe: chosen on the validation split alone; `docs/log.md` lists the trials."""
TUNED_DROPOUT = 0.4
"""E1+'s factor on the dropout rates in training; with the paper's rates the network under-fits in 20 epochs."""
TUNED_AUGMENT = [{"name": "alternating-flip", "settings": {}}]


def _e1_tuned(setup: Setup) -> list[Task]:
    if not setup.scale.beyond_claims:
        return []
    epochs = setup.scale.tuned_epochs
    training = specs.train_task(setup, "E1+/train", epochs, TUNED, augment=TUNED_AUGMENT, dropout=TUNED_DROPOUT)
    trials = [task for name, trial in TRIALS.items() for task in _trial_tasks(setup, name, trial)]
    return [training, *evaluation_tasks(setup, E1_TUNED), *(trials if setup.scale.recipe_trials else [])]


@final
@dataclass(frozen=True, kw_only=True)
class RecipeTrial:
    """One recipe tried for E1+: how it differs from E1+'s own."""

    title: str
    longer: int = 1
    """Factor on the number of epochs."""
    training: Mapping[str, Any] = field(default_factory=dict[str, Any])
    augment: Sequence[Mapping[str, Any]] = ()
    """Augmentations besides E1+'s own."""
    dropout: float = TUNED_DROPOUT
    """Factor on the dropout rates."""
    label_smoothing: float = 0.0


_SHIFT = {"name": "shift", "settings": {"pixels": 1}}
TRIALS: Mapping[str, RecipeTrial] = {
    "longer": RecipeTrial(title="twice the epochs", longer=2),
    "smoothed": RecipeTrial(title="label smoothing 0.1", label_smoothing=0.1),
    "decayed": RecipeTrial(title="AdamW, weight decay 0.05", training={"optimizer": "adamw", "weight_decay": 0.05}),
    "shifted": RecipeTrial(title="twice the epochs, shifts by up to a pixel", longer=2, augment=[_SHIFT]),
    "dropout": RecipeTrial(title="twice the epochs, dropout times 0.7", longer=2, dropout=0.7),
    "together": RecipeTrial(
        title="three times the epochs, all of these",
        longer=3,
        training={"optimizer": "adamw", "weight_decay": 0.05},
        augment=[_SHIFT],
        dropout=0.7,
        label_smoothing=0.1,
    ),
}
"""The search for E1+'s recipe, by the trial's name. The choice among them falls on the validation split alone."""


def trial_artifact(name: str, measure: str) -> str:
    """The name of a task of the trial called `name`: its training ("train") or measures without attack ("clean")."""
    return f"E1+/trial-{name}/{measure}"


def _trial_tasks(setup: Setup, name: str, trial: RecipeTrial) -> list[Task]:
    training = specs.train_task(
        setup,
        trial_artifact(name, "train"),
        trial.longer * setup.scale.tuned_epochs,
        {**TUNED, **trial.training},
        augment=[*TUNED_AUGMENT, *trial.augment],
        dropout=trial.dropout,
        label_smoothing=trial.label_smoothing,
    )
    source = Source(task=training.name, weights="final")
    return [training, specs.clean_task(setup, trial_artifact(name, "clean"), source)]


def _e2(setup: Setup) -> list[Task]:
    attack = {"name": "fgsm", "eps": 0.1, "keep": "last"}
    images = max(setup.scale.fgsm_images, setup.scale.bim_images)
    curves = [
        specs.curve_task(setup, E1.artifact("fgsm", loss), E1.source, attack | {"loss": loss}, "eps", EPS_GRID, images)
        for loss in LOSSES
    ]
    pictures = specs.pictures_task(setup, "E2/pictures", E1.source, {"FGSM 0.1": attack}, count=10)
    return [*curves, pictures, *hypotheses_tasks(setup, E1.source)]


E3_CLIPPINGS = {
    "ball": {"clip": "ball", "steps": BIM_STEPS},
    "range": {"clip": "range", "steps": BIM_STEPS},
    "range-4": {"clip": "range", "steps": 4},
}
"""The settings of BIM that E3 compares: both clippings (to the eps ball, or only to the pixel range) with equal steps,
and clip range with 4 steps of eps / 4, which can reach eps as clip ball can."""
E3_PICTURED_EPS = 0.05
"""The radius of the attacks in E3's pictures."""


def _e3(setup: Setup) -> list[Task]:
    attack = {"name": "bim", "eps": 0.1, "keep": "last"}
    images = setup.scale.bim_images
    curves = [
        specs.curve_task(
            setup, E1.artifact(name, loss), E1.source, attack | clipping | {"loss": loss}, "eps", EPS_GRID, images
        )
        for name, clipping in E3_CLIPPINGS.items()
        for loss in LOSSES
    ]
    eps = E3_PICTURED_EPS
    shown = {f"BIM {eps:g}, {clip}": attack | {"eps": eps, **E3_CLIPPINGS[clip]} for clip in ("range", "ball")}
    return [*curves, specs.pictures_task(setup, "E3/pictures", E1.source, shown, count=10)]


def e4_prefix(size: str) -> str:
    """The start of the names of E4's tasks (BIM over iterations) with the step size called `size`: "E4/1-255" for
    "1/255".
    """
    return f"E4/{size.replace('/', '-')}"


def _e4(setup: Setup) -> list[Task]:
    return [
        specs.curve_task(
            setup,
            f"{e4_prefix(title)}/{loss}",
            E1.source,
            {"name": "bim", "eps": E4_EPS, "steps": 10, "step_size": size, "loss": loss, "keep": "last"},
            "steps",
            setup.scale.step_counts,
            setup.scale.steps_images,
        )
        for title, size in E4_STEP_SIZES.items()
        for loss in LOSSES
    ]


def weight_decayed(decay: float) -> StudyModel:
    """Describe the model of E12 that is trained with this strength of weight decay and early stopping."""
    name = f"E12-{decay:g}"
    return StudyModel(
        name=name, title=f"E12, weight decay {decay:g}", source=Source(task=f"{name}/train", weights="best")
    )


def _decayed(setup: Setup) -> list[StudyModel]:
    return [weight_decayed(decay) for decay in setup.scale.decays]


def _e12(setup: Setup) -> list[Task]:
    found: list[Task] = []
    for decay, model in zip(setup.scale.decays, _decayed(setup), strict=True):
        settings = {"patience": 5, "weight_decay": decay}
        found.append(specs.train_task(setup, model.source.task, setup.scale.defended_epochs, settings))
        found += evaluation_tasks(setup, model)
    return found


UNDEFENDED = (
    Experiment(
        name="E1",
        title="Initial training, no early stopping",
        notes=(
            "The paper names no batch size and no learning rate: 128, and Keras' Adam at a constant 1e-3.",
            "The validation images are a stratified draw from the training part; the test part chooses nothing.",
            "With a constant rate the accuracy of the last epoch is a matter of chance: E1 is also trained with a rate "
            "that falls to zero along a cosine, at scales with room for it.",
        ),
        tasks=_e1,
        models=lambda setup: [E1, E1_FALLING] if setup.scale.falling_rate else [E1],
    ),
    Experiment(
        name="E1+",
        title="A better recipe for the same layers",
        notes=("Ours, not the paper's; chosen on the validation split alone.",),
        tasks=_e1_tuned,
        models=lambda setup: [E1_TUNED] if setup.scale.beyond_claims else [],
    ),
    Experiment(
        name="E2",
        title="FGSM on E1",
        notes=("The paper mentions seven values of eps without naming them: 0, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2.",),
        tasks=_e2,
    ),
    Experiment(
        name="E3",
        title="BIM on E1, both clippings",
        notes=(
            "The paper names no step size: 10 iterations of eps / 4 for both clippings; and clip range with 4 "
            "iterations, which can reach eps as clip ball can.",
        ),
        tasks=_e3,
    ),
    Experiment(
        name="E4",
        title="BIM on E1, number of iterations",
        notes=("The paper names no step size: 1/255, as in its source for BIM, and 0.002.",),
        tasks=_e4,
    ),
    Experiment(
        name="E11",
        title="The non-over-fitted model: E1 with early stopping",
        notes=(
            "Patience 5 on the validation loss, best weights restored. Every epoch has its own seed, so the "
            "early-stopped training is the first part of E1's, bit for bit, and is taken from it.",
        ),
        tasks=lambda setup: evaluation_tasks(setup, E11),
        models=lambda setup: [E11],
    ),
    Experiment(
        name="E12",
        title="Weight decay with early stopping",
        notes=(
            "The paper names no strength. Adam adds the L2 penalty's gradient, on kernels only; the strength is that "
            "of the gradient (Keras' l2 of half of it adds the same), selected by the lowest validation loss.",
        ),
        tasks=_e12,
        models=_decayed,
    ),
)
