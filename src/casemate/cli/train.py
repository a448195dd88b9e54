"""`casemate train`: train a network, with checkpoints, and judge it on the test images."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.markup import escape
from rich.table import Table
from tyro.conf import arg

from casemate.cli import console
from casemate.cli.options import DataDir, DatasetName, Flag, Json, Machine, Seed, at_least_one, check_folder
from casemate.errors import ModelError, SettingError
from casemate.progress import Observer

if TYPE_CHECKING:
    from casemate.data import Dataset, LabelledImages
    from casemate.evaluate import CleanResult
    from casemate.train import Trained, Training

_VALIDATION = 6000
_COLUMNS = ("epoch", "learning_rate", "loss", "accuracy", "val_loss", "val_accuracy", "seconds")


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
        tuple[Literal["alternating-flip", "shift"], ...],
        arg(metavar="{alternating-flip,shift} ...", help_behavior_hint="(default: none)"),
    ] = ()
    """Change the training images, in this order; shift moves them by up to one pixel."""
    train_images: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")] = None
    """Train on a stratified draw of N images."""
    validation_images: Annotated[
        int | None, arg(metavar="N", help_behavior_hint="(default: 6000, or a fifth of fewer)")
    ] = None
    """Images of the training part set aside for validation."""

    def training(self, seed: int) -> "Training":
        """The settings as the loop takes them. Raises `SettingError`."""
        from casemate.train import Training

        own = ("epochs", "batch_size", "optimizer", "learning_rate", "schedule", "weight_decay", "patience", "ema")
        return Training(seed=seed, **{name: getattr(self, name) for name in own})

    def parts(self, dataset: "Dataset", seed: int) -> "tuple[LabelledImages, LabelledImages]":
        """Training and validation images, drawn as the study draws them. Raises `SettingError`."""
        from casemate import data

        at_least_one("train-images", self.train_images)
        at_least_one("validation-images", self.validation_images)
        there, wanted, aside = len(dataset.train), self.train_images, self.validation_images
        if aside is None:
            aside = min(_VALIDATION, there // 5 if wanted is None else max(1, wanted // 4))
        if wanted is not None and wanted + aside > there:
            raise SettingError(f"{wanted} training and {aside} validation images, but {dataset.title} has {there}")
        pool = dataset.train if wanted is None else data.subset(dataset.train, wanted + aside, seed)
        return data.split(pool, aside, seed)


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

    def run(self) -> None:
        """Train, judge, save."""
        checkpoint = self.out.with_name(f"{self.out.name}.training")
        self._check_out(checkpoint)
        with console.observer() as observer:
            device, threads = self.machine.set_up(observer)
            from casemate import data
            from casemate.models import create
            from casemate.train import CrossEntropy

            settings = self.recipe.training(self.seed)
            objective = CrossEntropy(label_smoothing=self.recipe.label_smoothing)
            with observer.work("Reading the images", 0):
                dataset = data.load(self.dataset, self.data_dir, observer=observer)
            train, validation = self.recipe.parts(dataset, self.seed)
            model = create(self.architecture, input_shape=dataset.image_shape, classes=dataset.classes, seed=self.seed)
            about: dict[str, Any] = {
                "architecture": self.architecture,
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "dataset": dataset.name,
                "train_images": len(train),
                "validation_images": len(validation),
                "test_images": len(dataset.test),
                "epochs": settings.epochs,
                "device": device,
                "threads": threads,
                "out": str(self.out),
            }
            if self.dry_run:
                self._estimate(about, (len(train) + len(validation)) * settings.epochs, dataset, device, observer)
                return
            check_folder(self.out.parent)
            from casemate.evaluate import evaluate_clean
            from casemate.study.training import AUGMENTATIONS
            from casemate.train import fit

            trained = fit(
                model,
                train,
                validation,
                settings,
                objective=objective,
                augment=[AUGMENTATIONS[name]() for name in self.recipe.augment],
                checkpoint=checkpoint,
                device=device,
                observer=observer,
            )
            found = evaluate_clean(trained.model, dataset.test, observer=observer)
            history = self._save(trained, found, device, threads)
        checkpoint.unlink(missing_ok=True)
        result = {"accuracy": found.accuracy.as_json(), "loss": found.mean_loss.as_json()}
        if self.json:
            ends = {"best_epoch": trained.best_epoch, "stopped_at": trained.stopped_at}
            console.show_json(about | result | ends | {"history": trained.history})
            return
        accuracy, loss = console.interval(result["accuracy"]), console.interval(result["loss"], scale=1, digits=4)
        stopped = f", stopped after epoch {trained.stopped_at}" if trained.stopped_at is not None else ""
        console.show(
            _history_table(trained.history),
            f"Lowest validation loss after epoch {trained.best_epoch}{stopped}.",
            f"Test accuracy {accuracy} %, loss {loss}; 95 % intervals, n = {len(dataset.test):,}.",
            f"Model: {escape(str(self.out))}   History: {escape(str(history))}",
        )

    def _check_out(self, checkpoint: Path) -> None:
        """Refuse, before anything is loaded, an OUT that cannot be written or would be lost."""
        if self.out.suffix != ".safetensors":
            raise ModelError(f"{self.out}: models are saved as .safetensors; choose an --out with that ending")
        if self.out.is_dir():
            raise ModelError(f"{self.out} is a folder; name a file")
        if self.out.exists() and not checkpoint.exists() and not self.overwrite:
            raise SettingError(f"{self.out} exists already; choose another --out, or give --overwrite to replace it")

    def _estimate(
        self, about: dict[str, Any], passes: int, dataset: "Dataset", device: str, observer: Observer
    ) -> None:
        from casemate.study.speed import measure_speed

        known = self.architecture == "paper-cnn"
        with observer.work("Measuring how fast this machine is", 0):
            seconds = passes * measure_speed(dataset.image_shape, device).training if known else None
        if self.json:
            console.show_json(about | {"seconds_left": seconds})
            return
        made = console.table("Setting", "Value", title="Would be trained")
        for name, value in about.items():
            made.add_row(name.replace("_", " "), escape(f"{value:,}" if isinstance(value, int) else str(value)))
        time = "not known for this network" if seconds is None else f"about {console.duration(seconds)}"
        made.add_row("time", time)
        console.show(made)

    def _save(self, trained: "Trained", found: "CleanResult", device: str, threads: int) -> Path:
        """Write the model, its sidecar and its history; return the latter's path."""
        import polars

        from casemate.engine.provenance import surroundings
        from casemate.files import writing
        from casemate.models import Description, save

        description = Description(
            architecture=self.architecture,
            dataset=self.dataset,
            recipe=asdict(self.recipe) | {"augment": list(self.recipe.augment)},
            seed=self.seed,
            metrics={
                "test_accuracy": found.accuracy.as_json(),
                "test_loss": found.mean_loss.as_json(),
                "best_epoch": trained.best_epoch,
                "stopped_at": trained.stopped_at,
                "provenance": surroundings(device, threads),
            },
        )
        path = self.out.with_suffix(f".history.{self.history}")
        rows = polars.DataFrame(trained.history).select(_COLUMNS)
        with writing(path) as temporary:
            rows.write_csv(temporary) if self.history == "csv" else rows.write_parquet(temporary)
        save(trained.model.cpu(), self.out, description)
        return path


def _history_table(history: list[dict[str, Any]]) -> Table:
    """One row per epoch."""
    made = console.table(
        *console.right("Epoch", "Rate", "Loss", "Accuracy", "Val. loss", "Val. accuracy", "Seconds"),
    )
    for row in history:
        made.add_row(
            str(row["epoch"]),
            f"{row['learning_rate']:.2e}",
            f"{row['loss']:.4f}",
            f"{console.percent(row['accuracy'])} %",
            f"{row['val_loss']:.4f}",
            f"{console.percent(row['val_accuracy'])} %",
            f"{row['seconds']:.1f}",
        )
    return made
