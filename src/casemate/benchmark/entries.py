"""The models of the benchmark by name. Recipes, networks and settings were chosen on images set aside.

All have the same network, with a function of each pixel in front: it gains 1 to 3 points under attack with bounds and
with adversarial training. Few steps in training are too few for long: after 18 epochs with two or 20 with three, Square
fooled more than the gradients (docs/log.md). Short trainings have three, `robust` five.
"""

from collections.abc import Mapping
from typing import Any

from casemate.benchmark.entry import Entry

_NETWORK = "pixelwise-cnn"
_ONE_CYCLE: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.1, "schedule": "one-cycle", "weight_decay": 5e-4}
_SIX_EPOCHS: dict[str, Any] = {"epochs": 6, "ema": 0.998, **_ONE_CYCLE}
_THREE_STEPS: dict[str, Any] = {"eps": 0.11, "steps": 3, "step_size": 0.055}
"""Chosen for `fast`; the other recipes have the same for comparison, and the defaults of casemate for the rest."""
_ADAM: dict[str, Any] = {"optimizer": "adam", "learning_rate": 2e-3, "schedule": "one-cycle", "ema": 0.998}
_BOUNDS: dict[str, Any] = {"eps": 0.1, "train_eps_factor": 1.05, "ramp_end": 0.4}

ENTRIES: Mapping[str, Entry] = {
    "undefended": Entry(network=_NETWORK, training={"epochs": 8, **_ONE_CYCLE}),
    "augmentation": Entry(
        network=_NETWORK,
        extra=({"name": "gaussian-blur", "settings": {"size": 3, "sigma": 1.0}},),
        augment=(
            {"name": "affine", "settings": {"rotation": 90.0, "shift": 0.1, "scale": 0.0}},
            {"name": "flip", "settings": {}},
        ),
        training={"epochs": 8, **_ONE_CYCLE},
    ),
    "adversarial-regularization": Entry(
        network=_NETWORK, recipe="adversarial-regularization", training={"epochs": 8, **_ONE_CYCLE}
    ),
    "at-temperature": Entry(
        network=_NETWORK,
        recipe="at-temperature",
        settings={"temperature": 20.0},
        training={"epochs": 8, "learning_rate": 1e-3},
    ),
    "distilled": Entry(
        network=_NETWORK,
        recipe="distillation",
        settings={"temperature": 20.0},
        training={"epochs": 8, "learning_rate": 1e-3},
        teacher="at-temperature",
    ),
    "fast": Entry(network=_NETWORK, recipe="adversarial-training", settings=_THREE_STEPS, training=_SIX_EPOCHS),
    "n-fgsm": Entry(network=_NETWORK, recipe="n-fgsm", settings={"eps": 0.11, "noise": 1.0}, training=_SIX_EPOCHS),
    "trades": Entry(network=_NETWORK, recipe="trades", settings=_THREE_STEPS, training=_SIX_EPOCHS),
    "mart": Entry(network=_NETWORK, recipe="mart", settings=_THREE_STEPS, training=_SIX_EPOCHS),
    "robust": Entry(
        network=_NETWORK,
        recipe="adversarial-training",
        settings={"eps": 0.11, "steps": 5, "step_size": 0.033, "weight_perturbation": 0.005},
        training={"epochs": 18, "ema": 0.998, **_ONE_CYCLE},
    ),
    "certified": Entry(
        network=_NETWORK,
        recipe="ibp",
        settings={**_BOUNDS, "kappa_end": 0.5},
        training={"epochs": 45, **_ADAM},
        certificate="crown-ibp",
    ),
}
"""In the order in which they are trained. The second to the fifth are the defences of the study."""
