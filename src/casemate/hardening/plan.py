"""The plan of a hardening: model, images and settings, checked before anything is trained or attacked."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, final

from torch import nn

from casemate._version import __version__
from casemate.data import Array, ImageSource, LabelledImages, StreamedImages, to_float
from casemate.defenses import RECIPES, Distillation, Recipe, RobustDistillation, needs_guard
from casemate.defenses.distillation import expect_alike
from casemate.errors import SettingError, kind_of
from casemate.evaluation import Budget
from casemate.evaluation.fingerprints import fingerprint, fingerprint_of_images
from casemate.functions import stable_repr
from casemate.hardening.defaults import DEFAULT_RECIPE, FINE_TUNING, HARDENING_RECIPES, named_recipes
from casemate.hardening.parts import Parts, make_parts
from casemate.hardening.result import CONTROL
from casemate.hardening.selection import SelectedByRobustness
from casemate.hardening.subject import check_subject
from casemate.models import Classifier, as_classifier
from casemate.norms import Ball, Norm, format_eps, parse_eps, parse_norm
from casemate.training import Objective, TrainConfig, takes_unlabelled
from casemate.training.images import check_augmentations
from casemate.training.teachers import teachers_of


@final
@dataclass(frozen=True, kw_only=True)
class HardeningPlan:
    """A hardening that is ready to run: checked model, images and settings."""

    model: Classifier
    parts: Parts
    recipes: dict[str, Recipe]
    """By the name of the model that each makes; ordinary training makes the control."""
    eps: float
    norm: Norm
    settings: TrainConfig
    budget: Budget

    def selected(self, objective: Objective) -> SelectedByRobustness:
        """A training objective together with the choice of the epoch, which is that of all trainings."""
        return SelectedByRobustness(objective=objective, eps=self.eps, norm=self.norm, seed=self.settings.seed)

    @property
    def trainings(self) -> dict[str, Recipe]:
        """The recipes of all trainings by the name of the model: the control first."""
        return {CONTROL: Recipe(), **self.recipes}

    def settings_of(self, name: str) -> TrainConfig:
        """The settings of the training called `name`: those of all, and the guard where it may collapse."""
        return replace(self.settings, guard=needs_guard(self.trainings[name].objective))

    def about(self) -> dict[str, Any]:
        """All that the results depend on, as JSON."""
        settings = asdict(self.settings)
        if callable(settings["schedule"]):  # a function has no stable text, so its values are stated
            settings["schedule"] = [settings["schedule"](step / 100) for step in range(100)]
        return {
            "eps": [float(self.eps)],
            "eps_text": [format_eps(self.eps)],
            "norm": self.norm,
            "budget": self.budget,
            "guarded": [name for name in self.recipes if self.settings_of(name).guard],
            "recipes": {name: _described(recipe) for name, recipe in self.recipes.items()},
            "training": settings,
            "seed": self.settings.seed,
            "classes": list(self.model.classes),
            "images": len(self.parts.test),
            "train_images": len(self.parts.train),
            "validation_images": len(self.parts.validation),
            **({} if self.parts.unlabelled is None else {"unlabelled_images": len(self.parts.unlabelled)}),
            "fingerprint": fingerprint(self.model),
            **{f"{name}_sha256": fingerprint_of_images(each) for name, each in self.parts.by_use.items()},
            "casemate": __version__,
        }


def plan_hardening(
    model: nn.Module,
    train: ImageSource,
    validation: ImageSource | None = None,
    *,
    test: ImageSource | None = None,
    unlabelled: Array | LabelledImages | StreamedImages | None = None,
    eps: float | str,
    norm: str = "linf",
    recipe: str | Recipe | Sequence[str | Recipe] | Mapping[str, str | Recipe] = DEFAULT_RECIPE,
    settings: TrainConfig = FINE_TUNING,
    budget: Budget = "standard",
    images: int | None = None,
    seed: int = 0,
) -> HardeningPlan:
    """Check a hardening without training or attacking anything; for the arguments and errors see `harden`."""
    subject, radius, measured = as_classifier(model), parse_eps(eps), parse_norm(norm)
    if radius <= 0:
        raise SettingError(f"eps = {eps}; expected a radius above zero to harden against")
    if not isinstance(settings, TrainConfig):
        raise SettingError(f"settings is {kind_of(settings)}; expected casemate.TrainConfig(epochs=..., ...)")
    if settings.patience is not None:
        raise SettingError(
            f"patience = {settings.patience}; expected None: the epoch is chosen by robust accuracy, and the control "
            "has to be trained for as many epochs"
        )
    for name, usual in (("monitor", "loss"), ("keep_best", False), ("guard", False)):
        if getattr(settings, name) != usual:
            raise SettingError(
                f"{name} = {getattr(settings, name)}; expected {usual}: the epoch is chosen by robust accuracy as it is"
            )
    parts = make_parts(train, validation, test, unlabelled, images, seed)
    check_subject(subject, Ball(eps=radius, norm=measured), parts.by_use)
    recipes = named_recipes(recipe, radius, measured, subject.bounds)
    for each in recipes.values():
        check_augmentations(subject, (*each.extra, *each.augment))
        if isinstance(each.objective, Distillation | RobustDistillation):
            few = to_float(parts.train.pixels[:2])
            expect_alike(as_classifier(each.objective.teacher), subject, few.to(subject.device))
    if len(recipes) == 1:
        recipes = {"hardened": next(iter(recipes.values()))}
    if parts.unlabelled is not None:
        parts = replace(parts, notes=(*parts.notes, _use_of_unlabelled(len(parts.unlabelled), recipes)))
    return HardeningPlan(
        model=subject,
        parts=parts,
        recipes=recipes,
        eps=radius,
        norm=measured,
        settings=replace(settings, seed=seed),
        budget=budget,
    )


def _use_of_unlabelled(count: int, recipes: Mapping[str, Recipe]) -> str:
    """A remark on which recipes train on the `count` images without labels. Raises `SettingError` if none does."""
    taking = [name for name, recipe in recipes.items() if takes_unlabelled(recipe.objective)]
    images = f"{count:,} {'image' if count == 1 else 'images'} without labels"
    if not taking:
        kinds = ", ".join(name for name in HARDENING_RECIPES if takes_unlabelled(RECIPES[name].objective))
        raise SettingError(
            f"{images}, but no recipe here learns without labels; expected one of {kinds}, or leave these images out"
        )
    others = ["the control", *(name for name in recipes if name not in taking)]
    return (
        f"{images}: used by {' and '.join(taking)} only, whose epochs have more images than those of "
        f"{' and '.join(others)}"
    )


def _described(recipe: Recipe) -> str:
    """A recipe as text that is the same in every process, with the fingerprints of other networks for their layers."""
    teachers = teachers_of(recipe.objective)
    parts = {"objective": stable_repr(recipe.objective, teachers)}
    for teacher in teachers.values():
        parts["objective"] = parts["objective"].replace(repr(teacher), fingerprint(teacher))
    for name, changes in (("extra", recipe.extra), ("augment", recipe.augment)):
        parts[name] = f"({', '.join(map(stable_repr, changes))}{',' if len(changes) == 1 else ''})"
    return f"Recipe({', '.join(f'{name}={text}' for name, text in parts.items())})"
