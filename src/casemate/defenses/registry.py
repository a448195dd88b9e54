"""The recipes by name: the objective of each, and the settings it is usually trained with.

The command line, the study and stored models specify an objective by name and settings, as
`{"name": "adversarial-training", "settings": {"eps": 0.1, ...}}`. An objective in `RECIPES` is available in
`casemate train`.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Literal, final, get_type_hints

import torch
from torch import nn

from casemate.defenses.adversarial_regularization import AdversarialRegularization
from casemate.defenses.adversarial_training import AdversarialTraining
from casemate.defenses.certified import (
    CROWNIBPTraining,
    IBPTraining,
    MTLIBPTraining,
    SABRTraining,
    initialize_for_bounds,
)
from casemate.defenses.distillation import Distillation, TemperatureCrossEntropy
from casemate.defenses.graph_regularization import GraphRegularization
from casemate.defenses.mart import MART
from casemate.defenses.robust_distillation import RobustDistillation
from casemate.defenses.several_norms import SeveralNorms
from casemate.defenses.single_step import FGSMRS, NFGSM
from casemate.defenses.smoothing import ConsistencyTraining, GaussianTraining, SmoothAdversarialTraining
from casemate.defenses.trades import TRADES
from casemate.defenses.virtual_adversarial import VirtualAdversarial
from casemate.errors import SettingError
from casemate.rng import torch_forked
from casemate.settings import unknown_name
from casemate.training import CrossEntropy, Objective

RecipeKind = Literal["ordinary", "adversarial", "distilled", "certified", "smoothed", "unlabelled"]
"""What a recipe trains for: accuracy; robustness against attacks; a teacher's predictions; bounds that prove
robustness; randomised smoothing; accuracy with few labels."""


@final
@dataclass(frozen=True)
class RecipeType:
    """A recipe of `RECIPES`: the class of its training objective, and default settings for it."""

    objective: type[Any]
    """A frozen dataclass that implements `Objective`; its fields are the recipe's settings."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Default settings by name, which replace the objective's own defaults. A value of None means the value that the
    teacher was trained with."""
    kind: RecipeKind = "ordinary"
    """What the recipe trains for."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Default settings of the training by name, which replace those of `TrainConfig`."""

    @property
    def defaults(self) -> dict[str, Any]:
        """The default values of the objective's settings by name; settings without a default are not included."""
        own = {each.name: each.default for each in fields(self.objective) if each.default is not MISSING}
        return own | dict(self.settings)

    def initialize(self, model: nn.Module, seed: int) -> None:
        """Draw the weights of an untrained model again, in place, where the recipe needs others than the network's.

        Those are the recipes for certificates (see `initialize_for_bounds`, whose errors this raises).
        """
        if self.kind == "certified":
            with torch_forked():
                torch.default_generator.manual_seed(seed)
                initialize_for_bounds(model)

    @property
    def teacher(self) -> str | None:
        """Name of the objective's field that takes a teacher model; None if it needs no teacher."""
        hints = get_type_hints(self.objective)
        return next((name for name, hint in hints.items() if hint is nn.Module), None)


RECIPES: Mapping[str, RecipeType] = {
    "cross-entropy": RecipeType(CrossEntropy),
    "adversarial-regularization": RecipeType(
        AdversarialRegularization,
        # the paper's settings, except its unusual pixel limits; with the class's defaults, those of Neural Structured
        # Learning, neighbours hardly differ from their images
        {"multiplier": 0.5, "step_size": 0.2, "norm": "linf", "clip_min": 0.0, "clip_max": 1.0},
        kind="adversarial",
    ),
    "adversarial-training": RecipeType(AdversarialTraining, kind="adversarial"),
    "trades": RecipeType(TRADES, kind="adversarial"),
    "mart": RecipeType(MART, kind="adversarial"),
    "fgsm-rs": RecipeType(FGSMRS, kind="adversarial", training={"guard": True}),
    "n-fgsm": RecipeType(NFGSM, kind="adversarial", training={"guard": True}),
    "several-norms": RecipeType(SeveralNorms, kind="adversarial"),
    # the paper states none; Papernot et al. 2016 use 20 most often
    "at-temperature": RecipeType(TemperatureCrossEntropy, {"temperature": 20.0}, kind="distilled"),
    "distillation": RecipeType(Distillation, {"temperature": None}, kind="distilled"),
    "robust-distillation": RecipeType(RobustDistillation, kind="distilled"),
    "ibp": RecipeType(IBPTraining, kind="certified"),
    "crown-ibp": RecipeType(CROWNIBPTraining, kind="certified"),
    "sabr": RecipeType(SABRTraining, kind="certified"),
    "mtl-ibp": RecipeType(MTLIBPTraining, kind="certified"),
    "gaussian-noise": RecipeType(GaussianTraining, kind="smoothed"),
    "smooth-adv": RecipeType(SmoothAdversarialTraining, kind="smoothed"),
    "consistency": RecipeType(ConsistencyTraining, kind="smoothed"),
    "virtual-adversarial": RecipeType(VirtualAdversarial, kind="unlabelled"),
    "graph-regularization": RecipeType(GraphRegularization, kind="unlabelled"),
}
"""All recipes by name; "cross-entropy" is ordinary training.

Settings given here replace the defaults of the objective's class; options of `casemate train` replace both.
"""


def recipe_type(name: str) -> RecipeType:
    """The objective's class and defaults for the recipe called `name`. Raises `SettingError` if there is none."""
    if name in RECIPES:
        return RECIPES[name]
    raise unknown_name("recipe", name, RECIPES)


def needs_guard(objective: Objective) -> bool:
    """Whether a training by this objective may collapse, so that a guard (`TrainConfig.guard`) belongs to it."""
    return any(each.objective is type(objective) and each.training.get("guard", False) for each in RECIPES.values())


def make_objective(spec: Mapping[str, Any], teacher: nn.Module | None = None) -> Objective:
    """Build the objective that a specification describes.

    Args:
        spec: `{"name": ..., "settings": {...}}`.
        teacher: the teacher model, for an objective that needs one.

    Raises:
        SettingError: an unknown name, a setting outside its range, or a missing teacher.
    """
    kind = recipe_type(spec["name"])
    models = {} if kind.teacher is None else {kind.teacher: teacher}
    if None in models.values():
        raise SettingError(
            f"recipe {spec['name']} without a {kind.teacher}; expected a trained model as {kind.teacher}"
        )
    return kind.objective(**spec["settings"], **models)
