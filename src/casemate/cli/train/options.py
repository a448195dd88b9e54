"""The options of `casemate train`, and what it does with them.

How to train are the fields of `casemate.training.TrainConfig`, a recipe's own options those of its objective.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

from casemate.attacks.registry import summary_of
from casemate.cli import train as command
from casemate.cli.shared import parsing
from casemate.cli.shared.dataclass_options import options_of, python_only, settings_of
from casemate.cli.shared.observers import watching
from casemate.cli.shared.options import (
    DataDir,
    Flag,
    Json,
    Machine,
    Seed,
    at_least_one,
    check_folder,
)
from casemate.cli.shared.outputs import WAY_OUT
from casemate.cli.train import run, show
from casemate.data.named import AUGMENTATIONS
from casemate.defenses import RECIPES, recipe_type
from casemate.errors import ModelError, SettingError
from casemate.tables import check_format
from casemate.training import TrainConfig

_REMOVED = {"--defense": "write --recipe NAME; ordinary training is the recipe cross-entropy"}
_ORDINARY = next(iter(RECIPES))
_RECIPE_HELP = "What is trained: " + "; ".join(
    f"{name}: {summary_of(each.objective).rstrip('.')}" for name, each in RECIPES.items()
)
_RECIPE = PrimitiveConstructorSpec(
    nargs=1,
    metavar=f"{{{','.join(RECIPES)}}}",
    instance_from_str=lambda texts: texts[0],
    is_instance=lambda value: value in RECIPES,
    str_from_instance=lambda value: [value],
    choices=tuple(RECIPES),
)
_CHANGES = (
    f"Change the images of every batch, in this order: {', '.join(AUGMENTATIONS)}. Settings follow a colon: "
    "affine:rotation=90,shift=0.1; with sometimes=0.5 half of the images are changed. `casemate info` lists them."
)


@dataclass(frozen=True, kw_only=True)
class Images:
    """Which images to train on, and how they are changed."""

    dataset: Annotated[
        str | None, arg(metavar="NAME", help_behavior_hint="(default: START's or TEACHER's, or fashion-mnist)")
    ] = None
    """The images: a data set, one of `casemate data list`."""
    data_dir: DataDir = None
    train_images: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")] = None
    """Train on a stratified draw of N images."""
    validation_images: Annotated[
        int | None, arg(metavar="N", help_behavior_hint="(default: 6000, or a fifth of fewer)")
    ] = None
    """Images of the training part set aside for validation."""
    augment: Annotated[
        tuple[str, ...], arg(metavar="NAME ...", help=_CHANGES, help_behavior_hint="(default: none)")
    ] = ()
    extra: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="(default: none)")] = ()
    """For each of these changes add a changed copy of all training images, made once."""


@dataclass(frozen=True, kw_only=True)
class AbstractTrainCommand:
    """The options that all recipes have; `command_of` adds those of one."""

    recipe: Annotated[str, _RECIPE, arg(help=_RECIPE_HELP)] = _ORDINARY
    architecture: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: START's, or paper-cnn)")] = (
        None
    )
    """A registered network; `casemate info` lists them."""
    start: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: fresh weights)")] = None
    """Start from the weights of this saved model."""
    out: Annotated[Path, arg(metavar="FILE")] = Path("model.safetensors")
    """Where the model goes."""
    overwrite: Flag = False
    """Replace a finished model in OUT, or files that are in the way of those beside it."""
    history: Literal["csv", "parquet"] = "csv"
    """Format of the history beside the model; parquet needs the extra `tables`."""
    seed: Seed = 0
    dry_run: Flag = False
    """Train nothing: say what would be trained, and the time it would take."""
    json: Json = False
    objective: Any  # the settings of the recipe's objective
    training: Any  # those of `casemate.training.TrainConfig`
    images: Images = field(default_factory=Images)
    machine: Machine = field(default_factory=Machine)

    @property
    def teacher(self) -> str | None:
        """The model to learn from, where the recipe has one."""
        field_of_teacher = RECIPES[self.recipe].teacher
        return None if field_of_teacher is None else getattr(self.objective, field_of_teacher)

    @property
    def checkpoint(self) -> Path:
        """Where the state between epochs lies while it trains."""
        return self.out.with_name(f"{self.out.name}.training")

    def run(self) -> None:
        """Train, judge, save."""
        self._check_out()
        check_format(self.history)
        at_least_one("train-images", self.images.train_images)
        at_least_one("validation-images", self.images.validation_images)
        with watching() as observer:
            device, threads = self.machine.set_up(observer)
            settings = settings_of(self.objective)
            settings.pop(RECIPES[self.recipe].teacher or "", None)
            ready = run.prepare(
                TrainConfig(seed=self.seed, **settings_of(self.training)),
                {"name": self.recipe, "settings": settings},
                settings_of(self.images),
                architecture=self.architecture,
                start=self.start,
                teacher=self.teacher,
                out=self.out,
                device=device,
                threads=threads,
                observer=observer,
            )
            if self.dry_run:
                display = partial(show.show_estimate, ready, run.estimate(ready, observer))
            else:
                check_folder(self.out.parent)
                display = partial(show.show, ready, run.train(ready, self.checkpoint, self.history, observer))
        display(as_json=self.json)

    def _check_out(self) -> None:
        """Refuse, before anything is read, an OUT that cannot be written or would be lost."""
        if self.out.suffix != ".safetensors":
            raise ModelError(f"{self.out}: models are saved as .safetensors; choose an --out with that ending")
        if self.out.is_dir():
            raise ModelError(f"{self.out} is a folder; name a file")
        for role, held in (("start", self.start), ("teacher", self.teacher)):
            if held is not None and Path(held).resolve() == self.out.resolve():
                raise SettingError(f"{self.out} is the --{role} itself, which must stay; choose another --out")
        beside = (self.out.with_suffix(".json"), self.out.with_suffix(f".history.{self.history}"))
        if not (self.checkpoint.exists() or self.overwrite or self.dry_run):
            for path in (self.out, *beside, *self.out.parent.glob(f"{self.out.stem}.epoch-*.safetensors")):
                if path.exists():
                    raise SettingError(f"{path} exists already; {WAY_OUT}")


def parse(argv: Sequence[str]) -> AbstractTrainCommand:
    """The command with the options that `argv` gives, among them those of the recipe that it names.

    Raises `SettingError` for an unknown recipe, an option that another recipe has, and an option that is gone.
    """
    parsing.refuse_removed(argv, _REMOVED)
    name = _recipe_in(argv)
    recipe_type(name)
    _refuse_foreign(name, argv)
    prog = "casemate train" if name == _ORDINARY else f"casemate train --recipe {name}"
    return parsing.parse(command_of(name), prog, command.__doc__ or "", argv)


def command_of(name: str) -> type[AbstractTrainCommand]:
    """The command of one recipe."""
    recipe = RECIPES[name]
    kind = recipe.objective
    left_out = python_only(kind)
    words = f"Recipe {name}: {summary_of(kind)}" + (f" Python only: {', '.join(left_out)}." if left_out else "")
    objective = options_of(kind, defaults=recipe.defaults, none="the teacher's", words=words)
    training = options_of(TrainConfig, skip=["seed"], words="How to train.")
    return make_dataclass(
        f"{kind.__name__}Command",
        [("objective", objective, field()), ("training", training, field())],
        bases=(AbstractTrainCommand,),
        frozen=True,
        kw_only=True,
    )


def _recipe_in(argv: Sequence[str]) -> str:
    """The recipe that arguments name: the last one that they name."""
    named = [after for before, after in pairwise(argv) if before == "--recipe"]
    named += [word.partition("=")[2] for word in argv if word.startswith("--recipe=")]
    return named[-1] if named else _ORDINARY


def _refuse_foreign(name: str, argv: Sequence[str]) -> None:
    """Raise `SettingError` if an option is given that another recipe has."""
    own, theirs = _options_of(name), {each: _options_of(each) for each in RECIPES}
    given = [word.split("=")[0].replace("_", "-") for word in argv if word.startswith("--")]
    foreign = [option for option in given if option not in own and any(option in each for each in theirs.values())]
    if foreign:
        owners = " or ".join(each for each, options in theirs.items() if foreign[0] in options)
        raise SettingError(f"--recipe {name} has no {', '.join(foreign)}; choose --recipe {owners}, or leave it out")


def _options_of(name: str) -> set[str]:
    """The options of a recipe, its own and those of all."""
    groups = [AbstractTrainCommand, Images, Machine]
    groups += [each.type for each in fields(command_of(name)) if each.name in ("objective", "training")]  # type: ignore[misc]  # dataclasses
    names = [each.name.replace("_", "-") for group in groups for each in fields(group)]
    return {f"--{prefix}{each}" for each in names for prefix in ("", "no-")}
