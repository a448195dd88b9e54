"""One model of the benchmark: network, recipe and settings, from which it is trained again to the bit."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

from casemate.certification import Method
from casemate.data.named import make_augmentation
from casemate.defenses import Recipe, RecipeKind, make_objective, recipe_type
from casemate.models import Classifier, create
from casemate.training import TrainConfig


@final
@dataclass(frozen=True, kw_only=True)
class Entry:
    """A model of the benchmark, as data: the network and how it is trained."""

    network: str
    """Name of a registered network, see `casemate.models.create`."""
    recipe: str = "cross-entropy"
    """Name of a recipe in `casemate.defenses.RECIPES`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the recipe by name; the others have the recipe's defaults."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the training by name, see `TrainConfig`."""
    augment: tuple[Mapping[str, Any], ...] = ()
    """Descriptions of augmentations of every batch, see `casemate.data.named.make_augmentation`."""
    extra: tuple[Mapping[str, Any], ...] = ()
    """Descriptions of augmentations, each of which adds an augmented copy of all training images."""
    teacher: str | None = None
    """Name of the entry whose model is the teacher, for a recipe that needs one."""
    certificate: Method | None = None
    """The method by which the model is certified; None for no certificate."""
    seed: int = 0
    """Of the initial weights and of the training."""

    @property
    def kind(self) -> RecipeKind:
        """What the recipe trains for."""
        return recipe_type(self.recipe).kind

    def config(self) -> TrainConfig:
        """The settings of the training. Raises `SettingError` for one outside its range."""
        return TrainConfig(**{**self._training(), "seed": self.seed})

    def objective_spec(self) -> dict[str, Any]:
        """Name and settings of the objective, as models are stored with them."""
        return {"name": self.recipe, "settings": {**recipe_type(self.recipe).defaults, **self.settings}}

    def make_recipe(self, teacher: Classifier | None = None) -> Recipe:
        """The recipe, ready to train. Raises `SettingError` for a setting outside its range, or without its teacher."""
        return Recipe(
            objective=make_objective(self.objective_spec(), teacher),
            extra=tuple(map(make_augmentation, self.extra)),
            augment=tuple(map(make_augmentation, self.augment)),
        )

    def make_model(self, input_shape: tuple[int, int, int], classes: tuple[str, ...]) -> Classifier:
        """The untrained network, with the initial weights that the recipe calls for."""
        model = create(self.network, input_shape=input_shape, classes=classes, seed=self.seed)
        recipe_type(self.recipe).initialize(model, self.seed)
        return model

    def as_json(self) -> dict[str, Any]:
        """All that the trained weights depend on, but data, PyTorch and processor."""
        return {
            "network": self.network,
            "objective": self.objective_spec(),
            "training": self._training(),
            "augment": list(self.augment),
            "extra": list(self.extra),
            "teacher": self.teacher,
            "certificate": self.certificate,
            "seed": self.seed,
        }

    def _training(self) -> dict[str, Any]:
        """The settings of the training by name, those that the recipe comes with included."""
        return {**recipe_type(self.recipe).training, **self.training}


def recipe_in_words(recipe: Mapping[str, Any]) -> str:
    """Name of the recipe of an entry (`Entry.as_json`), with its augmentations and its teacher if it has any."""
    words = [str(recipe["objective"]["name"])]
    for each, where in (("augment", "in every batch"), ("extra", "as more images")):
        if recipe[each]:
            words.append(f"{' and '.join(str(change['name']) for change in recipe[each])} {where}")
    if recipe["teacher"] is not None:
        words.append(f"teacher {recipe['teacher']}")
    return ", ".join(words)
