"""`casemate train`: train a network, with checkpoints, and judge it on the test images."""

from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from casemate.cli.observers import watching
from casemate.cli.options import DataDir, DatasetName, Flag, Json, Machine, Seed, check_folder
from casemate.errors import ModelError, SettingError


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
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes."""
    augment: Annotated[
        tuple[
            Literal[
                "alternating-flip",
                "flip",
                "shift",
                "affine",
                "gaussian-blur",
                "gaussian-noise",
                "speckle",
                "salt-and-pepper",
            ],
            ...,
        ],
        arg(metavar="NAME ...", help_behavior_hint="(default: none)"),
    ] = ()
    """Change the training images, in this order: alternating-flip, flip, shift (by up to one pixel), affine (rotation
    15 degrees, shift and scale 0.1), gaussian-blur, gaussian-noise, speckle, salt-and-pepper."""
    train_images: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")] = None
    """Train on a stratified draw of N images."""
    validation_images: Annotated[
        int | None, arg(metavar="N", help_behavior_hint="(default: 6000, or a fifth of fewer)")
    ] = None
    """Images of the training part set aside for validation."""


@dataclass(frozen=True, kw_only=True)
class Train:
    r"""Train a network and judge it on the test images.
    - Writes OUT, a JSON file beside it that says what it is, and its history.
    - OUT.training keeps the state after every epoch: after a kill or Ctrl-C the
      same command goes on from there.

    Examples:
      casemate train --epochs 5 --out first.safetensors
      casemate train --optimizer adam --batch-size 64 --learning-rate 2e-3 \
          --schedule one-cycle --ema 0.999 --augment alternating-flip
      casemate train --dataset digits --epochs 3 --device cpu
    """

    architecture: str = "paper-cnn"
    """A registered network; `casemate info` lists them."""
    dataset: DatasetName = "fashion-mnist"
    """The images."""
    out: Annotated[Path, arg(metavar="FILE")] = Path("model.safetensors")
    """Where the model goes."""
    overwrite: Flag = False
    """Replace a finished model in OUT."""
    history: Literal["csv", "parquet"] = "csv"
    """Format of the history beside the model."""
    seed: Seed = 0
    data_dir: DataDir = None
    dry_run: Flag = False
    """Train nothing: say what would be trained, and the time it would take."""
    json: Json = False
    recipe: Recipe = field(default_factory=Recipe)
    machine: Machine = field(default_factory=Machine)

    @property
    def checkpoint(self) -> Path:
        """Where the state between epochs lies while it trains."""
        return self.out.with_name(f"{self.out.name}.training")

    def run(self) -> None:
        """Train, judge, save."""
        self._check_out()
        with watching() as observer:
            device, threads = self.machine.set_up(observer)
            from casemate import data
            from casemate.cli import training

            with observer.work("Reading the images", 0):
                dataset = data.load(self.dataset, self.data_dir, observer=observer)
            recipe = asdict(self.recipe)
            ready = training.prepare(self.architecture, dataset, recipe, self.seed, self.out, device, threads)
            if self.dry_run:
                show = partial(training.show_estimate, ready, training.estimate(ready, observer))
            else:
                check_folder(self.out.parent)
                show = partial(training.show, ready, training.train(ready, self.checkpoint, self.history, observer))
        show(as_json=self.json)

    def _check_out(self) -> None:
        """Refuse, before anything is loaded, an OUT that cannot be written or would be lost."""
        if self.out.suffix != ".safetensors":
            raise ModelError(f"{self.out}: models are saved as .safetensors; choose an --out with that ending")
        if self.out.is_dir():
            raise ModelError(f"{self.out} is a folder; name a file")
        if self.out.exists() and not (self.checkpoint.exists() or self.overwrite or self.dry_run):
            raise SettingError(f"{self.out} exists already; choose another --out, or give --overwrite to replace it")
