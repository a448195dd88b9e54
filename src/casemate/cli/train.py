"""`casemate train`: train a network, plainly or with a defence, with checkpoints, and judge it on the test images."""

from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from casemate.cli.defense import DefenseName, Distilling, Neighbours, WorstCase, objective_of
from casemate.cli.observers import watching
from casemate.cli.options import DataDir, DatasetName, Flag, Json, Machine, Seed, check_folder
from casemate.cli.outputs import WAY_OUT
from casemate.errors import ModelError, SettingError

_CHANGES = (
    "Change the images of every batch, in this order: alternating-flip, flip, shift, affine, gaussian-blur, "
    "gaussian-noise, speckle, salt-and-pepper. Settings follow a colon: affine:rotation=90,shift=0.1; with "
    "sometimes=0.5 half of the images are changed. `casemate info` lists all settings."
)
_DEFENSES = (
    "The loss to harden with: adversarial-regularization adds that of adversarial neighbours; adversarial-training "
    "has that of the worst images that PGD finds, and no other; at-temperature trains a teacher, distillation a "
    "student on the teacher's answers."
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train; the defaults are the study's."""

    epochs: int = 20
    """Passes over the training images."""
    batch_size: int = 128
    """Images per step."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """The method; sgd has Nesterov momentum 0.9."""
    learning_rate: float = 1e-3
    """The largest learning rate."""
    schedule: Literal["constant", "linear", "cosine", "one-cycle"] = "constant"
    """How the learning rate moves."""
    weight_decay: float = 0.0
    """On kernels only."""
    patience: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: no early stopping)")] = None
    """Stop after N epochs without a lower validation loss, and take the best weights."""
    ema: Annotated[float | None, arg(metavar="DECAY", help_behavior_hint="(default: none)")] = None
    """Take a moving average of the weights, such as 0.999."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of convolutions and products while training; bfloat16 is much faster on some processors."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""
    augment: Annotated[
        tuple[str, ...], arg(metavar="NAME ...", help=_CHANGES, help_behavior_hint="(default: none)")
    ] = ()
    extra: Annotated[tuple[str, ...], arg(metavar="NAME ...", help_behavior_hint="(default: none)")] = ()
    """For each of these changes add a changed copy of all training images, made once."""
    train_images: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")] = None
    """Train on a stratified draw of N images."""
    validation_images: Annotated[
        int | None, arg(metavar="N", help_behavior_hint="(default: 6000, or a fifth of fewer)")
    ] = None
    """Images of the training part set aside for validation."""


@dataclass(frozen=True, kw_only=True)
class Train:
    r"""Train a network, with a defence if you like, and judge it on test images.
    - Writes OUT, a JSON file beside it that says what it is, and its history.
    - OUT.training keeps the state after every epoch: after a kill or Ctrl-C the
      same command goes on from there.

    Examples:
      casemate train --epochs 5 --batch-size 64 --schedule one-cycle \
          --ema 0.999 --augment alternating-flip --out first.safetensors
      casemate train --start first.safetensors --patience 5 \
          --defense adversarial-regularization --out regularised.safetensors
      casemate train --defense adversarial-training --eps 0.1 --steps 7 \
          --schedule one-cycle --out robust.safetensors
      casemate train --defense at-temperature --out teacher.safetensors
      casemate train --defense distillation --teacher teacher.safetensors \
          --architecture paper-student --out student.safetensors
    """

    architecture: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: START's, or paper-cnn)")] = (
        None
    )
    """A registered network; `casemate info` lists them."""
    dataset: Annotated[
        DatasetName | None, arg(help_behavior_hint="(default: START's or TEACHER's, or fashion-mnist)")
    ] = None
    """The images."""
    start: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: fresh weights)")] = None
    """Start from the weights of this saved model."""
    defense: Annotated[DefenseName, arg(help=_DEFENSES)] = "none"
    out: Annotated[Path, arg(metavar="FILE")] = Path("model.safetensors")
    """Where the model goes."""
    overwrite: Flag = False
    """Replace a finished model in OUT, or files that are in the way of those beside it."""
    history: Literal["csv", "parquet"] = "csv"
    """Format of the history beside the model; parquet needs the extra `tables`."""
    seed: Seed = 0
    data_dir: DataDir = None
    dry_run: Flag = False
    """Train nothing: say what would be trained, and the time it would take."""
    json: Json = False
    recipe: Recipe = field(default_factory=Recipe)
    adversarial_regularization: Neighbours = field(default_factory=Neighbours)
    adversarial_training: WorstCase = field(default_factory=WorstCase)
    distillation: Distilling = field(default_factory=Distilling)
    machine: Machine = field(default_factory=Machine)

    @property
    def checkpoint(self) -> Path:
        """Where the state between epochs lies while it trains."""
        return self.out.with_name(f"{self.out.name}.training")

    def run(self) -> None:
        """Train, judge, save."""
        self._check_out()
        objective = objective_of(
            self.defense,
            self.adversarial_regularization,
            self.distillation,
            self.recipe.label_smoothing,
            self.adversarial_training,
        )
        with watching() as observer:
            device, threads = self.machine.set_up(observer)
            from casemate.cli import trained, training
            from casemate.tables import check_format

            check_format(self.history)
            ready = training.prepare(
                asdict(self.recipe),
                objective,
                architecture=self.architecture,
                dataset=self.dataset,
                data_dir=self.data_dir,
                start=self.start,
                teacher=self.distillation.teacher,
                seed=self.seed,
                out=self.out,
                device=device,
                threads=threads,
                observer=observer,
            )
            if self.dry_run:
                show = partial(trained.show_estimate, ready, training.estimate(ready, observer))
            else:
                check_folder(self.out.parent)
                show = partial(trained.show, ready, training.train(ready, self.checkpoint, self.history, observer))
        show(as_json=self.json)

    def _check_out(self) -> None:
        """Refuse, before anything is loaded, an OUT that cannot be written or would be lost."""
        if self.out.suffix != ".safetensors":
            raise ModelError(f"{self.out}: models are saved as .safetensors; choose an --out with that ending")
        if self.out.is_dir():
            raise ModelError(f"{self.out} is a folder; name a file")
        for role, held in (("start", self.start), ("teacher", self.distillation.teacher)):
            if held is not None and held.resolve() == self.out.resolve():
                raise SettingError(f"{self.out} is the --{role} itself, which must stay; choose another --out")
        beside = (self.out.with_suffix(".json"), self.out.with_suffix(f".history.{self.history}"))
        if not (self.checkpoint.exists() or self.overwrite or self.dry_run):
            for path in (self.out, *beside):
                if path.exists():
                    raise SettingError(f"{path} exists already; {WAY_OUT}")
