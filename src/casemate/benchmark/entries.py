"""The models of the benchmark by name. Recipes and settings were chosen on validation images.

All have the same network, so that the recipes are compared.
"""

from collections.abc import Mapping
from typing import Any

from casemate.benchmark.entry import Entry

_NETWORK = "strided-cnn"
_ONE_CYCLE: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.1, "schedule": "one-cycle", "weight_decay": 5e-4}

ENTRIES: Mapping[str, Entry] = {
    "undefended": Entry(network=_NETWORK, training={"epochs": 8, **_ONE_CYCLE}),
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
    "fast": Entry(
        network=_NETWORK,
        recipe="adversarial-training",
        settings={"eps": 0.11, "steps": 2, "step_size": 0.066},
        training={"epochs": 6, "ema": 0.998, **_ONE_CYCLE},
    ),
}
"""In the order in which they are trained."""
