"""The options of `casemate train`, and how it runs.

The options of the training are the fields of `casemate.training.TrainConfig`, those of a recipe the fields of its
objective.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, make_dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

from casemate.attacks.registry import summary_of
from casemate.cli import train as command
from casemate.cli.shared import parsing
from casemate.cli.shared.dataclass_options import chosen_settings, options_of, python_only
from casemate.cli.shared.observers import watching
from casemate.cli.shared.options import (
    DataDir,
    DataFile,
    Flag,
    Json,
    Machine,
    ModelOptions,
    Reading,
    Seed,
    Unlabelled,
    at_least_one,
    check_folder,
)
from casemate.cli.shared.outputs import IN_THE_WAY
from casemate.cli.shared.tracking import Track, check_trackers, tracking
from casemate.data.named import AUGMENTATIONS
from casemate.defenses import RECIPES, recipe_type
from casemate.errors import ModelError, SettingError
from casemate.progress import NULL_OBSERVER, Observer
from casemate.tables import check_format
from casemate.torchrun import place
from casemate.training import TrainConfig
from casemate.training.processes import TrainingGroup, process_group

if TYPE_CHECKING:
    from casemate.cli.train.run import TrainPlan

_REMOVED = {"--defense": "write --recipe NAME; ordinary training is the recipe cross-entropy"}
_ORDINARY = next(iter(RECIPES))
_RECIPE_HELP = "The objective. " + "; ".join(
    f"{name}: {summary_of(each.objective).rstrip('.').split(': ')[-1]}" for name, each in RECIPES.items()
)
_RECIPE = PrimitiveConstructorSpec(
    nargs=1,
    metavar=f"{{{','.join(RECIPES)}}}",
    instance_from_str=lambda texts: texts[0],
    is_instance=lambda value: value in RECIPES,
    str_from_instance=lambda value: [value],
    choices=tuple(RECIPES),
)
_AUGMENT_HELP = (
    f"Augment the images of every batch, in the given order, by any of {', '.join(AUGMENTATIONS)}. Settings follow a "
    "colon: affine:rotation=90,shift=0.1; sometimes=0.5 changes each image with probability 0.5. `casemate info` lists "
    "them."
)


@dataclass(frozen=True, kw_only=True)
class TrainImages:
    """The images to train on, and their augmentation."""

    dataset: Annotated[
        str | None, arg(metavar="NAME", help_behavior_hint="(default: START's or TEACHER's, or fashion-mnist)")
    ] = None
    """The data set, one of `casemate data list`."""
    data: DataFile = None
    data_dir: DataDir = None
    train_images: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")] = None
    """Train on a stratified random sample of N images."""
    labelled_images: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")] = None
    """Use the labels of only N training images, a stratified random sample that is repeated until it makes a fifth of
    them; for recipes that learn without labels."""
    unlabelled: Unlabelled = None
    validation_images: Annotated[
        int | None, arg(metavar="N", help_behavior_hint="(default: 6000, or a fifth of fewer)")
    ] = None
    """Number of training images set aside for validation."""
    augment: Annotated[
        tuple[str, ...], arg(metavar="NAME ...", help=_AUGMENT_HELP, help_behavior_hint="(default: none)")
    ] = ()
    extra: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="(default: none)")] = ()
    """Augmentations as for --augment; each adds one augmented copy of all training images, made before training."""


@dataclass(frozen=True, kw_only=True)
class AbstractTrainCommand:
    """The options that all recipes share; `train_command` adds those of one recipe."""

    recipe: Annotated[str, _RECIPE, arg(help=_RECIPE_HELP)] = _ORDINARY
    architecture: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: START's, or paper-cnn)")] = (
        None
    )
    """A registered network; `casemate info` lists them."""
    start: Annotated[str | None, arg(metavar="MODEL", help_behavior_hint="(default: fresh weights)")] = None
    """Start from this model, a saved one or one of your own (see `casemate evaluate --help`, MODEL)."""
    out: Annotated[Path, arg(metavar="FILE")] = Path("model.safetensors")
    """The file for the model."""
    overwrite: Flag = False
    """Replace a finished model in OUT, and files of the same names beside it."""
    history: Literal["csv", "parquet"] = "csv"
    """Format of the history beside the model; parquet needs the extra `tables`."""
    seed: Seed = 0
    dry_run: Flag = False
    """Train nothing; print the settings, and the time that the training would take."""
    json: Json = False
    track: Track = ()
    objective: Any  # the settings of the recipe's objective
    training: Any  # those of `casemate.training.TrainConfig`
    images: TrainImages = field(default_factory=TrainImages)
    loading: ModelOptions = field(default_factory=ModelOptions)
    reading: Reading = field(default_factory=Reading)
    machine: Machine = field(default_factory=Machine)

    @property
    def teacher(self) -> str | None:
        """File or function of the teacher, as the user gave it; None if the recipe has no teacher."""
        field_of_teacher = RECIPES[self.recipe].teacher
        return None if field_of_teacher is None else getattr(self.objective, field_of_teacher)

    @property
    def checkpoint(self) -> Path:
        """The file with the state after the last completed epoch, which exists while the training is unfinished."""
        return self.out.with_name(f"{self.out.name}.training")

    def run(self) -> None:
        """Train, measure the test accuracy, save the model, print the result; with --dry-run only print the plan.

        Processes that torchrun started train together; the first of them does the rest.
        """
        with (
            watching() if place().is_first else nullcontext(NULL_OBSERVER) as observer,
            process_group(observer) as group,
        ):
            with group.together():
                plan = self._plan(group, observer)
            from casemate.cli.train import run, show

            if self.dry_run:
                if not group.is_first:
                    return
                display = partial(show.show_train_plan, plan, run.estimate(plan, observer))
            else:
                with tracking(
                    self.track,
                    observer,
                    name=f"train-{self.out.stem}",
                    folder=self.out.with_suffix(".tensorboard"),
                    settings=plan.about,
                ) as tracked:
                    outcome = run.run(plan, self.checkpoint, self.history, tracked)
                if outcome is None:  # another process than the first
                    return
                display = partial(show.show, plan, outcome)
        display(as_json=self.json)

    def _plan(self, group: TrainingGroup, observer: Observer) -> "TrainPlan":
        """Check the options, and load what the training needs, in this process. Raises `CasemateError`."""
        if group.is_first:  # the one that writes
            self._check_out()
            check_trackers(self.track)
        check_format(self.history)
        at_least_one("train-images", self.images.train_images)
        at_least_one("labelled-images", self.images.labelled_images)
        at_least_one("validation-images", self.images.validation_images)
        device, threads = self.machine.set_up(observer)
        group.own_device(device)
        from casemate.cli.train import run

        settings = chosen_settings(self.objective)
        settings.pop(RECIPES[self.recipe].teacher or "", None)
        plan = run.prepare(
            TrainConfig(seed=self.seed, **chosen_settings(self.training)),
            {"name": self.recipe, "settings": settings},
            chosen_settings(self.images) | {"reading": self.reading},
            architecture=self.architecture,
            start=self.start,
            loading=self.loading,
            teacher=self.teacher,
            out=self.out,
            device=device,
            threads=threads,
            processes=group.count,
            observer=observer,
        )
        if group.is_first and not self.dry_run:
            check_folder(self.out.parent)
        return plan

    def _check_out(self) -> None:
        """Raise, before anything is read, if --out is unfit, is the start or the teacher, or would replace a result."""
        if self.out.suffix != ".safetensors":
            raise ModelError(f"{self.out}: models are saved as .safetensors; choose an --out with that ending")
        if self.out.is_dir():
            raise ModelError(f"{self.out} is a folder; name a file")
        for role, source in (("start", self.start), ("teacher", self.teacher)):
            if source is not None and Path(source).resolve() == self.out.resolve():
                raise SettingError(f"{self.out} is the --{role} itself, which must stay; choose another --out")
        beside = (self.out.with_suffix(".json"), self.out.with_suffix(f".history.{self.history}"))
        if not (self.checkpoint.exists() or self.overwrite or self.dry_run):
            for path in (self.out, *beside, *self.out.parent.glob(f"{self.out.stem}.epoch-*.safetensors")):
                if path.exists():
                    raise SettingError(f"{path} exists already; {IN_THE_WAY}")


def parse(argv: Sequence[str]) -> AbstractTrainCommand:
    """The command `casemate train` with its options, those of the chosen recipe included, parsed from `argv`.

    Raises `SettingError` for an unknown recipe, an option of another recipe, and an option of earlier versions.
    """
    parsing.refuse_removed(argv, _REMOVED)
    name = _recipe_in(argv)
    recipe_type(name)
    _refuse_foreign(name, argv)
    prog = "casemate train" if name == _ORDINARY else f"casemate train --recipe {name}"
    return parsing.parse(train_command(name), prog, command.__doc__ or "", argv)


def train_command(name: str) -> type[AbstractTrainCommand]:
    """The dataclass of `casemate train --recipe NAME`: the shared options, and those of the recipe `name`."""
    recipe = RECIPES[name]
    kind = recipe.objective
    left_out = python_only(kind)
    words = f"Recipe {name}: {summary_of(kind)}" + (f" Python only: {', '.join(left_out)}." if left_out else "")
    objective = options_of(kind, defaults=recipe.defaults, none="the teacher's", words=words)
    training = options_of(TrainConfig, skip=["seed"], defaults=recipe.training, words="The training.")
    return make_dataclass(
        f"{kind.__name__}Command",
        [("objective", objective, field()), ("training", training, field())],
        bases=(AbstractTrainCommand,),
        frozen=True,
        kw_only=True,
    )


def _recipe_in(argv: Sequence[str]) -> str:
    """The recipe that --recipe names in `argv`: the last one if several, ordinary training if none."""
    named = [after for before, after in pairwise(argv) if before == "--recipe"]
    named += [word.partition("=")[2] for word in argv if word.startswith("--recipe=")]
    return named[-1] if named else _ORDINARY


def _refuse_foreign(name: str, argv: Sequence[str]) -> None:
    """Raise `SettingError` if `argv` has an option that the recipe `name` does not have, but another one does."""
    own = _options_of(name)
    given = [word.split("=")[0].replace("_", "-") for word in argv if word.startswith("--")]
    strange = [option for option in given if option not in own]
    if not strange:  # without the options of all other recipes, which take longer to make
        return
    theirs = {each: _options_of(each) for each in RECIPES}
    foreign = [option for option in strange if any(option in each for each in theirs.values())]
    if foreign:
        owners = " or ".join(each for each, options in theirs.items() if foreign[0] in options)
        raise SettingError(f"--recipe {name} has no {', '.join(foreign)}; choose --recipe {owners}, or leave it out")


def _options_of(name: str) -> set[str]:
    """All options that `casemate train` accepts with a recipe, as --name and as --no-name."""
    groups = [AbstractTrainCommand, TrainImages, ModelOptions, Reading, Machine]
    groups += [each.type for each in fields(train_command(name)) if each.name in ("objective", "training")]  # type: ignore[misc]  # dataclasses
    names = [each.name.replace("_", "-") for group in groups for each in fields(group)]
    return {f"--{prefix}{each}" for each in names for prefix in ("", "no-")}
