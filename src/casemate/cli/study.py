"""`casemate study`: run the study, or say what running it would take."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from casemate.cli import outputs
from casemate.cli.observers import watching
from casemate.cli.options import Flag, Json, Machine, Selection, check_folder
from casemate.cli.outputs import Overwrite
from casemate.errors import StoreError
from casemate_study.experiments.catalogue import choose


@dataclass(frozen=True, kw_only=True)
class Study:
    """Reproduce the paper's study: train, attack, report.
    - Every finished artifact is kept at once and never computed twice: after a kill
      or Ctrl-C the same command goes on from there.
    - At the end there is a report, one HTML file; its main numbers are printed.

    Examples:
      casemate study --scale smoke             does everything run? minutes
      casemate study --scale full --dry-run    what would it take?
      casemate study --only E2 E3              two experiments, quick scale
    """

    selection: Selection = field(default_factory=Selection)
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: runs/study-SCALE)")] = None
    """Where the report goes."""
    overwrite: Overwrite = False
    no_report: Flag = False
    """Compute only; `casemate report` makes the report later."""
    dry_run: Flag = False
    """Compute nothing: list the artifacts, what is finished, and the time the rest would take."""
    json: Json = False
    machine: Machine = field(default_factory=Machine)

    def run(self) -> None:
        """Run the study, or plan it."""
        choose(self.selection.only)
        out = self.out or self.selection.default_out()
        if self.dry_run and out.exists() and not out.is_dir():
            raise StoreError(f"{out} is a file, but a folder is expected there: choose another --out")
        if not self.dry_run and not self.no_report:
            check_folder(out)
        with watching() as observer:
            device, threads = self.machine.set_up(observer)
            from casemate.cli import studying

            study = studying.plan(self.selection, device, observer)
            if self.dry_run:
                show = partial(studying.show_plan, study, studying.measure(study, observer))
            else:
                report = None if self.no_report else out
                if report is not None:
                    outputs.check_report(report, studying.identity(study), overwrite=self.overwrite, observer=observer)
                show = partial(
                    studying.show_results, study, studying.compute(study, self.selection, threads, report, observer)
                )
        show(as_json=self.json)
