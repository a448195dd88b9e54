"""The recipes by name: the objective that each trains, and the settings it is usually run with.

Command line, study and stored models name a recipe's objective by one word and its settings: a specification is
`{"name": "adversarial-training", "settings": {"eps": 0.1, ...}}`. A new objective is in `casemate train` as soon as it
is in `RECIPES`.
"""

import difflib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, final, get_type_hints

from casemate.defenses.adversarial_regularization import AdversarialRegularization
from casemate.defenses.adversarial_training import AdversarialTraining
from casemate.defenses.distillation import Distillation, TemperatureCrossEntropy
from casemate.errors import SettingError
from casemate.models import Classifier
from casemate.training import CrossEntropy, Objective


@final
@dataclass(frozen=True)
class RecipeType:
    """A kind of training: an objective, and the settings that it is run with if none are given."""

    objective: type[Any]
    """A frozen dataclass that implements `Objective`; its fields are the recipe's settings."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What is taken where the objective has no default, or one for another purpose. None: that of the teacher."""

    @property
    def defaults(self) -> dict[str, Any]:
        """Every setting that has a default, by name."""
        own = {each.name: each.default for each in fields(self.objective) if each.default is not MISSING}
        return own | dict(self.settings)

    @property
    def teacher(self) -> str | None:
        """The setting that is another model, to learn from; None if the objective needs no other model."""
        hints = get_type_hints(self.objective)
        return next((name for name, hint in hints.items() if hint is Classifier), None)


RECIPES: Mapping[str, RecipeType] = {
    "cross-entropy": RecipeType(CrossEntropy),
    "adversarial-regularization": RecipeType(
        AdversarialRegularization,
        # the paper's, but for its odd limits on pixels; the class has those of Neural Structured Learning, which
        # barely move an image
        {"multiplier": 0.5, "step_size": 0.2, "norm": "linf", "clip_min": 0.0, "clip_max": 1.0},
    ),
    "adversarial-training": RecipeType(AdversarialTraining),
    # the paper names none; Papernot et al. 2016 take 20 most often
    "at-temperature": RecipeType(TemperatureCrossEntropy, {"temperature": 20.0}),
    "distillation": RecipeType(Distillation, {"temperature": None}),
}
"""All recipes; "cross-entropy" is ordinary training."""


def recipe_type(name: str) -> RecipeType:
    """The recipe of that name. Raises `SettingError` for an unknown one."""
    if name in RECIPES:
        return RECIPES[name]
    near = difflib.get_close_matches(name.lower(), RECIPES, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise SettingError(f"unknown recipe {name!r}; known: {', '.join(RECIPES)}{hint}")


def make_objective(spec: Mapping[str, Any], teacher: Classifier | None = None) -> Objective:
    """The objective that a specification describes, with the model it learns from if it has one.

    Raises `SettingError` for an unknown name, a setting outside its values, and a teacher that is missing.
    """
    kind = recipe_type(spec["name"])
    models = {} if kind.teacher is None else {kind.teacher: teacher}
    if None in models.values():
        raise SettingError(f"recipe {spec['name']} without a {kind.teacher}; give the model to learn from")
    return kind.objective(**spec["settings"], **models)
