"""`casemate attack`: attack a saved model over a range of eps."""

from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from casemate.cli import outputs
from casemate.cli.observers import watching
from casemate.cli.options import DataDir, DatasetName, Flag, Json, Machine, Seed, at_least_one, check_folder
from casemate.cli.outputs import Overwrite
from casemate.errors import SettingError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The attack's own settings; what is not given is the attack's default."""

    steps: Annotated[int | None, arg(metavar="N", help_behavior_hint="(bim, mifgsm: 10; pgd: 40)")] = None
    """Iterations."""
    step_size: Annotated[
        str | None, arg(metavar="X", help_behavior_hint="(bim: eps / 4; pgd: 2.5 eps / steps; mifgsm: eps / steps)")
    ] = None
    """Length of each, such as 0.01 or 2/255."""
    clip: Annotated[Literal["ball", "range"] | None, arg(help_behavior_hint="(bim: ball)")] = None
    """ball: stay within eps of the image; range: only within the pixels' bounds."""
    norm: Annotated[Literal["linf", "l2", "l1"] | None, arg(help_behavior_hint="(linf)")] = None
    """Norm in which eps is measured."""
    loss: Annotated[Literal["ce", "torch-ce", "prob-ce", "margin", "dlr"] | None, arg(help_behavior_hint="(ce)")] = None
    """What is ascended: ce is accurate, torch-ce and prob-ce can vanish."""
    restarts: Annotated[int | None, arg(metavar="N", help_behavior_hint="(pgd: 1)")] = None
    """Runs from fresh random starts."""
    decay: Annotated[float | None, arg(metavar="X", help_behavior_hint="(mifgsm: 1)")] = None
    """Decay of the accumulated gradient."""


@dataclass(frozen=True, kw_only=True)
class Randomised:
    """For models that answer at random: the same image gets another answer each time."""

    inference: Annotated[
        Literal["stochastic-affine", "noise"] | None, arg(help_behavior_hint="(default: the model as it is)")
    ] = None
    """stochastic-affine: move every image at random before the model sees it; noise: leave the model's noise layers on,
    as while training."""
    draws: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: one draw)")] = None
    """Follow the mean gradient of N draws (expectation over transformation)."""


@dataclass(frozen=True, kw_only=True)
class Attack:
    r"""Attack a saved model and tell the accuracy that is left.
    - Worst: an image is lost if any iterate at this or a smaller eps fools the
      model. Last: only the last iterate counts, as in other tools.

    Examples:
      casemate attack model.safetensors --attack fgsm --eps 0.01 0.05 0.1
      casemate attack model.safetensors --attack pgd --eps 8/255 --restarts 5
      casemate attack model.safetensors --eps 0.1 --target Shirt --out shirts
      casemate attack model.safetensors --attack bim --eps 0.05 0.1 \
          --inference stochastic-affine --draws 10
    """

    model: Positional[Path]
    """A .safetensors file written by casemate, with its JSON file beside it."""
    attack: Literal["fgsm", "bim", "pgd", "mifgsm"] = "pgd"
    """The attack."""
    eps: Annotated[tuple[str, ...], arg(metavar="EPS ...")] = ("0.01", "0.025", "0.05", "0.1")
    """Radii in units of pixels within [0, 1]; fractions such as 8/255 are fine."""
    target: Annotated[str | None, arg(metavar="CLASS", help_behavior_hint="(default: any wrong class)")] = None
    """Class, by name or number, that the images not of it are to be taken for."""
    images: Annotated[int, arg(metavar="N")] = 1000
    """Attack the first N test images."""
    dataset: Annotated[DatasetName | None, arg(help_behavior_hint="(default: the one the model was trained on)")] = None
    """The images."""
    data_dir: DataDir = None
    seed: Seed = 0
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: nothing is written)")] = None
    """Write result.json, examples.parquet (or .csv) and adversarial.safetensors here."""
    overwrite: Overwrite = False
    dry_run: Flag = False
    """Attack nothing: say what would be attacked, at what cost."""
    json: Json = False
    settings: Settings = field(default_factory=Settings)
    randomised: Randomised = field(default_factory=Randomised)
    machine: Machine = field(default_factory=Machine)

    def run(self) -> None:
        """Attack, print, write."""
        at_least_one("images", self.images)
        if not self.eps:
            raise SettingError("no eps; give at least one, such as --eps 8/255")
        if self.out is not None and not self.dry_run:
            check_folder(self.out)
        inference, draws = self.randomised.inference, self.randomised.draws
        with watching() as observer:
            device, threads = self.machine.set_up(observer)
            from casemate.cli import attacked, attacking

            ready = attacking.prepare(
                self.model,
                attacking.make(self.attack, self.eps, asdict(self.settings), inference=inference, draws=draws),
                inference=inference,
                dataset=self.dataset,
                data_dir=self.data_dir,
                images=self.images,
                target=self.target,
                seed=self.seed,
                device=device,
                observer=observer,
            )
            if self.dry_run:
                show = partial(attacked.show_estimate, ready)
            else:
                if self.out is not None:
                    ready = attacking.with_hashes(ready)
                    outputs.check_results(self.out, ready.about, overwrite=self.overwrite, observer=observer)
                found = attacking.attack(ready, keep=self.out is not None, observer=observer)
                show = partial(attacked.show, ready, found)
                if self.out is not None:
                    written = attacking.write(self.out, ready, found, threads)
                    observer.message(f"Written to {self.out}: {', '.join(written)}")
        show(as_json=self.json)
