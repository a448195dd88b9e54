"""`casemate evaluate`: how robust a model is, and whether the answer can be trusted."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from casemate.cli import outputs
from casemate.cli.console import Unmet
from casemate.cli.observers import watching
from casemate.cli.options import (
    DataDir,
    DataFile,
    DatasetName,
    Flag,
    Json,
    Machine,
    ModelFrom,
    Seed,
    at_least_one,
    check_folder,
    number,
)
from casemate.cli.outputs import Overwrite
from casemate.errors import SettingError

EPS = {"linf": "0.1", "l2": "1", "l1": "10"}
"""What is taken if no eps is given: the study's 0.1, and radii that hurt images of 28 x 28 pixels about as much."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    r"""Tell how robust a model is, and whether the answer can be trusted.
    - Every attack of the budget runs on the images that those before it left
      right; what no attack fools counts as robust. Then checks look for
      reasons not to believe the number. None of them can be hidden.
    - Writes report.html, result.json, examples.parquet (without the extra
      `tables` examples.csv), and a record of the adversarial examples that
      others can check with `casemate verify`.
    - Says beforehand what each budget takes at most. An evaluation that is
      stopped leaves nothing. What another one left in OUT is not replaced.

    Examples:
      casemate evaluate model.safetensors --budget quick
      casemate evaluate model.safetensors --eps 4/255 8/255 --images 1000
      casemate evaluate --model-from mine.nets:load --data mine.npz --norm l2
      casemate evaluate model.safetensors --fail-under 0.6 --json
    """

    model: Annotated[Positional[Path | None], arg(metavar="MODEL", help_behavior_hint="")] = None
    """A .safetensors file written by casemate, with its JSON file beside it."""
    model_from: ModelFrom = None
    dataset: Annotated[DatasetName | None, arg(help_behavior_hint="(default: the one the model was trained on)")] = None
    """The images."""
    data: DataFile = None
    data_dir: DataDir = None
    images: Annotated[int, arg(metavar="N")] = 500
    """Take the first N images."""
    norm: Literal["linf", "l2", "l1"] = "linf"
    """Norm in which eps is measured."""
    eps: Annotated[tuple[str, ...], arg(metavar="EPS ...", help_behavior_hint="(default: 0.1 linf, 1 l2, 10 l1)")] = ()
    """Radii in units of pixels within [0, 1]; fractions such as 8/255 are fine. The checks are made at the largest."""
    budget: Literal["quick", "standard", "thorough"] = "standard"
    """How hard to try; standard is AutoAttack, quick only a first look."""
    thorough: Flag = False
    """Also make the checks that take minutes, whatever the budget."""
    substitute: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: none)")] = None
    """An undefended saved model for the same images, for the checks that need one."""
    fail_under: Annotated[str | None, arg(metavar="X", help_behavior_hint="(default: never)")] = None
    """Exit with 3 if the robust accuracy at the largest eps is not to be trusted, or the lower end of its 95 % interval
    is below X, a share such as 0.6."""
    fail_by: Literal["lower", "estimate"] = "lower"
    """What --fail-under compares: the lower end of the interval, or the estimate itself."""
    borders: Annotated[tuple[str, ...], arg(metavar="B W R", help_behavior_hint="(default: 0.1 0.5 0.9)")] = ()
    """Grades, by the share of right images that withstood everything: broken under B, weak under W, partly robust from
    W, robust as far as tested from R."""
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: runs/evaluate-MODEL)")] = None
    """Where the files go."""
    overwrite: Overwrite = False
    precision: Literal["float32", "bfloat16"] = "float32"
    """In which attacks within a ball look for their way: bfloat16 is much faster on some processors. Whether an image
    fools is always said in float32."""
    seed: Seed = 0
    dry_run: Flag = False
    """Evaluate nothing: say what would be done, and the time that each budget takes at most."""
    json: Json = False
    machine: Machine = field(default_factory=Machine)

    def run(self) -> None:
        """Evaluate, write, print. Raises `Unmet` if it was asked for and the model falls short."""
        at_least_one("images", self.images)
        least, borders = self._least(), self._borders()
        if self.out is not None and not self.dry_run:
            check_folder(self.out)
        with watching() as observer:
            device, threads = self.machine.set_up(observer)
            from casemate.cli import evaluated, evaluating

            ready = evaluating.prepare(
                evaluating.Asked(
                    model=self.model,
                    model_from=self.model_from,
                    file=self.data,
                    dataset=self.dataset,
                    data_dir=self.data_dir,
                    images=self.images,
                    norm=self.norm,
                    eps=self.eps or (EPS[self.norm],),
                    budget=self.budget,
                    thorough=self.thorough,
                    substitute=self.substitute,
                    precision=self.precision,
                    seed=self.seed,
                    borders=borders,
                ),
                device,
                observer,
            )
            if self.dry_run:
                evaluated.show_times(ready, as_json=self.json)
                return
            out = self.out or Path("runs") / f"evaluate-{ready.model.short}"
            check_folder(out)
            outputs.check_results(out, ready.about(), overwrite=self.overwrite, observer=observer)
            observer.message(evaluated.announced(ready))
            found = evaluating.run(ready, observer)
            result = evaluating.write(out, ready, found, threads, observer)
            show = partial(evaluated.show, result, out)
        show(as_json=self.json)
        verdict = found.verdict
        if least is None:
            return
        if not verdict.trust.trusted:
            raise Unmet(f"--fail-under {self.fail_under}: {verdict.sentence}")
        robust = verdict.number.robust
        compared = robust.low if self.fail_by == "lower" else robust.value
        if compared < least:
            lower = "the lower end of the 95 % interval of " if self.fail_by == "lower" else ""
            raise Unmet(
                f"{lower}robust accuracy at eps {verdict.eps:g}, {compared:.4g}, is below {self.fail_under} (estimate "
                f"{robust.value:.4g}, n = {robust.n:,})"
            )

    def _borders(self) -> tuple[float, ...]:
        """The borders between grades; none for those of the convention."""
        if self.borders and len(self.borders) != 3:
            raise SettingError(f"borders {' '.join(self.borders)}; expected three shares, such as 0.1 0.5 0.9")
        return tuple(number("borders", text) for text in self.borders)

    def _least(self) -> float | None:
        """The robust accuracy that is asked for."""
        if self.fail_under is None:
            return None
        least = number("fail-under", self.fail_under)
        if not 0 <= least <= 1:
            raise SettingError(f"fail-under {self.fail_under}; expected a share from 0 to 1, such as 0.6")
        return least
