"""The options of `casemate harden`, and how it runs; those of the training are the fields of `TrainConfig`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, make_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from casemate.cli import harden as command
from casemate.cli.harden.request import HardenImages, HardenRequest
from casemate.cli.shared import parsing
from casemate.cli.shared.dataclass_options import chosen_settings, options_of
from casemate.cli.shared.observers import watching
from casemate.cli.shared.options import Flag, Json, Machine, Reading, at_least_one, check_folder
from casemate.cli.shared.outputs import Overwrite
from casemate.cli.shared.tracking import Track, check_trackers, tracking
from casemate.hardening import FINE_TUNING
from casemate.training import TrainConfig

_NO_OPTIONS = {"seed", "patience", "continue_after_stop", "save_epochs", "monitor", "keep_best", "guard"}
"""Fields of `TrainConfig` that are no options here: the epoch is chosen in another way, and --seed is shared."""


@dataclass(frozen=True, kw_only=True)
class AbstractHardenCommand:
    """The options that are no settings of the training, and how the command runs."""

    hardening: Annotated[HardenRequest, arg(name="")]
    images: HardenImages = field(default_factory=HardenImages)
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: runs/harden-MODEL)")] = None
    """The folder for the files."""
    overwrite: Overwrite = False
    dry_run: Flag = False
    """Train and attack nothing; print the settings, and the time that each step would take."""
    json: Json = False
    track: Track = ()
    training: Any  # those of `casemate.training.TrainConfig`
    reading: Reading = field(default_factory=Reading)
    machine: Machine = field(default_factory=Machine)

    def run(self) -> None:
        """Evaluate, fine-tune, evaluate again, write the files, print the result; with --dry-run only the plan."""
        for name in ("images", "train_images"):
            at_least_one(name.replace("_", "-"), getattr(self.images, name))
        at_least_one("steps", self.hardening.steps)
        if self.out is not None and not self.dry_run:
            check_folder(self.out)
        check_trackers(self.track)
        with watching() as observer:
            device, _ = self.machine.set_up(observer)
            from casemate.cli.harden import run, show

            settings = _fine_tuning(self.training)
            plan = run.prepare(self.hardening, self.images, self.reading, settings, device, observer)
            if self.dry_run:
                display = partial(show.show_harden_plan, plan, run.estimate_steps(plan, observer))
            else:
                out = self.out or Path("runs") / f"harden-{plan.model.short}"
                check_folder(out)
                with tracking(
                    self.track,
                    observer,
                    name=f"harden-{plan.model.short}",
                    folder=out / "tensorboard",
                    settings=plan.about(),
                    pictures=not self.hardening.no_images,
                ) as tracked:
                    found = run.run(plan, out, overwrite=self.overwrite, observer=tracked)
                    run.write(plan, found, out, overwrite=self.overwrite, observer=tracked)
                display = partial(show.show, found, plan, out)
        display(as_json=self.json)


def parse(argv: Sequence[str]) -> AbstractHardenCommand:
    """The command `casemate harden` with its options, parsed from `argv`, the arguments after the command's name."""
    return parsing.parse(_command(), "casemate harden", command.__doc__ or "", argv)


def _fine_tuning(options: Any) -> TrainConfig:
    """The settings of the training; --swa-start replaces the moving average that is there by default."""
    chosen = chosen_settings(options)
    if chosen["swa_start"] is not None and chosen["ema"] == FINE_TUNING.ema:
        chosen["ema"] = None
    return TrainConfig(**chosen)


def _command() -> type[AbstractHardenCommand]:
    """The dataclass of the command: its own options, and those of the training with the defaults of fine-tuning."""
    training = options_of(
        TrainConfig,
        skip=_NO_OPTIONS,
        defaults=asdict(FINE_TUNING),
        words="The fine-tuning, of the control too. --swa-start replaces the default of --ema.",
    )
    fields: list[Any] = [("training", training, field())]
    return make_dataclass("HardenCommand", fields, bases=(AbstractHardenCommand,), frozen=True, kw_only=True)
