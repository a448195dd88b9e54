"""Settings of the fine-tuning, and the recipes of `casemate.defenses` that can harden a model, at a radius."""

from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

from torch import nn

from casemate.defenses import RECIPES, Recipe, RecipeKind, make_objective, recipe_type
from casemate.errors import SettingError, kind_of
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
    name
    for name, each in RECIPES.items()
    if each.kind in {"adversarial", "unlabelled"} or (each.kind == "distilled" and hasattr(each.objective, "ball"))
)
"""Names of the recipes that can harden a model."""
DEFAULT_RECIPE = "adversarial-training"
_REASONS: Mapping[RecipeKind, str] = {
    "ordinary": "is what the control is trained by",
    "distilled": "trains a student, by a teacher",
    "certified": "trains for bounds, which `casemate certify` measures: use `casemate train --start MODEL`",
    "smoothed": "trains for the smoothed model, which `casemate certify` measures: use `casemate train --start MODEL`",
}
"""Why recipes of a kind that are not in `HARDENING_RECIPES` harden no model."""


def following_settings(name: str, norm: Norm) -> set[str]:
    """Names of the settings of a recipe that follow from what it hardens against: radius, norm, bounds of the pixels.

    Virtual adversarial training and the regularisation by a graph have lengths of their own, which do not follow.
    Raises `SettingError` for an unknown recipe.
    """
    kind = recipe_type(name)
    if kind.kind == "unlabelled":
        return set()
    hints = get_type_hints(kind.objective)
    radius = f"eps_{norm}" if _radii(name) else "eps" if "eps" in hints else "step_size"
    return {radius, "norm", "clip_min", "clip_max"} & hints.keys()


def hardening_recipe(
    name: str,
    eps: float,
    norm: Norm,
    bounds: Bounds,
    given: Mapping[str, Any] | None = None,
    teacher: nn.Module | None = None,
) -> Recipe:
    """The recipe called `name` against perturbations of radius `eps`, for a model with these bounds of its pixels.

    For adversarial regularisation eps is the length of its step, for several norms the radius in `norm`. `given` are
    settings by name, beside those that follow from the other arguments; `teacher` is the robust model that
    robust-distillation learns from. Raises `SettingError` for another name or setting, or a missing teacher.
    """
    kind = recipe_type(name)
    if name not in HARDENING_RECIPES:
        raise SettingError(
            f"recipe {name} {_REASONS[kind.kind]}; expected one of {', '.join(HARDENING_RECIPES)}, or a Recipe of your "
            "own in Python"
        )
    follow, given = following_settings(name, norm), given or {}
    if kind.kind == "adversarial" and norm != "linf" and not follow & {"norm", f"eps_{norm}"}:
        where = "Linf, L2 and L1" if _radii(name) else "Linf"
        raise SettingError(f"recipe {name} in {norm}; it is defined in {where} only")
    if twice := follow & given.keys():
        raise SettingError(
            f"recipe {name} with {', '.join(sorted(twice))}, which follows from eps, norm or the model's bounds; leave "
            "it out"
        )
    values: dict[str, Any] = dict.fromkeys(("eps", "step_size", f"eps_{norm}"), eps)
    values |= {"norm": norm, "clip_min": bounds[0], "clip_max": bounds[1]}
    settings = {**_defaults(name, norm, given), **{each: values[each] for each in follow}, **given}
    return Recipe(objective=make_objective({"name": name, "settings": settings}, teacher))


def _defaults(name: str, norm: Norm, given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a recipe if none are given; several norms have no radii by default, since they depend on the images.

    Raises `SettingError` for several norms with the radius of one only.
    """
    found, others = recipe_type(name).defaults, _radii(name) - {f"eps_{norm}"}
    if others and not any(given.get(each) is not None for each in others):
        example = "several-norms:eps_l2=0.5,eps_l1=12" if norm == "linf" else "several-norms:eps_linf=8/255"
        raise SettingError(
            f"recipe {name} with a radius in {norm} only; expected {' or '.join(sorted(others))} too, such as {example}"
        )
    return found | dict.fromkeys(others)


def _radii(name: str) -> set[str]:
    """Names of a recipe's radii, one for each norm; none for a recipe that has a single radius or step."""
    return {each for each in recipe_type(name).defaults if each.startswith("eps_")}


def named_recipes(
    given: str | Recipe | Sequence[str | Recipe] | Mapping[str, str | Recipe], eps: float, norm: Norm, bounds: Bounds
) -> dict[str, Recipe]:
    """The recipes that a caller gave, by name; a `Recipe` given without a name has that of its objective's class.

    Raises `SettingError` for none, an unknown name, a name twice, and one that another model of the result has.
    """
    if isinstance(given, Mapping):
        each = list(given.values())
    else:
        each = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    unlike = [one for one in each if not isinstance(one, str | Recipe)]
    if unlike:
        raise SettingError(
            f"a recipe is {kind_of(unlike[0])}; expected a name, or a casemate.defenses.Recipe(objective=...)"
        )
    names = list(given) if isinstance(given, Mapping) else [_name_of(one) for one in each]
    unfit = [name for name in names if not isinstance(name, str) or not name or {"/", "\\"} & set(name)]
    if unfit:
        raise SettingError(f"a recipe is named {unfit[0]!r}; expected a name that a file can have too")
    if not names or len(set(names)) < len(names) or {"before", "control"} & set(names):
        raise SettingError(
            f"recipes {', '.join(names) or 'none'}; expected one or more, each of another name, and none called before "
            "or control: give a dictionary of recipes by name"
        )
    made = [hardening_recipe(one, eps, norm, bounds) if isinstance(one, str) else one for one in each]
    return dict(zip(names, made, strict=True))


def _name_of(recipe: str | Recipe) -> str:
    """The name of a recipe: as it was given, or registered for its objective, or else that of the objective's class."""
    if isinstance(recipe, str):
        return recipe
    kind = type(recipe.objective)
    return next((name for name, each in RECIPES.items() if each.objective is kind), kind.__name__)
