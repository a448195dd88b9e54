"""The models of the benchmark by name. Recipes, networks and settings were chosen on validation images.

Those trained for bounds have a network with a function of each pixel in front, from which bounds gain; after 18 epochs
of adversarial training on it Square fooled more than the gradients (docs/log.md). The others have the same network.
"""

from collections.abc import Mapping
from typing import Any

from casemate.benchmark.entry import Entry

_NETWORK = "strided-cnn"
_ONE_CYCLE: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.1, "schedule": "one-cycle", "weight_decay": 5e-4}
_SIX_EPOCHS: dict[str, Any] = {"epochs": 6, "ema": 0.998, **_ONE_CYCLE}
_TWO_STEPS: dict[str, Any] = {"eps": 0.11, "steps": 2, "step_size": 0.066}
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
    "fast": Entry(network=_NETWORK, recipe="adversarial-training", settings=_TWO_STEPS, training=_SIX_EPOCHS),
    "n-fgsm": Entry(network=_NETWORK, recipe="n-fgsm", settings={"eps": 0.11, "noise": 1.0}, training=_SIX_EPOCHS),
    "trades": Entry(network=_NETWORK, recipe="trades", settings=_TWO_STEPS, training=_SIX_EPOCHS),
    "mart": Entry(network=_NETWORK, recipe="mart", settings=_TWO_STEPS, training=_SIX_EPOCHS),
    "robust": Entry(
        network="pixelwise-cnn",
        recipe="mtl-ibp",
        settings={**_BOUNDS, "alpha": 0.1, "steps": 2, "step_size": 0.063},
        training={"epochs": 25, **_ADAM},
        certificate="crown-ibp",
    ),
    "certified": Entry(
        network="pixelwise-cnn",
        recipe="ibp",
        settings={**_BOUNDS, "kappa_end": 0.5},
        training={"epochs": 45, **_ADAM},
        certificate="crown-ibp",
    ),
}
"""In the order in which they are trained. The second to the fifth are the defences of the study."""
