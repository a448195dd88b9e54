"""Descriptions of the study's experiments with defences: augmentation (E5), adversarial regularisation (E6 to E8),
distillation (E9, E10), and what the paper proposes as further work (E13).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from casemate.engine import Task
from casemate_study.experiments import specs
from casemate_study.experiments.models import BIM_EPS, SMALL_EPS, StudyModel, evaluation_tasks
from casemate_study.experiments.specs import BIM_STEPS, Setup, Source
from casemate_study.experiments.undefended import E1, E11, Experiment, weight_decayed

STOPPING = {"patience": 5}
BLUR = {"name": "gaussian-blur", "settings": {"size": 3, "sigma": 1.0}}
FLIP = {"name": "flip", "settings": {}}
MOVED = {"name": "affine", "settings": {"rotation": 90.0, "shift": 0.1, "scale": 0.0}}
NOISES: Mapping[str, Mapping[str, Any]] = {
    "gaussian-noise": {"name": "gaussian-noise", "settings": {"std": 0.1}},
    "speckle": {"name": "speckle", "settings": {"std": 0.3}},
    "salt-and-pepper": {"name": "salt-and-pepper", "settings": {"share": 0.05}},
}
REGULARIZATION = {"multiplier": 0.5, "step_size": 0.2, "norm": "linf", "clip_min": 0.25}
"""Settings of E6, the adversarially regularised network, as the paper states them: neighbours' pixels are clipped below
at 0.25 and not above."""
E8_STEPS = (0.1, 0.15, 0.2, 0.25)
SEARCH_TEMPERATURE = 20.0


def _early(setup: Setup) -> dict[str, Any]:
    return {"epochs": setup.scale.defended_epochs, **STOPPING}


def _more(setup: Setup) -> bool:
    """Whether the scale has models that no claim of the paper needs."""
    return setup.scale.beyond_claims


def _model(name: str, title: str, **more: Any) -> StudyModel:
    """Describe a model that has its own training task, NAME/train, with the weights of the best validation epoch.

    `more` are further fields of `StudyModel`.
    """
    return StudyModel(name=name, title=title, source=Source(task=f"{name}/train", weights="best"), **more)


def _regularization(**settings: Any) -> dict[str, Any]:
    return {"name": "adversarial-regularization", "settings": REGULARIZATION | settings}


def _judged(setup: Setup, trained: list[tuple[Task, StudyModel]]) -> list[Task]:
    return [each for task, model in trained for each in (task, *evaluation_tasks(setup, model))]


# E5 -------------------------------------------------------------------------------------------------------------------
E5 = _model("E5", "E5, augmentation", in_figures=True, pgd=SMALL_EPS)
E5_LAYER = _model("E5-noise-layer", "E5, noise layers in training")
E5_LAYER_ON = StudyModel(
    name="E5-noise-inference",
    title="E5, noise layers at inference too",
    source=Source(task="E5-noise-layer/train", weights="best", inference="noise"),
)
E5_AFFINE = StudyModel(
    name="E5-stochastic-affine",
    title="E1 behind the Stochastic Affine Transformation",
    source=Source(task="E1/train", weights="final", inference="stochastic-affine"),
)


_NOISE_TITLES = {"gaussian-noise": "Gaussian noise", "speckle": "speckle", "salt-and-pepper": "salt and pepper"}


def _noisy(name: str) -> StudyModel:
    return _model(f"E5-{name}", f"E5, {_NOISE_TITLES[name]} alone")


def _e5_models(setup: Setup) -> list[StudyModel]:
    return [E5, *map(_noisy, setup.scale.noises), *([E5_LAYER, E5_LAYER_ON, E5_AFFINE] if _more(setup) else [])]


def _e5(setup: Setup) -> list[Task]:
    trained = [(specs.defend_task(setup, E5.source.task, _early(setup), extra=[BLUR], augment=[MOVED, FLIP]), E5)]
    trained += [
        (specs.defend_task(setup, _noisy(noise).source.task, _early(setup), augment=[NOISES[noise]]), _noisy(noise))
        for noise in setup.scale.noises
    ]
    shown = {
        "Gaussian blur": [BLUR],
        "horizontal flip": [{"name": "flip", "settings": {"horizontal": 1.0, "vertical": 0.0}}],
        "vertical flip": [{"name": "flip", "settings": {"horizontal": 0.0, "vertical": 1.0}}],
        "rotation": [{"name": "affine", "settings": {"rotation": 90.0, "shift": 0.0, "scale": 0.0}}],
        "shift": [{"name": "affine", "settings": {"rotation": 0.0, "shift": 0.1, "scale": 0.0}}],
        "Gaussian noise": [NOISES["gaussian-noise"]],
        "speckle": [NOISES["speckle"]],
        "salt and pepper": [NOISES["salt-and-pepper"]],
        "E5's mixture": [MOVED, FLIP],
        "Stochastic Affine Transformation": [
            {"name": "affine", "settings": {"rotation": 4.0, "shift": 0.16, "scale": 0.16}}
        ],
    }
    found = [specs.augmentation_task(setup, "E5/samples", shown, count=8), *_judged(setup, trained)]
    if _more(setup):
        layer = specs.defend_task(setup, E5_LAYER.source.task, _early(setup), architecture="paper-cnn-noise")
        found += _judged(setup, [(layer, E5_LAYER)])
        found += [*evaluation_tasks(setup, E5_LAYER_ON), *evaluation_tasks(setup, E5_AFFINE)]
    return found


# E6, E7, E8 -----------------------------------------------------------------------------------------------------------
E6 = _model("E6", "E6, adversarial regularisation", in_figures=True, pgd=SMALL_EPS)
E6_CLIPPED = _model("E6-clipped", "E6, also clipped above at 1")
E6_PLAIN = _model("E6-plain", "E6, clipped to [0, 1] instead")
E6_STOPPED = _model("E6-stopped", "E6 on E11", pgd=SMALL_EPS)
E7 = _model("E7", "E7, E6 on E5", pgd=SMALL_EPS)
E8 = StudyModel(
    name="E8",
    title="E8, E6 four times",
    source=Source(task=f"E8/train-{E8_STEPS[-1]:g}", weights="best"),
    pgd=SMALL_EPS,
)


_E6_LIMITS = {
    E6.name: {},
    E6_STOPPED.name: {},
    E6_CLIPPED.name: {"clip_max": 1.0},
    E6_PLAIN.name: {"clip_min": 0.0, "clip_max": 1.0},
}
"""What each model of E6 changes in `REGULARIZATION`, by the model's name."""


def _e6_models(setup: Setup) -> list[StudyModel]:
    return [E6, E6_STOPPED, E6_CLIPPED, E6_PLAIN] if _more(setup) else [E6]


def _e6(setup: Setup) -> list[Task]:
    trained = [
        (
            specs.defend_task(
                setup,
                m.source.task,
                _early(setup),
                _regularization(**_E6_LIMITS[m.name]),
                start=(E11 if m is E6_STOPPED else E1).source,
            ),
            m,
        )
        for m in _e6_models(setup)
    ]
    shown = {
        "0.25 to no limit (the paper's)": REGULARIZATION,
        "0.25 to 1": REGULARIZATION | {"clip_max": 1.0},
        "0 to 1": REGULARIZATION | {"clip_min": 0.0, "clip_max": 1.0},
    }
    return [*_judged(setup, trained), specs.neighbours_task(setup, "E6/neighbours", E1.source, shown, count=4)]


def _e7(setup: Setup) -> list[Task]:
    task = specs.defend_task(setup, E7.source.task, _early(setup), _regularization(), start=E5.source)
    return _judged(setup, [(task, E7)])


def _e8(setup: Setup) -> list[Task]:
    found: list[Task] = []
    start = E1.source
    for step in E8_STEPS:
        name = f"E8/train-{step:g}"
        objective = _regularization(step_size=step, multiplier=1 / 9)
        found.append(specs.defend_task(setup, name, _early(setup), objective, start=start))
        start = Source(task=name, weights="best")
    return [*found, *evaluation_tasks(setup, E8)]


# E9, E10 --------------------------------------------------------------------------------------------------------------
def teacher(temperature: float) -> Source:
    """The training task and weights of the distillation teacher at `temperature`, trained without early stopping.

    At temperature 1 it is E1, the undefended network; otherwise a network trained at that temperature in E9.
    """
    return E1.source if temperature == 1 else Source(task=f"E9/teacher-{temperature:g}", weights="final")


def measured_teacher(temperature: float) -> StudyModel:
    """Describe the distillation teacher at a `temperature` above 1, which predicts, as its students do, at 1."""
    return StudyModel(
        name=f"E9-teacher-{temperature:g}",
        title=f"E9, teacher at T = {temperature:g}",
        source=teacher(temperature),
        in_figures=True,
    )


def _measured_teachers(setup: Setup) -> list[StudyModel]:
    return [measured_teacher(each) for each in setup.scale.temperatures if each != 1]


def distilled_student(experiment: str, temperature: float) -> StudyModel:
    """Describe the student distilled at `temperature` in `experiment`: "E9" (the teacher's architecture) or "E10" (that
    of the paper's appendix B).
    """
    name = f"{experiment}-{temperature:g}"
    what = "same network" if experiment == "E9" else "appendix B"
    return StudyModel(
        name=name,
        title=f"{experiment}, distilled at T = {temperature:g}, {what}",
        source=Source(task=f"{name}/train", weights="final"),
        in_figures=True,
        pgd=SMALL_EPS,
    )


def _students(experiment: str, setup: Setup) -> list[StudyModel]:
    return [distilled_student(experiment, temperature) for temperature in setup.scale.temperatures]


def _distilled(
    setup: Setup, name: str, temperature: float, *, teacher: Source, architecture: str = "paper-cnn", **more: Any
) -> Task:
    objective = {"name": "distillation", "settings": {"temperature": temperature}}
    training = more.pop("training", {"epochs": setup.scale.distilled_epochs})
    return specs.defend_task(setup, name, training, objective, architecture=architecture, teacher=teacher, **more)


def _teachers(setup: Setup) -> list[Task]:
    """Describe the tasks that train the distillation teachers: one for each of the scale's temperatures, and 20 in any
    case.

    Temperature 1 needs none, since its teacher is E1, the undefended network; 20 serves the search over students.
    """
    needed = sorted({*setup.scale.temperatures, SEARCH_TEMPERATURE} - {1.0})
    training = {"epochs": setup.scale.distilled_epochs, "patience": 5, "continue_after_stop": True}
    return [
        specs.defend_task(
            setup, teacher(each).task, training, {"name": "at-temperature", "settings": {"temperature": each}}
        )
        for each in needed
    ]


def divided_logits_task(setup: Setup, temperature: float, model: StudyModel) -> Task:
    """Describe the task that runs BIM at several eps on a student with its logits divided by its temperature, ascending
    cross-entropy of softmax probabilities, which saturates on the undivided logits.
    """
    source = replace(model.source, divide=temperature)
    attack = {"name": "bim", "eps": 0.1, "steps": BIM_STEPS, "keep": "last", "loss": "prob-ce"}
    images = setup.scale.attacked_images
    return specs.curve_task(setup, model.artifact("divided"), source, attack, "eps", BIM_EPS, images)


def _distillations(setup: Setup, experiment: str, architecture: str) -> list[Task]:
    found: list[Task] = []
    for temperature, model in zip(setup.scale.temperatures, _students(experiment, setup), strict=True):
        source = teacher(temperature)
        found.append(_distilled(setup, model.source.task, temperature, teacher=source, architecture=architecture))
        found += evaluation_tasks(setup, model)
        found.append(specs.clean_task(setup, model.artifact("clean-best"), replace(model.source, weights="best")))
        if temperature != 1:
            found.append(divided_logits_task(setup, temperature, model))
    return found


# E13 ------------------------------------------------------------------------------------------------------------------
E13_REGULARISED = _model("E13-regularised", "E13, E6 on a weight-decayed model")
E13_MIX = _model("E13-mix", "E13, clean, augmented and adversarial")
E13_RESNET = _model("E13-resnet", "E13, augmentation on resnet-14 with weight decay")
E13_EARLY = StudyModel(
    name="E13-early-teacher",
    title="E13, distilled at T = 20, early-stopped teacher",
    source=Source(task="E13-early-teacher/train", weights="final"),
)
TARGETED = {"name": "bim", "eps": 0.1, "steps": BIM_STEPS, "loss": "ce", "keep": "first_success"}


def _weighted(multiplier: float) -> StudyModel:
    return _model(f"E13-weight-{multiplier:g}", f"E13, E6 with adversarial weight {multiplier:g}")


def searched(setup: Setup) -> list[tuple[str, float, Source]]:
    """The candidates of the search over student networks (E13): architecture, factor on its dropout rates, and source.

    The source names the task that trains the candidate, and which of its weights are measured.
    """
    return [
        (network, dropout, Source(task=f"E13/search/{network}-{dropout:g}", weights="best"))
        for network in setup.scale.students
        for dropout in setup.scale.student_dropouts
    ]


def _e13_models(setup: Setup) -> list[StudyModel]:
    weights = map(_weighted, setup.scale.multipliers)
    more = [E13_MIX, *weights] if _more(setup) else []
    return [E13_REGULARISED, *more, E13_RESNET, E13_EARLY]


def _e13(setup: Setup) -> list[Task]:
    decay = 1e-4 if 1e-4 in setup.scale.decays else setup.scale.decays[0]
    early = _early(setup)
    half = [{**change, "share": 0.5} for change in (MOVED, FLIP)]
    mix = _regularization(multiplier=1.0, step_size=0.1, clip_min=0.0, clip_max=1.0)
    soft = teacher(SEARCH_TEMPERATURE)
    start = weight_decayed(decay).source
    tasks = {
        E13_REGULARISED.name: specs.defend_task(
            setup, E13_REGULARISED.source.task, early, _regularization(), start=start
        ),
        E13_MIX.name: specs.defend_task(setup, E13_MIX.source.task, early, mix, augment=half),
        E13_RESNET.name: specs.defend_task(
            setup,
            E13_RESNET.source.task,
            early | {"weight_decay": 1e-4},
            architecture="resnet-14",
            extra=[BLUR],
            augment=[MOVED, FLIP],
        ),
        E13_EARLY.name: _distilled(
            setup,
            E13_EARLY.source.task,
            SEARCH_TEMPERATURE,
            teacher=Source(task=soft.task, weights="best"),
        ),
    }
    for weight in setup.scale.multipliers:
        model, rule = _weighted(weight), _regularization(multiplier=weight)
        tasks[model.name] = specs.defend_task(setup, model.source.task, early, rule, start=E1.source)
    trained = [(tasks[model.name], model) for model in _e13_models(setup)]
    attacks = [
        ["FGSM", {"name": "fgsm", "eps": 0.1, "keep": "last"}, [0.1]],
        ["BIM", {"name": "bim", "eps": 0.05, "steps": BIM_STEPS, "keep": "last"}, [0.05]],
    ]
    search: list[Task] = []
    for network, dropout, source in searched(setup):
        search.append(
            _distilled(
                setup,
                source.task,
                SEARCH_TEMPERATURE,
                teacher=soft,
                architecture=network,
                dropout=dropout,
                training=early,
            )
        )
        search.append(
            specs.checkpoint_task(setup, source.task.replace("/search/", "/found/"), source, attacks, ("ce",))
        )
    matrices = [
        specs.targeted_task(setup, f"E13/targeted/{model.name}", model.source, TARGETED) for model in (E1, E11, E6)
    ]
    return [*_judged(setup, trained), *search, *matrices]


DEFENDED = (
    Experiment(
        name="E5",
        title="Data augmentation, noise, and randomised inference",
        notes=(
            "Blurred copies of all training images are added; then every batch is shifted by up to 0.1 of the side, "
            "rotated by up to 90 degrees to either side, and flipped both ways, each with probability one half. Pixels "
            "from outside the image are black.",
            "The paper names noise without strengths: Gaussian 0.1, speckle 0.3, salt and pepper on 5 % of the pixels; "
            "noise layers of 0.2 before the first and 0.1 before every other convolution (Liu et al. 2018).",
            "Randomised models are attacked with BIM by one gradient a step and by the mean of 10 (expectation over "
            "transformation).",
        ),
        tasks=_e5,
        models=_e5_models,
    ),
    Experiment(
        name="E6",
        title="Adversarial regularisation of E1",
        notes=(
            "Neural Structured Learning's rule: one step of 0.2 along the sign, weight 0.5. The paper clips below at "
            "0.25 and names no limit above: run as stated, with a limit of 1 above, and with [0, 1] instead.",
            "Patience 5 on the adversarial loss of the validation split; the weights of the best epoch are kept, here "
            "and wherever a training stops early (Keras keeps the last unless it is set to restore the best).",
        ),
        tasks=_e6,
        models=_e6_models,
    ),
    Experiment(
        name="E7",
        title="Adversarial regularisation of E5",
        notes=("From E5's weights, on plain images: the paper does not say whether it augments here as well.",),
        tasks=_e7,
        models=lambda setup: [E7],
    ),
    Experiment(
        name="E8",
        title="Adversarial regularisation four times in a row",
        notes=("0.9 CE + 0.1 adversarial is, up to scale, CE + 1/9 adversarial; steps 0.1, 0.15, 0.2, 0.25.",),
        tasks=_e8,
        models=lambda setup: [E8],
    ),
    Experiment(
        name="E9",
        title="Defensive distillation, the same network",
        notes=(
            "The paper names no temperature: 1, 20 and 100. A teacher is trained at its student's temperature, with no "
            "early stopping, as E1; at 1 it is E1. All predict at temperature 1.",
            "A student of the same architecture starts from the random weights that its teacher started from.",
        ),
        tasks=lambda setup: [
            *_teachers(setup),
            *_distillations(setup, "E9", "paper-cnn"),
            *(task for model in _measured_teachers(setup) for task in evaluation_tasks(setup, model)),
        ],
        models=lambda setup: [*_students("E9", setup), *_measured_teachers(setup)],
    ),
    Experiment(
        name="E10",
        title="Defensive distillation, the network of appendix B",
        notes=("Teachers and temperatures as in E9.",),
        tasks=lambda setup: _distillations(setup, "E10", "paper-student"),
        models=lambda setup: _students("E10", setup),
    ),
    Experiment(
        name="E13",
        title="The paper's further work",
        notes=(
            "New results, which section 7 of the paper proposes. Early stopping with patience 5, but for the student "
            "of the early-stopped teacher, which is trained as E9's.",
            "Mixture: half of the images are shifted and rotated as in E5, and half flipped, independently, so that "
            "69 % are changed; and the loss on adversarial neighbours at a step of 0.1 within [0, 1], weight 1.",
            "The search distils at T = 20; networks are named by the channels of their first block and their number "
            "of blocks.",
        ),
        tasks=_e13,
        models=_e13_models,
    ),
)
