"""Settings of the fine-tuning, and the recipes of `casemate.defenses` that can harden a model, at a radius."""

from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

from casemate.defenses import RECIPES, Recipe, RecipeKind, make_objective, recipe_type
from casemate.errors import SettingError
from casemate.norms import Bounds, Norm
from casemate.training import TrainConfig

FINE_TUNING = TrainConfig(
    epochs=10,
    batch_size=128,
    optimizer="sgd",
    learning_rate=0.01,
    schedule="one-cycle",
    weight_decay=5e-4,
    ema=0.995,
)
"""Settings of the fine-tuning if none are given.

- A trained model becomes robust in a tenth of the epochs of adversarial training from the start, at a learning rate
  that starts low, rises, and decays fast (Jeddi, Shafiee and Wong 2020, arXiv 2012.13628): here ten epochs of the
  one-cycle schedule, whose first quarter is the warm-up, up to a tenth of the 0.1 that is usual from the start.
- SGD with momentum, batches of 128 and a weight decay of 5e-4 are what works for adversarial training (Pang et al.
  2021, arXiv 2010.00467).
- The weights are averaged over the steps (Izmailov et al. 2018, arXiv 1803.05407), which also makes adversarially
  trained models more robust (Gowal et al. 2020, arXiv 2010.03593).
"""
HARDENING_RECIPES = tuple(
    name for name, each in RECIPES.items() if each.kind == "adversarial" and hasattr(each.objective, "ball")
)
"""Names of the recipes that train on adversarial images of one ball."""
DEFAULT_RECIPE = "adversarial-training"
_REASONS: Mapping[RecipeKind, str] = {
    "ordinary": "is what the control is trained by",
    "adversarial": "trains in several balls",
    "distilled": "trains a student, by a teacher",
    "certified": "trains for bounds, which `casemate certify` measures: use `casemate train --start MODEL`",
    "smoothed": "trains for the smoothed model, which `casemate certify` measures: use `casemate train --start MODEL`",
    "unlabelled": "is for images without labels: use `casemate train --start MODEL`",
}
"""Why recipes of a kind that are not in `HARDENING_RECIPES` harden no model."""


def following_settings(name: str) -> set[str]:
    """Names of the settings of a recipe that follow from what it hardens against: radius, norm, bounds of the pixels.

    Raises `SettingError` for an unknown recipe.
    """
    hints = get_type_hints(recipe_type(name).objective)
    return {"eps" if "eps" in hints else "step_size", "norm", "clip_min", "clip_max"} & hints.keys()


def hardening_recipe(
    name: str, eps: float, norm: Norm, bounds: Bounds, given: Mapping[str, Any] | None = None
) -> Recipe:
    """The recipe called `name` against perturbations of radius `eps`, for a model with these bounds of its pixels.

    For adversarial regularisation eps is the length of its step. `given` are settings by name, beside those that follow
    from the other arguments. Raises `SettingError` for another name or setting.
    """
    kind = recipe_type(name)
    if name not in HARDENING_RECIPES:
        raise SettingError(
            f"recipe {name} {_REASONS[kind.kind]}; expected one of {', '.join(HARDENING_RECIPES)}, or a Recipe of your "
            "own in Python"
        )
    follow = following_settings(name)
    if "norm" not in follow and norm != "linf":
        raise SettingError(f"recipe {name} in {norm}; it is defined in Linf only")
    if twice := follow & (given or {}).keys():
        raise SettingError(
            f"recipe {name} with {', '.join(sorted(twice))}, which follows from eps, norm or the model's bounds; leave "
            "it out"
        )
    values = {"eps": eps, "step_size": eps, "norm": norm, "clip_min": bounds[0], "clip_max": bounds[1]}
    settings = {**kind.defaults, **{each: values[each] for each in follow}, **(given or {})}
    return Recipe(objective=make_objective({"name": name, "settings": settings}))


def named_recipes(
    given: str | Recipe | Sequence[str | Recipe] | Mapping[str, Recipe], eps: float, norm: Norm, bounds: Bounds
) -> dict[str, Recipe]:
    """The recipes that a caller gave, by name; a `Recipe` given without a name has that of its objective's class.

    Raises `SettingError` for none, an unknown name, a name twice, and one that another model of the result has.
    """
    if isinstance(given, Mapping):
        named = list(given.items())
    else:
        each = [given] if isinstance(given, str | Recipe) else list(given)
        named = [
            (one, hardening_recipe(one, eps, norm, bounds)) if isinstance(one, str) else (_name_of(one), one)
            for one in each
        ]
    names = [name for name, _ in named]
    if not names or len(set(names)) < len(names) or {"before", "control"} & set(names):
        raise SettingError(
            f"recipes {', '.join(names) or 'none'}; expected one or more, each of another name, and none called before "
            "or control: give a dictionary of recipes by name"
        )
    return dict(named)


def _name_of(recipe: Recipe) -> str:
    """The registered name of a recipe's objective, or the name of its class."""
    kind = type(recipe.objective)
    return next((name for name, each in RECIPES.items() if each.objective is kind), kind.__name__)
